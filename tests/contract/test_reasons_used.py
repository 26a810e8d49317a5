"""Every row of the error table is raised somewhere, or belongs to an rpc that is promised and not carried out yet."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem_router.errors import TABLE, Reason

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/tandem_router"
ELSEWHERE = {"errors", "cli", "testing"}
"""Where naming a reason is not raising it: the table, the client's side of the wire, and the stand-ins."""
PROMISED = {Reason.STREAM_TAKEN_OVER: "ResumeGenerate", Reason.PAIR_NOT_FOUND: "ReleasePair"}
"""Reason -> the rpc whose schema has it, which answers FEATURE_NOT_IMPLEMENTED for now."""


@functools.cache
def _raised() -> frozenset[str]:
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] not in ELSEWHERE:
            found |= set(_given(ast.parse(path.read_text())))
    return frozenset(found)


def _given(tree: ast.AST) -> Iterator[str]:
    """Names of the reasons that are handed to something: not those that are compared with, nor keys of tables."""
    aside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            aside |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.Dict):
            aside |= {id(key) for key in node.keys}
    for node in ast.walk(tree):
        is_reason = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
        if is_reason and id(node) not in aside:
            assert isinstance(node, ast.Attribute)
            yield node.attr


@pytest.mark.parametrize("reason", [reason for reason in TABLE if reason not in PROMISED])
def test_reason_is_raised_somewhere(reason: Reason) -> None:
    assert reason.name in _raised()


@pytest.mark.parametrize("reason", PROMISED)
def test_reason_that_nothing_raises_belongs_to_a_promised_rpc(reason: Reason) -> None:
    rpc = PROMISED[reason]
    protos = "".join(path.read_text() for path in (ROOT / "proto/tandem/v1").glob("*_service.proto"))
    comment = re.search(rf"((?:^ *//.*\n)+) *rpc {rpc}\(", protos, re.MULTILINE)
    servicers = "".join(path.read_text() for path in (SOURCE / "services").glob("*.py"))
    assert comment is not None
    assert (f"`{reason}`" in comment[1], f'unimplemented("{rpc}")' in servicers) == (True, True)


@pytest.mark.parametrize("reason", PROMISED)
def test_promised_reason_is_raised_by_nothing_yet(reason: Reason) -> None:
    assert reason.name not in _raised(), f"{reason} is raised now: take it out of PROMISED"
