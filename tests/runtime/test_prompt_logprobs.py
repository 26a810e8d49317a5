"""Decode's output waits for the prompt's log probabilities, and fails with the leg that owed them."""

from __future__ import annotations

import asyncio

import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.stream import EngineChunk, EngineItem, TokenLogprob
from tandem_router.runtime.prompt_logprobs import PromptLogprobs

ROWS = (TokenLogprob(1, None),)
LOST = Failure(Reason.WORKER_LOST, "prefill is gone")


class Merging:
    """Two items of decode under way, and what has come through."""

    def __init__(self) -> None:
        self.shown: list[EngineItem] = []
        self.merge = PromptLogprobs(self._take)
        self.task = asyncio.create_task(self._run())

    async def _take(self, item: EngineItem) -> None:
        self.shown.append(item)

    async def _run(self) -> None:
        for token in (1, 2):
            await self.merge.deliver(EngineChunk(0, (token,)))


def test_the_first_item_waits_for_prefill_and_carries_its_answer() -> None:
    async def scene() -> None:
        merging = Merging()
        await asyncio.sleep(0)
        assert merging.shown == []
        merging.merge.known(ROWS)
        await merging.task
        assert [item.prompt_logprobs for item in merging.shown] == [ROWS, ()]

    asyncio.run(scene())


def test_a_lost_prefill_fails_what_waits_for_it() -> None:
    async def scene() -> None:
        merging = Merging()
        merging.merge.lost(LOST)
        with pytest.raises(TandemError) as caught:
            await merging.task
        assert (caught.value.reason, merging.shown) == (Reason.WORKER_LOST, [])

    asyncio.run(scene())


def test_a_prefill_lost_after_its_answer_changes_nothing() -> None:
    async def scene() -> None:
        merging = Merging()
        merging.merge.known(ROWS)
        merging.merge.lost(LOST)
        await merging.task
        assert len(merging.shown) == 2

    asyncio.run(scene())
