"""SGLang's LoRA rpcs, and Generate.lora_id: alone, in pairs, and while an adapter goes away."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import grpc
import pytest
from adapter_folders import write_adapter
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from wire_fixtures import (
    Engine,
    demo_model,
    engine,
    messages,
    new_room,
    pair,
    prompt,
    sglang_request,
    tokens_of,
    until,
)

from tandem_engine.options import Protocol


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("demo-adapter"), demo_model().config, strength=1.0)


async def load(worker: Engine, folder: Path | str, lora_id: str = "id-1", name: str = "brief", **more: Any) -> Any:
    return await worker.sglang.LoadLoRAAdapter(
        pb.LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder), lora_id=lora_id, **more)
    )


async def unload(worker: Engine, name: str, lora_id: str = "") -> Any:
    return await worker.sglang.UnloadLoRAAdapter(pb.UnloadLoRAAdapterRequest(lora_name=name, lora_id=lora_id))


async def listed(worker: Engine) -> list[tuple[str, str, str, bool]]:
    reply = await worker.sglang.ListLoadedLoRAAdapters(pb.ListLoadedLoRAAdaptersRequest())
    return [(item.lora_id, item.lora_name, item.lora_path, item.pinned) for item in reply.loaded_adapters]


def asking(lora_id: str, **changes: Any) -> Any:
    request = sglang_request(prompt(40), **changes)
    request.lora_id = lora_id
    return request


async def answer(worker: Engine, lora_id: str = "", **changes: Any) -> list[int]:
    return tokens_of(await messages(worker.sglang.Generate(asking(lora_id, **changes))))[0]


async def test_load_list_apply_and_unload(folder: Path) -> None:
    async with engine() as alone:
        plain = await answer(alone)
        reply = await load(alone, folder, pinned=True)
        assert (reply.success, reply.message, list(reply.loaded_lora_ids)) == (True, "", ["id-1"])
        assert await listed(alone) == [("id-1", "brief", str(folder), True)]
        assert await answer(alone, "id-1") != plain
        gone = await unload(alone, "brief", "id-1")
        assert (gone.success, list(gone.loaded_lora_ids), await listed(alone)) == (True, [], [])
        assert await answer(alone) == plain


@pytest.mark.parametrize("lora_id", ["brief", "id-2"])
async def test_only_the_id_selects_and_an_unknown_one_is_invalid(folder: Path, lora_id: str) -> None:
    async with engine() as alone:
        await load(alone, folder)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(alone, lora_id)
        assert await alone.idle() == (0, 0, 0, 0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"lora_id: adapter '{lora_id}' is not loaded; loaded: id-1" in (caught.value.details() or "")


async def test_an_unloaded_adapter_serves_its_running_request_to_the_end_and_no_new_one(folder: Path) -> None:
    async with engine() as alone:
        await load(alone, folder)
        expected = await answer(alone, "id-1", max_new_tokens=60)
        await alone.set_faults(step_latency=0.01)
        running = asyncio.create_task(answer(alone, "id-1", max_new_tokens=60))
        await until(lambda: alone.served.station.life.active == 1)
        assert (await unload(alone, "brief")).success
        with pytest.raises(grpc.aio.AioRpcError):
            await answer(alone, "id-1")
        assert not running.done()
        await alone.set_faults()
        assert await running == expected


async def test_an_unloaded_adapter_gives_its_memory_back_when_its_last_request_ends(folder: Path) -> None:
    async with engine() as alone:
        await load(alone, folder)
        # Adapters cannot be referred to weakly, their arrays can.
        patch = alone.served.station.adapters.get("id-1").layers[0].qkv[0]
        weights = [weakref.ref(patch.up), weakref.ref(patch.down)]
        del patch
        await alone.set_faults(step_latency=0.01)
        running = asyncio.create_task(answer(alone, "id-1", max_new_tokens=30))
        await until(lambda: alone.served.station.life.active == 1)
        await unload(alone, "brief")
        gc.collect()
        assert all(weight() is not None for weight in weights)
        await alone.set_faults()
        await running
        await until(lambda: gc.collect() >= 0 and all(weight() is None for weight in weights))


async def test_other_weights_under_the_same_id_do_not_meet_the_old_blocks(folder: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path, demo_model().config, seed=9, strength=1.0)
    async with engine() as alone, engine() as fresh:
        await load(alone, folder)
        await answer(alone, "id-1")
        await unload(alone, "brief")
        await load(alone, other)
        await load(fresh, other)
        replies = await messages(alone.sglang.Generate(asking("id-1")))
        assert replies[0].chunk.cached_tokens == 0
        assert tokens_of(replies)[0] == await answer(fresh, "id-1")


async def test_a_pair_with_the_adapter_on_both_legs_answers_as_one_engine(folder: Path) -> None:
    async with engine() as alone, pair(Protocol.SGLANG) as (prefill, decode):
        for worker in (alone, prefill, decode):
            assert (await load(worker, folder)).success
        request = asking("id-1", room=new_room(), port=prefill.bootstrap_port)
        _, replies = await asyncio.gather(
            messages(prefill.sglang.Generate(request)), messages(decode.sglang.Generate(request))
        )
        assert tokens_of(replies)[0] == await answer(alone, "id-1")
        received = await decode.ledger()
    assert (received.pages_received, received.recomputed_blocks) == (2, 0)


@pytest.mark.parametrize("lacking", ["prefill", "decode"])
async def test_a_leg_without_the_adapter_is_refused_and_nothing_stays(folder: Path, lacking: str) -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        await load(decode if lacking == "prefill" else prefill, folder)
        refusing = prefill if lacking == "prefill" else decode
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(refusing.sglang.Generate(asking("id-1", room=new_room(), port=prefill.bootstrap_port)))
        assert await refusing.idle() == (0, 0, 0, 0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_cannot_be_loaded_is_told_and_leaves_the_rest(folder: Path, tmp_path: Path) -> None:
    async with engine(max_adapters=2) as alone:
        await load(alone, folder)
        replies = [
            await load(alone, folder, "id-1", "other"),
            await load(alone, folder, "id-2", "brief"),
            await load(alone, tmp_path / "nothing", "id-2", "other"),
        ]
        assert (await load(alone, folder, "id-2", "other")).success
        replies.append(await load(alone, folder, "id-3", "third"))
    assert [reply.success for reply in replies] == [False] * 4
    assert [list(reply.loaded_lora_ids) for reply in replies] == [["id-1"]] * 3 + [["id-1", "id-2"]]
    for reply, words in zip(
        replies, ("lora_id 'id-1'", "lora_name 'brief'", "adapter_config.json", "2 adapters are loaded"), strict=True
    ):
        assert words in reply.message


async def test_two_loads_of_one_id_at_once_load_it_once(folder: Path) -> None:
    async with engine() as alone:
        replies = await asyncio.gather(load(alone, folder), load(alone, folder))
        assert sorted(reply.success for reply in replies) == [False, True]
        assert len(await listed(alone)) == 1


@pytest.mark.parametrize("empty", ["lora_name", "lora_path", "lora_id"])
async def test_an_empty_field_of_a_load_is_invalid(folder: Path, empty: str) -> None:
    request = pb.LoadLoRAAdapterRequest(lora_name="brief", lora_path=str(folder), lora_id="id-1")
    request.ClearField(empty)
    async with engine() as alone:
        with pytest.raises(grpc.aio.AioRpcError, match=f"{empty} is empty"):
            await alone.sglang.LoadLoRAAdapter(request)


@pytest.mark.parametrize(("name", "lora_id"), [("other", ""), ("brief", "id-2")])
async def test_unload_of_what_is_not_loaded_says_so(folder: Path, name: str, lora_id: str) -> None:
    async with engine() as alone:
        await load(alone, folder)
        reply = await unload(alone, name, lora_id)
        assert (reply.success, list(reply.loaded_lora_ids)) == (False, ["id-1"])


async def test_engine_without_adapters_refuses_load_and_use(folder: Path) -> None:
    async with engine(max_adapters=0) as alone:
        reply = await load(alone, folder)
        with pytest.raises(grpc.aio.AioRpcError, match="LoRA is not enabled"):
            await answer(alone, "id-1")
        info = await alone.sglang.GetServerInfo(pb.GetServerInfoRequest())
    assert (reply.success, reply.message) == (False, "LoRA is not enabled")
    assert info.server_args["enable_lora"] is False


async def test_loads_and_kv_events_tell_of_the_adapter(folder: Path) -> None:
    async with engine() as alone:
        await load(alone, folder)
        loads = await alone.sglang.GetLoads(pb.GetLoadsRequest(include=["lora"]))
        await answer(alone, "id-1")
        call = alone.sglang.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=1))
        batch = await call.read()
        call.cancel()
    assert (loads.loads[0].lora.slots_used, loads.loads[0].lora.slots_total) == (1, 8)
    assert batch.events[0].stored.lora_name == "brief"
