from __future__ import annotations

import asyncio
import tracemalloc
from collections import deque

import pytest

from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, FinishReason, TokenLogprob
from tandem_router.runtime.delivery import Delivery, StreamBuffer, footprint
from tandem_router.testing.sim_loop import SimLoop

ROOM = 1024 * 1024


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
        delivery = Delivery(slow, StreamBuffer(ROOM))
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
        delivery = Delivery(slow, StreamBuffer(ROOM))
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
        delivery = Delivery(quick, StreamBuffer(ROOM))
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
        delivery = Delivery(never, StreamBuffer(ROOM))
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
        delivery = Delivery(brief, StreamBuffer(ROOM))
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
        delivery = Delivery(never, StreamBuffer(ROOM))
        delivery.put(items(1)[0])
        running = asyncio.create_task(delivery.run())
        loop.call_later(1, delivery.stop)
        loop.call_later(1, running.cancel)
        with pytest.raises(asyncio.CancelledError):
            await running

    SimLoop(seed).run(main())


async def never(_item: EngineItem) -> None:
    await asyncio.Event().wait()


def test_a_client_too_far_behind_is_told_to_the_reader_at_the_stated_bytes() -> None:
    async def main() -> None:
        one = footprint(items(1)[0])
        delivery = Delivery(never, StreamBuffer(10 * one))
        assert [delivery.put(item) for item in items(11)] == [True] * 10 + [False]

    SimLoop().run(main())


def test_what_is_being_written_counts_until_it_is_written() -> None:
    async def main() -> None:
        one, gate = footprint(items(1)[0]), asyncio.Event()

        async def gated(_item: EngineItem) -> None:
            await gate.wait()

        buffer = StreamBuffer(10 * one)
        delivery = Delivery(gated, buffer)
        running = asyncio.create_task(delivery.run())
        assert delivery.put(items(1)[0])
        await asyncio.sleep(1)
        assert buffer.held_bytes == one
        for item in items(3):
            assert delivery.put(item)
        assert buffer.held_bytes == 4 * one
        gate.set()
        delivery.finish()
        await running
        assert buffer.held_bytes == 0

    SimLoop().run(main())


def test_the_choices_of_a_request_share_one_bound() -> None:
    async def main() -> None:
        buffer = StreamBuffer(2 * footprint(items(1)[0]))
        first, second = Delivery(never, buffer), Delivery(never, buffer)
        assert [each.put(items(1)[0]) for each in (first, second, first)] == [True, True, False]

    SimLoop().run(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_stopped_delivery_gives_all_its_bytes_back_while_one_is_written(seed: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer(ROOM)
        delivery = Delivery(never, buffer)
        for item in items(5):
            delivery.put(item)
        asyncio.get_running_loop().call_later(1, delivery.stop)
        await delivery.run()
        assert buffer.held_bytes == 0

    SimLoop(seed).run(main())


def test_one_message_larger_than_the_bound_passes_a_client_that_keeps_up() -> None:
    async def main() -> None:
        delivery = Delivery(never, StreamBuffer(1))
        assert delivery.put(EngineEnd(0, FinishReason.STOP, token_ids=tuple(range(1000))))

    SimLoop().run(main())


@pytest.mark.parametrize(("tokens_each", "top"), [(1, 0), (8, 0), (1, 1), (1, 20), (256, 2)])
def test_the_estimate_is_not_below_what_items_really_take(tokens_each: int, top: int) -> None:
    def make(number: int) -> EngineChunk:
        ids = tuple(1000 + number * 300 + index for index in range(tokens_each))
        if not top:
            return EngineChunk(0, ids)
        return EngineChunk(0, ids, logprobs=tuple(logprob(token) for token in ids))

    def logprob(token: int) -> TokenLogprob:
        return TokenLogprob(token, -token / 7, tuple((token + other, -other / 3) for other in range(top)))

    estimated = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held: deque[EngineItem] = deque(make(number) for number in range(500))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    estimated = sum(map(footprint, held))
    assert estimated / 3 < after - before <= estimated
