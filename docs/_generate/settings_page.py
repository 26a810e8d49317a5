"""docs/settings.md: every setting of `tandem serve`, its default and meaning, from the dataclasses that hold it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from markdown import cell, table

from tandem_router.settings import ENV_PREFIX, ServerSettings

__all__ = ["settings_page"]

_HEAD = """\
# Settings

<!-- Written by `make docs` from src/tandem_router/settings.py and model/settings.py. Change those, not this. -->

Each setting of `tandem serve` can be given, from the weakest to the strongest, in a TOML file (`--config FILE`), by its
variable in the environment, or as a flag (`--set KEY=VALUE`; the listeners have flags of their own). A part before a
dot is a table of the file. `tandem serve --show-settings` prints what is in effect and where each value came from; a
key that does not exist or a value out of range ends the start with exit code 2.

Names end in their unit: `_s` is seconds, `_bytes` bytes.
"""


def settings_page() -> str:
    """The page."""
    rows = [
        (f"`{key}`", _shown(value), f"`{ENV_PREFIX}{key.replace('.', '_').upper()}`", cell(meaning))
        for key, value, meaning in _leaves(ServerSettings(), "")
    ]
    return "\n".join([_HEAD, *table(("key", "default", "variable", "what it is"), rows)]) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _leaves(settings: Any, prefix: str) -> Iterator[tuple[str, object, str]]:
    """(key, default, meaning) of each setting in the order of the source; those of the runtime have no prefix."""
    meanings = _docstrings(type(settings))
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        key = prefix + part.name
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, "" if key == "runtime" else f"{key}.")
        else:
            yield key, value, meanings.get(part.name, "")


def _docstrings(kind: type) -> dict[str, str]:
    """What stands in quotes under each field of a dataclass."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[field.target.id] = text
    return found
