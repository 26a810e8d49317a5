"""What a command shows, in the form that `-o` names: a table, a wider one, or the API's message as JSON or YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf import json_format
from google.protobuf.message import Message

from tandem_router.cli.text import Table

__all__ = ["Format", "Output", "show", "show_id", "show_table"]

T = TypeVar("T", bound=Message)


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_for_people(self) -> bool:
        """A table of some kind, and not the message itself."""
        return self in (Format.TABLE, Format.WIDE)


Output = Annotated[Format, typer.Option("--output", "-o", help="How to print: the API's message as JSON or YAML, too.")]


def show(message: Message, output: Format, text: Callable[[], str], *, stream: bool = False) -> None:
    """Print a message, or its `text` where people read. stream: one of many, so JSON keeps to one line."""
    if output.is_for_people:
        print(text(), flush=True)
    elif output is Format.JSON:
        print(json.dumps(_fields(message), indent=None if stream else 2), flush=True)
    else:
        print(("---\n" if stream else "") + _yaml(_fields(message)), end="", flush=True)


def show_table(message: Message, items: Sequence[T], table: Table[T], output: Format) -> None:
    """Print a whole list: `items` as a table, or the `message` that holds them."""
    wide = output is Format.WIDE
    show(message, output, lambda: "\n".join(table.lines(items, sys.stdout, wide=wide)))


def show_id(message: Message, output: Format, made: str) -> None:
    """Print the id that a script wants of what was begun, or the whole answer."""
    show(message, output, lambda: made)


def _fields(message: Message) -> dict[str, Any]:
    """A message as proto3 JSON with its maps sorted, so that two readings of one thing differ in nothing."""
    fields: dict[str, Any] = json_format.MessageToDict(message)
    _sort_maps(fields, message.DESCRIPTOR)
    return fields


def _sort_maps(fields: dict[str, Any], described: Any) -> None:
    for field in described.fields:
        value = fields.get(field.json_name)
        if value is None or field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            fields[field.json_name] = dict(sorted(value.items()))
            continue
        # What is no object here (a time, a duration) has no maps.
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                _sort_maps(one, field.message_type)


def _yaml(fields: dict[str, Any]) -> str:
    # Imported here: most commands print no YAML.
    import yaml

    return str(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
