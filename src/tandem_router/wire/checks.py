"""The words of validation: each takes a field's path and value and returns the value, or raises with path and rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import WorkerId, canonical_uuid

__all__ = [
    "MAX_DURATION_S",
    "at_most",
    "duration",
    "invalid",
    "not_yet",
    "number",
    "present",
    "refuse_room",
    "refuse_unless_default",
    "text",
    "text_map",
    "worker_id",
]

MAX_DURATION_S = 30 * 86400.0
"""Thirty days: no limit of ours is longer, and below it float seconds keep every nanosecond."""

Number = TypeVar("Number", int, float)


def invalid(path: str, sentence: str) -> TandemError:
    """The error of a field outside its documented range."""
    return TandemError(Reason.INVALID_REQUEST, sentence, field=path)


def not_yet(path: str, sentence: str = "") -> TandemError:
    """The error of a field or rpc that the schema has and this release does not carry out."""
    what = sentence or "This release does not carry the field out; leave it out."
    return TandemError(Reason.FEATURE_NOT_IMPLEMENTED, what, field=path, metadata={"field": path})


def present(message: Message, field: str) -> bool:
    """Whether an optional field or a member of a oneof is set."""
    return message.HasField(field)


def refuse_unless_default(path: str, value: object, default: object) -> None:
    """Refuse a field that is not carried out, except where it asks for what happens anyway."""
    if value != default:
        raise not_yet(path)


def refuse_room(path: str, values: Mapping[str, str]) -> None:
    """Raise CLIENT_SUPPLIED_ROOM where free text names a bootstrap room, as clients of other routers send one.

    It would go nowhere; who sends it believes otherwise.
    """
    for key in values:
        if key.lower().replace("-", "_") == "bootstrap_room":
            sentence = "Bootstrap rooms are minted by the router alone; leave it out."
            raise TandemError(Reason.CLIENT_SUPPLIED_ROOM, sentence, field=f"{path}[{key}]")


def number(
    path: str,
    value: Number,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Number:
    """`value` if finite, >= least, <= most and > above, as far as these are given."""
    rules = []
    if not math.isfinite(value):
        rules.append("be finite")
    if least is not None and value < least:
        rules.append(f"be at least {least:g}")
    if above is not None and value <= above:
        rules.append(f"be above {above:g}")
    if most is not None and value > most:
        rules.append(f"be at most {most:g}")
    if rules:
        raise invalid(path, f"It is {value:g} and must {' and '.join(rules)}.")
    return value


def text(path: str, value: str, *, least: int = 0, most: int, in_bytes: bool = False) -> str:
    """`value` if its length in characters (or UTF-8 bytes) is in [least, most]."""
    length = len(value.encode()) if in_bytes else len(value)
    if not least <= length <= most:
        unit = "bytes" if in_bytes else "characters"
        raise invalid(path, f"It has {length} {unit} and must have {least} to {most}.")
    return value


def text_map(path: str, value: Mapping[str, str], *, most: int, key_most: int, value_most: int) -> dict[str, str]:
    """A map of free text within its limits; keys have at least one character."""
    at_most(path, value, most)
    for key, entry in value.items():
        text(f"{path} key", key, least=1, most=key_most)
        text(f"{path}[{key}]", entry, most=value_most)
    return dict(value)


def at_most(path: str, values: Iterable[object], most: int) -> None:
    """Refuse a list or map with more than `most` entries."""
    count = len(list(values))
    if count > most:
        raise invalid(path, f"It has {count} entries and may have at most {most}.")


def duration(
    message: Message,
    path: str,
    value: Duration,
    *,
    least_s: float = 0.0,
    above_zero: bool = False,
    most_s: float = MAX_DURATION_S,
) -> float | None:
    """Seconds of a Duration field of `message`, whose name is the path's last part; None when it is absent."""
    if not message.HasField(path.rpartition(".")[2]):
        return None
    seconds = (value.seconds * 10**9 + value.nanos) / 1e9
    return number(path, seconds, least=least_s, above=0.0 if above_zero else None, most=most_s)


def worker_id(path: str, value: str) -> WorkerId:
    """The canonical form of a worker's id."""
    canonical = canonical_uuid(value)
    if canonical is None:
        raise TandemError(Reason.INVALID_WORKER_ID, f'"{value[:64]}" is not a UUID.', field=path)
    return WorkerId(canonical)
