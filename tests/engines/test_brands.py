"""No engine's brand steers anything outside `engines/` and `handshake/`: a new engine must touch no other room.

Comments and docstrings may name an engine: they say where a rule comes from. Code may not, in names or in text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tandem_router

ROOT = Path(tandem_router.__file__).parent
BRAND_ROOMS = ("engines", "handshake")
BRANDS = ("sglang", "vllm", "trtllm", "tensorrt", "tokenspeed", "mlx")
ALLOWED = {
    "model/spec.py": "RuntimeType, the names that operators give",
    "cli/words.py": "the same names as values of flags",
    "cli/demo.py": "which protocols the demo's engines are started with",
}


def code_words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names and texts of a module with their lines, docstrings left out."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield line, node.value
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            yield line, node.arg
        elif isinstance(node, ast.alias):
            yield line, node.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield line, node.module


def branded(source: str) -> list[str]:
    return [
        f"line {line}: {word[:60]!r}"
        for line, word in code_words(ast.parse(source))
        if any(brand in word.lower() for brand in BRANDS)
    ]


MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in (*BRAND_ROOMS, "testing")
)
"""`testing/` plays engines, in their own habits."""


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ALLOWED])
def test_no_engine_brand_in_the_code_of(module: str) -> None:
    assert branded((ROOT / module).read_text()) == []


def test_no_permission_is_left_over() -> None:
    assert [name for name in ALLOWED if not branded((ROOT / name).read_text())] == []


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("if facts.runtime_type is RuntimeType.SGLANG: pass", True),
        ("from tandem_router.engines.vllm import VllmDialect", True),
        ("name = f'{x} of MLX'", True),
        ("def trtllm_only(): pass", True),
        ('"""Docstring of SGLang."""  # and vLLM', False),
        ('x = 1\n"""A field\'s docstring: MLX."""', False),
    ],
)
def test_search_tells_code_from_prose(source: str, is_found: bool) -> None:
    assert bool(branded(source)) is is_found
