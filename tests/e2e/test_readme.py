"""Every shell line of the README does what the README says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PORTS = ("50051", "50052", "50053", "7001", "7002")


def free_ports(count: int) -> list[str]:
    """Ports that nothing has now; held together while they are drawn, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run(script: str, timeout_s: float) -> str:
    """Run a script in a process group of its own; whatever it leaves running is ended with the group."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def test_the_readme_shows_the_two_commands_first() -> None:
    assert BLOCKS[0] == "make demo\nmake test\n"


def test_every_line_by_hand_works() -> None:
    lines = "".join(BLOCKS[1:])
    for default, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        assert f":{default}" in lines, f"the README no longer uses port {default}"
        lines = lines.replace(f":{default}", f":{free}")
    router, admin = re.findall(r"--(?:admin-)?listen (127\.0\.0\.1:\d+)", lines)[:2]
    lines = lines.replace(". .venv/bin/activate\n", "")
    wait_for_listeners = (
        "for port in $(grep -oE 'listen 127[^ ]+:[0-9]+' <<<\"$LINES\" | grep -oE '[0-9]+$'); do "
        "until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do sleep 0.1; done; done\n"
    )
    starts, rest = lines.split("tandem workers add", 1)
    script = (
        f"export TANDEM_ADDRESS={router} TANDEM_ADMIN_ADDRESS={admin}\n"
        f"LINES={starts!r}\n"
        # The started processes must not hold the pipe that the output is read from.
        + re.sub(r" &$", " >/dev/null 2>&1 &", starts, flags=re.MULTILINE)
        + wait_for_listeners
        + "tandem workers add"
        + rest
    )
    output = run(script, timeout_s=60)
    assert "hello 🙂" in output
    assert "".join(re.findall(r'"text": \[\s*"([^"]*)"', output)) == " 46"
    assert "SERVING" in output
    assert "MODEL_NOT_FOUND: model: no worker serves model nobody; known models: tandem-demo" in output
    assert output.count("WORKER_STATUS_READY") == 2


def test_the_demo_ends_by_itself_with_a_pair_of_each_kind() -> None:
    output = run("tandem demo", timeout_s=60)
    assert "(rendezvous)" in output
    assert "(handoff)" in output
    assert output.count("the quick brown fox jumps over the lazy dog") == 4
    for named in ("pair ", "room ", "prefill ", "kv_transfer ", "decode ", "total "):
        assert named in output
