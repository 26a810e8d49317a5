"""What a scripted engine saw of each call: the message with its field presence, metadata, deadline, and its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

__all__ = ["Seen", "set_fields"]


@dataclass(slots=True)
class Seen:
    """One call."""

    rpc: str
    """Name of the method."""
    message: Any
    metadata: Mapping[str, str]
    """Text values; the last one where a key came twice."""
    time_left_s: float | None
    """Of the deadline, when the request arrived; None = it has none."""
    began_s: float
    """The loop's clock."""
    ended_s: float | None = None
    was_cancelled: bool = False
    """The client reset it, or its deadline passed."""

    @property
    def is_open(self) -> bool:
        """Whether the call has no status yet."""
        return self.ended_s is None

    @property
    def fields(self) -> frozenset[str]:
        """Paths of the fields that are on the wire, "sampling_params.top_p"."""
        return frozenset(set_fields(self.message))


def set_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Paths of the fields that a message carries; one with presence counts even when it holds its zero."""
    for field, value in message.ListFields():
        path = prefix + field.name
        yield path
        if isinstance(value, Message):
            yield from set_fields(value, path + ".")
