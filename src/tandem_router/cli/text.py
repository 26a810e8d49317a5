"""Text for people: colours only on a terminal, tables, ages; nothing from outside can drive the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TextIO, TypeVar

__all__ = [
    "STATE_ROOM",
    "UUID_ROOM",
    "Column",
    "Table",
    "age",
    "example",
    "one_line",
    "pairs",
    "printable",
    "styled",
    "table",
]

_STYLES = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}
_STATES = {
    "READY": "green",
    "SUCCEEDED": "green",
    "SERVING": "green",
    "TRUE": "green",
    "DECODING": "green",
    "DONE": "green",
    "CLOSED": "green",
    "yes": "green",
    "PENDING": "yellow",
    "RUNNING": "yellow",
    "DRAINING": "yellow",
    "HALF_OPEN": "yellow",
    "ABORTING": "yellow",
    "LINGERING": "yellow",
    "UNKNOWN": "yellow",
    "CANCELLED": "yellow",
    "NOT_READY": "red",
    "FAILED": "red",
    "NOT_SERVING": "red",
    "FALSE": "red",
    "OPEN": "red",
    "no": "red",
    "SERVICE_UNKNOWN": "red",
    "GONE": "dim",
}
"""What a word of state looks like; CLOSED is a breaker's or a leg's and good in both."""
UUID_ROOM = 36
STATE_ROOM = 10

T = TypeVar("T")


def styled(text: str, style: str | None, stream: TextIO) -> str:
    """`text` in an ANSI style where `stream` is a terminal that takes colours, else as it is.

    NO_COLOR set to anything (no-color.org) or TERM=dumb means no colours.
    """
    if style is None or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def printable(text: str, stream: TextIO) -> str:
    """`text` as it is for a pipe; for a terminal, control characters that could drive it are shown as U+FFFD."""
    if not stream.isatty():
        return text
    return "".join(one if one in "\n\t" or ord(one) >= 160 or 32 <= ord(one) < 127 else "\ufffd" for one in text)


def one_line(text: str) -> str:
    """`text` without line breaks and tabs, so that it stays in its cell."""
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column of a table."""

    head: str
    cell: Callable[[T], str]
    """Empty is shown as "-"."""
    is_state: bool = False
    """The cell is a word of state, and coloured as one."""
    is_wide: bool = False
    """Only shown with `-o wide`."""
    room: int = 0
    """Characters to leave where lines are still to come, so that longer ones stay in their column."""


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """How things of one kind are shown, a line each."""

    columns: tuple[Column[T], ...]

    def lines(self, items: Iterable[T], stream: TextIO, *, wide: bool, widths: Sequence[int] = ()) -> list[str]:
        """The head, then a line for each thing; columns are two spaces apart and no line ends in a space.

        widths: smallest width of each column, for lines that shall fit under others.
        """
        shown = self.shown(wide)
        cells = [tuple(column.head for column in shown), *(self._cells(item, shown, stream) for item in items)]
        least = list(widths) or [0] * len(shown)
        full = [max(least[at], *(len(line[at]) for line in cells)) for at in range(len(shown))]
        head = "  ".join(cell.ljust(width) for cell, width in zip(cells[0], full, strict=True)).rstrip()
        return [styled(head, "bold", stream), *(self._line(line, shown, full, stream) for line in cells[1:])]

    def widths(self, items: Iterable[T], stream: TextIO, *, wide: bool) -> list[int]:
        """How wide each column must be for these things, and for those to come."""
        shown = self.shown(wide)
        cells = [self._cells(item, shown, stream) for item in items]
        return [
            max(len(column.head), column.room, *(len(line[at]) for line in cells)) for at, column in enumerate(shown)
        ]

    def shown(self, wide: bool) -> tuple[Column[T], ...]:
        """The columns in order."""
        return tuple(column for column in self.columns if wide or not column.is_wide)

    def _cells(self, item: T, shown: tuple[Column[T], ...], stream: TextIO) -> tuple[str, ...]:
        return tuple(printable(one_line(column.cell(item)), stream) or "-" for column in shown)

    def _line(self, cells: tuple[str, ...], shown: tuple[Column[T], ...], widths: list[int], stream: TextIO) -> str:
        parts = []
        for at, (cell, column, width) in enumerate(zip(cells, shown, widths, strict=True)):
            style = _STATES.get(cell) if column.is_state else None
            padding = "" if at == len(cells) - 1 else " " * (width - len(cell))
            parts.append(styled(cell, style, stream) + padding)
        return "  ".join(parts).rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, with a head line; no line ends in a space."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def pairs(rows: Iterable[tuple[str, str]], stream: TextIO) -> list[str]:
    """Names and what they are, a line each; what is empty is left out. A word of state is coloured as one."""
    kept = [(name, printable(one_line(value), stream)) for name, value in rows if value]
    width = max((len(name) for name, _ in kept), default=0)
    return [
        f"{styled(name.ljust(width), 'dim', stream)}  {styled(value, _STATES.get(value), stream)}"
        for name, value in kept
    ]


def age(seconds: float) -> str:
    """A duration as two units at most: 12s, 3m4s, 2h5m, 6d3h; a negative one (clocks differ) is 0s."""
    whole = max(0, int(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def example(*lines: str) -> str:
    """The end of a command's help: lines to paste, which stay whole whatever the terminal's width."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
