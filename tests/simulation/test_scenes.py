"""Hand-made scenes for what random scenarios reach seldom; each is played with several orders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import pytest

from tandem_router.core.relay_events import HandleReleased, PrefillLost
from tandem_router.errors import Reason
from tandem_router.model.job import JobState
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import GenerateRequest, Output, Sampling
from tandem_router.model.spec import WorkerType
from tandem_router.testing.harness import SimRuntime, build_runtime, until
from tandem_router.testing.scenario import ClientPlan, Stop
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_checks import check_client, check_events
from tandem_router.testing.sim_client import PRINCIPAL, ClientRecord, run_client
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_quiet import check_idle

SEEDS = range(5)
ROOMY = EngineScript(kind=HandshakeKind.RENDEZVOUS)
HANDY = EngineScript(kind=HandshakeKind.HANDOFF)
PREFILL, DECODE = WorkerType.PREFILL, WorkerType.DECODE
REQUEST = GenerateRequest(
    "r",
    "scripted",
    token_ids=tuple(range(10, 50)),
    sampling=Sampling(temperature=0.0, max_tokens=40, ignore_eos=True),
    output=Output.TOKENS,
)
Scene = Callable[[SimRuntime], Awaitable[None]]


def pair_of(script: EngineScript, decodes: int = 1) -> dict[str, EngineScript]:
    machines = {"prefill": replace(script, worker_type=PREFILL)}
    return machines | {f"decode{number}": replace(script, worker_type=DECODE) for number in range(decodes)}


def play(seed: int, machines: Mapping[str, EngineScript], scene: Scene) -> SimRuntime:
    """Play a scene on registered machines; whatever it does, nothing may be left when the graces are over."""
    loop = SimLoop(seed)

    async def main() -> SimRuntime:
        fleet = ScriptedFleet(loop, seed)
        runtime = build_runtime(loop, seed, fleet)
        try:
            for name, script in machines.items():
                fleet.add(name, script)
                job = await runtime.job_ended(await runtime.register(name), 10.0)
                assert job.state is JobState.SUCCEEDED
            await scene(runtime)
            await asyncio.sleep(36.0)
            assert check_idle(runtime) == []
            assert fleet.violations() == []
            assert check_events(runtime.trace.events) == []
        finally:
            await runtime.close()
        return runtime

    return loop.run(main())


async def call_with(
    runtime: SimRuntime, plan: ClientPlan, act: Callable[[ClientRecord], Awaitable[None]]
) -> ClientRecord:
    record = ClientRecord(plan)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_client(runtime.relay, record))
        await act(record)
    assert check_client(record) == []
    return record


def elapsed_since(at_s: float, record: ClientRecord) -> float:
    assert record.ended_s is not None
    return record.ended_s - at_s


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_a_killed_decode_is_answered_within_a_second_while_the_client_is_stalled(
    script: EngineScript, seed: int
) -> None:
    async def scene(runtime: SimRuntime) -> None:
        died_s = 0.0

        async def act(record: ClientRecord) -> None:
            nonlocal died_s
            assert await until(lambda: record.first_chunk_s is not None, 5.0)
            runtime.machines.machines["decode0"].kill()
            died_s = asyncio.get_running_loop().time()

        plan = ClientPlan(REQUEST, 0.0, stall_at_chunk=2, stall_s=15.0)
        record = await call_with(runtime, plan, act)
        assert record.error is not None
        assert record.error.reason is Reason.WORKER_LOST
        assert elapsed_since(died_s, record) < 1.0

    play(seed, pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefill_killed_after_the_first_token_is_noted_and_the_stream_completes(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        async def act(record: ClientRecord) -> None:
            assert await until(lambda: record.first_chunk_s is not None, 5.0)
            runtime.machines.machines["prefill"].kill()

        record = await call_with(runtime, ClientPlan(REQUEST, 0.0), act)
        assert record.finished is not None
        assert any(isinstance(event, PrefillLost) for _, event in runtime.trace.events)

    play(seed, pair_of(replace(ROOMY, settle_s=5.0)), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_handle_goes_to_another_decode_when_the_first_cannot_be_reached(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        machines = runtime.machines.machines

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: machines["prefill"].ledger.live == 1, 5.0)
            planned = runtime.relay.pairs()[0].decode.worker_id
            url = runtime.control.fleet.workers()[planned].url
            next(each for each in machines.values() if each.spec.url == url).kill()

        record = await call_with(runtime, ClientPlan(REQUEST, 0.0), act)
        assert record.finished is not None
        assert len(record.finished.attempts) == 1
        assert machines["prefill"].ledger.requests == 1

    play(seed, pair_of(replace(HANDY, prefill_token_s=0.01), decodes=2), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_handle_that_no_decode_can_take_is_counted_until_its_lease_ends(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        machines = runtime.machines.machines

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: machines["prefill"].ledger.live == 1, 5.0)
            machines["decode0"].kill()

        record = await call_with(runtime, ClientPlan(REQUEST, 0.0), act)
        assert record.error is not None
        assert runtime.ledger.statistics().open == 1
        assert machines["prefill"].ledger.handles == 1
        assert await until(lambda: runtime.ledger.statistics().open == 0, 31.0)
        released = [event for _, event in runtime.trace.events if isinstance(event, HandleReleased)]
        assert len(released) == 1
        assert released[0].failure is not None

    play(seed, pair_of(replace(HANDY, prefill_token_s=0.01)), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_leaves_as_prefill_finishes_leaves_no_handle_behind(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        prefill = runtime.machines.machines["prefill"]

        async def act(record: ClientRecord) -> None:
            # The engine holds the blocks, and its answer is still on the way to the router.
            assert await until(lambda: prefill.ledger.handles == 1, 5.0, step_s=0.0001)
            assert runtime.relay.abort(PRINCIPAL, record.request_id)
            record.stopped_s = asyncio.get_running_loop().time()

        record = await call_with(runtime, ClientPlan(REQUEST, 0.0), act)
        assert record.error is not None
        assert record.error.reason is Reason.REQUEST_CANCELLED
        assert await until(lambda: prefill.ledger.handles == 0, 2.0), "the handle waits for its lease"
        released = [event for _, event in runtime.trace.events if isinstance(event, HandleReleased)]
        assert [event.failure for event in released] == [None]

    play(seed, pair_of(HANDY), scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stop", list(Stop))
def test_a_cancel_in_transfer_is_answered_at_once_and_corrupts_nothing(stop: Stop, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        decode = runtime.machines.machines["decode0"]

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: decode.ledger.pages_received > 0, 5.0)

        # Ten pages of 0.1 s each are on their way when the client leaves, 0.5 s after its call began.
        plan = ClientPlan(REQUEST, 0.0, stop=stop, stop_after_s=0.5)
        record = await call_with(runtime, plan, act)
        assert record.error is not None
        assert record.error.reason is Reason.REQUEST_CANCELLED

    play(seed, pair_of(replace(ROOMY, page_s=0.1)), scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_choices_over_pairs_equal_those_of_one_worker(script: EngineScript, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        sampling = Sampling(temperature=0.9, seed=11, n=3, max_tokens=20)

        async def act(record: ClientRecord) -> None:
            return

        # The stall makes the other choices wait for their turn at the sink.
        plan = ClientPlan(replace(REQUEST, sampling=sampling), 0.0, stall_at_chunk=2, stall_s=0.1)
        record = await call_with(runtime, plan, act)
        assert record.finished is not None
        assert len(record.finished.choices) == 3

    play(seed, pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefill_killed_before_the_first_token_is_replaced_by_another(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        machines = runtime.machines.machines
        prefills = [machines["prefill"], machines["spare"]]

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: any(each.ledger.live for each in prefills), 5.0)
            next(each for each in prefills if each.ledger.live).kill()

        record = await call_with(runtime, ClientPlan(REQUEST, 0.0), act)
        assert record.finished is not None
        assert [attempt.failure is None for attempt in record.finished.attempts] == [False, True]

    script = replace(ROOMY, prefill_token_s=0.01)
    play(seed, pair_of(script) | {"spare": replace(script, worker_type=PREFILL)}, scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_a_shutdown_amid_traffic_answers_everybody_and_frees_the_engines(script: EngineScript, seed: int) -> None:
    loop = SimLoop(seed)

    async def main() -> None:
        fleet = ScriptedFleet(loop, seed)
        runtime = build_runtime(loop, seed, fleet)
        for name, each in pair_of(script, decodes=2).items():
            fleet.add(name, each)
            await runtime.job_ended(await runtime.register(name), 10.0)
        records = [ClientRecord(ClientPlan(replace(REQUEST, request_id=f"r{number}"), 0.0)) for number in range(20)]
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(run_client(runtime.relay, record))
            await asyncio.sleep(0.01 * seed)
            await runtime.relay.close()
            await runtime.control.close()
        assert [found for record in records for found in check_client(record)] == []
        assert {record.error.reason for record in records if record.error is not None} == {Reason.DRAINING}
        await asyncio.sleep(62.0)
        assert check_idle(runtime) == []
        await fleet.close()

    loop.run(main())
