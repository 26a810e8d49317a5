"""What the Grafana dashboard asks of Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["labels_used", "queries", "samples_asked"]

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "tandem.json"
_LABEL_VALUES = re.compile(r"label_values\((\w+), (\w+)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_BY = re.compile(r"by \(([^)]*)\)")


def queries() -> list[tuple[str, str]]:
    """(title, query) of every panel's target, and (name, query) of every variable."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    return found + [(one["name"], one["query"]) for one in board["templating"]["list"] if one["type"] == "query"]


def samples_asked(query: str) -> set[str]:
    """The samples that a query names."""
    if match := _LABEL_VALUES.fullmatch(query):
        return {match[1]}
    bare = _BY.sub("", _SELECTOR.sub("", query))
    return set(re.findall(r"\b(?:tandem|gen_ai|rpc)_\w+", bare))


def labels_used(query: str) -> set[str]:
    """The labels that a query selects or groups by."""
    if match := _LABEL_VALUES.fullmatch(query):
        return {match[2]}
    used = {name for inner in _SELECTOR.findall(query) for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner)}
    return used | {label.strip() for inner in _BY.findall(query) for label in inner.split(",")}
