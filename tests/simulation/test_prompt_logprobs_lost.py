"""A request for the prompt's log probabilities ends by name where nobody gives them, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from test_scenes import HANDY, REQUEST, ROOMY, SEEDS, pair_of, play

from tandem_router.errors import Reason
from tandem_router.testing.harness import SimRuntime, until
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord, run_client

WANTS = replace(REQUEST, prompt_logprobs=True)
"""Scripted engines have no probabilities to tell."""
SLOW_PREFILL_S = 5.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", [ROOMY, HANDY, EngineScript()], ids=["rendezvous", "handoff", "alone"])
def test_workers_that_return_none_are_named_and_no_token_is_shown(script: EngineScript, seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        record = ClientRecord(ClientPlan(WANTS, 0.0))
        await run_client(runtime.relay, record)
        assert record.error is not None
        assert record.error.reason is Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS
        assert record.tokens == {}

    play(seed, {"alone": script} if script == EngineScript() else pair_of(script), scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefill_killed_before_its_answer_fails_the_request_although_decode_goes_on(seed: int) -> None:
    async def scene(runtime: SimRuntime) -> None:
        record = ClientRecord(ClientPlan(WANTS, 0.0))
        call = asyncio.create_task(run_client(runtime.relay, record))

        def is_committed() -> bool:
            return any(attempt.is_committed for attempt in runtime.relay.env.attempts.values())

        assert await until(is_committed, 5.0)
        died_s = asyncio.get_running_loop().time()
        runtime.machines.machines["prefill"].kill()
        await call
        assert record.error is not None
        assert record.error.reason is Reason.WORKER_LOST
        assert record.tokens == {}
        assert record.ended_s is not None
        assert record.ended_s - died_s < 1.0

    play(seed, pair_of(replace(ROOMY, settle_s=SLOW_PREFILL_S)), scene)
