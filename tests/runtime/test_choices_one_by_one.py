"""n choices where an engine takes one per call: n calls with the answers of one for n. Adapters go along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.runtime.call_world import ask, call, pair_of, play

from tandem_router.core.commands import RecordFacts
from tandem_router.errors import Reason
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import GenerateRequest, LegRequest, Sampling
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scripted_client import ScriptedCall, ScriptedClient
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord

THREE = Sampling(temperature=0.8, seed=7, n=3, max_tokens=12, ignore_eos=True)


@pytest.fixture
def legs(monkeypatch: pytest.MonkeyPatch) -> list[LegRequest]:
    """Every leg that is sent to a scripted engine."""
    sent: list[LegRequest] = []
    generate = ScriptedClient.generate

    def noting(self: ScriptedClient, leg: LegRequest, *, timeout_s: float | None) -> ScriptedCall:
        sent.append(leg)
        return generate(self, leg, timeout_s=timeout_s)

    monkeypatch.setattr(ScriptedClient, "generate", noting)
    return sent


async def say(runtime: SimRuntime, *, only: int | None = None, **facts: Any) -> None:
    """Let workers (or the one of that place) be known by other facts."""
    for place, worker in enumerate(await runtime.control.list_workers()):
        assert worker.facts is not None
        if only in (None, place):
            told = RecordFacts(worker.id, worker.epoch, replace(worker.facts, **facts), worker.ranks)
            await runtime.control.pipeline.submit(told)


def answered(request: GenerateRequest, **facts: int | None) -> ClientRecord:
    async def scene(runtime: SimRuntime) -> ClientRecord:
        await say(runtime, **facts)
        return await call(runtime, request)

    return play(scene)


def test_one_by_one_gives_the_answer_of_all_at_once(legs: list[LegRequest]) -> None:
    at_once = answered(ask(sampling=THREE), max_choices=None)
    assert [leg.sampling.n for leg in legs] == [3]
    legs.clear()
    one_by_one = answered(ask(sampling=THREE), max_choices=1)
    assert sorted((leg.sampling.n, leg.sampling.seed) for leg in legs) == [(1, 7), (1, 8), (1, 9)]
    assert one_by_one.tokens == at_once.tokens
    assert set(one_by_one.tokens) == {0, 1, 2}
    assert one_by_one.finished is not None
    assert [choice.choice for choice in one_by_one.finished.choices] == [0, 1, 2]


def test_as_many_as_one_call_takes_go_in_one_call(legs: list[LegRequest]) -> None:
    answered(ask(sampling=THREE), max_choices=3)
    assert [leg.sampling.n for leg in legs] == [3]


@pytest.mark.parametrize(("temperature", "sent"), [(0.0, [1, 1, 1]), (0.8, [3])])
def test_an_engine_that_refuses_several_greedy_choices_is_asked_for_one_at_a_time(
    legs: list[LegRequest], temperature: float, sent: list[int]
) -> None:
    record = answered(ask(sampling=replace(THREE, temperature=temperature)), max_greedy_choices=1)
    assert [leg.sampling.n for leg in legs] == sent
    assert set(record.tokens) == {0, 1, 2}


def test_the_prompt_s_log_probabilities_are_asked_for_once(legs: list[LegRequest]) -> None:
    record = answered(ask(sampling=THREE, prompt_logprobs=True), max_choices=1)
    assert sum(leg.prompt_logprobs for leg in legs) == 1
    assert record.finished is not None or record.error is not None


def test_all_at_once_is_tried_again_only_where_all_can_be_had_at_once(legs: list[LegRequest]) -> None:
    """The other worker has one choice per call: the retry must not send it three."""

    async def scene(runtime: SimRuntime) -> ClientRecord:
        await say(runtime, only=1, max_choices=1)
        runtime.machines.machines["first"].faults.is_refusing = True
        first = (await runtime.control.list_workers())[0]
        await runtime.control.update_worker(first.id, SpecPatch({("priority",): 90}))
        return await call(runtime, ask(sampling=THREE))

    record = play(scene, {"first": EngineScript(), "second": EngineScript()})
    assert record.error is not None
    assert record.error.reason is Reason.WORKER_REFUSED
    assert [leg.sampling.n for leg in legs] == [3] * len(legs)
    assert len(legs) > 1


def test_several_greedy_choices_are_not_tried_again_where_an_engine_refuses_them(legs: list[LegRequest]) -> None:
    async def scene(runtime: SimRuntime) -> ClientRecord:
        await say(runtime, only=1, max_greedy_choices=1)
        runtime.machines.machines["first"].faults.is_refusing = True
        first = (await runtime.control.list_workers())[0]
        await runtime.control.update_worker(first.id, SpecPatch({("priority",): 90}))
        return await call(runtime, ask(sampling=replace(THREE, temperature=0.0)))

    record = play(scene, {"first": EngineScript(), "second": EngineScript()})
    assert record.error is not None
    assert record.error.reason is Reason.WORKER_REFUSED
    assert [leg.sampling.n for leg in legs] == [3] * len(legs)


def test_an_adapter_reaches_both_legs_of_a_pair(legs: list[LegRequest]) -> None:
    async def scene(runtime: SimRuntime) -> ClientRecord:
        return await call(runtime, ask(adapters=(AdapterUse("de", 0.5),)))

    pair = pair_of(HandshakeKind.HANDOFF)
    record = play(scene, {name: replace(script, adapters=("de",)) for name, script in pair.items()})
    assert record.finished is not None
    assert {leg.role: leg.adapters for leg in legs} == dict.fromkeys(LegRole, (AdapterUse("de", 0.5),))


def test_an_adapter_that_nobody_has_sends_nothing(legs: list[LegRequest]) -> None:
    async def scene(runtime: SimRuntime) -> ClientRecord:
        await say(runtime, applies_adapters=True)
        return await call(runtime, ask(adapters=(AdapterUse("de"),)))

    record = play(scene)
    assert record.error is not None
    assert (record.error.reason, record.error.field) == (Reason.ADAPTER_NOT_FOUND, "adapters[0].name")
    assert legs == []
