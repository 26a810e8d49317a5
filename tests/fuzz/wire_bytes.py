"""Bytes that are nearly messages: fields of a descriptor, encoded one by one so that every one of them can be wrong.

A message object could not hold what a hostile or broken client sends: strings that are not UTF-8, enum values of no
schema, a varint where a message belongs, one half of a message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

__all__ = ["nearly_a_message"]

DEPTH = 4
_VARINTS = (0, 1, 2, 3, 7, 99, 511, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 101.0, 1e-45, 3.4e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "", "a", "tiny", "tiny-alias", "nobody", "hello", "\x00", "\r\n", "\x7f", "é", "\u202e", "👩‍👩‍👧", "\ufffe", " ",
    "00000000-0000-4000-8000-000000000001", "{00000000-0000-4000-8000-000000000001}", "grpc://h:1", "grpc://[::1]:0",
    "grpc://h:99999", "http://h", "grpc://u@h:1/p?q#f", "labels", "health.timeout", "url", "spec.labels", "health.",
    ".", "bootstrap_room", "%s%n", "{0}", "MQ", "bmFuIHg", "====", "a" * 129, "b" * 1100, "c" * 5000,
)  # fmt: skip
_INTS = {
    FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM,
}  # fmt: skip
_FIXED = {
    FieldDescriptor.TYPE_FLOAT: (5, "<f"),
    FieldDescriptor.TYPE_DOUBLE: (1, "<d"),
    FieldDescriptor.TYPE_FIXED32: (5, "<I"),
    FieldDescriptor.TYPE_FIXED64: (1, "<Q"),
}

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def nearly_a_message(draw: Draw, descriptor: Descriptor, valid: Sequence[bytes] = (b"",)) -> bytes:
    """Bytes for a request of this type: often a valid message with odd fields behind it, at times mere noise.

    valid: messages to start from; a later field of the same number wins, as on the wire.
    """
    body: bytes = draw(st.sampled_from(valid)) + _fields(draw, descriptor, DEPTH)
    match draw(st.integers(0, 11)):
        case 5:
            return bytes(draw(st.binary(min_size=1, max_size=64)))
        case 1:
            return body[: draw(st.integers(0, len(body)))]
        case 2:
            at = draw(st.integers(0, len(body)))
            return body[:at] + bytes(draw(st.binary(min_size=1, max_size=4))) + body[at:]
        case 3 if body:
            at = draw(st.integers(0, len(body) - 1))
            return body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
        case 4:
            unknown = draw(st.sampled_from((100, 5000, 19_000, 2**29 - 1)))
            return body + _tag(unknown, 0) + _varint(draw(st.sampled_from(_VARINTS)))
    return body


def _fields(draw: Draw, descriptor: Descriptor, depth: int) -> bytes:
    # A message with many fields of its own deserves many tries.
    fields = [
        field
        for field in descriptor.fields
        for _ in range(1 if field.message_type is None else min(8, 1 + len(field.message_type.fields) // 2))
    ]
    if not fields or depth == 0:
        return b""
    chosen = draw(st.lists(st.sampled_from(fields), max_size=5 if depth == DEPTH else 2))
    return b"".join(_field(draw, field, depth) for field in chosen)


def _field(draw: Draw, field: FieldDescriptor, depth: int) -> bytes:
    if draw(st.integers(0, 40)) == 0:  # another type than the schema's
        return _tag(field.number, 0) + _varint(draw(st.sampled_from(_VARINTS)))
    if field.type in _INTS:
        return _tag(field.number, 0) + _varint(draw(st.sampled_from(_VARINTS)))
    if field.type in _FIXED:
        wire_type, form = _FIXED[field.type]
        value = draw(st.sampled_from(_FLOATS if form in ("<f", "<d") else (0, 1, 2**31)))
        return _tag(field.number, wire_type) + struct.pack(form, value)
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
        return _tag(field.number, 2) + _sized(_fields(draw, field.message_type, depth - 1))
    if draw(st.integers(0, 20)) == 0:
        return _tag(field.number, 2) + _sized(draw(st.binary(max_size=8)))
    return _tag(field.number, 2) + _sized(draw(st.sampled_from(_TEXTS)).encode())


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
