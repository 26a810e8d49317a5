"""A server's default reaches the engine over every way of serving, and a request's own value goes before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_scenes import HANDY, REQUEST, ROOMY, pair_of, play

from tandem_router.model.request import Sampling
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_model import answer, pages_of
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord, run_client

MACHINES = {"rendezvous": pair_of(ROOMY), "handoff": pair_of(HANDY), "alone": {"alone": EngineScript()}}
HOT = Sampling(temperature=0.8, max_tokens=10, ignore_eos=True)
GREEDY = replace(HOT, temperature=0.0)


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize(("stated", "effective"), [(None, HOT), (0.0, GREEDY)], ids=["absent", "stated"])
def test_what_a_request_leaves_open_is_the_servers(machines: str, stated: float | None, effective: Sampling) -> None:
    async def scene(runtime: SimRuntime) -> None:
        runtime.relay.env.default_sampling = {"temperature": 0.8}
        request = replace(REQUEST, sampling=replace(HOT, temperature=stated))
        record = ClientRecord(ClientPlan(request, 0.0))
        await run_client(runtime.relay, record)
        prompt = REQUEST.token_ids or ()
        expected = answer(prompt, pages_of(prompt), effective, 0).token_ids
        assert record.error is None
        assert tuple(record.tokens[0]) == expected

    play(1, MACHINES[machines], scene)
