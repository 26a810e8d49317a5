"""The protocol of Abacus, an engine that does not exist: what its `_pb2` module would hold, made without a compiler.

A real engine's messages come with its package, as `smg_grpc_proto` brings those of the real ones.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["SERVICE", "Abort", "Empty", "GenerateRequest", "GenerateResponse", "Info", "State"]

_PACKAGE = "tests.abacus.v1"
SERVICE = f"{_PACKAGE}.Abacus"
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"int32": _FIELD.TYPE_INT32, "string": _FIELD.TYPE_STRING, "bool": _FIELD.TYPE_BOOL}

_MESSAGES = {
    "Empty": (),
    "Abort": ("string call",),
    "State": ("bool works",),
    "Info": ("string model", "int32 window", "int32 beads", "int32 last_bead", "int32 age_seconds", "int32 at_once"),
    "GenerateRequest": (
        "string call",
        "repeated int32 beads",
        "int32 limit",
        "bool runs_on",
        "repeated int32 halts",
        "bool whole",
    ),
    "Chunk": (
        "repeated int32 token_ids",
        "int32 completion_tokens",
        "int32 prompt_tokens",
        "int32 cached_tokens",
        "int32 index",
    ),
    "Complete": (
        "repeated int32 output_ids",
        "string finish_reason",
        "int32 completion_tokens",
        "int32 prompt_tokens",
        "int32 cached_tokens",
        "int32 index",
    ),
    "GenerateResponse": ("Chunk chunk", "Complete complete"),
}


def _built() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="tests/abacus/v1/abacus.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == "GenerateResponse":
            message.oneof_decl.add(name="response")
        for number, line in enumerate(fields, 1):
            *repeated, kind, field_name = line.split()
            field = message.field.add(name=field_name, number=number)
            field.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name, field.oneof_index = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}", 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _built()
Empty, Abort, State, Info = (_CLASSES[name] for name in ("Empty", "Abort", "State", "Info"))
GenerateRequest, GenerateResponse = _CLASSES["GenerateRequest"], _CLASSES["GenerateResponse"]
