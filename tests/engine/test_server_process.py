"""The engine as a process: its one line, its signals, its parent, its death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2_grpc
from wire_fixtures import messages, prompt, tail, vllm_request

from tandem_engine.credentials import TlsFiles
from tandem_engine.flags import make_parser
from tandem_engine.main import main, parse_options
from tandem_engine.options import EngineOptions, Mode, Protocol, Task

pytestmark = pytest.mark.e2e

LIMIT_S = 30.0


@asynccontextmanager
async def process(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A running engine process and the line it printed; killed at the end if it still lives."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem_engine", "--protocol", "vllm", "--parent-pid", str(os.getpid()), *flags,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            line = await child.stdout.readline()
        yield child, json.loads(line)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _ends(child: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(LIMIT_S):
        return await child.wait()


async def test_line_says_where_it_serves_and_sigterm_ends_it_with_zero() -> None:
    async with process("--mode", "prefill") as (child, line):
        assert line["pid"] == child.pid
        assert line["bootstrap_port"] > 0
        async with grpc.aio.insecure_channel(line["listen"]) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        child.send_signal(signal.SIGTERM)
        assert await _ends(child) == 0


async def test_sigterm_lets_a_running_request_finish() -> None:
    async with process("--fault", "step_latency=10ms") as (child, line):
        async with grpc.aio.insecure_channel(line["listen"]) as channel:
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Generate(vllm_request(prompt(3), max_tokens=40))
            await call.read()
            child.send_signal(signal.SIGTERM)
            assert (await messages(call))[-1].complete.finish_reason == "length"
        assert await _ends(child) == 0


async def test_open_health_watch_does_not_hold_up_sigterm() -> None:
    async with process("--grace", "10m") as (child, line), grpc.aio.insecure_channel(line["listen"]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        child.send_signal(signal.SIGTERM)
        assert await _ends(child) == 0


async def test_second_sigterm_ends_a_running_request_at_once() -> None:
    hanging = process("--fault", "hang_at_token=1", "--grace", "10m")
    async with hanging as (child, line), grpc.aio.insecure_channel(line["listen"]) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Generate(vllm_request(prompt(3)))
        await call.read()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        child.send_signal(signal.SIGTERM)
        # The watch hears of the first signal, so the second is a second one.
        await asyncio.wait_for(watch.read(), LIMIT_S)
        child.send_signal(signal.SIGTERM)
        assert await _ends(child) == 0
        assert (await tail(call))[1] is not grpc.StatusCode.OK


async def test_crash_at_token_is_a_sigkill() -> None:
    async with process("--fault", "crash_at_token=2") as (child, line):
        async with grpc.aio.insecure_channel(line["listen"]) as channel:
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError):
                await messages(stub.Generate(vllm_request(prompt(3))))
        assert await _ends(child) == -signal.SIGKILL


async def test_engine_ends_with_the_process_it_was_told_to_follow() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    async with process("--parent-pid", str(parent.pid)) as (child, _):
        parent.kill()
        await parent.wait()
        assert await _ends(child) == 0


async def test_reflection_lists_the_engines_service_and_the_ledger() -> None:
    async with process() as (_, line), grpc.aio.insecure_channel(line["listen"]) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        await call.done_writing()
    names = {service.name for service in listed.list_services_response.service}
    assert {"vllm.grpc.engine.VllmEngine", "tandem.engine.v1.LedgerService", "grpc.health.v1.Health"} <= names


def test_flags_become_options() -> None:
    options = parse_options(
        ["--protocol", "sglang", "--mode", "decode", "--listen", "127.0.0.1:7", "--kv-lease", "5s", "--dp-size", "2"]
    )
    assert options == EngineOptions(
        protocol=Protocol.SGLANG, mode=Mode.DECODE, listen="127.0.0.1:7", kv_lease_s=5.0, dp_size=2
    )


def test_flags_of_tasks_adapters_events_profiles_and_tls_become_options() -> None:
    flags = "--task embed --max-adapters 3 --no-kv-events --profile-dir p --tls-certificate c --tls-key k"
    options = parse_options([*flags.split(), "--tls-client-ca", "a"])
    assert options == EngineOptions(
        task=Task.EMBED,
        max_adapters=3,
        kv_events=False,
        profile_dir="p",
        tls=TlsFiles(Path("c"), Path("k"), Path("a")),
    )


async def test_a_process_serves_tls_to_those_who_bring_its_key(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    (tmp_path / "key").write_text("s3cret\n")
    files = ("--tls-certificate", str(tmp_path / "both.pem"), "--tls-key", str(tmp_path / "both.pem"))
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with (
        process(*files, "--api-key-file", str(tmp_path / "key")) as (_, line),
        grpc.aio.secure_channel(line["listen"], credentials) as channel,
    ):
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        metadata = (("authorization", "Bearer s3cret"),)
        assert len(await messages(stub.Generate(vllm_request(prompt(3)), metadata=metadata))) == 9
        assert await tail(stub.Generate(vllm_request(prompt(3)))) == (0, grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--fault", "nonsense"], 2),
        (["--listen", "nowhere"], 2),
        (["--listen", "127.0.0.1:65536"], 2),
        (["--listen", "127.0.0.1:\u00b2"], 2),
        (["--bootstrap-port", "65536"], 2),
        (["--num-pages", "0"], 2),
        (["--dp-size", "0"], 2),
        (["--max-running", "0"], 2),
        (["--prefill-chunk", "0"], 2),
        (["--max-model-len", "1"], 2),
        (["--kv-lease", "0s"], 2),
        (["--bootstrap-timeout", "0s"], 2),
        (["--grace", "10"], 2),
        (["--parent-pid", "0"], 2),
        (["--max-adapters", "-1"], 2),
        (["--kv-event-history", "-1"], 2),
        (["--kv-event-queue", "0"], 2),
        (["--model", "no-such-folder"], 1),
    ],
    ids=lambda value: "=".join(value).replace("\u00b2", "superscript") if isinstance(value, list) else str(value),
)
def test_engine_that_cannot_serve_says_why_and_exits(
    flags: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == code
    told = capsys.readouterr().err
    assert (told.startswith("tandem_engine: "), told.count("\n")) == (True, 1)


def test_every_flag_says_what_it_means() -> None:
    actions = make_parser()._actions
    assert [action.dest for action in actions if not action.help] == []
    assert len({action.help for action in actions}) == len(actions)
