"""What an operator states of a model's context and vocabulary is what the door goes by, whatever its engine says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runtime.call_world import ask, call, play

from tandem_router.core.commands import RecordFacts
from tandem_router.errors import Reason
from tandem_router.model.request import Sampling
from tandem_router.model.spec import ModelCard
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.testing.harness import SimRuntime

PROMPT = tuple(range(10, 50))


def end_of(
    card: ModelCard,
    *,
    max_tokens: int | None = 5,
    token: int = 7,
    context_length: int | None = 100,
    vocab_size: int | None = 200,
) -> object:
    """The reason of the end, or how many tokens came, with a worker whose spec has `card` and whose engine says the
    other two.
    """

    async def scene(runtime: SimRuntime) -> object:
        [worker] = await runtime.control.list_workers()
        _, job = await runtime.control.update_worker(worker.id, SpecPatch({("models",): (card,)}))
        assert job is not None
        await runtime.job_ended(job.id, 10.0)
        [worker] = await runtime.control.list_workers()
        assert worker.facts is not None
        found = replace(worker.facts, context_length=context_length, vocab_size=vocab_size)
        await runtime.control.pipeline.submit(RecordFacts(worker.id, worker.epoch, found, worker.ranks))
        sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        record = await call(runtime, ask(token_ids=(*PROMPT, token), sampling=sampling))
        return record.error.reason if record.error is not None else sum(map(len, record.tokens.values()))

    return play(scene)


@pytest.mark.parametrize(
    ("stated", "found", "asked", "end"),
    [
        (None, 100, 59, 59),
        (None, 100, 60, Reason.PROMPT_TOO_LONG),
        (50, 100, 9, 9),
        (50, 100, 10, Reason.PROMPT_TOO_LONG),
        (50, None, 10, Reason.PROMPT_TOO_LONG),
        (50, 100, None, 9),
    ],
)
def test_stated_context_length_bounds_prompt_and_answer(
    stated: int | None, found: int | None, asked: int | None, end: object
) -> None:
    card = ModelCard("scripted", context_length=stated)
    assert end_of(card, max_tokens=asked, context_length=found) == end


@pytest.mark.parametrize(
    ("stated", "found", "token", "end"),
    [
        (None, 200, 199, 5),
        (None, 200, 200, Reason.TOKEN_OUT_OF_VOCABULARY),
        (60, 200, 59, 5),
        (60, 200, 60, Reason.TOKEN_OUT_OF_VOCABULARY),
        (60, None, 60, Reason.TOKEN_OUT_OF_VOCABULARY),
    ],
)
def test_stated_vocabulary_is_what_token_ids_must_be_below(
    stated: int | None, found: int | None, token: int, end: object
) -> None:
    assert end_of(ModelCard("scripted", vocab_size=stated), token=token, vocab_size=found) == end
