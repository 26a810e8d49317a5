"""An adapter that is unloaded and loaded in another version under load: every answer is of one version, whole."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
from adapter_folders import write_adapter
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from wire_fixtures import SEED, Engine, demo_model, engine, messages, prompt, sglang_request, tokens_of

LENGTHS = (20, 40, 90)


async def load(worker: Engine, folder: Path) -> None:
    request = pb.LoadLoRAAdapterRequest(lora_name="brief", lora_path=str(folder), lora_id="id-1")
    assert (await worker.sglang.LoadLoRAAdapter(request)).success


async def unload(worker: Engine) -> None:
    assert (await worker.sglang.UnloadLoRAAdapter(pb.UnloadLoRAAdapterRequest(lora_name="brief"))).success


async def answer(worker: Engine, length: int) -> list[int] | None:
    """None when no version was loaded."""
    request = sglang_request(prompt(length))
    request.lora_id = "id-1"
    try:
        return tokens_of(await messages(worker.sglang.Generate(request)))[0]
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return None
        raise


async def test_answers_under_a_changing_adapter_are_of_one_version_and_nothing_stays(tmp_path: Path) -> None:
    config = demo_model().config
    versions = [write_adapter(tmp_path / str(seed), config, seed=seed, strength=1.0) for seed in (1, 2)]
    async with engine(prefill_chunk=32) as alone:
        right: dict[int, list[list[int] | None]] = {length: [] for length in LENGTHS}
        for folder in versions:
            await load(alone, folder)
            for length in LENGTHS:
                right[length].append(await answer(alone, length))
            await unload(alone)
        assert all(one != other for one, other in right.values())
        dice = random.Random(SEED)
        lengths = [dice.choice(LENGTHS) for _ in range(60)]
        await load(alone, versions[0])
        running = []
        for at, length in enumerate(lengths):
            running.append(asyncio.create_task(answer(alone, length)))
            await asyncio.sleep(0.002)
            if at % 6 == 5:
                await unload(alone)
                await load(alone, versions[(at // 6 + 1) % 2])
        answers = await asyncio.gather(*running)
        assert await alone.idle() == (0, 0, 0, 0)
    seen = set()
    for length, got in zip(lengths, answers, strict=True):
        assert got is None or got in right[length]
        seen.add(None if got is None else right[length].index(got))
    assert {0, 1} <= seen
