"""Gauges and labels have few values, however many things there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import MappingProxyType

from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import ModelCard, WorkerSpec
from tandem_router.model.worker import Rank, Worker, WorkerStatus
from tandem_router.telemetry.readings import MAX_MODELS, MAX_RANKS, Fleet, KnownModels, Pulse, Readings
from tandem_router.testing.sim_loop import SimLoop


def worker(name: str, *models: ModelCard, ranks: int = 1) -> Worker:
    spec = WorkerSpec(url=f"grpc://{name}:1", models=models)
    return Worker(
        id=WorkerId(name),
        spec=spec,
        url=spec.url,
        status=WorkerStatus.READY,
        revision=1,
        generation=1,
        epoch=1,
        created_at_s=0.0,
        updated_at_s=0.0,
        ranks=tuple(Rank(number) for number in range(ranks)),
    )


def fleet(*workers: Worker) -> MappingProxyType[WorkerId, Worker]:
    return MappingProxyType({one.id: one for one in workers})


def test_an_alias_counts_as_its_model() -> None:
    known = KnownModels(lambda: fleet(worker("a", ModelCard(id="m", aliases=("nick",)), ModelCard(id="n"))))
    assert [known.label(name) for name in ("m", "nick", "n", "unheard of", "")] == ["m", "m", "n", "other", "other"]


def test_no_name_is_the_only_model() -> None:
    assert KnownModels(lambda: fleet(worker("a", ModelCard(id="m")))).label("") == "m"


def test_models_beyond_the_limit_share_one_label() -> None:
    cards = [ModelCard(id=f"m{number}") for number in range(MAX_MODELS + 50)]
    snapshot = fleet(worker("a", *cards))
    known = KnownModels(lambda: snapshot)
    assert len({known.label(card.id) for card in cards}) == MAX_MODELS + 1


def test_a_model_that_has_come_is_known_at_once() -> None:
    now = [fleet()]
    known = KnownModels(lambda: now[0])
    before = known.label("m")
    now[0] = fleet(worker("a", ModelCard(id="m")))
    assert (before, known.label("m")) == ("other", "m")


def test_ranks_beyond_the_limit_are_summed() -> None:
    snapshot = fleet(worker("a", ranks=MAX_RANKS + 5))
    _, legs = Fleet(lambda: snapshot, lambda _: 2).read()
    assert (len(legs), legs["other", "other"]) == (MAX_RANKS + 1, 10)


def test_legs_are_those_of_the_workers_present_life() -> None:
    again = replace(worker("a"), epoch=2)
    _, legs = Fleet(lambda: fleet(again), lambda key: key.epoch).read()
    assert legs == {("a", "0"): 2}


def test_workers_are_counted_by_status_and_type() -> None:
    kinds, _ = Fleet(lambda: fleet(worker("a"), worker("b")), lambda _: 0).read()
    assert kinds == {("READY", "REGULAR"): 2}


def test_the_lag_is_what_a_beat_comes_late() -> None:
    loop = SimLoop(1)
    lags: list[float] = []

    async def beat() -> None:
        pulse = Pulse(Readings, lags.append)
        task = asyncio.create_task(pulse.run(0.25), name="pulse")
        await asyncio.sleep(1.1)
        task.cancel()

    loop.run(beat())
    assert lags == [0.0] * 4
