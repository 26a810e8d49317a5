from __future__ import annotations

import asyncio

import pytest

from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, FinishReason, TokenLogprob
from tandem_router.runtime.delivery import MAX_PENDING, Delivery
from tandem_router.testing.sim_loop import SimLoop


def tokens(delivered: list[EngineItem]) -> list[int]:
    return [token for item in delivered for token in item.token_ids]


def items(count: int) -> list[EngineChunk]:
    return [EngineChunk(0, (number,)) for number in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_items_arrive_in_order_and_finish_waits_for_the_last(seed: int) -> None:
    got: list[EngineItem] = []

    async def slow(item: EngineItem) -> None:
        await asyncio.sleep(1)
        got.append(item)

    async def main() -> None:
        delivery = Delivery(slow)
        running = asyncio.create_task(delivery.run())
        for item in items(5):
            assert delivery.put(item)
        delivery.finish()
        await running

    SimLoop(seed).run(main())
    assert tokens(got) == [0, 1, 2, 3, 4]


def test_chunks_of_one_choice_that_wait_become_one_message_with_nothing_lost() -> None:
    got: list[EngineItem] = []

    async def slow(item: EngineItem) -> None:
        got.append(item)
        await asyncio.sleep(1)

    async def main() -> None:
        delivery = Delivery(slow)
        running = asyncio.create_task(delivery.run())
        delivery.put(EngineChunk(0, (0,)))
        await asyncio.sleep(0.5)  # the first is being written, alone
        for choice, token in ((0, 1), (0, 2), (1, 3), (1, 4), (0, 5)):
            delivery.put(EngineChunk(choice, (token,), prompt_tokens=7, logprobs=(TokenLogprob(token, -0.5),)))
        end = EngineEnd(0, FinishReason.STOP)
        delivery.put(end)
        delivery.finish()
        await running
        assert got.pop() is end

    SimLoop(0).run(main())
    assert [(item.choice, item.token_ids) for item in got] == [(0, (0,)), (0, (1, 2)), (1, (3, 4)), (0, (5,))]
    assert [logprob.token_id for logprob in got[1].logprobs] == [1, 2]
    assert got[1].prompt_tokens == 7


def test_a_client_that_keeps_up_gets_every_chunk_by_itself() -> None:
    got: list[EngineItem] = []

    async def quick(item: EngineItem) -> None:
        got.append(item)

    async def main() -> None:
        delivery = Delivery(quick)
        running = asyncio.create_task(delivery.run())
        for item in items(3):
            delivery.put(item)
            await asyncio.sleep(0.01)
        delivery.finish()
        await running

    SimLoop(0).run(main())
    assert got == items(3)


@pytest.mark.parametrize("seed", range(10))
def test_stop_interrupts_a_write_that_waits_and_leaves_no_cancel_behind(seed: int) -> None:
    async def never(_item: EngineItem) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        delivery = Delivery(never)
        delivery.put(items(1)[0])
        asyncio.get_running_loop().call_later(1, delivery.stop)
        await delivery.run()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1)

    SimLoop(seed).run(main())


@pytest.mark.parametrize("seed", range(30))
def test_stop_in_the_step_in_which_the_write_ends_leaves_no_cancel_behind(seed: int) -> None:
    async def brief(_item: EngineItem) -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        delivery = Delivery(brief)
        delivery.put(items(1)[0])
        asyncio.get_running_loop().call_later(1, delivery.stop)
        await delivery.run()
        await asyncio.sleep(1)
        await asyncio.sleep(1)

    SimLoop(seed).run(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_cancel_from_outside_goes_through_also_beside_a_stop(seed: int) -> None:
    async def never(_item: EngineItem) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        delivery = Delivery(never)
        delivery.put(items(1)[0])
        running = asyncio.create_task(delivery.run())
        loop.call_later(1, delivery.stop)
        loop.call_later(1, running.cancel)
        with pytest.raises(asyncio.CancelledError):
            await running

    SimLoop(seed).run(main())


def test_a_client_too_far_behind_is_told_to_the_reader() -> None:
    async def never(_item: EngineItem) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        delivery = Delivery(never)
        assert all(delivery.put(item) for item in items(MAX_PENDING))
        assert not delivery.put(items(1)[0])

    SimLoop().run(main())
