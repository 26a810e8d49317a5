"""Every check fails against an engine that is broken in its way: a suite that cannot fail is worthless."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2
from tests.conformance.suite_world import TOKEN_S, engine_report, pair_of, pair_report, target, telling, verdict

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import RuntimeType
from tandem_router.testing.conformance import ENGINE_CHECKS, PAIR_CHECKS, Limits, Outcome, check_engine
from tandem_router.testing.grpc_engines import (
    Archive,
    Failing,
    GrpcScript,
    ScriptedGrpcEngine,
    answering,
    kv_feed,
    sglang,
)
from tandem_router.testing.grpc_engines import engine as scripted
from tandem_router.testing.grpc_engines import health as scripted_health
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.vllm import ScriptedVllm
from tandem_router.text.tokenizer import Tokenizer

QUICK = Limits(call_s=5.0, stop_s=0.3, hang_s=0.3, lease_s=0.1, give_back_s=0.3)
Breaker = Callable[[pytest.MonkeyPatch], None]
_LATE = ("outlived its deadline", "not over within", "not answered within", "no answer within")
HABITS = frozenset({"ending/abort-by-prefix", "hazard/profiler"})
"""What is noted whatever an engine does; the hazards are, too."""


@dataclass(frozen=True)
class Broken:
    """One way to be broken, and the check that must see it."""

    check: str
    breaker: Breaker | None = None
    script: dict[str, Any] = field(default_factory=dict)
    runtime: RuntimeType = RuntimeType.VLLM
    tells: bool = False
    """It publishes blocks as it answers."""
    is_late: bool = False
    """It is found out by its silence; what is not must not fail for being slow."""


def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Breaker:
    """Put make(the original) in its place."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, make(getattr(owner, name)))


def work(change: Callable[[Any, Any], dict[str, Any]]) -> Breaker:
    """Another reading of requests: change(request, work) says which fields of the work are different."""

    def make(original: Any) -> Any:
        def read(self: Any, request: Any) -> Any:
            made = original(self, request)
            return replace(made, **change(request, made))

        return read

    return patched(ScriptedVllm, "_work", make)


def other_answer(when: Callable[[Any], bool]) -> Breaker:
    """A different answer to some requests."""
    return work(lambda request, made: {"prompt": (*made.prompt, 1)} if when(request) else {})


def ends(change: Callable[[Any], None], method: str = "_complete") -> Breaker:
    """Another `complete` (or chunk): change(it) alters it."""

    def make(original: Any) -> Any:
        def build(self: Any, *arguments: Any) -> Any:
            response = original(self, *arguments)
            change(getattr(response, response.WhichOneof("response")))
            return response

        return build

    return patched(ScriptedVllm, method, make)


def refusing(when: Callable[[Any, Any], bool]) -> Breaker:
    """Generate is refused where when(servicer, context) holds."""

    def make(original: Any) -> Any:
        async def generate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            if when(self, context):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")
            async for response in original(self, request, context):
                yield response

        return generate

    return patched(ScriptedVllm, "Generate", make)


def loads(running: int, used: Callable[[], int] = lambda: 0) -> Breaker:
    """GetLoads says the same whatever happens."""

    def make(_: Any) -> Any:
        def answer(self: Any, pb: Any, *__: Any) -> Any:
            row = pb.SchedulerLoad(num_running_reqs=running, num_used_tokens=used())
            return pb.GetLoadsResponse(loads=[row])

        return answer

    return patched(Station, "loads", make)


def feed(*, is_deaf: bool) -> Breaker:
    """A publisher that hears no start (is_deaf), or breaks over one that it never reached."""

    def make(original: Any) -> Any:
        async def stream(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            if request.start_sequence_number > 2**39 and not is_deaf:
                await context.abort(grpc.StatusCode.INTERNAL, "index out of range")
            if is_deaf:
                request.start_sequence_number = 0
            async for batch in original(self, request, context):
                yield batch

        return stream

    return patched(kv_feed.KvFeed, "stream", make)


def chance() -> Callable[..., int]:
    """Something else each time."""
    counter = itertools.count()
    return lambda *_: next(counter)


def _no_reflection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scripted.reflection.enable_server_reflection
    monkeypatch.setattr(
        scripted.reflection, "enable_server_reflection", lambda names, server: original(names[1:], server)
    )


def _not_serving(_: Any) -> Any:
    statuses = scripted_health.health_pb2.HealthCheckResponse
    return lambda self: statuses(status=statuses.NOT_SERVING)


def _model_name_of_each_reading(original: Any) -> Any:
    names = itertools.count()

    async def answer(self: Any, request: Any, context: Any) -> Any:
        response = await original(self, request, context)
        response.served_model_name = f"model-{next(names)}"
        return response

    return answer


def _aborts_everything(original: Any) -> Any:
    return lambda self, request_id, **options: any([original(self, "", by_prefix=True)])


def _slow_stream(original: Any) -> Any:
    class Stuttering:
        def push(self, ids: Any) -> str:
            return "?"

        def flush(self) -> str:
            return ""

    return lambda self, **options: Stuttering()


def _vector_of_chance(counter: Any) -> Any:
    def make(_: Any) -> Any:
        async def embed(self: Any, request: Any, context: Any) -> Any:
            return vllm_engine_pb2.EmbedResponse(embedding=[counter()], embedding_dim=1, prompt_tokens=1)

        return embed

    return make


def _fails(_: Any) -> Any:
    async def answer(self: Any, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.INTERNAL, "no such table")

    return answer


def _silent_unless_greedy(original: Any) -> Any:
    async def generate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.sampling_params.temperature > 0:
            await asyncio.Event().wait()
        async for response in original(self, request, context):
            yield response

    return generate


def _has_no_rank_1(original: Any) -> Any:
    async def generate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.data_parallel_rank == 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "dp_rank must be in [0, 1)")
        async for response in original(self, request, context):
            yield response

    return generate


def _has_lora(original: Any) -> Any:
    async def answer(self: Any, request: Any, context: Any) -> Any:
        response = await original(self, request, context)
        response.server_args.update({"enable_lora": True})
        return response

    return answer


def _broken_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(sglang.ScriptedSglang, "GetServerInfo", _has_lora)(monkeypatch)
    patched(sglang.ScriptedSglang, "Generate", _refuses_adapters)(monkeypatch)


def _refuses_adapters(original: Any) -> Any:
    async def generate(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.lora_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "LoRA is broken")
        async for response in original(self, request, context):
            yield response

    return generate


def _set(**values: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                del getattr(message, name)[:]
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)

    return change


_STUCK = loads(running=1)
ENGINES = (
    Broken("facts/complete", script={"context_length": 0}),
    Broken("facts/stable", patched(ScriptedVllm, "GetModelInfo", _model_name_of_each_reading)),
    Broken("health/own-rpc", script={"is_dead": True}),
    Broken("health/own-rpc", script={"hangs": frozenset({"HealthCheck"})}, is_late=True),
    Broken("health/standard-agrees", patched(scripted_health.ScriptedHealth, "_now", _not_serving)),
    Broken("health/reflection", _no_reflection),
    Broken("tokenizer/loads", script={"archive": Archive.GARBAGE}),
    Broken("tokenizer/loads", script={"archive": Archive.WRONG_DIGEST}),
    Broken("tokenizer/loads", script={"archive": Archive.BOMB}),
    Broken("tokenizer/loads", script={"vocab_size": 200}),
    Broken("tokenizer/round-trip", patched(Tokenizer, "stream", _slow_stream)),
    Broken("answer/greedy-repeats", patched(answering, "answer", lambda _: chance())),
    Broken("answer/greedy-repeats", script={"failing": Failing(after_tokens=3)}),
    Broken("answer/greedy-repeats", script={"failing": Failing(code=None, after_tokens=3, finish_reason="abort")}),
    Broken("answer/greedy-repeats", script={"silent_after_tokens": 3}, is_late=True),
    Broken("answer/streamed-equals-whole", other_answer(lambda request: not request.stream)),
    Broken("answer/counts", ends(_set(prompt_tokens=2))),
    Broken("answer/two-choices", work(lambda _, __: {"n": 1})),
    Broken("limits/max-tokens-exact", work(lambda _, made: {"max_tokens": made.max_tokens + 1})),
    Broken("limits/max-tokens-exact", script={"failing": Failing(code=None, after_tokens=5, finish_reason="stop")}),
    Broken("limits/end-token", work(lambda _, __: {"ignores_eos": False}), {"answer_tokens": 10}),
    Broken("limits/stop-token", work(lambda _, __: {"stops": frozenset()})),
    Broken("limits/stop-token-under-ignore-eos", work(lambda _, __: {"stops": frozenset()})),
    Broken("limits/min-tokens", work(lambda _, __: {"min_tokens": 0})),
    Broken("calls/metadata", refusing(lambda _, context: "x-request-id" in dict(context.invocation_metadata()))),
    Broken("calls/sixteen-at-once", refusing(lambda servicer, _: servicer.answering.running >= 4)),
    Broken("sampling/seed", patched(answering, "answer", lambda _: chance())),
    Broken("sampling/wide-values", other_answer(lambda request: request.sampling_params.top_k == 50)),
    Broken("sampling/top-k-one", other_answer(lambda request: request.sampling_params.top_k == 1)),
    Broken("sampling/small-top-p", other_answer(lambda request: request.sampling_params.top_p < 0.01)),
    Broken("logprobs/output", patched(ScriptedVllm, "_logprobs", lambda _: lambda *__: None)),
    Broken("logprobs/prompt", patched(ScriptedVllm, "_logprobs", lambda _: lambda *__: None)),
    Broken("stream/chunk-counts", ends(_set(completion_tokens=99), "_chunk")),
    Broken("stream/end-ids", ends(_set(output_ids=[5, 5, 5]))),
    Broken("stream/one-end", script={"stays_open": True}),
    Broken("ending/cancel-stops-the-work", _STUCK),
    Broken("ending/abort-ends-the-stream", script={"never_ends_after_abort": True}),
    Broken("ending/abort-of-unknown-id", patched(answering.Answering, "abort", _aborts_everything)),
    Broken("ending/deadline", _STUCK),
    Broken(
        "ranks/each-answers",
        patched(ScriptedVllm, "Generate", _has_no_rank_1),
        {"dp_size": 2},
    ),
    Broken("loads/rise-and-fall", loads(running=0)),
    Broken("loads/rise-and-fall", _STUCK),
    Broken("kv-events/stored-after-a-prompt"),
    Broken("kv-events/resume", feed(is_deaf=True), tells=True),
    Broken("kv-events/too-far-ahead", feed(is_deaf=False), tells=True),
    Broken("cache/prefix-reuse", ends(_set(cached_tokens=7))),
    Broken("cache/flush", ends(_set(cached_tokens=7))),
    Broken("embed/vector-or-refusal", patched(ScriptedVllm, "Embed", _vector_of_chance(chance()))),
    Broken(
        "adapters/list",
        patched(sglang.ScriptedSglang, "ListLoadedLoRAAdapters", _fails),
        runtime=RuntimeType.SGLANG,
    ),
    Broken(
        "adapters/applied",
        _broken_lora,
        {"adapters": ("poems",)},
        RuntimeType.SGLANG,
    ),
    Broken("end/nothing-is-left", _STUCK),
)


@pytest.mark.parametrize("broken", [pytest.param(one, id=f"{at}-{one.check}") for at, one in enumerate(ENGINES)])
async def test_broken_engine_fails_its_check(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken.breaker is not None:
        broken.breaker(monkeypatch)
    async with ScriptedGrpcEngine(GrpcScript(broken.runtime, **{"token_s": TOKEN_S, **broken.script})) as engine:
        if broken.tells:
            async with telling(engine):
                report = await engine_report(engine, broken.check, limits=QUICK)
        else:
            report = await engine_report(engine, broken.check, limits=QUICK)
    found = verdict(report, broken.check)
    assert found.outcome is Outcome.FAIL, found
    assert any(word in found.finding for word in _LATE) is broken.is_late, found
    assert not report.conforms


async def test_silent_engine_is_given_up_after_two_checks_and_one_plain_request() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, token_s=TOKEN_S, silent_after_tokens=0)) as engine:
        limits = replace(QUICK, call_s=0.3)
        report = await engine_report(engine, "answer/*", "limits/*", "end/*", limits=limits, hazardous=True)
        assert len(engine.generated) == 3
    outcomes = [one.outcome for one in report.verdicts]
    assert outcomes[:2] == [Outcome.FAIL, Outcome.FAIL]
    assert {(one.outcome, one.finding) for one in report.verdicts[2:-1]} == {
        (Outcome.SKIP, "not asked: the engine no longer answers a plain request in time")
    }
    assert verdict(report, "end/nothing-is-left").outcome is not Outcome.SKIP


async def test_engine_that_is_silent_at_some_requests_only_is_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(ScriptedVllm, "Generate", _silent_unless_greedy)(monkeypatch)
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, token_s=TOKEN_S)) as engine:
        report = await engine_report(engine, "sampling/*", "stream/*", limits=replace(QUICK, call_s=1.5))
    assert verdict(report, "sampling/top-k-one").outcome is Outcome.FAIL
    assert verdict(report, "stream/one-end").outcome is Outcome.PASS


async def test_an_embedding_that_breaks_is_no_precise_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(ScriptedVllm, "Embed", _fails)(monkeypatch)
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, token_s=TOKEN_S)) as engine:
        report = await engine_report(engine, "embed/*", limits=QUICK)
    assert verdict(report, "embed/vector-or-refusal").outcome is Outcome.NOTE


async def test_engine_of_no_protocol_is_not_checked_at_all() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, unimplemented=frozenset({"GetServerInfo"}))) as engine:
        with pytest.raises(EngineFailure, match="VLLM: UNIMPLEMENTED") as failed:
            await check_engine(target(engine))
    assert failed.value.reason is Reason.RUNTIME_NOT_DETECTED


def test_every_check_has_a_way_to_fail() -> None:
    shown = {broken.check for broken in ENGINES} | HABITS | {"connect/detected"}
    assert {check.name for check in ENGINE_CHECKS if not check.is_hazardous} <= shown


def _used_grows() -> Breaker:
    return loads(running=0, used=chance())


PAIRS = (
    Broken("pair/compatible", script={"decode": {"block_size": 32}}),
    Broken("pair/compatible", script={"decode": {"kv_connector": "MooncakeConnector"}}),
    Broken("pair/answers", patched(ScriptedVllm, "_offer", lambda _: lambda *__: None)),
    Broken("pair/answers", script={"decode": {"is_dead": True}}),
    Broken("pair/equals-alone", other_answer(lambda request: "remote_block_ids" in request.kv_transfer_params_json)),
    Broken("pair/kv-moves"),
    Broken("pair/two-choices", patched(answering, "answer", lambda _: chance())),
    Broken("pair/cancelled-decode", _used_grows()),
    Broken("pair/unused-handle", _used_grows()),
    Broken("end/nothing-is-left", script={"decode": {"is_dead": True}}),
    Broken("logprobs/prompt", patched(ScriptedVllm, "_logprobs", lambda _: lambda *__: None)),
)


@pytest.mark.parametrize("broken", [pytest.param(one, id=f"{at}-{one.check}") for at, one in enumerate(PAIRS)])
async def test_broken_pair_fails_its_check(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken.breaker is not None:
        broken.breaker(monkeypatch)
    async with pair_of(RuntimeType.VLLM, **broken.script) as pair:
        report = await pair_report(pair, broken.check, limits=QUICK)
    found = verdict(report, broken.check)
    assert found.outcome is Outcome.FAIL, found
    assert not report.conforms


def test_every_check_of_pairs_has_a_way_to_fail() -> None:
    shown = {broken.check for broken in (*PAIRS, *ENGINES)}
    assert {check.name for check in PAIR_CHECKS if not check.is_hazardous} <= shown


async def test_two_that_do_not_fit_are_asked_nothing() -> None:
    async with pair_of(RuntimeType.VLLM, decode={"block_size": 32}) as pair:
        report = await pair_report(pair, limits=QUICK)
        assert [engine.generated for engine in pair] == [[], []]
    assert report.count(Outcome.FAIL) == 1
    assert "kv_block_size differs" in verdict(report, "pair/compatible").finding
