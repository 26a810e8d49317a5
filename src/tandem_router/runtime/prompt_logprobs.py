"""Log probabilities of the prompt come from the leg that computed it; the client gets them with decode's first item.

In a rendezvous both legs run at once and decode may speak first, so its output waits here for prefill's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tandem_router.model.failure import Failure
from tandem_router.model.stream import EngineItem, TokenLogprob

__all__ = ["PromptLogprobs"]


class PromptLogprobs:
    """Between an attempt's two legs. The first of `known` and `lost` counts."""

    def __init__(self, deliver: Callable[[EngineItem], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._is_merged = False
        self._answer: asyncio.Future[tuple[TokenLogprob, ...] | Failure] = asyncio.get_running_loop().create_future()

    def known(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Prefill's answer; empty where it has returned none."""
        if not self._answer.done():
            self._answer.set_result(logprobs)

    def lost(self, failure: Failure) -> None:
        """Prefill will not answer any more."""
        if not self._answer.done():
            self._answer.set_result(failure)

    async def deliver(self, item: EngineItem) -> None:
        """Pass decode's items on, the first one with prefill's answer; raises TandemError when prefill was lost."""
        if not self._is_merged:
            answer = await self._answer
            if isinstance(answer, Failure):
                raise answer.to_error()
            self._is_merged = True
            item = replace(item, prompt_logprobs=answer)
        await self._deliver(item)
