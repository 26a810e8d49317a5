"""The tables of docs/telemetry.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGE", "Documented", "documented_attributes", "documented_metrics"]

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


@dataclass(frozen=True)
class Documented:
    """A row of the table of metrics."""

    name: str
    """As Prometheus has it, without the suffixes of a histogram's samples."""
    kind: str
    labels: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


def documented_metrics() -> list[Documented]:
    """Rows `name` | kind | labels | meaning."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return [Documented(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]


def documented_attributes() -> set[str]:
    """The first column of the tables of span attributes."""
    section = (
        PAGE.read_text(encoding="utf-8").split("\n### Attributes of the SERVER span\n")[1].split("\n### Events\n")[0]
    )
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
