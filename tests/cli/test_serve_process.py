"""`tandem serve` as a process: the line of addresses, signals, and its parent's end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.e2e

FREE = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "health-listen", "metrics-listen")]


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def router(parent: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tandem_router", "serve", "--print-ports", "--quiet", *FREE]
    with subprocess.Popen(
        [*command, f"--parent-pid={parent.pid}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()


def addresses(router: subprocess.Popen[str]) -> dict[str, object]:
    assert router.stdout is not None
    line: dict[str, object] = json.loads(router.stdout.readline())
    return line


def test_first_line_holds_every_address_and_the_pid(router: subprocess.Popen[str]) -> None:
    line = addresses(router)
    listeners = {"listen", "admin_listen", "health_listen", "metrics_listen"}
    assert (set(line), line["pid"]) == (listeners | {"pid"}, router.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_router_well_and_silently(router: subprocess.Popen[str], number: int) -> None:
    addresses(router)
    router.send_signal(number)
    _, err = router.communicate(timeout=20)
    assert (router.returncode, err) == (0, "")


def test_router_ends_with_its_parent(router: subprocess.Popen[str], parent: subprocess.Popen[bytes]) -> None:
    addresses(router)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert router.wait(timeout=20) == 0
