"""`server_args`: the Struct in which some engines publish how they were started. Odd values are not said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem_router.model.pairing import BootstrapEndpoint
from tandem_router.model.spec import WorkerType

__all__ = ["MODES", "arguments", "bootstrap_of", "flag", "integer", "text"]

_INT32_MAX = 2**31 - 1
"""The protocols' own fields for such numbers are int32."""
MODES: Mapping[str, WorkerType] = {"prefill": WorkerType.PREFILL, "decode": WorkerType.DECODE}
"""By `disaggregation_mode`; "null" is no leg."""


def arguments(server_info: Any) -> Mapping[str, Any]:
    """The arguments by name, without those that are null; of a list or an object only its emptiness is of use.

    Read one by one: protobuf's own conversion fails for all of them where a single one is infinite or NaN.
    """
    found: dict[str, Any] = {}
    for name, value in server_info.server_args.fields.items():
        kind = value.WhichOneof("kind")
        if kind in ("string_value", "number_value", "bool_value"):
            found[name] = getattr(value, kind)
        elif kind == "list_value":
            found[name] = value.list_value.values
        elif kind == "struct_value":
            found[name] = value.struct_value.fields
    return found


def text(args: Mapping[str, Any], name: str) -> str | None:
    """A text that is not empty."""
    value = args.get(name)
    return value if isinstance(value, str) and value else None


def integer(args: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0 that int32 holds; a Struct has it as a double."""
    value = args.get(name)
    return int(value) if isinstance(value, float) and 1 <= value <= _INT32_MAX else None


def flag(args: Mapping[str, Any], name: str) -> bool:
    """Whether it is set to true."""
    return args.get(name) is True


def bootstrap_of(args: Mapping[str, Any], mode: WorkerType | None) -> BootstrapEndpoint | None:
    """Where a prefill worker's partners knock. It does not know its own host: the registration fills that in."""
    port = integer(args, "disaggregation_bootstrap_port")
    return BootstrapEndpoint("", port) if mode is WorkerType.PREFILL and port else None
