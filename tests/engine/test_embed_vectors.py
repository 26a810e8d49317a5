"""Embeddings: what they are, that no neighbour changes a bit of them, and how both protocols serve and refuse them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from engine_driving import GREEDY, IDLE, collect, generate, in_hand, prompt, request
from engine_model import RunEngine
from engine_stepping import plain_hidden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smg_grpc_proto.generated import sglang_scheduler_pb2, vllm_engine_pb2
from wire_fixtures import Engine, demo_model, engine, messages, sglang_request, until, vllm_request
from wire_fixtures import prompt as demo_prompt

from tandem_engine.engine import Engine as BareEngine
from tandem_engine.model import Model
from tandem_engine.options import Mode, Protocol, Task
from tandem_engine.requests import EngineError, Phase

BOTH = pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])


async def vector(engine: BareEngine, name: str, tokens: tuple[int, ...]) -> tuple[float, ...]:
    [emission] = await generate(engine, request(name, tokens, phase=Phase.EMBED))
    assert (emission.finish, emission.token_id, emission.prompt_tokens) == ("length", None, len(tokens))
    return emission.embedding


def ask(worker: Engine, protocol: Protocol, tokens: list[int], **more: Any) -> Any:
    pb: Any = sglang_scheduler_pb2 if protocol is Protocol.SGLANG else vllm_engine_pb2
    stub = worker.sglang if protocol is Protocol.SGLANG else worker.vllm
    asked = pb.EmbedRequest(request_id="e1", tokenized=pb.TokenizedInput(input_ids=tokens), **more)
    return stub.Embed(asked)


async def test_the_vector_is_the_last_tokens_normed_state_at_length_one(run_engine: RunEngine, model: Model) -> None:
    async with run_engine() as engine:
        found = np.array(await vector(engine, "a", prompt(70)))
    expected = plain_hidden(model, prompt(70))[-1]
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(found - expected / np.linalg.norm(expected)).max() < 1e-5


@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=6),
    chunk=st.sampled_from([5, 16, 64, 256]),
    generating=st.integers(0, 3),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_neighbour_and_no_chunk_changes_a_bit_of_a_vector(
    run_engine: RunEngine, lengths: list[int], chunk: int, generating: int
) -> None:
    async with run_engine(prefill_chunk=chunk) as together:
        others = [together.submit(request(f"g{at}", prompt(20 + at), GREEDY)) for at in range(generating)]
        handles = [
            together.submit(request(f"e{at}", prompt(length, at), phase=Phase.EMBED))
            for at, length in enumerate(lengths)
        ]
        found = [(await collect(handle))[0].embedding for handle in handles]
        for other in others:
            other.abort()
    async with run_engine() as alone:
        assert found == [await vector(alone, f"e{at}", prompt(length, at)) for at, length in enumerate(lengths)]


async def test_vectors_and_answers_share_blocks_and_change_neither(run_engine: RunEngine) -> None:
    async with run_engine() as fresh:
        answer = [item.token_id for item in await generate(fresh, request("g", prompt(64)))]
    async with run_engine() as engine:
        first = await vector(engine, "a", prompt(64))
        replies = await generate(engine, request("g", prompt(64)))
        [again] = await generate(engine, request("b", prompt(64), phase=Phase.EMBED))
        assert in_hand(engine) == IDLE
    assert (replies[0].cached_tokens, again.cached_tokens) == (63, 63)
    assert ([item.token_id for item in replies], again.embedding) == (answer, first)


async def test_a_prompt_may_fill_the_whole_context_and_no_more(run_engine: RunEngine) -> None:
    async with run_engine(max_model_len=48) as engine:
        await vector(engine, "a", prompt(48))
        with pytest.raises(EngineError, match="49 tokens; at most 48"):
            await vector(engine, "b", prompt(49))


async def test_a_damaged_page_is_an_error_not_a_vector(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        await vector(engine, "a", prompt(64))
        engine._ranks[0].cache.data[:] = np.nan
        [emission] = await generate(engine, request("b", prompt(64), phase=Phase.EMBED))
        assert (emission.finish, emission.embedding) == ("error", ())
        assert in_hand(engine) == IDLE


@BOTH
async def test_embed_answers_with_the_vector_its_size_and_the_tokens(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        reply = await ask(alone, protocol, demo_prompt(40))
        assert await alone.idle() == (0, 0, 0, 0)
    assert reply.embedding_dim == len(reply.embedding) == demo_model().config.hidden_size
    assert reply.prompt_tokens == 40
    assert sum(value * value for value in reply.embedding) == pytest.approx(1.0, abs=1e-5)


async def test_both_protocols_give_the_same_vector() -> None:
    async with engine(protocol=Protocol.SGLANG) as left, engine(protocol=Protocol.VLLM) as right:
        replies = [
            await ask(left, Protocol.SGLANG, demo_prompt(33)),
            await ask(right, Protocol.VLLM, demo_prompt(33)),
        ]
    assert list(replies[0].embedding) == list(replies[1].embedding)


@BOTH
async def test_an_over_long_prompt_and_a_foreign_token_are_invalid(protocol: Protocol) -> None:
    async with engine(protocol=protocol, max_model_len=32) as alone:
        for tokens in (demo_prompt(33), [10**6]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(alone, protocol, tokens)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "token_ids" in (caught.value.details() or "")


async def test_an_empty_prompt_is_invalid_for_vllm() -> None:
    async with engine(protocol=Protocol.VLLM) as alone:
        with pytest.raises(grpc.aio.AioRpcError, match="token_ids is empty") as caught:
            await ask(alone, Protocol.VLLM, [])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_empty_prompt_kills_sglang() -> None:
    async with engine(protocol=Protocol.SGLANG) as alone:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(alone, Protocol.SGLANG, [])
        health = await alone.sglang.HealthCheck(sglang_scheduler_pb2.HealthCheckRequest())
    assert (caught.value.code(), health.healthy) == (grpc.StatusCode.INTERNAL, False)


@BOTH
@pytest.mark.parametrize(("task", "embeds", "generates"), [(Task.GENERATE, False, True), (Task.EMBED, True, False)])
async def test_an_engine_started_for_one_task_refuses_the_other(
    protocol: Protocol, task: Task, embeds: bool, generates: bool
) -> None:
    async def outcome(call: Any) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    async with engine(protocol=protocol, task=task) as alone:
        if protocol is Protocol.SGLANG:
            info = await alone.sglang.GetModelInfo(sglang_scheduler_pb2.GetModelInfoRequest())
            arguments = (await alone.sglang.GetServerInfo(sglang_scheduler_pb2.GetServerInfoRequest())).server_args
            assert (arguments["is_embedding"], arguments["serves_embeddings"]) == (not generates, embeds)
            generated = messages(alone.sglang.Generate(sglang_request(demo_prompt(3))))
        else:
            info = await alone.vllm.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())
            generated = messages(alone.vllm.Generate(vllm_request(demo_prompt(3))))
        assert info.is_generation is generates
        outcomes = [await outcome(ask(alone, protocol, demo_prompt(3))), await outcome(generated)]
    refusals = ["INVALID_ARGUMENT: This model does not support " + what for what in ("pooling", "generation")]
    assert outcomes == ["OK" if embeds else refusals[0], "OK" if generates else refusals[1]]


@BOTH
@pytest.mark.parametrize("mode", [Mode.PREFILL, Mode.DECODE])
async def test_an_engine_of_a_pair_has_no_embeddings(protocol: Protocol, mode: Mode) -> None:
    async with engine(protocol=protocol, mode=mode) as half:
        with pytest.raises(grpc.aio.AioRpcError, match="one leg of generation") as caught:
            await ask(half, protocol, demo_prompt(3))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@BOTH
async def test_cancel_of_a_waiting_embed_empties_the_ledger(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(step_latency=30.0)
        call = ask(alone, protocol, demo_prompt(20))
        reading = asyncio.ensure_future(call)
        await until(lambda: alone.served.station.life.active == 1)
        reading.cancel()
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await alone.idle() == (0, 0, 0, 0)


@BOTH
async def test_cancel_of_a_half_computed_embed_empties_the_ledger(protocol: Protocol) -> None:
    async with engine(protocol=protocol, prefill_chunk=16) as alone:
        await alone.set_faults(step_latency=0.02)
        call = ask(alone, protocol, demo_prompt(2000))
        reading = asyncio.ensure_future(call)
        await until(lambda: alone.served.station.engine.ledger().prompt_tokens > 0)
        reading.cancel()
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await alone.idle() == (0, 0, 0, 0)
        assert (await alone.ledger()).prompt_tokens < 2000


@BOTH
async def test_an_abort_ends_a_waiting_embed(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(step_latency=30.0)
        call = ask(alone, protocol, demo_prompt(20))
        await until(lambda: alone.served.station.life.active == 1)
        if protocol is Protocol.SGLANG:
            await alone.sglang.Abort(sglang_scheduler_pb2.AbortRequest(request_id="e1"))
        else:
            await alone.vllm.Abort(vllm_engine_pb2.AbortRequest(request_ids=["e1"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert await alone.idle() == (0, 0, 0, 0)
    assert caught.value.code() is grpc.StatusCode.ABORTED


@BOTH
async def test_a_dead_engine_embeds_nothing(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(dead_engine=True)
        with pytest.raises(grpc.aio.AioRpcError, match="EngineDeadError") as caught:
            await ask(alone, protocol, demo_prompt(3))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_rank_above_zero_is_honoured_and_one_out_of_range_is_invalid() -> None:
    async with engine(protocol=Protocol.SGLANG, dp_size=2) as alone:
        await ask(alone, Protocol.SGLANG, demo_prompt(20), data_parallel_rank=1)
        computed = [rank.prompt_tokens for rank in alone.served.station.engine.ledger().ranks]
        with pytest.raises(grpc.aio.AioRpcError, match=r"dp_rank must be in \[0, 2\)"):
            await ask(alone, Protocol.SGLANG, demo_prompt(20), data_parallel_rank=2)
    assert computed == [0, 20]
