"""The reference engine's page has every flag with its default, every fault, and an example that works."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tandem_engine.faults import FaultPlan
from tandem_engine.flags import make_parser
from tandem_engine.services.vllm_info import VERSION

PAGE = (Path(__file__).parents[2] / "docs/reference-engine.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def test_the_table_of_flags_is_the_parsers() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| (?:`(.*?)` )?\|", section("Flags"), re.MULTILINE)
    flags = [action for action in make_parser()._actions if not isinstance(action, argparse._HelpAction)]
    assert rows == [(action.option_strings[0], _shown(action.default)) for action in flags]


def _shown(default: object) -> str:
    return "" if default is None or default is False or default == [] else str(default)


def test_every_choice_of_a_flag_is_named() -> None:
    for action in make_parser()._actions:
        row = re.search(rf"^\| `{action.option_strings[-1]}` .*$", PAGE, re.MULTILINE)
        for choice in action.choices or ():
            assert row is not None
            assert f"`{choice}`" in row[0]


def test_the_table_of_faults_is_the_plans() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", section("Faults"), re.MULTILINE)
    assert rows == [field.name for field in fields(FaultPlan)]


def test_the_imitated_release_is_the_one_that_is_told_on_the_wire() -> None:
    assert f"vLLM {VERSION.partition('+')[0]}" in PAGE


@pytest.mark.e2e
def test_the_example_loads_an_adapter_that_changes_the_answer() -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    embedding, loaded, plain, adapted = said.splitlines()
    assert re.fullmatch(r"embedding of \d+ numbers", embedding)
    assert loaded == "loaded ['id-1']"
    plain_ids, adapted_ids = plain.removeprefix("no adapter "), adapted.removeprefix("id-1 ")
    assert re.fullmatch(r"\[\[\d+(, \d+){7}\]\]", plain_ids)
    assert re.fullmatch(r"\[\[\d+(, \d+){7}\]\]", adapted_ids)
    assert plain_ids != adapted_ids
