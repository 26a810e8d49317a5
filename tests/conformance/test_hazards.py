"""The router as a guard: what kills an engine never reaches one, and how engines differ never reaches a client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.conformance.router_world import Answer, RouterWorld, pair, router, until

from tandem.v1 import generate_pb2, generate_result_pb2, sampling_pb2, worker_pb2
from tandem_router.errors import Reason
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.grpc_engines import Failing, GrpcScript, ScriptedGrpcEngine
from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.work import answer

ENGINES = (RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TRTLLM, RuntimeType.TOKENSPEED, RuntimeType.MLX)
CONTEXT = 64
Make = Callable[[RouterWorld], generate_pb2.GenerateRequest]


def _text(text: str) -> Make:
    return lambda world: generate_pb2.GenerateRequest(
        model="tiny", text=text, sampling=sampling_pb2.SamplingParams(max_tokens=4)
    )


def _tokens(*ids: int, **sampling: Any) -> Make:
    return lambda world: world.request(*ids, **sampling)


HAZARDS: dict[str, tuple[Make, Reason]] = {
    "empty prompt": (_tokens(), Reason.EMPTY_PROMPT),
    "empty text": (_text(""), Reason.EMPTY_PROMPT),
    "token outside the vocabulary": (_tokens(5, 259), Reason.TOKEN_OUT_OF_VOCABULARY),
    "token far outside the vocabulary": (_tokens(2**32 - 1), Reason.TOKEN_OUT_OF_VOCABULARY),
    "prompt over the limit": (_tokens(*[5] * CONTEXT), Reason.PROMPT_TOO_LONG),
    "prompt and answer over the limit": (_tokens(*[5] * 60, max_tokens=5), Reason.PROMPT_TOO_LONG),
    "temperature below zero": (_tokens(5, temperature=-1.0), Reason.INVALID_REQUEST),
    "temperature that is no number": (_tokens(5, temperature=float("nan")), Reason.INVALID_REQUEST),
    "top_p above one": (_tokens(5, top_p=2.0), Reason.INVALID_REQUEST),
    "top_p of zero": (_tokens(5, top_p=0.0), Reason.INVALID_REQUEST),
    "no choice": (_tokens(5, n=0), Reason.INVALID_REQUEST),
    "no token": (_tokens(5, max_tokens=0), Reason.INVALID_REQUEST),
    "stop token outside the vocabulary": (_tokens(5, stop_token_ids=[2**32 - 1]), Reason.INVALID_REQUEST),
}


@pytest.mark.parametrize("hazard", list(HAZARDS), ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("runtime", ENGINES)
async def test_request_that_harms_an_engine_is_refused_at_the_door(runtime: RuntimeType, hazard: str) -> None:
    make, reason = HAZARDS[hazard]
    async with ScriptedGrpcEngine(GrpcScript(runtime, context_length=CONTEXT)) as engine, router() as world:
        await world.add(engine)
        refused = await world.generate(make(world))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason), refused.message
        assert refused.field_name
        assert (engine.generated, engine.deaths) == ([], [])


@pytest.mark.parametrize("mode", [WorkerType.PREFILL, WorkerType.DECODE])
@pytest.mark.parametrize("runtime", [RuntimeType.SGLANG, RuntimeType.TOKENSPEED, RuntimeType.VLLM])
async def test_half_of_a_pair_never_gets_a_request_alone(runtime: RuntimeType, mode: WorkerType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime, mode=mode)) as engine, router() as world:
        await world.register(engine)
        refused = await world.generate(world.request(5, 6))
        assert refused.code is not grpc.StatusCode.OK
        assert (engine.generated, engine.deaths) == ([], [])


async def test_one_request_id_is_never_live_twice() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG, token_s=0.01)) as engine, router() as world:
        await world.add(engine)
        request = world.request(5, 6, max_tokens=400)
        request.request_id = "mine"
        first = world.router.Generate(request)
        assert await first.read() is not grpc.aio.EOF
        second = await world.generate(request)
        assert second.reason is Reason.REQUEST_ID_IN_USE
        assert len(engine.generated) == 1
        first.cancel()


@pytest.mark.parametrize("runtime", ENGINES)
async def test_request_ids_on_the_wire_are_ours_unique_and_prefix_free(runtime: RuntimeType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine, router() as world:
        await world.add(engine)

        async def ask(number: int) -> Answer:
            request = world.request(5, 6, max_tokens=1)
            request.request_id = "a" * (number + 1)  # each is a prefix of the next
            return await world.generate(request)

        answers = await asyncio.gather(*(ask(number) for number in range(60)))
        assert {one.code for one in answers} == {grpc.StatusCode.OK}
        ids = sorted(sent.request_id for sent in engine.generated)
        assert len(ids) == 60
        assert not [one for one, other in itertools.pairwise(ids) if other.startswith(one)]
        assert not [one for one in ids if set(one) == {"a"}]


@pytest.mark.parametrize("chunk_tokens", [1, 3])
@pytest.mark.parametrize("runtime", ENGINES)
async def test_client_cannot_tell_engines_apart(runtime: RuntimeType, chunk_tokens: int) -> None:
    """Running or per-chunk counts, repeated or empty last ids, a stop token cut off or left: one answer."""
    prompt = (5, 6, 7)
    stop = answer(prompt, 0, 4)
    script = GrpcScript(runtime, chunk_tokens=chunk_tokens, answer_tokens=9)
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        await world.add(engine)
        by_length = await world.generate(world.request(*prompt, max_tokens=8))
        by_stop = await world.generate(world.request(*prompt, max_tokens=8, stop_token_ids=[stop]))
        both = world.request(*prompt, max_tokens=8, stop_token_ids=[stop], ignore_eos=True)
        by_stop_without_eos = await world.generate(both)
        by_end = await world.generate(world.request(*prompt, max_tokens=30))
        whole = [answer(prompt, 0, position) for position in range(9)]
        lengths, stops = generate_result_pb2.FINISH_REASON_LENGTH, generate_result_pb2.FINISH_REASON_STOP
        for got, tokens, reason in (
            (by_length, whole[:8], lengths),
            (by_stop, whole[:5], stops),
            (by_stop_without_eos, whole[:5], stops),
            (by_end, [*whole, EOS_TOKEN_ID], stops),
        ):
            assert got.finished is not None, got.message
            assert (got.tokens, got.finished.choices[0].reason) == ({0: tokens}, reason)
            assert got.finished.usage.completion_tokens == got.finished.choices[0].completion_tokens == len(tokens)
            assert got.finished.usage.prompt_tokens == 3


@pytest.mark.parametrize("runtime", ENGINES)
async def test_choices_are_answered_whatever_the_wire_can_ask_for(runtime: RuntimeType) -> None:
    async with ScriptedGrpcEngine(GrpcScript(runtime)) as engine, router() as world:
        await world.add(engine)
        got = await world.generate(world.request(5, 6, n=3))
        assert got.code is grpc.StatusCode.OK, got.message
        assert {index: len(tokens) for index, tokens in got.tokens.items()} == {0: 4, 1: 4, 2: 4}
        assert got.finished is not None
        assert got.finished.usage.completion_tokens == 12


@pytest.mark.parametrize("after_tokens", [0, 2])
@pytest.mark.parametrize(
    ("failing", "reasons"),
    [
        (Failing(None, finish_reason="error"), {Reason.ENGINE_ERROR}),
        (Failing(None, finish_reason="abort"), {Reason.ENGINE_ABORTED}),
        (Failing(grpc.StatusCode.INTERNAL), {Reason.ENGINE_ERROR}),
        (Failing(grpc.StatusCode.UNAVAILABLE), {Reason.WORKER_REFUSED, Reason.NO_READY_WORKER}),
    ],
    ids=["error-under-ok", "abort-under-ok", "internal", "unavailable"],
)
@pytest.mark.parametrize("runtime", ENGINES)
async def test_failure_of_an_engine_is_never_a_good_answer(
    runtime: RuntimeType, failing: Failing, reasons: set[Reason], after_tokens: int
) -> None:
    failing = Failing(failing.code, after_tokens=after_tokens, finish_reason=failing.finish_reason)
    async with ScriptedGrpcEngine(GrpcScript(runtime, failing=failing)) as engine, router() as world:
        await world.add(engine)
        got = await world.generate(world.request(5, 6, max_tokens=8))
        assert got.code is not grpc.StatusCode.OK
        assert got.reason in reasons, got.message
        await world.until_idle([engine])


@pytest.mark.parametrize("is_deaf", [False, True], ids=["as-it-does", "stream-never-ends-after-abort"])
@pytest.mark.parametrize("runtime", ENGINES)
async def test_client_that_leaves_ends_the_work_on_every_engine(runtime: RuntimeType, is_deaf: bool) -> None:
    script = GrpcScript(runtime, token_s=0.005, never_ends_after_abort=is_deaf)
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        await world.add(engine)
        call = world.router.Generate(world.request(5, 6, max_tokens=4000))
        assert await call.read() is not grpc.aio.EOF
        call.cancel()
        await world.until_idle([engine])

        async def was_told() -> bool:
            return engine.aborted == [engine.generated[0].request_id]

        await until(was_told, within_s=5, what="the engine was told by Abort too")


async def test_zeros_of_a_dead_engine_draw_no_request() -> None:
    async with (
        ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM)) as corpse,
        ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM)) as alive,
        router() as world,
    ):
        worker_id = await world.add(corpse)
        await world.add(alive)
        corpse.turn(is_dead=True)
        await world.until_status(worker_id, worker_pb2.WORKER_STATUS_NOT_READY)
        before = len(corpse.generated)
        answers = [await world.generate(world.request(5, 6)) for _ in range(8)]
        assert {one.code for one in answers} == {grpc.StatusCode.OK}
        assert len(corpse.generated) == before
        shown = await world.worker(worker_id, include_load=True)
        assert not [rank for rank in shown.ranks if rank.HasField("load")]


@pytest.mark.parametrize("runtime", [RuntimeType.SGLANG, RuntimeType.TOKENSPEED, RuntimeType.VLLM])
async def test_pair_answers_as_one_engine_does(runtime: RuntimeType) -> None:
    async with pair(runtime, chunk_tokens=2) as at:
        got = await at.world.generate(at.world.request(5, 6, 7, max_tokens=5))
        assert got.tokens == {0: [answer((5, 6, 7), 0, position) for position in range(5)]}
        assert at.prefill.deaths == at.decode.deaths == []
