"""Every handshake through the whole runtime: what the legs carry, n > 1, lost workers, and handles that nobody uses."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.handshake.pair_world import (
    MOONCAKE,
    NIXL,
    REQUEST,
    ROOMY,
    STORE,
    UNKNOWN,
    World,
    call,
    pair_of,
    params_of,
    play,
)

from tandem_router.core.commands import MarkNotReady
from tandem_router.core.relay_events import HandleReleased, LegClosed, LegSent
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.pairing import LegRole, LegState, Rendezvous
from tandem_router.model.request import Sampling
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.harness import until
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_checks import check_client
from tandem_router.testing.sim_client import PRINCIPAL, ClientRecord, run_client

SEEDS = range(4)
ALL = pytest.mark.parametrize(
    "script", [ROOMY, NIXL, MOONCAKE, UNKNOWN], ids=["rendezvous", "nixl", "mooncake", "passthrough"]
)
SLOW_PAGES = replace(MOONCAKE, page_s=1.0)


@ALL
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_answers_what_one_worker_would_and_decode_computes_no_prompt(script: EngineScript, seed: int) -> None:
    async def scene(world: World) -> None:
        record = await call(world)
        assert check_client(record) == []
        assert record.finished is not None
        machines = world.runtime.machines.machines
        assert machines["decode0"].ledger.recomputed_pages == 0
        assert machines["decode0"].ledger.pages_received == len(REQUEST.token_ids or ()) // 4

    play(pair_of(script), scene, seed=seed)


SHARED = pytest.mark.parametrize(
    "script", [STORE, replace(STORE, connector="LMCacheConnectorV1")], ids=["known-store", "unknown-store"]
)


@SHARED
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_that_meets_in_a_store_answers_and_its_decode_is_told_nothing(script: EngineScript, seed: int) -> None:
    async def scene(world: World) -> None:
        record = await call(world)
        assert check_client(record) == []
        assert record.finished is not None
        assert len(record.finished.attempts) == 1
        assert [leg.handoff for leg in world.legs(LegRole.DECODE)] == [None]

    play(pair_of(script), scene, seed=seed)


def test_a_nixl_prefill_that_returns_nothing_is_a_failed_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineScript, "returns_nothing", True)

    async def scene(world: World) -> None:
        record = await call(world)
        assert record.error is not None
        assert record.error.reason is Reason.KV_TRANSFER_FAILED
        assert world.legs(LegRole.DECODE) == []

    play(pair_of(NIXL), scene)


@SHARED
def test_a_store_has_no_handle_that_a_lost_decode_would_leave_behind(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["prefill0"].ledger.live == 1, 10.0, step_s=0.001)
            machines["decode0"].kill()
        assert record.error is not None
        assert world.runtime.ledger.statistics().open == 0
        assert not any(isinstance(event, HandleReleased) for _, event in world.runtime.trace.events)
        machines["decode0"].start()

    play(pair_of(replace(script, prefill_token_s=0.01)), scene)


def test_both_legs_of_a_rendezvous_are_written_in_one_step_and_a_handoffs_one_after_the_other() -> None:
    def sent(world: World) -> list[tuple[LegRole, float]]:
        return [(event.role, at_s) for at_s, event in world.runtime.trace.events if isinstance(event, LegSent)]

    async def scene(world: World) -> None:
        await call(world)

    (first, first_s), (second, second_s) = sent(play(pair_of(ROOMY), scene))
    assert (first, second) == (LegRole.PREFILL, LegRole.DECODE)
    assert first_s == second_s, "neither waits for the other's headers"
    (first, first_s), (second, second_s) = sent(play(pair_of(MOONCAKE), scene))
    assert (first, second) == (LegRole.PREFILL, LegRole.DECODE)
    assert first_s < second_s


@ALL
def test_each_of_several_choices_has_a_pair_and_a_seed_of_its_own(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        sampling = Sampling(temperature=0.7, seed=100, n=3, max_tokens=6, ignore_eos=True)
        record = await call(world, replace(REQUEST, sampling=sampling))
        assert check_client(record) == []
        assert record.finished is not None
        decodes = sorted(world.legs(LegRole.DECODE), key=lambda leg: leg.sampling.seed or 0)
        assert [(leg.sampling.n, leg.sampling.seed) for leg in decodes] == [(1, 100), (1, 101), (1, 102)]
        assert len({leg.handoff for leg in decodes}) == 3
        assert len(world.legs(LegRole.PREFILL)) == 3

    play(pair_of(script), scene)


def test_each_choice_over_rooms_meets_in_a_room_of_its_own_and_over_mooncake_names_a_transfer_of_its_own() -> None:
    async def rooms(world: World) -> None:
        await call(world, replace(REQUEST, sampling=replace(REQUEST.sampling, n=4)))
        meetings = [leg.handoff for leg in world.legs(LegRole.PREFILL)]
        assert len({meeting.room for meeting in meetings if isinstance(meeting, Rendezvous)}) == 4

    async def transfers(world: World) -> None:
        await call(world, replace(REQUEST, sampling=replace(REQUEST.sampling, n=4)))
        prefills = {params_of(leg)["transfer_id"] for leg in world.legs(LegRole.PREFILL)}
        decodes = {params_of(leg)["transfer_id"] for leg in world.legs(LegRole.DECODE)}
        assert len(prefills) == 4
        assert prefills == decodes
        assert all(str(name).startswith("xfer-") for name in prefills)

    play(pair_of(ROOMY), rooms)
    play(pair_of(MOONCAKE), transfers)


@ALL
def test_the_prompts_logprobs_are_asked_of_prefill_alone(script: EngineScript) -> None:
    async def scene(world: World) -> None:
        await call(world, replace(REQUEST, prompt_logprobs=True, output_logprobs=True, top_logprobs=2))
        (prefill,), decodes = world.legs(LegRole.PREFILL), world.legs(LegRole.DECODE)
        assert (prefill.prompt_logprobs, prefill.top_logprobs) == (True, 2)
        assert [(leg.prompt_logprobs, leg.output_logprobs) for leg in decodes] == [(False, True)]

    play(pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_mooncake_names_the_prefill_rank_that_it_pinned(seed: int) -> None:
    async def scene(world: World) -> None:
        for number in range(6):
            await call(world, replace(REQUEST, request_id=f"r{number}"))
        prefills = {params_of(leg)["transfer_id"]: leg.dp_rank for leg in world.legs(LegRole.PREFILL)}
        for leg in world.legs(LegRole.DECODE):
            params = params_of(leg)
            assert params["remote_engine_id"] == f"prefill0#1_dp{prefills[params['transfer_id']]}"
            assert params["remote_bootstrap_addr"] == "http://prefill0:8998"
        assert len(set(prefills.values())) > 1

    play(pair_of(replace(MOONCAKE, dp_size=3)), scene, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_are_fresh_in_every_attempt_and_none_begins_another(seed: int) -> None:
    async def scene(world: World) -> None:
        world.runtime.machines.machines["decode0"].faults.error_after_tokens = 0
        for number in range(4):
            await call(world, replace(REQUEST, request_id=f"r{number}"))
        ids = [each.leg.leg_id for each in world.sent]
        assert len(ids) > 8, "there were retries"
        assert len(set(ids)) == len(ids)
        assert not any(one != other and other.startswith(one) for one in ids for other in ids)
        transfers = [params_of(leg)["transfer_id"] for leg in world.legs(LegRole.PREFILL)]
        assert len(set(transfers)) == len(transfers)

    play(pair_of(MOONCAKE, decodes=2), scene, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mooncake_decode_is_given_up_soon_after_its_prefill_died_under_the_transfer(seed: int) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["decode0"].ledger.pages_received == 2, 10.0, step_s=0.01)
            machines["prefill0"].kill()
            died_s = loop.time()
        assert record.error is not None
        assert record.ended_s is not None
        assert record.error.reason is Reason.KV_TRANSFER_FAILED
        assert "was lost before its blocks were fetched" in record.error.sentence
        assert record.ended_s - died_s < 7.0, "a probe's interval and a look, not the engine's nine minutes"
        closed = [event for _, event in world.runtime.trace.events if isinstance(event, LegClosed)]
        assert {event.state for event in closed if event.role is LegRole.DECODE} == set(), "it lingers"
        await asyncio.sleep(31.0)
        closed = [event for _, event in world.runtime.trace.events if isinstance(event, LegClosed)]
        assert [event.state for event in closed if event.role is LegRole.DECODE] == [LegState.CLOSED], "for the grace"
        machines["prefill0"].start()

    play(pair_of(SLOW_PAGES), scene, seed=seed, rest_s=550.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_whose_prefill_died_under_a_mooncake_transfer_is_served_by_another(seed: int) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["decode0"].ledger.pages_received == 2, 10.0, step_s=0.01)
            first = next(name for name in ("prefill0", "prefill1") if machines[name].ledger.requests)
            machines[first].kill()
        assert check_client(record) == []
        assert record.finished is not None
        assert [each.failure is None for each in record.finished.attempts] == [False, True]
        machines[first].start()

    play(pair_of(SLOW_PAGES, prefills=2), scene, seed=seed, rest_s=550.0)


async def mark_down(world: World, name: str) -> None:
    url = world.runtime.machines.machines[name].spec.url
    worker = next(each for each in world.runtime.control.fleet.workers().values() if each.url == url)
    down = Failure(Reason.WORKER_UNREACHABLE, "three probes had no answer")
    await world.runtime.control.pipeline.submit(MarkNotReady(worker.id, worker.epoch, down))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefill_that_was_too_busy_for_probes_still_hands_its_blocks_over(seed: int) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["prefill0"].ledger.running == 1, 10.0, step_s=0.001)
            await mark_down(world, "prefill0")
        assert check_client(record) == []
        assert record.finished is not None
        assert len(record.finished.attempts) == 1

    play(pair_of(replace(SLOW_PAGES, prefill_token_s=0.01)), scene, seed=seed)


@pytest.mark.parametrize(
    ("script", "gives_up"), [(SLOW_PAGES, True), (replace(NIXL, page_s=1.0), False)], ids=["mooncake", "nixl"]
)
def test_only_a_decode_that_would_outwait_its_prefill_is_given_up_when_prefill_goes_down(
    script: EngineScript, gives_up: bool
) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["decode0"].ledger.pages_received == 2, 10.0, step_s=0.01)
            await mark_down(world, "prefill0")
        assert (record.error is not None) == gives_up

    play(pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_unused_mooncake_transfer_is_fetched_by_a_live_decode(seed: int) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        request = replace(REQUEST, sampling=replace(REQUEST.sampling, max_tokens=1))
        record = ClientRecord(ClientPlan(request, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["prefill0"].ledger.running == 1, 10.0, step_s=0.001)
            # Prefill ends before the Abort has reached it; it is heard out, and what it holds for nobody given back.
            assert world.runtime.relay.abort(PRINCIPAL, "r") is not None
        released = [event for _, event in world.runtime.trace.events if isinstance(event, HandleReleased)]
        assert released == []
        await asyncio.sleep(5.0)
        released = [event for _, event in world.runtime.trace.events if isinstance(event, HandleReleased)]
        assert [event.failure for event in released] == [None]
        assert (machines["prefill0"].ledger.handles, machines["prefill0"].ledger.handles_released) == (0, 1)

    play(pair_of(replace(MOONCAKE, prefill_token_s=0.01, rpc_s=1.0)), scene, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_unused_mooncake_transfer_that_nobody_can_fetch_is_counted_for_its_own_lease(seed: int) -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["prefill0"].ledger.live == 1, 10.0, step_s=0.001)
            machines["decode0"].kill()
        assert record.error is not None
        assert any(isinstance(event, HandleReleased) for _, event in world.runtime.trace.events)
        await asyncio.sleep(400.0)
        assert world.runtime.ledger.statistics().open == machines["prefill0"].ledger.handles == 1
        machines["decode0"].start()

    play(pair_of(replace(MOONCAKE, prefill_token_s=0.01)), scene, seed=seed, rest_s=100.0)


def test_a_deferred_decode_lingers_and_a_safe_one_is_stopped_at_once() -> None:
    async def scene(world: World) -> None:
        machines = world.runtime.machines.machines
        record = ClientRecord(ClientPlan(REQUEST, 0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(run_client(world.runtime.relay, record))
            assert await until(lambda: machines["decode0"].ledger.pages_received >= 2, 10.0, step_s=0.01)
            (attempt,) = world.runtime.relay.env.attempts.values()
            (live,) = world.runtime.relay._calls.values()
            live.cancel()
            states.append(attempt.view().decode_state)

    states: list[LegState | None] = []
    play(pair_of(replace(MOONCAKE, page_s=0.1)), scene)
    play(pair_of(replace(NIXL, page_s=0.1)), scene)
    assert states == [LegState.LINGERING, LegState.CLOSED]


def trtllm_pair() -> dict[str, EngineScript]:
    script = EngineScript(runtime=RuntimeType.TRTLLM)
    return {
        "prefill0": replace(script, worker_type=WorkerType.PREFILL),
        "decode0": replace(script, worker_type=WorkerType.DECODE),
    }


def test_trtllm_pairs_are_refused_at_the_condition_and_at_generate_with_the_same_reason() -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(1.0)
        for worker in world.runtime.control.fleet.workers().values():
            claim = next(claim for claim in worker.conditions if claim.type == "PAIRABLE")
            assert (claim.is_true, claim.reason) == (False, "RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS")
        record = await call(world)
        assert record.error is not None
        assert record.error.reason is Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS
        assert world.sent == []

    play(trtllm_pair(), scene)


def test_workers_that_speak_no_handshake_are_refused_with_a_sentence_that_says_so() -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(1.0)
        record = await call(world)
        assert record.error is not None
        assert record.error.reason is Reason.NO_COMPATIBLE_PAIR
        assert "speaks no handshake" in record.error.sentence

    play({name: replace(script, runtime=RuntimeType.MLX) for name, script in trtllm_pair().items()}, scene)
