"""Draining a worker under load, with the real relay: its deadline ends what is left on it, and only that."""

from __future__ import annotations

import pytest
from tests.simulation.test_scenes import DECODE, HANDY, REQUEST, ROOMY, SEEDS, call_with, pair_of, play

from tandem_router.errors import Reason
from tandem_router.model.ids import WorkerId
from tandem_router.model.job import JobState
from tandem_router.testing.harness import SimRuntime, until
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord

PLAN = ClientPlan(REQUEST, 0.0)


def busy_decode(runtime: SimRuntime) -> WorkerId:
    """The decode worker of the one pair that lives."""
    return runtime.relay.pairs()[0].decode.worker_id


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_a_drain_without_a_deadline_lets_a_running_stream_end_well(script: EngineScript, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        jobs = []

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: record.first_chunk_s is not None, 5.0)
            worker_id = busy_decode(runtime)
            jobs.append((await runtime.control.drain_worker(worker_id))[1])

        record = await call_with(runtime, PLAN, act)
        assert record.finished is not None
        assert (await runtime.job_ended(jobs[0].id, 60.0)).state is JobState.SUCCEEDED
        await runtime.control.undrain_worker(jobs[0].worker_id)

    play(seed, pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY], ids=["rendezvous", "handoff"])
def test_the_deadline_of_a_drain_ends_a_stream_that_has_begun(script: EngineScript, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        jobs = []

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: record.first_chunk_s is not None, 5.0, step_s=0.001)
            jobs.append((await runtime.control.drain_worker(busy_decode(runtime), 0.0))[1])

        record = await call_with(runtime, PLAN, act)
        assert record.error is not None
        assert record.error.reason is Reason.WORKER_LOST
        ended = await runtime.job_ended(jobs[0].id, 60.0)
        assert (ended.state, ended.steps[0].detail) == (JobState.SUCCEEDED, "idle; 1 leg aborted at the deadline")
        await runtime.control.undrain_worker(jobs[0].worker_id)

    play(seed, pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_without_a_token_is_served_elsewhere_when_a_drain_ends_its_pair(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        drained = []

        async def act(record: ClientRecord) -> None:
            assert await until(lambda: runtime.ledger.statistics().open > 0, 5.0, step_s=0.0001)
            assert record.first_chunk_s is None
            drained.append(busy_decode(runtime))
            await runtime.control.drain_worker(drained[0], 0.0)

        record = await call_with(runtime, PLAN, act)
        assert record.finished is not None
        assert record.finished.served_by.decode_worker_id != drained[0]
        await runtime.control.undrain_worker(drained[0])
        assert len([one for one in await runtime.control.list_workers() if one.worker_type is DECODE]) == 2

    play(seed, pair_of(ROOMY, decodes=2), scene)
