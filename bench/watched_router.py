"""`tandem serve` with a watch in its own loop: one line of JSON per second says how late the loop was at every beat.

A beat is due every 5 ms. A beat that passes while the loop is busy counts as if it had been noticed at the same moment
as the first one after it, so that a stall counts for as long as it lasts. Nothing else differs from `tandem serve`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tandem_router import cli, server

BEAT_S = 0.005


class WatchedRouter(server.RouterServer):
    """A router that says how late its loop is."""

    async def start(self) -> server.Addresses:
        """As ever; then begin to watch."""
        addresses = await super().start()
        self._watching = asyncio.create_task(watch(), name="watch the loop")
        return addresses


async def watch() -> None:
    """Print {"late_s": of each beat since the line before} every second."""
    loop = asyncio.get_running_loop()
    due_s = said_s = loop.time()
    late_s: list[float] = []
    while True:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        now_s = loop.time()
        while due_s <= now_s:
            late_s.append(round(now_s - due_s, 5))
            due_s += BEAT_S
        if now_s - said_s >= 1:
            print(json.dumps({"late_s": late_s}), flush=True)
            said_s, late_s = now_s, []


if __name__ == "__main__":
    server.RouterServer = WatchedRouter  # type: ignore[misc]  # `tandem serve` looks it up when it starts
    sys.argv.insert(1, "serve")
    cli.main()
