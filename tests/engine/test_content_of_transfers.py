"""A KV transfer brings what the decode engine would have computed itself, or nothing: not the pages of another prompt,
of another adapter, or of another version of the same adapter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from adapter_folders import write_adapter
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from wire_fixtures import (
    Engine,
    demo_model,
    messages,
    new_room,
    pair,
    prompt,
    sglang_request,
    vllm_prefill,
    vllm_request,
)

from tandem_engine.options import Protocol

WORDS = "the pages are of another prompt, or of another adapter or version of it"


async def load(worker: Engine, folder: Path) -> None:
    request = pb.LoadLoRAAdapterRequest(lora_name="brief", lora_path=str(folder), lora_id="id-1")
    assert (await worker.sglang.LoadLoRAAdapter(request)).success


async def outcome(call: Any) -> Any:
    try:
        return await messages(call)
    except grpc.aio.AioRpcError as error:
        return error


async def of_pair(prefill: Engine, decode: Engine, left: Any, right: Any) -> list[Any]:
    """What both legs say of their own requests in one room; afterwards both ledgers are empty."""
    room = new_room()
    for request in (left, right):
        request.disaggregated_params.bootstrap_host = "127.0.0.1"
        request.disaggregated_params.bootstrap_port = prefill.bootstrap_port
        request.disaggregated_params.bootstrap_room = room
    said = await asyncio.gather(outcome(prefill.sglang.Generate(left)), outcome(decode.sglang.Generate(right)))
    assert (await prefill.idle(), await decode.idle()) == ((0, 0, 0, 0), (0, 0, 0, 0))
    return list(said)


def asking(lora_id: str, tokens: list[int]) -> Any:
    request = sglang_request(tokens)
    request.lora_id = lora_id
    return request


@pytest.mark.parametrize("length", [5, 40], ids=["below-one-page", "two-pages"])
@pytest.mark.parametrize("which", ["other-weights", "none-on-decode", "none-on-prefill"])
async def test_pages_of_another_adapter_never_reach_a_decode(tmp_path: Path, which: str, length: int) -> None:
    config = demo_model().config
    async with pair(Protocol.SGLANG) as (prefill, decode):
        await load(prefill, write_adapter(tmp_path / "one", config, seed=1))
        await load(decode, write_adapter(tmp_path / "two", config, seed=2 if which == "other-weights" else 1))
        left = asking("" if which == "none-on-prefill" else "id-1", prompt(length))
        right = asking("" if which == "none-on-decode" else "id-1", prompt(length))
        said = await of_pair(prefill, decode, left, right)
        received = (await decode.ledger()).pages_received
    assert [error.code() for error in said] == [grpc.StatusCode.INTERNAL] * 2
    assert all(WORDS in error.details() for error in said)
    assert received == 0


async def test_pages_of_another_prompt_of_the_same_length_never_reach_a_decode() -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        said = await of_pair(prefill, decode, sglang_request(prompt(40, 1)), sglang_request(prompt(40, 2)))
        received = (await decode.ledger()).pages_received
    assert all(WORDS in error.details() for error in said)
    assert received == 0


async def test_a_handle_relayed_to_another_prompts_decode_ends_it_with_an_error() -> None:
    async with pair(Protocol.VLLM) as (prefill, decode):
        handle = await vllm_prefill(prefill, prompt(40, 1))
        [reply] = await messages(decode.vllm.Generate(vllm_request(prompt(40, 2), kv=handle)))
        assert (await prefill.idle(), await decode.idle()) == ((0, 0, 0, 0), (0, 0, 0, 0))
        ledger = await decode.ledger()
    assert reply.complete.finish_reason == "error"
    assert (ledger.pages_received, ledger.generated_tokens) == (0, 0)


async def test_the_tail_below_one_page_may_differ_because_decode_computes_it() -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        longer = prompt(40) + prompt(3, 1)
        said = await of_pair(prefill, decode, sglang_request(prompt(40)), sglang_request(longer))
    assert len(said[1]) == 9
