"""Child processes of the demo: each prints one line of JSON when it serves, and ends when we do."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["ChildFailed", "Children"]

_START_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 5.0


class ChildFailed(Exception):
    """A child ended or stayed silent before it served; the text says which and what it wrote."""


class Children:
    """The processes started so far."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start_router(self) -> dict[str, str]:
        """A router on free loopback ports; returns its addresses."""
        ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "health-listen", "metrics-listen")]
        # Its log would interleave with the demo's own lines; errors still come.
        return self._ready(self._spawn(["tandem_router", "serve", "--print-ports", "--quiet", *ports]))

    def start_engines(self, engines: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
        """(protocol, mode, model name) each, all starting at once; returns their addresses in order."""
        started = [
            self._spawn(
                [
                    "tandem_engine",
                    f"--protocol={protocol}",
                    f"--mode={mode}",
                    f"--served-model-name={model}",
                    "--listen=127.0.0.1:0",
                ]
            )
            for protocol, mode, model in engines
        ]
        return [self._ready(child) for child in started]

    def stop(self) -> None:
        """End every child and wait for it; idempotent."""
        for child in self._running:
            child.terminate()
        until_s = time.monotonic() + _STOP_TIMEOUT_S
        for child in self._running:
            try:
                child.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
        self._running.clear()

    def _spawn(self, module: Sequence[str]) -> subprocess.Popen[str]:
        # One BLAS thread each: their matrices are small, and many engines share the machine's cores.
        environ = {"GRPC_VERBOSITY": "ERROR", **os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *module, f"--parent-pid={os.getpid()}"]
        # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True)
        self._running.append(child)
        return child

    def _ready(self, child: subprocess.Popen[str]) -> dict[str, str]:
        assert child.stdout is not None, "spawned with a pipe"
        what = " ".join(child.args[2:4]) if isinstance(child.args, list) else str(child.args)
        readable, _, _ = select.select([child.stdout], [], [], _START_TIMEOUT_S)
        line = child.stdout.readline() if readable else ""
        if not line:
            ended = f"ended with {child.wait()}" if readable else "is silent"
            raise ChildFailed(f"{what} {ended} before it served; its errors are above")
        ready: dict[str, str] = json.loads(line)
        return ready
