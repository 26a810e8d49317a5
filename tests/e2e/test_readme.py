"""Every shell line of the README does what the README says."""

from __future__ import annotations

import re

import pytest
from tests.e2e.documents import ROOT, blocks, on_free_ports, run, run_blocks

pytestmark = pytest.mark.e2e

BLOCKS = blocks(ROOT / "README.md")
PORTS = ("50051", "50052", "50053", "7001", "7002")


def test_the_readme_shows_the_two_commands_first() -> None:
    assert BLOCKS[0] == "make demo\nmake test\n"


def test_every_line_by_hand_works() -> None:
    scripts, port = on_free_ports(BLOCKS[1:], PORTS)
    # The tests' interpreter is already the venv's.
    scripts[0] = scripts[0].replace(". .venv/bin/activate\n", "")
    environ = {
        "TANDEM_ADDRESS": f"127.0.0.1:{port['50051']}",
        "TANDEM_ADMIN_ADDRESS": f"127.0.0.1:{port['50052']}",
    }
    output = "".join(run_blocks(scripts, cwd=ROOT, environ=environ, timeout_s=60))
    assert "hello 🙂" in output
    assert "".join(re.findall(r'"text": \[\s*"([^"]*)"', output)) == " 46"
    assert "SERVING" in output
    assert "MODEL_NOT_FOUND: model: no worker serves model nobody; known models: tandem-demo" in output
    assert len(re.findall(r'"status": "WORKER_STATUS_READY",\s+"ranks"', output)) == 2


def test_the_demo_ends_by_itself_with_a_pair_of_each_kind() -> None:
    output = run("tandem demo", timeout_s=60)
    assert "(rendezvous)" in output
    assert "(handoff)" in output
    assert output.count("the quick brown fox jumps over the lazy dog") == 4
    for named in ("pair ", "room ", "prefill ", "kv_transfer ", "decode ", "total "):
        assert named in output
