"""Runs one engine in its own process group and ends the whole group when whoever started it is gone, or time is up.

    python leash.py SECONDS COMMAND...

Prints the engine's pid. The leash is the standard input: its end, however it came about, ends the engine and all that
it started. Real engines start processes that outlive them (vLLM's EngineCore), so killing the one that was started is
not enough. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

STOP_S = 5.0
"""Between being asked to stop and being killed."""
LOOK_S = 0.2


def main(seconds: float, command: list[str]) -> int:
    """The engine's exit status, or 0 where it was ended here."""
    # Whoever ends this process ends the engine: a signal to the whole group of a test run reaches it first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Our output is for the pid alone: what the engine prints goes to the log, as a pipe that nobody reads fills up.
    engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    print(engine.pid, flush=True)
    ends = time.monotonic() + seconds
    try:
        while engine.poll() is None and time.monotonic() < ends:
            if select.select([sys.stdin], [], [], LOOK_S)[0] and not os.read(sys.stdin.fileno(), 1):
                break
        # The group goes even where its first process has died by itself: that is what the leash is for.
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 0.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(patience_s or None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
    return engine.returncode or 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
