"""docs/api.md: every service, rpc, message, field and enum, in the words of the schema's own comments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markdown import anchor, cell, first_sentence, prose, table
from schema import Enum, Field, File, Message, Rpc, Service

__all__ = ["api_page"]

_HEAD = """\
# API

<!-- Written by `make docs` from the comments in proto/. Change those, not this. -->

Every service, rpc, message, field and value, in the words of its `.proto` file. Terms are explained in the
[glossary](glossary.md), reasons in [errors](errors.md). Both listeners serve reflection, so `buf curl` and grpcurl need
no file; the same `.proto` files are in the wheel.

A field without a label has no presence: unset and zero are one. `optional` fields and messages tell absent from zero.
"""
_PACKAGES = {
    "tandem.v1": ("The router", "What clients and operators call."),
    "tandem.engine.v1": ("The reference engine", "What only the reference engine serves, for tests and the curious."),
}
"""What each package is, in the order of the page."""


def api_page(files: Sequence[File]) -> str:
    """The page. Raises ValueError when two headings would have one address, or a package is new here."""
    if unknown := {file.package for file in files} - _PACKAGES.keys():
        raise ValueError(f"packages without a title: {sorted(unknown)}")
    headings = Counter(heading for file in files for heading in _headings(file))
    if twice := [heading for heading, count in headings.items() if count > 1]:
        raise ValueError(f"headings that occur twice: {twice}")
    lines = [_HEAD]
    for package, (title, meaning) in _PACKAGES.items():
        lines += _contents([file for file in files if file.package == package], package, title, meaning)
    for file in files:
        for service in file.services:
            lines += _service(file, service)
    for file in files:
        if file.messages or file.enums:
            lines += [f"## {file.path}", ""]
        for message in file.messages:
            lines += _message(message)
        for enum in file.enums:
            lines += _enum(enum)
    return "\n".join(lines).rstrip() + "\n"


def _headings(file: File) -> list[str]:
    things: list[Service | Message | Enum] = [*file.services, *file.messages, *file.enums]
    rpcs = [f"{service.name}.{rpc.name}" for service in file.services for rpc in service.rpcs]
    return [anchor(name) for name in (*(thing.name for thing in things), *rpcs)]


def _contents(files: Sequence[File], package: str, title: str, meaning: str) -> list[str]:
    lines = [f"## {title} (`{package}`)", "", meaning, ""]
    for file in files:
        for service in file.services:
            rpcs = [
                (_link(f"{service.name}.{rpc.name}", rpc.name), rpc.kind, rpc.idempotency, first_sentence(rpc.comment))
                for rpc in service.rpcs
            ]
            lines += [f"**{_link(service.name)}**: {first_sentence(service.comment)}.", ""]
            lines += [*table(("rpc", "kind", "called again", "what it does"), rpcs), ""]
    rows = [
        (f"[{file.path.rpartition('/')[2]}](#{anchor(file.path)})", ", ".join(_link(name) for name in names))
        for file in files
        if (names := [*(one.name for one in file.messages), *(one.name for one in file.enums)])
    ]
    return [*lines, *table(("file", "messages and enums"), rows), ""]


def _service(file: File, service: Service) -> list[str]:
    lines = [f"## {service.name}", "", f"`{file.package}.{service.name}`, in `{file.path}`.", ""]
    lines += [*prose(service.comment), ""]
    for rpc in service.rpcs:
        lines += _rpc(service, rpc)
    return lines


def _rpc(service: Service, rpc: Rpc) -> list[str]:
    takes = f"stream of {_type(rpc.request)}" if rpc.client_streams else _type(rpc.request)
    gives = f"stream of {_type(rpc.response)}" if rpc.server_streams else _type(rpc.response)
    facts = f"{takes} → {gives} · {rpc.kind} · {rpc.idempotency}"
    return [f"### {service.name}.{rpc.name}", "", facts, "", *prose(rpc.comment), ""]


def _message(message: Message) -> list[str]:
    lines = [f"### {message.name}", "", *prose(message.comment), ""]
    if not message.fields:
        return [*lines, "It has no fields.", ""]
    rows: list[tuple[str, str, str]] = []
    opened = ""
    for field in message.fields:
        if field.oneof is not None and field.oneof.name != opened:
            rows.append(("", f"one of `{field.oneof.name}`", cell(field.oneof.comment)))
        opened = field.oneof.name if field.oneof else ""
        indent = "· " if opened else ""
        rows.append((f"{indent}`{field.name}` = {field.number}", _field_type(field), cell(field.comment)))
    return [*lines, *table(("field", "type", "what it is"), rows), ""]


def _enum(enum: Enum) -> list[str]:
    rows = [(f"`{value.name}` = {value.number}", cell(value.comment)) for value in enum.values]
    return [f"### {enum.name}", "", *prose(enum.comment), "", *table(("value", "what it means"), rows), ""]


def _field_type(field: Field) -> str:
    if field.label == "map":
        return f"map of `{field.key}` to {_type(field.type)}"
    return f"{field.label} {_type(field.type)}".strip()


def _type(name: str) -> str:
    """A scalar or a type of Google as code, one of ours as a link."""
    for package in _PACKAGES:
        if name.startswith(f"{package}."):
            return _link(name.removeprefix(f"{package}."))
    return f"`{name}`"


def _link(name: str, text: str = "") -> str:
    return f"[{text or name}](#{anchor(name)})"
