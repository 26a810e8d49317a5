from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tandem_router.testing.sim_errors import SimBudgetExceeded, SimDeadlock, SimFault, SimForbidden, SimLeak
from tandem_router.testing.sim_loop import Order, SimLoop


async def _names_in_order(count: int) -> list[int]:
    seen: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(1.0)
        seen.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    return seen


def test_an_hour_of_sleep_moves_time_by_an_hour() -> None:
    loop = SimLoop()

    async def main() -> float:
        before = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - before

    assert loop.run(main()) == 3600


def test_time_stands_still_while_tasks_are_ready() -> None:
    loop = SimLoop()

    async def main() -> float:
        before = loop.time()
        for _ in range(100):
            await asyncio.sleep(0)
        return loop.time() - before

    assert loop.run(main()) == 0


def test_asyncio_timeout_strikes_in_virtual_time() -> None:
    loop = SimLoop()

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return loop.time()

    assert loop.run(main()) == 1030.0


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_order(seed: int) -> None:
    assert SimLoop(seed).run(_names_in_order(20)) == SimLoop(seed).run(_names_in_order(20))


def test_seeds_reach_every_order_of_three_tasks() -> None:
    orders = {tuple(SimLoop(seed).run(_names_in_order(3))) for seed in range(60)}
    assert len(orders) == 6


def test_fifo_order_is_that_of_asyncio() -> None:
    assert SimLoop(3, order=Order.FIFO).run(_names_in_order(20)) == list(range(20))


@pytest.mark.parametrize("seed", range(20))
def test_call_soon_stays_first_in_first_out(seed: int) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for number in range(10):
            loop.call_soon(seen.append, number)
            _ = loop.create_task(asyncio.sleep(0))  # noqa: RUF006 - ends by itself
        await asyncio.sleep(0.1)
        return seen

    assert SimLoop(seed).run(main()) == list(range(10))


@pytest.mark.parametrize("seed", range(20))
def test_sleep_zero_lets_every_ready_task_take_a_turn(seed: int) -> None:
    async def main() -> int:
        turns: list[int] = []

        async def turn(number: int) -> None:
            turns.append(number)

        tasks = [asyncio.create_task(turn(number)) for number in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks:
            await task
        return len(turns)

    assert SimLoop(seed).run(main()) == 10


def test_deadlock_names_the_waiting_tasks_and_their_place() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(never(), name="leg-of-nobody")

    with pytest.raises(SimDeadlock, match=r"leg-of-nobody at Event\.wait"):
        SimLoop().run(main())


def test_a_cancelled_timer_does_not_hide_a_deadlock() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(5, print).cancel()
        await asyncio.Event().wait()

    with pytest.raises(SimDeadlock):
        SimLoop().run(main())


def test_a_livelock_exceeds_the_step_budget() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110 - the fault under test
            await asyncio.sleep(0)

    with pytest.raises(SimBudgetExceeded, match="time stands"):
        SimLoop(max_steps=1000).run(main())


def test_endless_waiting_exceeds_the_time_budget() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110 - the fault under test
            await asyncio.sleep(1)

    with pytest.raises(SimBudgetExceeded, match="virtual time"):
        SimLoop(max_virtual_s=60).run(main())


def test_an_exception_nobody_awaits_fails_the_run() -> None:
    async def broken() -> None:
        raise ValueError("lost")

    async def main() -> None:
        task = asyncio.create_task(broken(), name="broken")
        await asyncio.sleep(1)
        assert task.done()

    with pytest.raises(SimFault, match=r"broken: ValueError\('lost'\)"):
        SimLoop().run(main())


def test_an_exception_of_a_callback_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "no number")
        await asyncio.sleep(1)

    with pytest.raises(SimFault, match="no number"):
        SimLoop().run(main())


def test_a_retrieved_exception_is_no_fault() -> None:
    async def broken() -> None:
        raise ValueError("seen")

    async def main() -> None:
        with contextlib.suppress(ValueError):
            await asyncio.create_task(broken())

    SimLoop().run(main())


def test_a_task_left_behind_fails_the_run() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(60), name="orphan")
        await asyncio.sleep(0)
        assert not task.done()

    with pytest.raises(SimLeak, match="orphan"):
        SimLoop().run(main())


def test_a_task_whose_cancel_is_on_its_way_is_no_leak() -> None:
    async def main() -> None:
        asyncio.create_task(asyncio.sleep(60)).cancel()

    SimLoop().run(main())


def test_the_exception_of_main_comes_out_and_its_tasks_are_cancelled() -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("child")

    async def main() -> None:
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise KeyError(task.get_name())

    with pytest.raises(KeyError):
        SimLoop().run(main())
    assert ended == ["child"]


def test_threads_are_forbidden() -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(SimForbidden):
        SimLoop().run(main())


def test_sockets_are_forbidden() -> None:
    async def main() -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    with pytest.raises(NotImplementedError):
        SimLoop().run(main())


def test_unnamed_tasks_are_named_by_their_number_in_the_loop() -> None:
    async def main() -> str:
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        return task.get_name()

    assert SimLoop().run(main()) == SimLoop().run(main()) == "sim-2"


def test_an_abandoned_async_generator_is_closed() -> None:
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def main() -> None:
        async for _ in numbers():
            break
        await asyncio.sleep(0.1)

    SimLoop().run(main())
    assert closed == [True]


def test_many_cancelled_timers_do_not_pile_up() -> None:
    loop = SimLoop()

    async def main() -> int:
        for _ in range(10_000):
            loop.call_later(3600, print).cancel()
        return len(loop._timers)

    assert loop.run(main()) < 200
