"""What a spec says about a model's tokenizer wins over what its worker hands out."""

from __future__ import annotations

import pytest
from control_world import World, play

from tandem_router.errors import Reason, TandemError
from tandem_router.model.job import StepState
from tandem_router.model.spec import ModelCard, WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import WorkerStatus

URL = "grpc://engine:30000"
STATED = ModelCard("m", tokenizer_path="/models/m", chat_template="{{ messages }}")


def spec(*cards: ModelCard, url: str = URL) -> WorkerSpec:
    return WorkerSpec(url, models=cards)


async def registered(world: World, said: WorkerSpec) -> str:
    world.process(said.url)
    worker, _ = await world.control.create_worker(said)
    await world.until(worker.id, WorkerStatus.READY)
    return worker.id


async def updated(world: World, worker_id: str, *cards: ModelCard) -> None:
    _, job = await world.control.update_worker(worker_id, SpecPatch({("models",): cards}))
    assert job is not None
    await world.ended(job.id)


def test_a_stated_path_is_read_and_the_worker_is_not_asked() -> None:
    async def scene(world: World) -> None:
        await registered(world, spec(STATED))
        assert world.codecs.sources == {"m": TokenizerSource("/models/m", "{{ messages }}")}
        assert world.codecs.archives == {"m": None}

    play(scene)


def test_a_stated_template_goes_with_the_workers_archive() -> None:
    async def scene(world: World) -> None:
        await registered(world, spec(ModelCard("m", chat_template="t"), ModelCard("other")))
        assert world.codecs.archives == {"m": b"archive", "other": b"archive"}
        assert world.codecs.sources["m"].chat_template == "t"

    play(scene)


def test_an_update_loads_what_it_states_and_its_withdrawal_asks_the_worker_again() -> None:
    async def scene(world: World) -> None:
        worker_id = await registered(world, spec(ModelCard("m")))
        assert world.codecs.archives == {"m": b"archive"}
        await updated(world, worker_id, STATED)
        assert world.codecs.archives == {"m": None}
        await updated(world, worker_id, ModelCard("m", tokenizer_path="/models/n"))
        assert world.codecs.sources["m"] == TokenizerSource("/models/n")
        await updated(world, worker_id, ModelCard("m"))
        assert (world.codecs.archives, world.codecs.sources) == ({"m": b"archive"}, {"m": TokenizerSource()})

    play(scene)


def test_a_worker_that_states_nothing_leaves_anothers_statement_alone() -> None:
    async def scene(world: World) -> None:
        await registered(world, spec(STATED))
        await registered(world, spec(ModelCard("m"), url="grpc://two:1"))
        assert world.codecs.archives == {"m": None}

    play(scene)


def test_the_same_statement_is_loaded_once() -> None:
    async def scene(world: World) -> None:
        await registered(world, spec(STATED))
        world.process("grpc://two:1")
        _, job = await world.create(spec(STATED, url="grpc://two:1"))
        assert (await world.ended(job.id)).steps[5].detail == "already loaded"

    play(scene)


def test_a_path_that_fails_is_a_failed_step_and_a_condition_and_the_worker_serves_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: World) -> None:
        async def fail(model: str, archive: bytes | None, source: TokenizerSource) -> None:
            raise TandemError(Reason.TOKENIZER_UNAVAILABLE, f"tokenizer_path {source.path}: No such file or directory")

        monkeypatch.setattr(world.codecs, "load", fail)
        world.process(URL)
        worker, job = await world.create(spec(STATED))
        step = next(step for step in (await world.ended(job.id)).steps if step.name == "load_tokenizer")
        ready = await world.until(worker.id, WorkerStatus.READY)
        claim = world.condition(ready, "TOKENIZER")
        assert step.state is StepState.FAILED
        assert step.failure is not None
        assert "/models/m: No such file" in step.failure.sentence
        assert (claim.is_true, claim.reason, claim.message) == (
            False, Reason.TOKENIZER_UNAVAILABLE, step.failure.sentence
        )  # fmt: skip

    play(scene)


def test_a_stated_path_serves_a_worker_that_hands_out_nothing() -> None:
    async def scene(world: World) -> None:
        world.process(URL, tokenizer=None)
        worker, _ = await world.control.create_worker(spec(STATED, ModelCard("other")))
        ready = await world.until(worker.id, WorkerStatus.READY)
        assert world.condition(ready, "TOKENIZER").reason == "NOT_OFFERED"
        assert list(world.codecs.sources) == ["m"]

    play(scene)
