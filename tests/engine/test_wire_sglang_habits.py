"""SGLang's habits on the wire, one by one."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from wire_fixtures import Engine, engine, messages, new_room, pair, prompt, sglang_request, tail, tokens_of, until

from tandem_engine.options import Mode, Protocol


async def _all(request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    async with engine() as alone:
        return await messages(alone.sglang.Generate(request))


async def test_chunk_counts_are_running_totals() -> None:
    replies = await _all(sglang_request(prompt(20)))
    assert [reply.chunk.completion_tokens for reply in replies[:-1]] == list(range(1, 9))


async def test_chunk_ids_are_deltas() -> None:
    replies = await _all(sglang_request(prompt(20)))
    assert [len(reply.chunk.token_ids) for reply in replies[:-1]] == [1] * 8


async def test_streamed_complete_repeats_the_last_chunk_and_counts_all() -> None:
    *_, last, complete = await _all(sglang_request(prompt(20)))
    assert (list(complete.complete.output_ids), complete.complete.completion_tokens) == (list(last.chunk.token_ids), 8)


async def test_unstreamed_answer_is_one_complete_with_everything() -> None:
    [reply] = await _all(sglang_request(prompt(20), stream=False))
    assert (len(reply.complete.output_ids), reply.complete.finish_reason) == (8, "length")


async def test_two_choices_interleave_and_end_once_each() -> None:
    replies = await _all(sglang_request(prompt(20), n=2, seed=3))
    chunks = [reply.chunk.index for reply in replies if reply.HasField("chunk")]
    assert set(chunks[:2]) == {0, 1}
    assert sorted(reply.complete.index for reply in replies if reply.HasField("complete")) == [0, 1]


async def test_seed_travels_in_custom_params() -> None:
    async with engine() as alone:
        first, again, other = [
            tokens_of(await messages(alone.sglang.Generate(sglang_request(prompt(20), seed=seed))))
            for seed in (5, 5, 6)
        ]
    assert first == again != other


async def test_logprobs_come_with_their_tokens() -> None:
    replies = await _all(sglang_request(prompt(20), return_logprob=True, top_logprobs_num=2))
    first = replies[0].chunk.output_logprobs
    assert list(first.token_ids) == list(replies[0].chunk.token_ids)
    assert (len(first.top_logprobs[0].token_ids), first.token_logprobs[0] <= 0) == (2, True)


async def test_stop_token_ids_are_ignored_with_ignore_eos() -> None:
    async with engine() as alone:
        plain = tokens_of(await messages(alone.sglang.Generate(sglang_request(prompt(20)))))
        request = sglang_request(prompt(20), stop_token_ids=[plain[0][2]])
        assert tokens_of(await messages(alone.sglang.Generate(request))) == plain


async def test_temperature_below_zero_and_top_p_above_one_are_served() -> None:
    replies = await _all(sglang_request(prompt(20), temperature=-1.0, top_p=2.0))
    assert replies[-1].complete.finish_reason == "length"


async def test_prompt_over_the_limit_is_invalid() -> None:
    async with engine(max_model_len=64) as alone:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(alone.sglang.Generate(sglang_request(prompt(80))))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_abort_stops_the_work_but_the_stream_stays_silent_until_cancelled() -> None:
    async with engine() as alone:
        call = alone.sglang.Generate(sglang_request(prompt(20), max_new_tokens=3000, request_id="abc"))
        await call.read()
        answer = await alone.sglang.Abort(pb.AbortRequest(request_id="abc"))
        assert answer.success
        assert await alone.idle() == (0, 0, 0, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tail(call), 0.1)


async def test_abort_matches_request_ids_by_prefix() -> None:
    async with engine() as alone:
        call = alone.sglang.Generate(sglang_request(prompt(20), max_new_tokens=3000, request_id="abc-2"))
        await call.read()
        assert (await alone.sglang.Abort(pb.AbortRequest(request_id="abc"))).success


async def test_abort_of_an_unknown_request_is_not_found() -> None:
    async with engine() as alone:
        assert not (await alone.sglang.Abort(pb.AbortRequest(request_id="nobody"))).success


async def test_second_call_of_a_live_request_id_hangs_the_first() -> None:
    async with engine(max_running=4) as alone:
        first = alone.sglang.Generate(sglang_request(prompt(20), request_id="same", max_new_tokens=3000))
        await first.read()
        second = await messages(alone.sglang.Generate(sglang_request(prompt(20), request_id="same")))
        assert second[-1].complete.finish_reason == "length"
        assert not first.done()
        first.cancel()


async def _is_dead(worker: Engine) -> None:
    health = await worker.sglang.HealthCheck(pb.HealthCheckRequest())
    _, status = await tail(worker.sglang.Generate(sglang_request(prompt(3), room=new_room())))
    assert (health.healthy, status) == (False, grpc.StatusCode.INTERNAL)


async def test_empty_prompt_kills_the_engine() -> None:
    async with engine() as alone:
        with pytest.raises(grpc.aio.AioRpcError):
            await messages(alone.sglang.Generate(sglang_request([])))
        await _is_dead(alone)


@pytest.mark.parametrize("mode", [Mode.PREFILL, Mode.DECODE])
async def test_pair_worker_dies_of_a_request_without_disaggregated_params(mode: Mode) -> None:
    async with engine(mode=mode) as worker:
        with pytest.raises(grpc.aio.AioRpcError):
            await messages(worker.sglang.Generate(sglang_request(prompt(20))))
        await _is_dead(worker)


async def test_death_ends_what_a_slow_step_holds_back() -> None:
    async with engine() as alone:
        await alone.set_faults(step_latency=30.0)
        running = asyncio.ensure_future(tail(alone.sglang.Generate(sglang_request(prompt(20)))))
        await until(lambda: alone.served.station.life.active == 1)
        await tail(alone.sglang.Generate(sglang_request([])))
        assert await running == (0, grpc.StatusCode.INTERNAL)
        assert await alone.idle() == (0, 0, 0, 0)


async def test_second_live_request_in_one_room_kills_the_prefill_engine() -> None:
    async with pair(Protocol.SGLANG) as (prefill, _):
        request = sglang_request(prompt(20), room=7777, port=prefill.bootstrap_port)
        first = asyncio.ensure_future(messages(prefill.sglang.Generate(request)))
        await until(lambda: len(prefill.served.station.bootstrap.offers) == 1)
        with pytest.raises(grpc.aio.AioRpcError):
            await messages(prefill.sglang.Generate(request))
        with pytest.raises(grpc.aio.AioRpcError):
            await first
        await _is_dead(prefill)


async def test_prefill_says_nothing_before_its_pages_were_taken() -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        request = sglang_request(prompt(40), room=new_room(), port=prefill.bootstrap_port)
        call = asyncio.ensure_future(messages(prefill.sglang.Generate(request)))
        await until(lambda: prefill.served.station.engine.ledger().generated_tokens == 1)
        assert not call.done()
        await messages(decode.sglang.Generate(request))
        assert tokens_of(await call)[0] == list((await call)[-1].complete.output_ids)


async def test_decode_may_come_before_its_room_exists() -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        request = sglang_request(prompt(40), room=new_room(), port=prefill.bootstrap_port)
        replies = asyncio.ensure_future(messages(decode.sglang.Generate(request)))
        await until(lambda: decode.served.station.engine.ledger().rooms == 1)
        await messages(prefill.sglang.Generate(request))
        assert len(tokens_of(await replies)[0]) == 8


async def test_room_decides_the_rank_of_a_prefill() -> None:
    async with pair(Protocol.SGLANG, dp_size=2) as (prefill, decode):
        request = sglang_request(prompt(40), room=6001, port=prefill.bootstrap_port)
        await asyncio.gather(messages(prefill.sglang.Generate(request)), messages(decode.sglang.Generate(request)))
        assert [rank.pages_sent for rank in prefill.served.station.engine.ledger().ranks] == [0, 2]


async def test_server_info_declares_what_routers_ask_for() -> None:
    async with engine(mode=Mode.PREFILL, dp_size=2) as worker:
        info = await worker.sglang.GetServerInfo(pb.GetServerInfoRequest())
        arguments = dict(info.server_args)
    assert arguments["disaggregation_mode"] == "prefill"
    assert arguments["disaggregation_bootstrap_port"] == worker.bootstrap_port > 0
    assert (arguments["dp_size"], arguments["page_size"], arguments["vocab_size"]) == (2, 16, 512)
    assert arguments["load_balance_method"] == "follow_bootstrap_room"
    assert arguments["sampling_seed_in_custom_params"]
    assert arguments["batch_invariant"]


async def test_loads_of_an_unknown_section_are_invalid() -> None:
    async with engine() as alone:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await alone.sglang.GetLoads(pb.GetLoadsRequest(include=["nonsense"]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_loads_count_what_runs() -> None:
    async with engine(dp_size=2) as alone:
        call = alone.sglang.Generate(sglang_request(prompt(20), max_new_tokens=3000))
        await call.read()
        loads = await alone.sglang.GetLoads(pb.GetLoadsRequest(include=["all"]))
        call.cancel()
    assert (loads.dp_rank_count, loads.aggregate.total_running_reqs) == (2, 1)
