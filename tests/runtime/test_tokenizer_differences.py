"""A model has one tokenizer: a worker that brings another one brings it into use, or is said to differ."""

from __future__ import annotations

import asyncio

from tests.runtime.control_world import World, play

from tandem_router.model.settings import JobSettings, RuntimeSettings
from tandem_router.model.spec import ModelCard, WorkerSpec, WorkerType
from tandem_router.model.worker import Condition, Worker, WorkerStatus

ONE, TWO = "grpc://one:1", "grpc://two:2"
OLD, NEW = b"the old tokenizer", b"the new tokenizer"


async def registered(world: World, url: str, archive: bytes | None, card: ModelCard | None = None) -> Worker:
    world.process(url, tokenizer=archive)
    worker, _ = await world.control.create_worker(WorkerSpec(url, models=(card or ModelCard("m"),)))
    return await world.until(worker.id, WorkerStatus.READY)


async def restarted(world: World, worker: Worker, archive: bytes) -> Worker:
    """The worker in its next life, READY."""
    process = world.dialer.processes[worker.url]
    process.is_up = False
    await world.until(worker.id, WorkerStatus.NOT_READY, within_s=20)
    process.tokenizer = archive
    process.restart()
    return await world.until(worker.id, WorkerStatus.READY, within_s=20)


def claim(world: World, worker: Worker) -> Condition:
    return world.condition(worker, "TOKENIZER")


def test_a_worker_that_comes_back_with_another_tokenizer_brings_it_into_use() -> None:
    async def scene(world: World) -> None:
        worker = await registered(world, ONE, OLD)
        back = await restarted(world, worker, NEW)
        assert back.epoch == worker.epoch + 1
        assert world.codecs.archives == {"m": NEW}
        assert claim(world, back).is_true

    play(scene)


def test_a_worker_that_comes_back_with_the_same_tokenizer_loads_nothing() -> None:
    async def scene(world: World) -> None:
        worker = await registered(world, ONE, OLD)
        world.codecs.archives["m"] = b"as loaded"
        await restarted(world, worker, OLD)
        assert world.codecs.archives == {"m": b"as loaded"}

    play(scene)


def test_a_second_worker_with_another_tokenizer_is_said_to_differ_and_the_first_ones_stays() -> None:
    async def scene(world: World) -> None:
        first, second = await registered(world, ONE, OLD), await registered(world, TWO, NEW)
        assert world.codecs.archives == {"m": OLD}
        found = claim(world, second)
        assert (found.is_true, found.reason) == (False, "TOKENIZER_DIFFERS")
        assert first.id in found.message
        assert second.status is WorkerStatus.READY, "it serves token ids"

    play(scene)


def test_a_second_worker_with_the_same_tokenizer_agrees() -> None:
    async def scene(world: World) -> None:
        await registered(world, ONE, OLD)
        assert claim(world, await registered(world, TWO, OLD)).is_true

    play(scene)


def test_of_two_workers_that_come_at_once_with_different_tokenizers_one_differs() -> None:
    async def scene(world: World) -> None:
        workers = await asyncio.gather(registered(world, ONE, OLD), registered(world, TWO, NEW))
        assert sorted(claim(world, worker).is_true for worker in workers) == [False, True]

    play(scene)


def test_the_last_of_a_rolling_change_brings_the_new_tokenizer_into_use_and_all_agree_again() -> None:
    async def scene(world: World) -> None:
        first, second = await registered(world, ONE, OLD), await registered(world, TWO, OLD)
        first = await restarted(world, first, NEW)
        assert (claim(world, first).reason, world.codecs.archives) == ("TOKENIZER_DIFFERS", {"m": OLD})
        second = await restarted(world, second, NEW)
        assert world.codecs.archives == {"m": NEW}
        assert claim(world, second).is_true
        assert claim(world, await world.control.get_worker(first.id)).is_true

    play(scene)


def test_a_tokenizer_whose_holders_are_removed_gives_way_to_the_next_workers() -> None:
    async def scene(world: World) -> None:
        first = await registered(world, ONE, OLD)
        job = await world.control.delete_worker(first.id, drain_timeout_s=0.0)
        await world.ended(job.id)
        assert claim(world, await registered(world, TWO, NEW)).is_true
        assert world.codecs.archives == {"m": NEW}

    play(scene)


def test_a_reload_keeps_the_chat_template_that_an_operator_stated() -> None:
    async def scene(world: World) -> None:
        worker = await registered(world, ONE, OLD, ModelCard("m", chat_template="t"))
        await restarted(world, worker, NEW)
        assert (world.codecs.archives, world.codecs.sources["m"].chat_template) == ({"m": NEW}, "t")

    play(scene)


def test_workers_of_different_models_have_nothing_to_agree_on() -> None:
    async def scene(world: World) -> None:
        await registered(world, ONE, OLD)
        assert claim(world, await registered(world, TWO, NEW, ModelCard("other"))).is_true
        assert world.codecs.archives == {"m": OLD, "other": NEW}

    play(scene)


def test_a_stated_path_stands_whatever_workers_hand_out() -> None:
    async def scene(world: World) -> None:
        await registered(world, ONE, OLD, ModelCard("m", tokenizer_path="/models/m"))
        assert claim(world, await registered(world, TWO, NEW)).is_true
        assert world.codecs.archives == {"m": None}

    play(scene)


def test_a_worker_that_hands_out_nothing_agrees_with_what_others_did() -> None:
    async def scene(world: World) -> None:
        await registered(world, ONE, OLD)
        assert claim(world, await registered(world, TWO, None)).is_true

    play(scene)


def test_the_time_for_a_tokenizer_is_a_setting() -> None:
    async def scene(world: World) -> None:
        process = world.process(ONE)
        asked: list[float] = []

        def note(timeout_s: float) -> None:
            asked.append(timeout_s)

        process.on_fetch = note
        worker, _ = await world.control.create_worker(WorkerSpec(ONE, worker_type=WorkerType.REGULAR))
        await world.until(worker.id, WorkerStatus.READY)
        assert asked == [7.5]

    play(scene, settings=RuntimeSettings(jobs=JobSettings(tokenizer_timeout_s=7.5)))
