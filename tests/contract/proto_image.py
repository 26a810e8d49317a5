"""The schema as its compiler sees it: a descriptor set with comments, and a walk over all that can be documented."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2

__all__ = ["ROOT", "Element", "elements", "files", "messages"]

ROOT = Path(__file__).resolve().parents[2]

# Field numbers of google/protobuf/descriptor.proto, from which SourceCodeInfo builds its paths.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD = 2, 2


@dataclass(frozen=True, slots=True)
class Element:
    """One thing of the schema that has a name and should have a comment."""

    kind: str
    """service, rpc, message, field, oneof, enum or value."""
    name: str
    """Full name, e.g. tandem.v1.Worker.id."""
    comment: str
    """The comment above it; empty when there is none."""


@functools.cache
def files() -> tuple[descriptor_pb2.FileDescriptorProto, ...]:
    """Our own files, compiled once per test session by the buf of this environment."""
    buf = Path(sys.executable).parent / "buf"
    image = subprocess.run([buf, "build", "-o", "-"], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    every = descriptor_pb2.FileDescriptorSet.FromString(image).file
    return tuple(file for file in every if file.package.startswith("tandem."))


def messages() -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    """Every message that somebody wrote, by full name; the entries of maps are left out."""
    for file in files():
        stack = [(f"{file.package}.{message.name}", message) for message in file.message_type]
        while stack:
            name, message = stack.pop()
            if not message.options.map_entry:
                yield name, message
                stack += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]


def elements() -> Iterator[Element]:
    """Everything that can be documented, in all files."""
    for file in files():
        comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        for kind, name, path in _walk(file):
            yield Element(kind, name, comments.get(path, ""))


def _walk(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for index, service in enumerate(file.service):
        name, path = f"{file.package}.{service.name}", (_FILE_SERVICE, index)
        yield "service", name, path
        for method_index, method in enumerate(service.method):
            yield "rpc", f"{name}.{method.name}", (*path, _SERVICE_METHOD, method_index)
    for index, enum in enumerate(file.enum_type):
        yield from _walk_enum(enum, file.package, (_FILE_ENUM, index))
    for index, message in enumerate(file.message_type):
        yield from _walk_message(message, file.package, (_FILE_MESSAGE, index))


def _walk_enum(
    enum: descriptor_pb2.EnumDescriptorProto, scope: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield "enum", f"{scope}.{enum.name}", path
    for index, value in enumerate(enum.value):
        yield "value", f"{scope}.{enum.name}.{value.name}", (*path, _ENUM_VALUE, index)


def _walk_message(
    message: descriptor_pb2.DescriptorProto, scope: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if message.options.map_entry:
        return
    name = f"{scope}.{message.name}"
    yield "message", name, path
    for index, field in enumerate(message.field):
        yield "field", f"{name}.{field.name}", (*path, _MESSAGE_FIELD, index)
    for index, oneof in enumerate(message.oneof_decl):
        # An `optional` field compiles to a oneof of its own that nobody wrote, named after the field.
        if not oneof.name.startswith("_"):
            yield "oneof", f"{name}.{oneof.name}", (*path, _MESSAGE_ONEOF, index)
    for index, enum in enumerate(message.enum_type):
        yield from _walk_enum(enum, name, (*path, _MESSAGE_ENUM, index))
    for index, nested in enumerate(message.nested_type):
        yield from _walk_message(nested, name, (*path, _MESSAGE_NESTED, index))
