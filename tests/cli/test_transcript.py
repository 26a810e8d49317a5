"""What the commands print, to the letter, in transcript.txt: a command, its stdout, its stderr behind "! ", its code.

A golden that fails shows the block as it would be now; read it, then put it into the file.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tests.cli.fakes import FakeRouter, run
from tests.cli.fleet import furnish

_PROMPT = "$ tandem "
_BLOCKS = [
    _PROMPT + block
    for block in (Path(__file__).parent / "transcript.txt").read_text(encoding="utf-8").split(_PROMPT)
    if block.strip()
]


def transcribe(line: str) -> str:
    """A command as a block of the transcript."""
    code, out, err = run(*shlex.split(line.removeprefix(_PROMPT)))
    lines = [line, *out.splitlines(), *(f"! {complaint}" for complaint in err.splitlines())]
    return "\n".join(lines if code == 0 else [*lines, f"exit {code}"]) + "\n"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("block", [pytest.param(block, id=block.split("\n", 1)[0]) for block in _BLOCKS])
def test_command_prints_what_the_transcript_says(fake: FakeRouter, block: str) -> None:
    furnish(fake)
    assert transcribe(block.split("\n", 1)[0]) == block.rstrip("\n") + "\n"


def test_transcript_has_commands() -> None:
    assert len(_BLOCKS) > 30
