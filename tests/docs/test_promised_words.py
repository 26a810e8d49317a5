"""Lists of words in the schema's comments are the lists that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from tandem_router.core.jobs import STEPS

PROTOS = Path(__file__).parents[2] / "proto/tandem/v1"


def comment_above(proto: str, field: str) -> str:
    """The comment of the first field so declared."""
    found = re.search(rf"((?:^ *//.*\n)+) *{re.escape(field)} = ", (PROTOS / proto).read_text(), re.MULTILINE)
    assert found is not None, f"{proto} has no field {field}"
    return " ".join(line.strip().removeprefix("//").strip() for line in found[1].splitlines())


def test_the_schema_names_every_step_of_a_job() -> None:
    promised = re.findall(r"\b[a-z_]{5,}\b", comment_above("job.proto", "string name").partition(":")[2])
    assert sorted(promised) == sorted({step for steps in STEPS.values() for step in steps})
