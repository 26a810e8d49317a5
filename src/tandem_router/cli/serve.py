"""`tandem serve`: one router process, from its flags to its last answer."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tandem_router.cli.console import FAILED, USAGE, complain
from tandem_router.cli.text import table
from tandem_router.settings import Resolved, ServerSettings, SettingsError, resolve

__all__ = ["serve"]

_PARENT_POLL_S = 0.5


def serve(
    listen: Annotated[str | None, typer.Option(help="host:port for clients; port 0 is any.")] = None,
    admin_listen: Annotated[str | None, typer.Option(help="host:port for operators.")] = None,
    health_listen: Annotated[str | None, typer.Option(help="host:port for health probes.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="host:port for Prometheus.")] = None,
    config: Annotated[Path | None, typer.Option(envvar="TANDEM_CONFIG", help="TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    show_settings: Annotated[bool, typer.Option(help="Print every setting and its source, and end.")] = False,
    print_ports: Annotated[bool, typer.Option(help="Print the addresses as one line of JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="Log warnings and errors only.")] = False,
    parent_pid: Annotated[int | None, typer.Option(help="End when this process does.")] = None,
) -> None:
    """Run the router until SIGTERM or SIGINT; the first lets running requests end, the second ends them."""
    try:
        listeners = {
            "listen": listen,
            "admin_listen": admin_listen,
            "health_listen": health_listen,
            "metrics_listen": metrics_listen,
        }
        resolved = _resolve(listeners, set_ or [], config)
        if show_settings:
            print(_settings_table(resolved))
            return
        level = logging.WARNING if quiet else logging.INFO
        logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
        asyncio.run(_run(resolved.settings, print_ports=print_ports, parent_pid=parent_pid))
    except SettingsError as error:
        complain(None, f"SETTINGS: {error}")
        raise typer.Exit(USAGE) from None
    except OSError as error:
        complain(None, f"LISTEN: {error}")
        raise typer.Exit(FAILED) from None


def _resolve(flags: Mapping[str, str | None], pairs: list[str], config: Path | None) -> Resolved:
    stated = {key: value for key, value in flags.items() if value is not None}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set takes KEY=VALUE, not {pair!r}")
        stated[key.strip()] = value.strip()
    return resolve(flags=stated, environ=os.environ, file=config)


def _settings_table(resolved: Resolved) -> str:
    return table(("KEY", "VALUE", "SOURCE"), [(key, str(value), source) for key, value, source in resolved.rows()])


async def _run(settings: ServerSettings, *, print_ports: bool, parent_pid: int | None) -> None:
    # Imported here: --show-settings and --help need no gRPC.
    from tandem_router.server import RouterServer

    asked, insisted = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        server.begin_drain()
        (insisted if asked.is_set() else asked).set()

    # Of the whole process, so it is set here and not by the server, which may live in somebody else's.
    if settings.thread_switch_interval_s > 0:
        sys.setswitchinterval(settings.thread_switch_interval_s)
    loop = asyncio.get_running_loop()
    server = RouterServer(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if settings.debug_wedge_s > 0:
        loop.add_signal_handler(signal.SIGUSR2, _wedge, settings.debug_wedge_s)
    orphaned = asyncio.create_task(_parent_ended(parent_pid), name="watch parent")
    try:
        addresses = await server.start()
        _calm_collector()
        if print_ports:
            print(json.dumps({**asdict(addresses), "pid": os.getpid()}), flush=True)
        else:
            print(f"clients    {addresses.listen}", f"operators  {addresses.admin_listen}", sep="\n")
            print(f"health     {addresses.health_listen}")
            print(f"metrics    {addresses.metrics_listen}", flush=True)
        await _first(orphaned, asyncio.create_task(asked.wait()))
        if not orphaned.done():
            drain = asyncio.create_task(server.drain(), name="drain")
            await _first(orphaned, drain, asyncio.create_task(insisted.wait()))
            drain.cancel()  # without effect on one that is done
            await asyncio.wait([drain])
            if not drain.cancelled():
                drain.result()
    finally:
        orphaned.cancel()
        await server.close(in_a_hurry=insisted.is_set())


def _calm_collector() -> None:
    """Make full garbage collections cheap and rare: all threads stand still in one.

    With Python's thresholds 300 streams meant a pause of 80 to 150 ms several times in ten seconds
    (docs/benchmarks.md). What lives now lives until the end and need not be walked; of what comes later almost all is
    freed by its count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)


def _wedge(duration_s: float) -> None:
    """Keep the loop from turning, as a fault of ours would: busy, not asleep, so other threads have to fight for it."""
    until_s = time.monotonic() + duration_s
    while time.monotonic() < until_s:
        pass


async def _first(*tasks: asyncio.Task[None] | asyncio.Task[bool] | asyncio.Task[int]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _parent_ended(pid: int | None) -> None:
    """Return when process `pid` has ended; never when there is none to watch."""
    if pid is None:
        await asyncio.get_running_loop().create_future()
        return
    while _exists(pid):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(_PARENT_POLL_S)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
