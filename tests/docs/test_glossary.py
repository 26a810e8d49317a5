"""The glossary's words are the only ones that the schema uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
ALLOWED = {"transfer backend of SGLang"}
"""Where another project's own word is quoted."""


def banned() -> list[str]:
    """The left column of the glossary's last table, without what is said only of something else."""
    rows = re.findall(r"^\| (.*?) \| .* \|$", GLOSSARY.partition("## Words that are not used")[2], re.MULTILINE)[2:]
    return [word.strip() for row in rows for word in row.split(",") if "(" not in word]


def comments() -> str:
    """All comments of all .proto files as running text."""
    lines = [
        line.strip().removeprefix("//").strip()
        for path in sorted((ROOT / "proto").rglob("*.proto"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("//")
    ]
    return " ".join(lines)


def test_the_schema_has_comments_to_look_at() -> None:
    assert len(comments()) > 10_000


@pytest.mark.parametrize("word", banned())
def test_no_comment_of_the_schema_uses(word: str) -> None:
    text = comments()
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    assert re.findall(rf"(?:\S+ ){{0,4}}\b{re.escape(word)}s?\b(?: \S+){{0,3}}", text, re.IGNORECASE) == []


def test_terms_are_explained_once() -> None:
    terms = re.findall(r"^- \*\*([^*]+)\*\*", GLOSSARY, re.MULTILINE)
    assert terms
    assert len(terms) == len(set(terms))
