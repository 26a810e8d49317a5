"""Comments of the schema as Markdown, and the few forms that the pages share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tandem_router.errors import Code, Reason

__all__ = ["anchor", "cell", "first_sentence", "prose", "table"]

_CODE = "|".join(code.name for code in Code if code is not Code.OK)
_ENTRY = re.compile(rf"^(?:{_CODE})\b(?= `| without |:)")
"""The first line of an entry in an `Errors` list; the lines after it go on."""


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose(comment: str) -> list[str]:
    """A comment as lines of Markdown: paragraphs as they stand, `Errors` lists as lists; no empty line at its ends."""
    lines: list[str] = []
    for line in comment.splitlines():
        if not line.startswith("  "):
            if lines and lines[-1].startswith("- ") and line:
                lines.append("")
            lines.append(_linked(line))
        elif entry := _ENTRY.match(line.strip()):
            if not lines[-1].startswith("- "):
                lines.append("")
            lines.append(f"- `{entry[0]}`{_linked(line.strip()[entry.end() :])}")
        else:
            lines[-1] += f" {_linked(line.strip())}"
    return _with_break_before_errors(lines)


def cell(comment: str) -> str:
    """A comment as one cell of a table."""
    return _linked(" ".join(comment.split())).replace("|", "\\|")


def first_sentence(comment: str) -> str:
    """A comment's first sentence, without its full stop."""
    return cell(re.split(r"[.;:](?:\s|$)", " ".join(comment.split()), maxsplit=1)[0])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def _linked(text: str) -> str:
    """Text with its angle brackets kept literal outside of code, and each quoted reason leading to its explanation."""
    parts = text.split("`")
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = part.replace("<", "&lt;").replace(">", "&gt;")
        elif part in Reason.__members__:
            parts[index] = f"[`{part}`](errors.md#{anchor(part)})"
        else:
            parts[index] = f"`{part}`"
    return "".join(parts)


def _with_break_before_errors(lines: list[str]) -> list[str]:
    broken: list[str] = []
    for line in lines:
        if line.startswith("Errors") and broken and broken[-1]:
            broken.append("")
        broken.append(line)
    return broken
