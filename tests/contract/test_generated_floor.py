"""Generated code refuses an older runtime than the one it was generated for: that floor must be ours."""

from __future__ import annotations

import re
import tomllib

import pytest
from proto_image import ROOT

GENERATED = ROOT / "generated" / "tandem"


def floor(package: str) -> str:
    """The lowest version of `package` that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [match[1] for line in project["dependencies"] if (match := re.match(rf"{package}>=([\d.]+)", line))]
    assert len(found) == 1, f"pyproject.toml needs exactly one line {package}>=..."
    return found[0]


@pytest.mark.parametrize(
    ("package", "pattern", "header"),
    [
        ("protobuf", "*_pb2.py", r"^# Protobuf Python Version: ([\d.]+)$"),
        ("grpcio", "*_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '([\d.]+)'$"),
    ],
)
def test_generated_code_asks_for_the_floor_of_pyproject(package: str, pattern: str, header: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in GENERATED.rglob(pattern)]
    assert {match for text in texts for match in re.findall(header, text, re.MULTILINE)} == {floor(package)}


def test_namespace_packages_above_v1_hide_nothing() -> None:
    assert list(GENERATED.rglob("__init__.py")) == []


def test_generated_packages_are_typed() -> None:
    assert all((GENERATED / package / "py.typed").is_file() for package in ("v1", "engine/v1"))
