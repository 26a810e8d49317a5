"""vLLM's habits on the wire, one by one."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from wire_fixtures import (
    PREFILL_PARAMS,
    engine,
    messages,
    pair,
    prompt,
    tokens_of,
    until,
    vllm_prefill,
    vllm_request,
)

from tandem_engine.options import Mode, Protocol

VLLM = Protocol.VLLM


async def _all(request: pb.GenerateRequest) -> list[Any]:
    async with engine(protocol=VLLM) as alone:
        return await messages(alone.vllm.Generate(request))


async def _refusal(request: pb.GenerateRequest, **options: Any) -> grpc.StatusCode:
    async with engine(protocol=VLLM, **options) as alone:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(alone.vllm.Generate(request))
        health = await alone.vllm.HealthCheck(pb.HealthCheckRequest())
    assert health.healthy
    return caught.value.code()


async def test_chunk_counts_are_of_the_chunk_alone() -> None:
    replies = await _all(vllm_request(prompt(20)))
    assert [reply.chunk.completion_tokens for reply in replies[:-1]] == [1] * 8


async def test_streamed_complete_repeats_the_last_chunk_and_its_count() -> None:
    *_, last, complete = await _all(vllm_request(prompt(20)))
    assert list(complete.complete.output_ids) == list(last.chunk.token_ids)
    assert complete.complete.completion_tokens == 1


async def test_unstreamed_answer_is_one_complete_with_everything() -> None:
    [reply] = await _all(vllm_request(prompt(20), stream=False))
    assert (len(reply.complete.output_ids), reply.complete.completion_tokens) == (8, 8)


async def test_two_choices_interleave_and_end_once_each() -> None:
    replies = await _all(vllm_request(prompt(20), n=2, seed=3))
    chunks = [reply.chunk.index for reply in replies if reply.HasField("chunk")]
    assert set(chunks[:2]) == {0, 1}
    assert sorted(reply.complete.index for reply in replies if reply.HasField("complete")) == [0, 1]


async def test_abort_ends_the_stream_with_complete_abort() -> None:
    async with engine(protocol=VLLM) as alone:
        call = alone.vllm.Generate(vllm_request(prompt(20), max_tokens=3000, request_id="abc"))
        await call.read()
        await alone.vllm.Abort(pb.AbortRequest(request_ids=["abc"]))
        replies = await messages(call)
        assert replies[-1].complete.finish_reason == "abort"
        assert await call.code() is grpc.StatusCode.OK


async def test_abort_does_not_match_prefixes() -> None:
    async with engine(protocol=VLLM) as alone:
        call = alone.vllm.Generate(vllm_request(prompt(20), max_tokens=300, request_id="abc-2"))
        await call.read()
        await alone.vllm.Abort(pb.AbortRequest(request_ids=["abc"]))
        assert (await messages(call))[-1].complete.finish_reason == "length"


async def test_two_calls_of_one_request_id_are_both_served() -> None:
    async with engine(protocol=VLLM) as alone:
        both = await asyncio.gather(
            *(messages(alone.vllm.Generate(vllm_request(prompt(20), request_id="same"))) for _ in range(2))
        )
    assert tokens_of(both[0]) == tokens_of(both[1])


async def test_stop_token_ids_stop_with_ignore_eos() -> None:
    async with engine(protocol=VLLM) as alone:
        plain = tokens_of(await messages(alone.vllm.Generate(vllm_request(prompt(20)))))[0]
        stop = plain[2]
        replies = await messages(alone.vllm.Generate(vllm_request(prompt(20), stop_token_ids=[stop])))
    assert tokens_of(replies)[0] == plain[: plain.index(stop) + 1]
    assert replies[-1].complete.matched_token_id == stop


@pytest.mark.parametrize(
    ("tokens", "changes"),
    [([], {}), ([511, 512], {}), (prompt(80), {}), ([9], {"temperature": -1.0}), ([9], {"top_p": 2.0})],
    ids=["empty", "outside the vocabulary", "too long", "temperature", "top_p"],
)
async def test_bad_request_is_invalid_and_harmless(tokens: list[int], changes: dict[str, float]) -> None:
    code = await _refusal(vllm_request(tokens, **changes), max_model_len=64)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_text_is_read_with_the_models_tokenizer() -> None:
    async with engine(protocol=VLLM) as alone:
        tokenizer = alone.served.station.engine.model.tokenizer
        assert tokenizer is not None
        by_ids = vllm_request(list(tokenizer.encode("1 2 3 4").ids))
        by_text = vllm_request([])
        by_text.text = "1 2 3 4"
        first, second = [tokens_of(await messages(alone.vllm.Generate(item))) for item in (by_ids, by_text)]
    assert first == second


async def test_decode_that_does_not_say_which_blocks_kills_the_engine() -> None:
    async with pair(VLLM) as (_, decode):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(decode.vllm.Generate(vllm_request(prompt(20), kv={"do_remote_prefill": True})))
        health = await decode.vllm.HealthCheck(pb.HealthCheckRequest())
        loads = await decode.vllm.GetLoads(pb.GetLoadsRequest())
    assert (caught.value.code(), health.healthy) == (grpc.StatusCode.INTERNAL, False)
    assert loads.loads[0].max_total_num_tokens == 0


async def test_unreachable_prefill_ends_as_complete_error_under_ok() -> None:
    async with pair(VLLM) as (prefill, decode):
        params = json.loads(await vllm_prefill(prefill, prompt(40)))
        await prefill.served.crash()
        call = decode.vllm.Generate(vllm_request(prompt(40), kv=params))
        [reply] = await messages(call)
        assert (reply.complete.finish_reason, await call.code()) == ("error", grpc.StatusCode.OK)
        assert await decode.idle() == (0, 0, 0, 0)


async def test_handle_is_used_once() -> None:
    async with pair(VLLM) as (prefill, decode):
        handle = await vllm_prefill(prefill, prompt(40))
        reasons = [
            (await messages(decode.vllm.Generate(vllm_request(prompt(40), kv=handle))))[-1].complete.finish_reason
            for _ in range(2)
        ]
    assert reasons == ["length", "error"]


async def test_unused_handle_expires_with_its_lease() -> None:
    async with pair(VLLM, kv_lease_s=0.05) as (prefill, _):
        await vllm_prefill(prefill, prompt(40))
        assert await prefill.idle() == (0, 0, 0, 0)


async def test_handle_that_waits_counts_its_pages_and_one_room() -> None:
    async with pair(VLLM) as (prefill, _):
        await vllm_prefill(prefill, prompt(40))
        ledger = await prefill.ledger()
        assert (ledger.held_pages, ledger.open_rooms) == (2, 1)


async def test_prefill_whose_one_token_is_a_stop_returns_no_handle() -> None:
    async with pair(VLLM) as (prefill, _):
        request = vllm_request(prompt(40), kv=PREFILL_PARAMS, stream=False, max_tokens=1)
        [reply] = await messages(prefill.vllm.Generate(request))
        request.sampling_params.stop_token_ids.append(reply.complete.output_ids[0])
        await prefill.served.station.bootstrap.stop()
        [reply] = await messages(prefill.vllm.Generate(request))
        assert (reply.complete.finish_reason, reply.complete.kv_transfer_params_json) == ("stop", "")
        assert await prefill.idle() == (0, 0, 0, 0)


async def test_decode_without_a_handle_computes_the_prompt_and_the_ledger_says_so() -> None:
    async with pair(VLLM) as (_, decode):
        replies = await messages(decode.vllm.Generate(vllm_request(prompt(40))))
        assert len(tokens_of(replies)[0]) == 8
        assert (await decode.ledger()).recomputed_blocks == 2


async def test_another_prompts_handle_changes_the_output() -> None:
    async with engine(protocol=VLLM) as alone, pair(VLLM) as (prefill, decode):
        expected = tokens_of(await messages(alone.vllm.Generate(vllm_request(prompt(200, 1)))))
        handle = await vllm_prefill(prefill, prompt(200, 2))
        got = tokens_of(await messages(decode.vllm.Generate(vllm_request(prompt(200, 1), kv=handle))))
    assert got != expected


async def test_server_info_declares_the_connector_and_role() -> None:
    async with engine(protocol=VLLM, mode=Mode.PREFILL, name="p1") as worker:
        info = await worker.vllm.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.kv_connector, info.kv_role, info.kv_engine_id) == ("NixlConnector", "kv_producer", "p1")
    assert (info.block_size, info.data_parallel_size, info.max_num_seqs) == (16, 1, 64)


async def test_tokenizer_comes_as_a_zip_with_its_digest_on_the_last_chunk() -> None:
    async with engine(protocol=VLLM) as alone:
        chunks = await messages(alone.vllm.GetTokenizer(common_pb2.GetTokenizerRequest()))
    data = b"".join(chunk.data for chunk in chunks)
    assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
    assert "tokenizer.json" in zipfile.ZipFile(io.BytesIO(data)).namelist()


async def test_kv_events_name_the_blocks_that_a_request_stored() -> None:
    async with engine(protocol=VLLM) as alone:
        call = alone.vllm.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=1))
        await messages(alone.vllm.Generate(vllm_request(prompt(40))))
        await until(lambda: alone.served.station.engine.kv_events(0).last_sequence > 0)
        batch = await call.read()
        call.cancel()
    assert list(batch.events[0].stored.blocks[0].token_ids) == prompt(40)[:16]
