"""The form that an answer must have, from the wire. Whether a worker can honour it is decided where one is chosen."""

from __future__ import annotations

from tandem.v1 import sampling_pb2 as pb
from tandem_router.model.request import Constraint, ConstraintKind
from tandem_router.wire.checks import at_most, invalid, text

__all__ = ["constraint_of"]

_MAX_BYTES = 1024 * 1024
"""Of one constraint; those that people write have some kilobytes, and engines compile them before the first token."""


def constraint_of(message: pb.Constraint, path: str = "constraint") -> Constraint:
    """The checked constraint; raises INVALID_REQUEST with the field's path."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid(path, "Set exactly one kind of constraint.")
    if kind == "choice":
        values = message.choice.values
        at_most(f"{path}.choice.values", values, 1024)
        if not values:
            raise invalid(f"{path}.choice.values", "There is no text to choose.")
        choices = tuple(
            text(f"{path}.choice.values[{index}]", value, least=1, most=_MAX_BYTES, in_bytes=True)
            for index, value in enumerate(values)
        )
        if sum(len(choice.encode()) for choice in choices) > _MAX_BYTES:
            raise invalid(f"{path}.choice.values", f"They have over {_MAX_BYTES} bytes together.")
        return Constraint(ConstraintKind.CHOICE, choices=choices)
    value = text(f"{path}.{kind}", getattr(message, kind), least=1, most=_MAX_BYTES, in_bytes=True)
    return Constraint(ConstraintKind[kind.upper()], value)
