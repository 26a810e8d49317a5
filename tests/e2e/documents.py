"""Runs the shell lines of a document as a reader would paste them, on ports that are free here."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["ROOT", "blocks", "on_free_ports", "run", "run_blocks"]

ROOT = Path(__file__).parents[2]

_BOUNDARY = "\x1e"
"""ASCII's record separator: no tool prints it."""
_LOG = "STARTED_LOG"
"""The variable with the file that started processes write to."""
_METRICS_ANYWHERE = {"TANDEM_METRICS_LISTEN": "127.0.0.1:0"}
"""For routers of documents that do not say where: two tests at once must not want one port."""
_AWAIT = "until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done"


def blocks(page: Path) -> list[str]:
    """The contents of the page's ```sh blocks, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def on_free_ports(scripts: list[str], ports: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The scripts with every port of a document replaced by one that nothing has now, and port -> its replacement."""
    text = _BOUNDARY.join(scripts)
    drawn = dict(zip(ports, _free_ports(len(ports)), strict=True))
    for port, free in drawn.items():
        assert f":{port}" in text, f"the document no longer uses port {port}"
        text = text.replace(f":{port}", f":{free}")
    return text.split(_BOUNDARY), drawn


def run_blocks(scripts: list[str], *, cwd: Path, environ: dict[str, str], timeout_s: float) -> list[str]:
    """Run scripts one after the other in one shell; what each printed. The first line that fails ends all."""
    joined = f"echo -n {_BOUNDARY}\n".join(_awaiting_starts(script) for script in scripts)
    with tempfile.NamedTemporaryFile() as log:
        try:
            return run(joined, cwd=cwd, environ={**environ, _LOG: log.name}, timeout_s=timeout_s).split(_BOUNDARY)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\nWhat was started wrote:\n{Path(log.name).read_text()}") from None


def run(script: str, *, cwd: Path = ROOT, environ: dict[str, str] | None = None, timeout_s: float) -> str:
    """Run a script in a process group of its own; whatever it leaves running is ended with the group."""
    venv = Path(sys.executable).parent
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**_METRICS_ANYWHERE, **os.environ, **(environ or {}), "PATH": f"{venv}:{os.environ['PATH']}"},
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        raise AssertionError(f"still running after {timeout_s:g} s: {process.communicate()[0]}") from None
    finally:
        _end(process)
    assert process.returncode == 0, output
    return output


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_ports(count: int) -> list[str]:
    """Ports that nothing has now, from below the range that the system gives to outgoing connections.

    From inside it, somebody's connection may take a port before the process that was told to listen on it does; and a
    loop that waits for a listener may even connect to itself. Each process draws from its own part.
    """
    first = 10_000 + os.getpid() * 16 % 20_000
    ports: list[str] = []
    for port in range(first, 32_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.append(str(port))
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports are left")


def _awaiting_starts(script: str) -> str:
    """A script whose `&` lines write to the log, and whose other lines, and end, wait until those listen.

    A reader needs no such wait: they take longer to paste the next line than a process takes to start. What is started
    must not hold the pipe that the output is read from, or reading would not end.
    """
    lines: list[str] = []
    starting: list[str] = []
    for line in script.splitlines():
        if line.endswith(" &"):
            starting += re.findall(r"listen 127\.0\.0\.1:(\d+)", line)
            line = f'{line.removesuffix(" &")} >>"${_LOG}" 2>&1 &'
        elif not re.fullmatch(r"\w+=\$!", line):
            lines += [_AWAIT.format(port=port) for port in starting]
            starting = []
        lines.append(line)
    lines += [_AWAIT.format(port=port) for port in starting]
    return "\n".join(lines) + "\n"
