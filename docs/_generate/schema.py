"""The schema as its compiler sees it, comments included, in the shape that a page needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

__all__ = ["ROOT", "Enum", "Field", "File", "Message", "Oneof", "Rpc", "Service", "Value", "load"]

ROOT = Path(__file__).resolve().parents[2]

# Field numbers of google/protobuf/descriptor.proto, from which SourceCodeInfo builds its paths.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD = 2, 2

_Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method."""

    name: str
    comment: str
    request: str
    """Full name of a message."""
    response: str
    client_streams: bool
    server_streams: bool

    @property
    def kind(self) -> str:
        """How many messages go each way, in gRPC's words."""
        if self.client_streams:
            return "both sides stream" if self.server_streams else "client stream"
        return "server stream" if self.server_streams else "unary"

    @property
    def idempotency(self) -> str:
        """The words of the comment about it: "idempotent", "idempotent with a request_id", "not idempotent"."""
        found = re.search(r"\b(not idempotent|idempotent[^.:,;]*)", " ".join(self.comment.split()), re.IGNORECASE)
        if found is None:
            raise ValueError(f"the comment of {self.name} does not say whether it is idempotent")
        return found[1].lower()


@dataclass(frozen=True, slots=True)
class Service:
    """One service."""

    name: str
    comment: str
    rpcs: tuple[Rpc, ...]


@dataclass(frozen=True, slots=True)
class Oneof:
    """A choice between fields that somebody wrote."""

    name: str
    comment: str


@dataclass(frozen=True, slots=True)
class Field:
    """One field."""

    name: str
    number: int
    comment: str
    label: str
    """ "optional", "repeated", "map" or empty."""
    type: str
    """A scalar's name, or the full name of a message or enum; for a map, of its values."""
    key: str
    """For a map, the scalar of its keys; else empty."""
    oneof: Oneof | None


@dataclass(frozen=True, slots=True)
class Message:
    """One message; nested ones are named Outer.Inner."""

    name: str
    comment: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """One value of an enum."""

    name: str
    number: int
    comment: str


@dataclass(frozen=True, slots=True)
class Enum:
    """One enum."""

    name: str
    comment: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class File:
    """One .proto file; its things in the order in which it has them."""

    path: str
    package: str
    services: tuple[Service, ...]
    messages: tuple[Message, ...]
    enums: tuple[Enum, ...]


def load() -> tuple[File, ...]:
    """Our own files, by package and path; compiled by the buf beside this interpreter."""
    buf = Path(sys.executable).parent / "buf"
    image = subprocess.run([buf, "build", "-o", "-"], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    every = descriptor_pb2.FileDescriptorSet.FromString(image).file
    ours = [_Reader(file).file() for file in every if file.package.startswith("tandem.")]
    return tuple(sorted(ours, key=lambda file: (file.package != "tandem.v1", file.package, file.path)))


class _Reader:
    """Reads one file of the descriptor set."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def file(self) -> File:
        source = self._file
        messages = [self._messages(one, (_FILE_MESSAGE, i), "") for i, one in enumerate(source.message_type)]
        enums = [self._enum(one, (_FILE_ENUM, i), "") for i, one in enumerate(source.enum_type)]
        for index, message in enumerate(source.message_type):
            enums += self._nested_enums(message, (_FILE_MESSAGE, index), "")
        return File(
            path=source.name,
            package=source.package,
            services=tuple(self._service(one, (_FILE_SERVICE, i)) for i, one in enumerate(source.service)),
            messages=tuple(message for group in messages for message in group),
            enums=tuple(enums),
        )

    def _comment(self, path: _Path) -> str:
        lines = self._comments.get(path, "").splitlines()
        return "\n".join(line.removeprefix(" ").rstrip() for line in lines).strip("\n")

    def _service(self, service: descriptor_pb2.ServiceDescriptorProto, path: _Path) -> Service:
        rpcs = tuple(
            Rpc(
                name=method.name,
                comment=self._comment((*path, _SERVICE_METHOD, index)),
                request=method.input_type.removeprefix("."),
                response=method.output_type.removeprefix("."),
                client_streams=method.client_streaming,
                server_streams=method.server_streaming,
            )
            for index, method in enumerate(service.method)
        )
        return Service(service.name, self._comment(path), rpcs)

    def _messages(self, message: descriptor_pb2.DescriptorProto, path: _Path, scope: str) -> Iterator[Message]:
        if message.options.map_entry:
            return
        name = scope + message.name
        fields = tuple(
            self._field(message, field, (*path, _MESSAGE_FIELD, index), path)
            for index, field in enumerate(message.field)
        )
        yield Message(name, self._comment(path), fields)
        for index, nested in enumerate(message.nested_type):
            yield from self._messages(nested, (*path, _MESSAGE_NESTED, index), f"{name}.")

    def _nested_enums(self, message: descriptor_pb2.DescriptorProto, path: _Path, scope: str) -> list[Enum]:
        name = f"{scope}{message.name}."
        found = [self._enum(one, (*path, _MESSAGE_ENUM, i), name) for i, one in enumerate(message.enum_type)]
        for index, nested in enumerate(message.nested_type):
            found += self._nested_enums(nested, (*path, _MESSAGE_NESTED, index), name)
        return found

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto, path: _Path, scope: str) -> Enum:
        values = tuple(
            Value(value.name, value.number, self._comment((*path, _ENUM_VALUE, index)))
            for index, value in enumerate(enum.value)
        )
        return Enum(scope + enum.name, self._comment(path), values)

    def _field(
        self, message: descriptor_pb2.DescriptorProto, field: FieldDescriptorProto, path: _Path, holder: _Path
    ) -> Field:
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        entry = entries.get(field.type_name.rpartition(".")[2])
        label, key, kind = "", "", field
        if entry is not None:
            label, key, kind = "map", _type(entry.field[0]), entry.field[1]
        elif field.label == FieldDescriptorProto.LABEL_REPEATED:
            label = "repeated"
        elif field.proto3_optional:
            label = "optional"
        oneof = None
        if field.HasField("oneof_index") and not field.proto3_optional:
            written = message.oneof_decl[field.oneof_index]
            oneof = Oneof(written.name, self._comment((*holder, _MESSAGE_ONEOF, field.oneof_index)))
        return Field(field.name, field.number, self._comment(path), label, _type(kind), key, oneof)


def _type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name.removeprefix(".")
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
