"""How an Embed call ends before its time: limits, Abort, the queue, drains and shutdown; and that nothing is left."""

from __future__ import annotations

import asyncio

import pytest
from tests.runtime.embed_world import PRINCIPAL, EmbedWorld, ask, embedder, play, vector_of, without

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.request import Timeouts
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import WorkerStatus
from tandem_router.runtime.embedding import LANES

MANY = tuple((number % 250, 7) for number in range(100))
ONE, TWO = embedder(1), embedder(2)


LIMITS: list[tuple[Timeouts, float | None, Reason, float]] = [
    (Timeouts(first_token_s=0.5), None, Reason.FIRST_TOKEN_TIMEOUT, 0.5),
    (Timeouts(total_s=0.4, first_token_s=0.5), None, Reason.TOTAL_TIMEOUT, 0.4),
    (Timeouts(total_s=0.9), 0.3, Reason.TOTAL_TIMEOUT, 0.3),
    (Timeouts(queue_s=0.1, inter_token_s=0.1, total_s=0.7), None, Reason.TOTAL_TIMEOUT, 0.7),
]


@pytest.mark.parametrize(("limits", "deadline_s", "reason", "after_s"), LIMITS, ids=["first", "total", "call", "other"])
def test_a_limit_ends_the_call_on_time_and_every_rpc_with_it(
    limits: Timeouts, deadline_s: float | None, reason: Reason, after_s: float
) -> None:
    async def scene(world: EmbedWorld) -> None:
        loop = asyncio.get_running_loop()
        world.engine.takes_s = 60.0
        began_s = loop.time()
        deadline = {} if deadline_s is None else {"deadline_s": began_s + deadline_s}
        with pytest.raises(TandemError) as caught:
            await world.start(ask(*MANY, timeouts=limits), **deadline).result()
        assert (caught.value.reason, loop.time() - began_s) == (reason, pytest.approx(after_s))
        await asyncio.sleep(0.01)
        assert sorted(world.engine.cancelled) == sorted(world.engine.aborted)
        assert len(world.engine.cancelled) == len(world.engine.legs) == LANES

    play(scene)


def test_engines_are_told_what_is_left_of_the_deadline() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.takes_s = 1.0
        await world.ask(*MANY[: LANES + 1], timeouts=Timeouts(total_s=9.0))
        assert [limit and round(limit, 3) for limit in world.engine.limits_s] == [9.0] * LANES + [8.0]
        await world.ask((5,))
        assert world.engine.limits_s[-1] is None

    play(scene)


@pytest.mark.parametrize("way", ["cancel", "abort"])
def test_a_call_that_is_stopped_answers_at_once_and_stops_its_rpcs(way: str) -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.takes_s = 60.0
        call = world.start(ask(*MANY))
        await asyncio.sleep(0.5)
        if way == "cancel":
            call.cancel()
        else:
            aborted = world.relay.abort(PRINCIPAL, "r")
            assert aborted is not None
            assert aborted.completion_tokens == 0
        now = world.relay.statistics()
        assert (now.live_requests, now.live_attempts, now.ledger.open) == (0, 0, 0)
        with pytest.raises(TandemError) as caught:
            await call.result()
        assert caught.value.reason is Reason.REQUEST_CANCELLED
        await asyncio.sleep(0.01)
        assert len(world.engine.aborted) == len(world.engine.cancelled) == LANES
        assert world.fleet.failed == []

    play(scene)


def test_a_request_id_is_live_once_per_principal_whatever_is_asked() -> None:
    async def scene(world: EmbedWorld) -> None:
        call = world.start(ask((5,)))
        error = await world.refused((6,))
        assert (error.reason, error.field) == (Reason.REQUEST_ID_IN_USE, "request_id")
        await call.result()
        await world.ask((6,))

    play(scene)


def test_an_embed_call_is_one_request_to_admission_and_waits_its_turn_by_priority() -> None:
    async def scene(world: EmbedWorld) -> None:
        ended: list[str] = []

        async def one(name: str, priority: int) -> None:
            await world.ask(*MANY, request_id=name, priority=priority)
            ended.append(name)

        tasks = [asyncio.create_task(one(*who)) for who in (("runs", 0), ("low", -1), ("high", 5))]
        await asyncio.sleep(0.001)
        now = world.relay.statistics()
        assert (now.live_requests, now.queued_requests, now.live_attempts) == (3, 2, LANES)
        refused = await world.refused((5,), request_id="late")
        assert (refused.reason, refused.retry_after_s is not None) == (Reason.TOO_MANY_REQUESTS, True)
        await asyncio.gather(*tasks)
        assert ended == ["runs", "high", "low"]

    play(scene, settings=RuntimeSettings(max_in_flight=1, max_queued=2))


def test_a_call_that_waits_too_long_in_the_queue_is_told_so_and_reaches_no_engine() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.takes_s = 1.0
        first = world.start(ask((5,), request_id="first"))
        error = await world.refused((6,), timeouts=Timeouts(queue_s=0.2))
        assert error.reason is Reason.QUEUE_TIMEOUT
        await first.result()
        assert [leg.token_ids for leg in world.engine.legs] == [(5,)]

    play(scene, settings=RuntimeSettings(max_in_flight=1, max_queued=2))


def test_load_counts_running_inputs_by_worker() -> None:
    async def scene(world: EmbedWorld) -> None:
        call = world.start(ask(*MANY))
        await asyncio.sleep(0.001)
        by_rank = world.relay.statistics().ledger.by_rank
        assert by_rank == {RankKey(ONE.id, 1, 0): LANES // 2, RankKey(TWO.id, 1, 0): LANES // 2}
        assert world.relay.pairs() == ()
        await call.result()

    play(scene, ONE, TWO)


def test_a_drain_that_is_over_moves_running_inputs_to_another_worker() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.fleet.engines[ONE.id].takes_s = 60.0
        call = world.start(ask(*MANY, normalize=False))
        await asyncio.sleep(0.05)
        world.fleet.snapshot = without(world.fleet.snapshot, ONE.id, status=WorkerStatus.DRAINING)
        moved = world.relay.end_legs(ONE.id, Failure(Reason.WORKER_LOST, "drained", {"worker_id": ONE.id}))
        assert moved > 0
        assert world.relay.env.ledger.in_flight_of_worker(ONE.id) == 0
        answer = await call.result()
        assert answer.vectors == tuple(vector_of(tokens) for tokens in MANY)
        lost = [attempt for attempt in answer.attempts if attempt.failure is not None]
        assert len(lost) == moved == len(world.fleet.engines[ONE.id].aborted)
        assert world.fleet.failed == []

    play(scene, ONE, TWO)


def test_shutdown_ends_a_call_with_draining_and_new_ones_are_refused() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.takes_s = 60.0
        call = world.start(ask(*MANY))
        await asyncio.sleep(0.01)
        assert await world.relay.drain(0.5) == 1
        with pytest.raises(TandemError) as caught:
            await call.result()
        assert caught.value.reason is Reason.DRAINING
        assert (await world.refused((5,), request_id="new")).reason is Reason.DRAINING

    play(scene)


def test_closing_the_relay_at_once_leaves_nothing_running() -> None:
    async def scene(world: EmbedWorld) -> None:
        world.engine.takes_s = 60.0
        call = world.start(ask(*MANY))
        await asyncio.sleep(0.01)
        await world.relay.close(0.0)
        with pytest.raises(TandemError):
            await call.result()
        assert world.books() == {}

    play(scene)
