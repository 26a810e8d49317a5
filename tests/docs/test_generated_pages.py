"""The pages that are made from code say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tandem_router.errors import TABLE
from tandem_router.settings import keys

ROOT = Path(__file__).parents[2]


def test_the_pages_are_what_the_generator_gives() -> None:
    check = [sys.executable, "docs/_generate", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_rpc_of_the_protos_has_a_heading() -> None:
    declared = {
        f"{service}.{rpc}"
        for path in (ROOT / "proto").rglob("*_service.proto")
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", path.read_text(), re.MULTILINE | re.DOTALL)
        for rpc in re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE)
    }
    headings = re.findall(r"^### (\w+Service\.\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(declared)


def test_every_reason_has_a_heading() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(TABLE)


def test_every_setting_has_a_row() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(keys())
