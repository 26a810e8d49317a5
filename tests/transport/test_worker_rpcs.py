"""Everything but Generate: probe, describe, loads, abort and the tokenizer archive."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from scripted_server import ScriptedServer, tokenizer_chunks, until_lost
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import ChannelOptions
from tandem_router.transport.channels import open_channel
from tandem_router.transport.connection import Connection
from tandem_router.transport.grpc_engine import GrpcEngine

TIMEOUT_S = 5.0


async def test_probe_of_a_serving_engine_returns(engine: GrpcEngine) -> None:
    await engine.probe(timeout_s=TIMEOUT_S)


async def test_probe_believes_healthy_false_under_status_ok(worker: ScriptedServer, engine: GrpcEngine) -> None:
    async def dead(request: Any, context: Any) -> Any:
        return sglang.HealthCheckResponse(healthy=False, message="EngineDeadError")

    worker.health = dead
    with pytest.raises(EngineFailure, match="EngineDeadError"):
        await engine.probe(timeout_s=TIMEOUT_S)


async def test_trap_15_late_health_is_not_a_lost_connection(worker: ScriptedServer, engine: GrpcEngine) -> None:
    async def late(request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    worker.health = late
    with pytest.raises(EngineFailure) as caught:
        await engine.probe(timeout_s=0.05)
    assert (caught.value.code, caught.value.connection_lost) == (Code.DEADLINE_EXCEEDED, False)


async def test_deadline_that_the_engine_answers_is_told_as_its_answer(
    worker: ScriptedServer, engine: GrpcEngine
) -> None:
    async def gives_up(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the scheduler is silent")

    worker.health = gives_up
    with pytest.raises(EngineFailure, match="answered DEADLINE_EXCEEDED: the scheduler is silent") as caught:
        await engine.probe(timeout_s=TIMEOUT_S)
    assert caught.value.reason is Reason.ENGINE_ERROR


async def test_probe_of_a_dead_worker_is_a_lost_connection(worker: ScriptedServer, engine: GrpcEngine) -> None:
    await worker.stop()
    with pytest.raises(EngineFailure) as caught:
        await engine.probe(timeout_s=TIMEOUT_S)
    assert caught.value.connection_lost


async def test_probe_reports_another_process_once_and_then_serves_it(
    worker: ScriptedServer, engine: GrpcEngine
) -> None:
    worker.cut()
    worker.instance = "i-2"
    await until_lost(engine.connection)
    with pytest.raises(EngineFailure, match="another process"):
        await engine.probe(timeout_s=TIMEOUT_S)
    await engine.probe(timeout_s=TIMEOUT_S)


async def test_describe_reads_facts(engine: GrpcEngine) -> None:
    facts = await engine.describe(timeout_s=TIMEOUT_S)
    assert (facts.model_id, facts.vocab_size, facts.instance) == ("tiny", 512, "i-1")


async def test_abort_names_the_leg(worker: ScriptedServer, engine: GrpcEngine) -> None:
    await engine.abort("leg-9", timeout_s=TIMEOUT_S)
    assert worker.aborted == ["leg-9"]


async def test_trap_14_unimplemented_loads_are_not_a_failure(engine: GrpcEngine) -> None:
    assert await engine.loads(timeout_s=TIMEOUT_S) is None


async def test_loads_are_sampled_on_the_loops_clock(worker: ScriptedServer, engine: GrpcEngine) -> None:
    worker.loads = sglang.GetLoadsResponse(loads=[sglang.SchedulerLoad(num_running_reqs=3)])
    before_s = asyncio.get_running_loop().time()
    [load] = await engine.loads(timeout_s=TIMEOUT_S) or ()
    assert (load.running, load.sampled_at_s >= before_s) == (3, True)


async def test_load_is_no_sign_of_life_because_dead_engines_have_theirs_told(
    worker: ScriptedServer, engine: GrpcEngine
) -> None:
    worker.loads = sglang.GetLoadsResponse(loads=[sglang.SchedulerLoad(num_running_reqs=3)])
    await engine.loads(timeout_s=TIMEOUT_S)
    assert engine.last_sign_of_life_s is None


async def test_zeros_of_an_unhealthy_vllm_are_not_idleness() -> None:
    worker = ScriptedServer("vllm.grpc.engine.VllmEngine")

    async def dead(request: Any, context: Any) -> Any:
        return vllm.HealthCheckResponse(healthy=False, message="dead")

    worker.health = dead
    worker.loads = sglang.GetLoadsResponse(loads=[sglang.SchedulerLoad()])  # same field numbers as vLLM's
    await worker.start()
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    client = GrpcEngine(connection, VllmDialect(), None, connect_timeout_s=None)
    try:
        with pytest.raises(EngineFailure, match="not healthy"):
            await client.loads(timeout_s=TIMEOUT_S)
    finally:
        await client.close()
        await worker.stop()


async def test_archive_comes_whole(worker: ScriptedServer, engine: GrpcEngine) -> None:
    worker.tokenizer = tokenizer_chunks(bytes(range(256)) * 100)
    assert await engine.fetch_tokenizer(timeout_s=TIMEOUT_S) == bytes(range(256)) * 100


async def test_worker_without_tokenizer_rpc_has_none(engine: GrpcEngine) -> None:
    assert await engine.fetch_tokenizer(timeout_s=TIMEOUT_S) is None


@pytest.mark.parametrize("digest", ["", "00" * 32])
async def test_archive_without_its_sha256_is_refused(worker: ScriptedServer, engine: GrpcEngine, digest: str) -> None:
    worker.tokenizer = tokenizer_chunks(b"zip", digest)
    with pytest.raises(EngineFailure, match="sha256"):
        await engine.fetch_tokenizer(timeout_s=TIMEOUT_S)


async def test_truncated_archive_is_refused(worker: ScriptedServer, engine: GrpcEngine) -> None:
    worker.tokenizer = tokenizer_chunks(b"some archive")[1:]
    with pytest.raises(EngineFailure, match="sha256"):
        await engine.fetch_tokenizer(timeout_s=TIMEOUT_S)


async def test_endless_archive_is_cut_off(
    worker: ScriptedServer, engine: GrpcEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_router.transport.archive._MAX_ARCHIVE_BYTES", 1000)
    worker.tokenizer = tokenizer_chunks(b"x" * 3000)
    with pytest.raises(EngineFailure, match="exceeds"):
        await engine.fetch_tokenizer(timeout_s=TIMEOUT_S)


async def test_refused_rpc_says_what_the_engine_said(worker: ScriptedServer, engine: GrpcEngine) -> None:
    async def denied(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "who are you")

    worker.health = denied
    with pytest.raises(EngineFailure, match="HealthCheck answered PERMISSION_DENIED: who are you") as caught:
        await engine.probe(timeout_s=TIMEOUT_S)
    assert caught.value.reason is Reason.WORKER_REFUSED
