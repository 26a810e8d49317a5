"""docs/conformance.md lists every check once, in the order in which they are run, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tandem_router.testing.conformance import ENGINE_CHECKS, PAIR_CHECKS
from tandem_router.testing.conformance.pair_checks import PAIR_ONLY_CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def listed(heading: str) -> list[str]:
    """The names in the table under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([a-z/-]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "checks"), [("Checks of one engine", ENGINE_CHECKS), ("Checks of a pair", PAIR_ONLY_CHECKS)],
    ids=["engine", "pair"],
)  # fmt: skip
def test_page_lists_the_checks(heading: str, checks: tuple[object, ...]) -> None:
    assert listed(heading) == [getattr(check, "name", "") for check in checks]


def test_pairs_run_every_check_of_their_own() -> None:
    assert {check.name for check in PAIR_ONLY_CHECKS} <= {check.name for check in PAIR_CHECKS}
