"""`server_args`: the Struct in which some engines publish how they were started. Odd values are not said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from tandem_router.model.pairing import BootstrapEndpoint
from tandem_router.model.spec import WorkerType

__all__ = ["MODES", "arguments", "bootstrap_of", "flag", "integer", "text"]

MODES: Mapping[str, WorkerType] = {"prefill": WorkerType.PREFILL, "decode": WorkerType.DECODE}
"""By `disaggregation_mode`; "null" is no leg."""


def arguments(server_info: Any) -> Mapping[str, Any]:
    """The arguments by name."""
    found: Mapping[str, Any] = MessageToDict(server_info.server_args)
    return found


def text(args: Mapping[str, Any], name: str) -> str | None:
    """A text that is not empty."""
    value = args.get(name)
    return value if isinstance(value, str) and value else None


def integer(args: Mapping[str, Any], name: str) -> int | None:
    """A number above 0; a Struct holds it as a double."""
    value = args.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def flag(args: Mapping[str, Any], name: str) -> bool:
    """Whether it is set to true."""
    return args.get(name) is True


def bootstrap_of(args: Mapping[str, Any], mode: WorkerType | None) -> BootstrapEndpoint | None:
    """Where a prefill worker's partners knock. It does not know its own host: the registration fills that in."""
    port = integer(args, "disaggregation_bootstrap_port")
    return BootstrapEndpoint("", port) if mode is WorkerType.PREFILL and port else None
