"""What a scripted worker does beside generating: vectors, one operation, and honest refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tandem_router.errors import Reason
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import CANNOT, FlushCache, ListAdapters, LoadAdapter, StopProfile, UnloadAdapter
from tandem_router.model.request import Sampling
from tandem_router.ports import EngineClient
from tandem_router.testing.scripted_adapters import ScriptedAdapters
from tandem_router.testing.scripted_fleet import ScriptedFleet
from tandem_router.testing.scripted_model import answer, pages_of
from tandem_router.testing.sim_loop import SimLoop

LEG = EmbedLeg("leg-1", (5, 6, 7))


def play(scene: Callable[[EngineClient], Awaitable[None]]) -> None:
    """A scene with a client of one scripted worker, in virtual time."""

    async def main() -> None:
        fleet = ScriptedFleet(asyncio.get_running_loop(), 1)
        machine = fleet.add("worker")
        client = await fleet.dial(machine.spec, None, timeout_s=1)
        await scene(client)
        await client.close()
        await fleet.close()

    SimLoop(1).run(main())


def test_vector_depends_on_prompt_and_adapters_and_on_nothing_else() -> None:
    async def scene(client: EngineClient) -> None:
        legs = [
            LEG,
            replace(LEG, leg_id="leg-2"),
            replace(LEG, token_ids=(5, 6, 8)),
            replace(LEG, adapters=(AdapterUse("poet"),)),
        ]
        vectors = [await client.embed(leg, timeout_s=1) for leg in legs]
        assert len({vector.values for vector in vectors}) == 3
        assert vectors[0] == vectors[1]
        assert all(-1 <= value < 1 for vector in vectors for value in vector.values)

    play(scene)


def test_cache_is_flushed() -> None:
    async def scene(client: EngineClient) -> None:
        assert (await client.operate(FlushCache(), timeout_s=1)).message == "flushed"

    play(scene)


@pytest.mark.parametrize("operation", [ListAdapters(), StopProfile()], ids=["adapters", "profile"])
def test_what_it_cannot_do_is_refused_by_its_reason(operation: ListAdapters | StopProfile) -> None:
    async def scene(client: EngineClient) -> None:
        with pytest.raises(EngineFailure) as caught:
            await client.operate(operation, timeout_s=1)
        assert caught.value.reason is CANNOT[type(operation)]

    play(scene)


def test_it_publishes_no_kv_events() -> None:
    async def scene(client: EngineClient) -> None:
        with pytest.raises(EngineFailure) as caught:
            await client.kv_events(resume_at=0).receive()
        assert caught.value.reason is Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS

    play(scene)


def test_adapters_come_and_go_as_it_is_asked_and_are_in_its_facts() -> None:
    adapters = ScriptedAdapters(["de"], is_managed=True)
    with pytest.raises(EngineFailure):
        adapters.operate(LoadAdapter("de", "/adapters/de"))
    adapters.operate(LoadAdapter("fr", "/adapters/fr"))
    adapters.operate(UnloadAdapter("de", "id-de"))
    assert [one.name for one in adapters.operate(ListAdapters()).adapters] == ["fr"]
    assert adapters.lacks(["de", "fr", "nl"]) == ["de", "nl"]
    assert adapters.never_had(["de", "fr", "nl"]) == ["nl"]
    with pytest.raises(EngineFailure):
        adapters.operate(UnloadAdapter("de", "id-de"))


def test_an_adapter_changes_the_answer_on_either_half() -> None:
    prompt, uses, greedy = tuple(range(5, 25)), (AdapterUse("de"),), Sampling(temperature=0.0)
    plain, adapted = pages_of(prompt), pages_of(prompt, uses)
    said = [answer(prompt, pages, greedy, 0, by).token_ids for pages in (plain, adapted) for by in ((), uses)]
    assert len(set(said)) == 4
