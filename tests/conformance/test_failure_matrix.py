"""An engine that fails at a step of its registration: a clear job error or condition, no stuck job, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
import trustme
from tests.conformance.router_world import IMPATIENT, QUICK, RUNTIMES, RouterWorld, router, until

from tandem.v1 import job_pb2, model_card_pb2, worker_pb2, worker_service_pb2
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.grpc_engines import Archive, GrpcScript, Listening, ScriptedGrpcEngine, Tls

ENGINES = (RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TRTLLM, RuntimeType.TOKENSPEED, RuntimeType.MLX)
TELL_BLOCK_SIZE = (RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TOKENSPEED)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and what the operator is told."""

    script: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    settings: RuntimeSettings = QUICK
    failed_step: str | None = None
    """None: the job succeeds, and a condition tells."""
    reason: str = ""
    says: str = ""
    """Part of the sentence."""
    condition: str = "SERVING"
    engines: tuple[RuntimeType, ...] = ENGINES


def _hanging(rpc: str, step: str, reason: str, says: str) -> Fault:
    return Fault({"hangs": frozenset({rpc})}, {}, IMPATIENT, step, reason, says)


def _lacking(rpc: str, step: str, reason: str, says: str) -> Fault:
    return Fault({"unimplemented": frozenset({rpc})}, {}, QUICK, step, reason, says)


def _archive(kind: Archive, reason: str, says: str) -> Fault:
    return Fault({"archive": kind}, reason=reason, says=says, condition="TOKENIZER")


FAULTS = {
    "refuses connections": Fault(
        {"listening": Listening.REFUSING}, {}, QUICK, "connect", "WORKER_UNREACHABLE", "refused"
    ),
    "hangs at connect": Fault(
        {"listening": Listening.SILENT}, {}, IMPATIENT, "connect", "WORKER_UNREACHABLE", "no connection within 1 s"
    ),
    "hangs at GetServerInfo": _hanging("GetServerInfo", "detect_runtime", "WORKER_UNREACHABLE", "nothing answered"),
    "hangs at GetModelInfo": _hanging("GetModelInfo", "read_facts", "ENGINE_ERROR", "GetModelInfo"),
    "hangs at HealthCheck": _hanging("HealthCheck", "activate", "ENGINE_ERROR", "HealthCheck was not answered"),
    "hangs at GetTokenizer": Fault(
        {"hangs": frozenset({"GetTokenizer"})},
        settings=replace(QUICK, jobs=replace(QUICK.jobs, tokenizer_timeout_s=0.3)),
        reason="TOKENIZER_UNAVAILABLE",
        says="GetTokenizer",
        condition="TOKENIZER",
    ),
    "lacks GetServerInfo": _lacking("GetServerInfo", "detect_runtime", "RUNTIME_NOT_DETECTED", "UNIMPLEMENTED"),
    "lacks GetModelInfo": _lacking("GetModelInfo", "read_facts", "ENGINE_PROTOCOL_ERROR", "GetModelInfo"),
    "lacks HealthCheck": _lacking("HealthCheck", "activate", "ENGINE_PROTOCOL_ERROR", "HealthCheck"),
    "lacks GetTokenizer": Fault(
        {"unimplemented": frozenset({"GetTokenizer"})}, reason="NOT_OFFERED", says="no tokenizer", condition="TOKENIZER"
    ),
    "is dead behind a living process": Fault(
        {"is_dead": True}, failed_step="activate", reason="ENGINE_ERROR", says="not healthy"
    ),
    "wants another API key": Fault(
        {"api_key": "right"}, failed_step="detect_runtime", reason="WORKER_REFUSED", says="credentials.api_key"
    ),
    "serves another model": Fault(
        spec={"models": [model_card_pb2.ModelCard(id="other")]},
        reason="CONFLICT_MODEL",
        says="models: stated other, found ",
        condition="FACTS_MATCH",
    ),
    "has another block size": Fault(
        spec={"kv_block_size": 32},
        reason="CONFLICT_KV_BLOCK_SIZE",
        says="kv_block_size: stated 32, found 16",
        condition="FACTS_MATCH",
        engines=TELL_BLOCK_SIZE,
    ),
    "has another KV dtype": Fault(
        {"kv_dtype": "bfloat16"},
        {"kv_cache_dtype": "fp8"},
        reason="CONFLICT_KV_CACHE_DTYPE",
        says="kv_cache_dtype: stated fp8, found bfloat16",
        condition="FACTS_MATCH",
        engines=TELL_BLOCK_SIZE,
    ),
    "has another pairing protocol": Fault(
        {"pairing_protocol": "b"},
        {"pairing_protocol": "a"},
        reason="CONFLICT_PAIRING_PROTOCOL",
        says="pairing_protocol: stated a, found b",
        condition="FACTS_MATCH",
        engines=TELL_BLOCK_SIZE,
    ),
    "hands out garbage as tokenizer": _archive(Archive.GARBAGE, "TOKENIZER_UNAVAILABLE", "cannot be read"),
    "hands out a zip bomb": replace(
        _archive(Archive.BOMB, "TOKENIZER_UNAVAILABLE", "inflate"),
        engines=ENGINES[:3],  # each costs half a second
    ),
    "hands out a wrong sha256": _archive(Archive.WRONG_DIGEST, "TOKENIZER_UNAVAILABLE", "sha256"),
    "has no tokenizer": _archive(Archive.NONE, "NOT_OFFERED", "no tokenizer"),
}
ROWS = [
    pytest.param(runtime, fault, id=f"{runtime}-{name.replace(' ', '-')}")
    for name, fault in FAULTS.items()
    for runtime in fault.engines
]


@pytest.mark.parametrize(("runtime", "fault"), ROWS)
async def test_failing_engine_is_told_of_and_leaves_nothing(runtime: RuntimeType, fault: Fault) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime, **fault.script)) as engine, router(fault.settings) as world:
        before = _tasks()
        registered = await world.register(engine, **fault.spec)
        job = registered.job
        assert registered.failed_step in (fault.failed_step, "load_tokenizer")
        condition = await world.condition(registered.worker_id, fault.condition)
        assert condition is not None
        assert condition.status == worker_pb2.CONDITION_STATUS_FALSE
        assert (condition.failure.reason, fault.says in condition.failure.message) == (fault.reason, True), condition
        if fault.failed_step is None:
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure.message
            answer = await world.generate(world.request(5, 6, model=""))
            assert answer.code is grpc.StatusCode.OK, answer.message
        else:
            assert job.state == job_pb2.JOB_STATE_FAILED
            assert (job.failure.reason, fault.says in job.failure.message) == (fault.reason, True), job.failure
            assert (await world.worker(registered.worker_id)).status == worker_pb2.WORKER_STATUS_FAILED
        await _delete_leaves_nothing(world, registered.worker_id, engine, before)


OPTIONAL = {
    "Abort": ENGINES,
    "Embed": (RuntimeType.SGLANG, RuntimeType.VLLM),
    "FlushCache": TELL_BLOCK_SIZE,
    "GetLoads": TELL_BLOCK_SIZE,
    "ListLoadedLoRAAdapters": (RuntimeType.SGLANG,),
    "LoadLoRAAdapter": (RuntimeType.SGLANG,),
    "StartProfile": TELL_BLOCK_SIZE,
    "StopProfile": TELL_BLOCK_SIZE,
    "SubscribeKvEvents": ENGINES[:4],
    "UnloadLoRAAdapter": (RuntimeType.SGLANG,),
}
"""Rpcs that an older or differently started engine may lack, and the protocols that have them."""


@pytest.mark.parametrize(
    ("runtime", "rpc"), [(runtime, rpc) for rpc, engines in OPTIONAL.items() for runtime in engines]
)
async def test_optional_rpc_that_is_unimplemented_costs_only_itself(runtime: RuntimeType, rpc: str) -> None:
    script = GrpcScript(runtime, unimplemented=frozenset({rpc}), token_s=0.002)
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        before = _tasks()
        worker_id = await world.add(engine)
        cut = world.router.Generate(world.request(5, 6, max_tokens=1000))
        assert await cut.read() is not grpc.aio.EOF
        cut.cancel()
        answer = await world.generate(world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        worker = await world.worker(worker_id, include_load=True)
        assert worker.status == worker_pb2.WORKER_STATUS_READY
        await _delete_leaves_nothing(world, worker_id, engine, before)


@pytest.mark.parametrize("stated", ["tiny", "some/tiny"])
@pytest.mark.parametrize("runtime", ENGINES)
async def test_stated_model_that_the_engine_names_by_a_path_is_no_conflict(runtime: RuntimeType, stated: str) -> None:
    card = model_card_pb2.ModelCard(id="anything", aliases=[stated])
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine, router() as world:
        registered = await world.register(engine, models=[card])
        condition = await world.condition(registered.worker_id, "FACTS_MATCH")
        assert condition is not None
        assert condition.status == worker_pb2.CONDITION_STATUS_TRUE, condition


@pytest.mark.parametrize("runtime", ENGINES)
async def test_protocol_is_detected(runtime: RuntimeType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine, router() as world:
        worker_id = await world.add(engine, states_runtime=False)
        assert (await world.worker(worker_id)).facts.runtime_type == RUNTIMES[runtime]


@pytest.mark.parametrize(("runtime", "stated"), [*zip(ENGINES, (*ENGINES[1:], ENGINES[0]), strict=True)])
async def test_wrongly_stated_protocol_is_refused(runtime: RuntimeType, stated: RuntimeType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine, router() as world:
        registered = await world.register(engine, runtime_type=RUNTIMES[stated])
        assert (registered.failed_step, registered.job.failure.reason) == ("detect_runtime", "RUNTIME_NOT_DETECTED")
        assert str(stated) in registered.job.failure.message
        assert engine.generated == []


@pytest.mark.parametrize("engine_speaks_tls", [False, True], ids=["grpcs-to-plain", "grpc-to-tls"])
@pytest.mark.parametrize("runtime", ENGINES[:3])
async def test_tls_mismatch_is_a_clear_job_error(runtime: RuntimeType, engine_speaks_tls: bool) -> None:
    tls = _tls(trustme.CA()) if engine_speaks_tls else None
    async with ScriptedGrpcEngine(GrpcScript(runtime, tls=tls)) as engine, router() as world:
        before = _tasks()
        scheme = "grpc" if engine_speaks_tls else "grpcs"
        registered = await world.register(engine, url=f"{scheme}://{engine.address}")
        assert registered.job.state == job_pb2.JOB_STATE_FAILED
        assert registered.failed_step == "connect"
        assert registered.job.failure.reason in ("WORKER_TLS_FAILED", "WORKER_UNREACHABLE")
        assert "tls" in registered.job.failure.message.lower()
        await _delete_leaves_nothing(world, registered.worker_id, engine, before)


@pytest.mark.parametrize("runtime", ENGINES[:3])
async def test_certificate_of_an_unknown_authority_is_a_clear_job_error(runtime: RuntimeType) -> None:
    script = GrpcScript(runtime, tls=_tls(trustme.CA()))
    stranger = trustme.CA().cert_pem.bytes()
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        before = _tasks()
        registered = await world.register(engine, ca_pem=stranger)
        assert registered.job.state == job_pb2.JOB_STATE_FAILED
        assert (registered.failed_step, registered.job.failure.reason) == ("connect", "WORKER_TLS_FAILED")
        await _delete_leaves_nothing(world, registered.worker_id, engine, before)


@pytest.mark.parametrize("runtime", ENGINES)
async def test_right_authority_and_api_key_reach_the_engine(runtime: RuntimeType) -> None:
    authority = trustme.CA()
    script = GrpcScript(runtime, tls=_tls(authority), api_key="k-1")
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        worker_id = await world.add(engine, ca_pem=authority.cert_pem.bytes(), api_key="k-1")
        answer = await world.generate(world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert engine.seen("Generate")[0].metadata["authorization"] == "Bearer k-1"
        assert "k-1" not in str(await world.worker(worker_id))


@pytest.mark.parametrize(
    ("runtime", "decode", "reason", "says"),
    [
        (RuntimeType.SGLANG, {"block_size": 32}, "NO_COMPATIBLE_PAIR", "kv_block_size"),
        (RuntimeType.VLLM, {"block_size": 32}, "NO_COMPATIBLE_PAIR", "kv_block_size"),
        (RuntimeType.TOKENSPEED, {"block_size": 32}, "NO_COMPATIBLE_PAIR", "kv_block_size"),
        (RuntimeType.SGLANG, {"kv_dtype": "fp8"}, "NO_COMPATIBLE_PAIR", "kv_dtype"),
        (RuntimeType.VLLM, {"kv_dtype": "fp8"}, "NO_COMPATIBLE_PAIR", "kv_dtype"),
        (RuntimeType.VLLM, {"kv_connector": "MooncakeConnector"}, "NO_COMPATIBLE_PAIR", "kv_connector"),
        (RuntimeType.VLLM, {"kv_connector": ""}, "", "handshake"),
        (RuntimeType.SGLANG, {"model": "other"}, "NO_COMPATIBLE_PAIR", "model"),
        (RuntimeType.TRTLLM, {}, "RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS", "TRTLLM"),
        (RuntimeType.MLX, {}, "", "handshake"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_pair_that_cannot_work_is_a_condition_and_sends_nothing(
    runtime: RuntimeType, decode: dict[str, Any], reason: str, says: str
) -> None:
    prefill_script = GrpcScript(runtime, mode=WorkerType.PREFILL)
    decode_script = GrpcScript(runtime, mode=WorkerType.DECODE, **decode)
    async with (
        ScriptedGrpcEngine(prefill_script) as prefill,
        ScriptedGrpcEngine(decode_script) as other,
        router() as world,
    ):
        for engine in (prefill, other):
            await world.register(engine)
        claims = [
            condition
            for worker in (await world.workers.ListWorkers(worker_service_pb2.ListWorkersRequest())).workers
            for condition in worker.conditions
            if condition.type == "PAIRABLE"
        ]
        assert {claim.status for claim in claims} == {worker_pb2.CONDITION_STATUS_FALSE}
        told = [claim for claim in claims if says in claim.failure.message]
        assert told, claims
        assert reason in {claim.failure.reason for claim in told} or not reason
        answer = await world.generate(world.request(5, 6))
        assert answer.code is not grpc.StatusCode.OK
        assert prefill.generated == other.generated == []


def _tls(authority: trustme.CA) -> Tls:
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    return Tls(chain, certificate.private_key_pem.bytes())


async def _delete_leaves_nothing(
    world: RouterWorld, worker_id: str, engine: ScriptedGrpcEngine, before: set[str]
) -> None:
    await world.delete(worker_id)
    await world.until_idle([engine])

    async def is_as_before() -> bool:
        return _tasks() <= before

    await until(is_as_before, within_s=15, what=f"no task is left: {_tasks() - before}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.workers.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker_id))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert world.held() == (0, 0, 0)


def _tasks() -> set[str]:
    """Names of the tasks that somebody named; grpc's own have numbers."""
    return {task.get_name() for task in asyncio.all_tasks() if not task.get_name().startswith("Task-")}
