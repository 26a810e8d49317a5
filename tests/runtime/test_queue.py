"""Requests beyond max_in_flight: who runs next, who is told what, and that no slot is lost whatever happens."""

from __future__ import annotations

import asyncio

import pytest
from tests.runtime.call_world import ask, call, limited, play, took_s

from tandem_router.errors import Reason, TandemError
from tandem_router.model.request import RequestContext
from tandem_router.model.settings import RuntimeSettings
from tandem_router.testing.harness import SimRuntime, until
from tandem_router.testing.scenario import ClientPlan, Stop
from tandem_router.testing.sim_client import PRINCIPAL, ClientRecord, SimSink
from tandem_router.testing.sim_loop import Order

ONE_AT_A_TIME = RuntimeSettings(max_in_flight=1, max_queued=3)


async def all_of(runtime: SimRuntime, *requests: object) -> list[ClientRecord]:
    """Make the calls in this order, each in the queue (or running) before the next begins; their ends."""
    tasks = []
    for request in requests:
        tasks.append(asyncio.create_task(call(runtime, request)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return [await task for task in tasks]


def test_requests_beyond_the_limit_wait_and_are_all_served() -> None:
    async def scene(runtime: SimRuntime) -> None:
        records = await all_of(runtime, ask("a"), ask("b"), ask("c"))
        assert [record.error for record in records] == [None] * 3
        begins = [record.first_chunk_s or 0.0 for record in records]
        ends = [record.ended_s or 0.0 for record in records]
        assert begins[1] >= ends[0]
        assert begins[2] >= ends[1]

    play(scene, settings=ONE_AT_A_TIME)


def test_the_queue_goes_by_priority_and_then_by_arrival() -> None:
    async def scene(runtime: SimRuntime) -> None:
        requests = [ask("runs"), ask("low", priority=-1), ask("first"), ask("high", priority=9)]
        records = await all_of(runtime, *requests)
        served = sorted(records, key=lambda record: record.first_chunk_s or 0.0)
        assert [record.request_id for record in served] == ["runs", "high", "first", "low"]

    play(scene, settings=ONE_AT_A_TIME)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    async def scene(runtime: SimRuntime) -> None:
        *_, refused = await all_of(runtime, *(ask(name) for name in "abcde"))
        assert refused.error is not None
        assert (refused.error.reason, took_s(refused)) == (Reason.TOO_MANY_REQUESTS, 0.0)
        assert refused.error.retry_after_s is not None
        assert runtime.relay.statistics().queued_requests == 0

    play(scene, settings=ONE_AT_A_TIME)


def test_the_time_in_the_queue_is_told_in_finished() -> None:
    async def scene(runtime: SimRuntime) -> None:
        first, second = await all_of(runtime, ask("a"), ask("b"))
        assert second.finished is not None
        assert second.finished.timings.queue_s == pytest.approx(took_s(first), abs=0.01)

    play(scene, settings=ONE_AT_A_TIME)


def test_a_waiting_client_that_asked_is_told_where_it_stands_at_once_and_at_its_interval() -> None:
    async def scene(runtime: SimRuntime) -> None:
        *_, last = await all_of(runtime, ask("a"), ask("b"), ask("c", queue_updates_s=0.04))
        assert [(status.position, status.length) for status in last.queue[:1]] == [(1, 2)]
        waited = [status.waited_s for status in last.queue]
        assert waited == pytest.approx([0.04 * number for number in range(len(waited))])
        assert (last.queue[-1].position, last.queue[-1].length) == (0, 1)
        assert last.finished is not None
        assert len(waited) == int(last.finished.timings.queue_s / 0.04) + 1

    play(scene, settings=ONE_AT_A_TIME)


def test_a_client_that_did_not_ask_or_need_not_wait_is_told_nothing() -> None:
    async def scene(runtime: SimRuntime) -> None:
        first, second = await all_of(runtime, ask("a", queue_updates_s=0.01), ask("b"))
        assert (first.queue, second.queue) == ([], [])

    play(scene, settings=ONE_AT_A_TIME)


@pytest.mark.parametrize("seed", range(5))
def test_who_leaves_the_queue_or_a_slot_lets_the_next_one_in(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        running, waiting, last = (asyncio.create_task(call(runtime, ask(name))) for name in "abc")
        assert await until(lambda: runtime.relay.statistics().queued_requests == 2, 1.0, step_s=0.001)
        for name in "ab":
            assert runtime.relay.abort(PRINCIPAL, name) is not None
        assert runtime.relay.statistics().queued_requests == 0
        ends = [await task for task in (running, waiting, last)]
        assert [end.error and end.error.reason for end in ends] == [Reason.REQUEST_CANCELLED] * 2 + [None]

    play(scene, settings=ONE_AT_A_TIME, seed=seed, order=Order.SHUFFLED)


def test_a_request_that_would_wait_for_an_unknown_model_fails_at_once() -> None:
    async def scene(runtime: SimRuntime) -> None:
        _, unknown = await all_of(runtime, ask("a"), ask("b", model="nobody's"))
        assert unknown.error is not None
        assert (unknown.error.reason, took_s(unknown)) == (Reason.MODEL_NOT_FOUND, 0.0)

    play(scene, settings=ONE_AT_A_TIME)


def test_a_request_whose_model_has_no_ready_worker_is_refused_and_not_queued() -> None:
    async def scene(runtime: SimRuntime) -> None:
        runtime.machines.machines["alone"].kill()
        assert await until(lambda: all(w.status != "READY" for w in runtime.control.fleet.workers().values()), 30.0)
        refused = await call(runtime, ask("a"))
        assert refused.error is not None
        assert (refused.error.reason, took_s(refused)) == (Reason.NO_READY_WORKER, 0.0)
        runtime.machines.machines["alone"].start()

    play(scene, settings=ONE_AT_A_TIME)


@pytest.mark.parametrize(("slack_s", "reason"), [(1e-6, None), (-1e-6, Reason.QUEUE_TIMEOUT)], ids=["in time", "late"])
def test_queue_timeout_strikes_at_its_limit_and_never_before(slack_s: float, reason: Reason | None) -> None:
    async def measure(runtime: SimRuntime) -> float:
        return took_s((await all_of(runtime, ask("a"), ask("b")))[0])

    limit_s = play(measure, settings=ONE_AT_A_TIME) + slack_s

    async def scene(runtime: SimRuntime) -> None:
        _, waiting = await all_of(runtime, ask("a"), ask("b", timeouts=limited(queue_s=limit_s)))
        assert (waiting.error and waiting.error.reason) == reason
        if reason is not None:
            assert took_s(waiting) == pytest.approx(limit_s, abs=1e-9)

    play(scene, settings=ONE_AT_A_TIME)


def test_queue_timeout_does_not_apply_to_who_runs() -> None:
    async def scene(runtime: SimRuntime) -> None:
        assert (await call(runtime, ask(timeouts=limited(queue_s=1e-6)))).error is None

    play(scene, settings=ONE_AT_A_TIME)


@pytest.mark.parametrize("limits", [{"first_token_s": 0.01}, {"total_s": 0.01}], ids=str)
def test_the_time_in_the_queue_counts_for_the_other_limits(limits: dict[str, float]) -> None:
    async def scene(runtime: SimRuntime) -> None:
        _, waiting = await all_of(runtime, ask("a"), ask("b", timeouts=limited(**limits)))
        assert waiting.error is not None
        assert took_s(waiting) == pytest.approx(0.01)

    play(scene, settings=ONE_AT_A_TIME)


def test_a_live_request_id_is_refused_to_its_principal_only_also_while_it_waits() -> None:
    async def scene(runtime: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        running, waiting = (asyncio.create_task(call(runtime, ask(name))) for name in "ab")
        await asyncio.sleep(0.001)
        record = ClientRecord(ClientPlan(ask("b"), 0.0))
        with pytest.raises(TandemError, match="REQUEST_ID_IN_USE"):
            runtime.relay.start(ask("b"), RequestContext(principal=PRINCIPAL), SimSink(record, loop))
        other = runtime.relay.start(ask("b"), RequestContext(principal="other"), SimSink(record, loop))
        await other.result()
        assert [(await task).error for task in (running, waiting)] == [None, None]

    play(scene, settings=ONE_AT_A_TIME)


@pytest.mark.parametrize("seed", range(20))
def test_of_a_burst_everyone_is_served_or_refused_and_no_slot_is_lost(seed: int) -> None:
    print(f"seed {seed}")

    async def scene(runtime: SimRuntime) -> None:
        async def one(number: int) -> ClientRecord:
            stop = Stop.ABORT if number % 5 == 0 else None
            request = ask(f"r{number}", priority=number % 3)
            return await call(runtime, request, stop=stop, stop_after_s=0.02 * (number % 7))

        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        records = [await task for task in tasks]
        reasons = [None if record.error is None else record.error.reason for record in records]
        assert set(reasons) <= {None, Reason.TOO_MANY_REQUESTS, Reason.REQUEST_CANCELLED}
        assert all(record.finished is not None for record in records if record.error is None)
        assert reasons.count(Reason.TOO_MANY_REQUESTS) >= 200 - (4 + 50) - reasons.count(Reason.REQUEST_CANCELLED)

    settings = RuntimeSettings(max_in_flight=4, max_queued=50)
    play(scene, settings=settings, seed=seed, order=Order.SHUFFLED)
