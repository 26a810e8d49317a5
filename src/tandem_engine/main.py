"""`python -m tandem_engine`: flags, signals, and the line that says where the engine serves."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tandem_engine.config import ModelFolderError
from tandem_engine.credentials import TlsFiles
from tandem_engine.faults import FaultError, parse_duration, parse_faults
from tandem_engine.options import EngineOptions, Mode, Protocol, Task
from tandem_engine.server import serve

__all__ = ["main", "parse_options", "run_engine"]

API_KEY_VARIABLE = "TANDEM_ENGINE_API_KEY"
"""Where the API key comes from without --api-key-file."""

PARENT_POLL_S = 0.5
"""How often a parent is looked for where the system cannot tell of its end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until a signal. Exit codes: 0 ended as asked, 1 could not serve, 2 bad flags."""
    try:
        options = parse_options(arguments)
    except (FaultError, ValueError) as error:
        print(f"tandem_engine: {error}", file=sys.stderr)
        return 2
    try:
        run_engine(options)
    except (ModelFolderError, OSError, RuntimeError) as error:
        print(f"tandem_engine: {error}", file=sys.stderr)
        return 1
    return 0


def parse_options(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Options from the command line. Raises FaultError or ValueError for a value that cannot be."""
    plain = EngineOptions()
    parser = argparse.ArgumentParser("tandem_engine", description="Tandem's reference engine.")
    add = parser.add_argument
    add("--protocol", choices=[item.value for item in Protocol], default=plain.protocol.value)
    add("--mode", choices=[item.value for item in Mode], default=plain.mode.value)
    add("--listen", default=plain.listen, help="host:port, 0 is any port")
    add("--bootstrap-port", type=int, default=plain.bootstrap_port, help="prefill: where decode engines knock")
    add("--advertise-host", help="prefill: the host that decode engines are told; default: the host of --listen")
    add("--model", default=plain.model, help="a Hugging Face folder, or demo")
    add("--served-model-name", help="default: the folder's name")
    add("--name", help="the engine's own name; default: made up")
    add("--kv-lease", default="30s", help="how long a prefill's pages wait for their decode engine")
    add("--bootstrap-timeout", default="30s", help="how long a decode engine waits for a room and for each page")
    add("--max-running", type=int, default=plain.max_running)
    add("--num-pages", type=int, default=plain.num_pages, help="KV pages per data-parallel rank")
    add("--dp-size", type=int, default=plain.dp_size)
    add("--prefill-chunk", type=int, default=plain.prefill_chunk)
    add("--max-model-len", type=int)
    add("--grace", default="10s", help="how long running requests may go on after SIGTERM")
    add("--parent-pid", type=int, help="end when this process does")
    add("--task", choices=[item.value for item in Task], default=plain.task.value,
        help="what is served: tokens, embeddings (last token, length 1), or both, which real engines cannot; "
        "embeddings only with --mode aggregated")  # fmt: skip
    add("--max-adapters", type=int, default=plain.max_adapters, help="LoRA adapters held at once; 0: none are served")
    add("--no-kv-events", action="store_true", help="do not publish KV events")
    add("--profile-dir", help="where profiles are written when StartProfile does not say")
    add("--tls-certificate", type=Path, help="PEM; serves TLS instead of plain text, with --tls-key")
    add("--tls-key", type=Path, help="PEM")
    add("--tls-client-ca", type=Path, help="PEM; clients must show a certificate of this authority (mTLS)")
    add("--api-key-file", type=Path, help=f"calls must carry the key in this file; default: ${API_KEY_VARIABLE}")
    add("--fault", action="append", default=[], metavar="NAME[=VALUE]", help="like step_latency=20ms; repeatable")
    flags = parser.parse_args(arguments)
    return EngineOptions(
        protocol=Protocol(flags.protocol),
        mode=Mode(flags.mode),
        listen=flags.listen,
        bootstrap_port=flags.bootstrap_port,
        advertise_host=flags.advertise_host,
        model=flags.model,
        served_model_name=flags.served_model_name,
        name=flags.name,
        kv_lease_s=parse_duration(flags.kv_lease),
        bootstrap_timeout_s=parse_duration(flags.bootstrap_timeout),
        max_running=flags.max_running,
        num_pages=flags.num_pages,
        dp_size=flags.dp_size,
        prefill_chunk=flags.prefill_chunk,
        max_model_len=flags.max_model_len,
        grace_s=parse_duration(flags.grace),
        parent_pid=flags.parent_pid,
        faults=parse_faults(flags.fault),
        task=Task(flags.task),
        max_adapters=flags.max_adapters,
        kv_events=not flags.no_kv_events,
        profile_dir=flags.profile_dir,
        tls=_tls(flags.tls_certificate, flags.tls_key, flags.tls_client_ca),
        api_key=_api_key(flags.api_key_file),
    )


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--tls-certificate and --tls-key belong together")
    return TlsFiles(certificate, key, client_ca)


def _api_key(file: Path | None) -> str | None:
    """The key from the file, else from the environment; there is no flag for it, since ps shows flags to everybody."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"--api-key-file {file}: {error.strerror}") from None


def run_engine(options: EngineOptions) -> None:
    """Serves until SIGTERM or SIGINT, or until the parent process ends.

    When it serves it prints one JSON line: listen, bootstrap_port, pid. The first signal lets running requests finish
    within the grace; a second one, and the parent's end, end everything at once. Raises what `serve` raises.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    asyncio.run(_run(options))


async def _run(options: EngineOptions) -> None:
    asked, insisted = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with serve(options) as served:
        orphaned = asyncio.create_task(_parent_ended(options.parent_pid))
        line = {"listen": served.listen, "bootstrap_port": served.bootstrap_port, "pid": os.getpid()}
        print(json.dumps(line), flush=True)
        try:
            await _first(orphaned, asyncio.create_task(asked.wait()))
            if not orphaned.done():
                drain = asyncio.create_task(served.drain(options.grace_s))
                await _first(orphaned, drain, asyncio.create_task(insisted.wait()))
                drain.cancel()
        finally:
            orphaned.cancel()


async def _first(*tasks: asyncio.Task[object] | asyncio.Task[bool] | asyncio.Task[None]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _parent_ended(pid: int | None) -> None:
    """Returns when process `pid` has ended; never when there is none to watch."""
    if pid is None:
        await asyncio.get_running_loop().create_future()
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        while _exists(pid):  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(PARENT_POLL_S)
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
