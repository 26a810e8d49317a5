"""The frames that carry KV pages from a prefill engine to the decode engine that knocks.

    decode                         prefill
      | -- KNOCK {key, geometry} --> |     the room may not exist yet: the prefill side waits
      | <-- HEADER {pages, tokens} - |     or REFUSED {reason}
      | <-- PAGE index, bytes, crc - |     x pages, in prompt order
      | <-- END -------------------- |
      | -- ACK --------------------> |     the prefill side frees its pages

A frame is one byte of kind, four bytes of body length (big-endian), the body. Control bodies are JSON objects. One
connection carries one transfer; either side may end it by closing, and the other side then gives up the transfer.
"""

from __future__ import annotations

import asyncio
import enum
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Frame",
    "FrameError",
    "FrameKind",
    "Header",
    "Knock",
    "encode",
    "encode_page",
    "parse_page",
    "read_frame",
    "reason_of",
]

_PREFIX = struct.Struct(">BI")
_PAGE = struct.Struct(">II")
_CRC = struct.Struct(">I")

MAX_BODY = 64 << 20
"""Longest body accepted, in bytes: no page comes near it, so a longer one is a stranger on the port."""


class FrameError(Exception):
    """Bytes that are not this protocol, or a page that was damaged on the way."""


class FrameKind(enum.IntEnum):
    """What a frame says. The numbers are the wire's."""

    KNOCK = 0x4B  # 'K': a stranger's HTTP or TLS bytes begin otherwise
    HEADER = 0x48
    PAGE = 0x50
    END = 0x45
    ACK = 0x41
    REFUSED = 0x52


@dataclass(frozen=True, slots=True)
class Frame:
    kind: FrameKind
    body: bytes


@dataclass(frozen=True, slots=True)
class Knock:
    """What a decode engine asks for: the pages of a room (rendezvous), or of a handle (handoff).

    `pages` is how many pages the decode engine has made room for. `content` is the block hash that their last one must
    have: it covers the tokens and the adapter's weights. `drop` asks to free the pages instead of sending.
    """

    page_size: int
    page_bytes: int
    pages: int
    room: int | None = None
    engine_id: str | None = None
    request_id: str | None = None
    block_ids: tuple[int, ...] = ()
    dp_rank: int | None = None
    content: int | None = None
    drop: bool = False

    def pack(self) -> bytes:
        return encode(FrameKind.KNOCK, asdict(self))

    @classmethod
    def parse(cls, body: bytes) -> Knock:
        """Raises FrameError for anything but a complete knock."""
        raw = _json(body)
        try:
            raw["block_ids"] = tuple(int(block) for block in raw.get("block_ids") or ())
            knock = cls(**raw)
        except (TypeError, ValueError) as error:
            raise FrameError(f"malformed knock: {error}") from None
        numbers = (knock.page_size, knock.page_bytes, knock.pages)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise FrameError(f"malformed knock: geometry {numbers}")
        if (knock.room is None) == (knock.request_id is None):
            raise FrameError("malformed knock: exactly one of room and request_id is wanted")
        return knock


@dataclass(frozen=True, slots=True)
class Header:
    """What will be sent: `pages` pages of `page_bytes` bytes, of a prompt of `tokens` tokens, by rank `dp_rank`."""

    pages: int
    tokens: int
    page_bytes: int
    dp_rank: int

    def pack(self) -> bytes:
        return encode(FrameKind.HEADER, asdict(self))

    @classmethod
    def parse(cls, body: bytes) -> Header:
        """Raises FrameError for anything but a complete header."""
        try:
            return cls(**_json(body))
        except TypeError as error:
            raise FrameError(f"malformed header: {error}") from None


def encode(kind: FrameKind, values: dict[str, Any] | None = None) -> bytes:
    """A control frame; `values` become its JSON body."""
    body = json.dumps(values, separators=(",", ":")).encode() if values else b""
    return _PREFIX.pack(kind, len(body)) + body


def encode_page(index: int, payload: bytes) -> bytes:
    """A PAGE frame: index, length, payload, CRC-32 of the payload."""
    head = _PAGE.pack(index, len(payload))
    crc = _CRC.pack(zlib.crc32(payload))
    return b"".join((_PREFIX.pack(FrameKind.PAGE, len(head) + len(payload) + len(crc)), head, payload, crc))


def parse_page(body: bytes) -> tuple[int, bytes]:
    """Index and payload of a PAGE body. Raises FrameError when the length or the checksum is wrong."""
    if len(body) < _PAGE.size + _CRC.size:
        raise FrameError(f"page frame of {len(body)} bytes")
    index, length = _PAGE.unpack_from(body)
    payload = body[_PAGE.size : -_CRC.size]
    if length != len(payload):
        raise FrameError(f"page {index}: {len(payload)} bytes instead of {length}")
    if zlib.crc32(payload) != _CRC.unpack(body[-_CRC.size :])[0]:
        raise FrameError(f"page {index}: checksum mismatch")
    return index, payload


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises FrameError for foreign bytes, IncompleteReadError or OSError when the peer has gone."""
    kind, length = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
    if length > MAX_BODY:
        raise FrameError(f"frame of {length} bytes; at most {MAX_BODY}")
    try:
        known = FrameKind(kind)
    except ValueError:
        raise FrameError(f"unknown frame kind {kind:#04x}") from None
    return Frame(known, await reader.readexactly(length))


def reason_of(body: bytes) -> str:
    """The reason in a REFUSED body."""
    return str(_json(body).get("reason", "no reason given"))


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise FrameError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FrameError("a JSON object is wanted")
    return value
