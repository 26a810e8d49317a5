"""Asking for an answer and gathering it: the one way in which checks generate, on one engine or through a pair."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.stream import EngineChunk, EngineEnd, TokenLogprob
from tandem_router.model.worker import WorkerFacts
from tandem_router.ports import EngineCall
from tandem_router.testing.conformance.prompts import Prompts
from tandem_router.testing.conformance.verdict import CheckFailed

__all__ = ["Answer", "Asker", "Limits", "gather", "sampling_of", "still_answers"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds. Bounds, not expectations: a small machine compiles for seconds."""

    call_s: float = 45.0
    """One request; vLLM compiles at its first one with log probabilities (4-9 s, 20 s on a busy machine)."""
    stop_s: float = 5.0
    """From a cancel, an abort or a deadline until nothing runs, and until a stream says so."""
    hang_s: float = 4.0
    """Silence after which a hazardous request is said to hang."""
    lease_s: float = 3.0
    """How long to watch blocks that nobody fetches."""
    give_back_s: float = 45.0
    """Until a prefill worker has let go of what a cancelled decode did not fetch: vLLM's lease over NIXL is 30 s."""


@dataclass(slots=True)
class Answer:
    """What one request gave."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    """By choice."""
    ends: dict[int, EngineEnd] = field(default_factory=dict)
    chunks: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of choice 0."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    first_s: float = 0.0
    """From the request to the first item."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Of choice 0."""
        return tuple(self.tokens.get(0, ()))

    @property
    def end(self) -> EngineEnd:
        """Of choice 0; raises KeyError where it has none, which no gathered answer lacks."""
        return self.ends[0]

    def take(self, item: EngineChunk | EngineEnd) -> None:
        """Enter one item."""
        self.tokens.setdefault(item.choice, []).extend(item.token_ids)
        self.prompt_logprobs = item.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens = max(self.cached_tokens, item.cached_tokens)
        if item.choice == 0:
            self.logprobs.extend(item.logprobs)
        if isinstance(item, EngineEnd):
            self.ends[item.choice] = item
        else:
            self.chunks += 1


class Asker(Protocol):
    """Something that answers: an engine alone, or a pair of them."""

    @property
    def facts(self) -> WorkerFacts:
        """Of whoever generates."""

    @property
    def prompts(self) -> Prompts:
        """Where prompts come from."""

    @property
    def limits(self) -> Limits:
        """How long things may take."""

    async def ask(self, prompt: tuple[int, ...] | None = None, *, leg_id: str | None = None, **changes: Any) -> Answer:
        """Ask and gather.

        prompt: None = the usual one. changes: fields of LegRequest or of its Sampling; without them a streamed, greedy
        request for 16 tokens. Raises EngineFailure, TandemError where the dialect refuses.
        """


async def gather(call: EngineCall, into: Answer | None = None) -> Answer:
    """Read a call to its end; raises EngineFailure. into: filled as items come, also when it fails."""
    answer = Answer() if into is None else into
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while (item := await call.receive()) is not None:
        if not answer.tokens:
            answer.first_s = loop.time() - began_s
        answer.take(item)
    return answer


async def still_answers(asker: Asker) -> bool:
    """Whether a request for one token gets any answer, a refusal too, before its deadline (`Limits.call_s`)."""
    try:
        await asker.ask(max_tokens=1)
    except (EngineFailure, TandemError) as error:
        return error.reason is not Reason.TOTAL_TIMEOUT
    except CheckFailed:
        return True
    return True


_LEG_FIELDS = frozenset(LegRequest.__slots__)


def sampling_of(changes: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """The sampling that the changes say, greedy and of 16 tokens without them, and the changes that are the leg's."""
    of_leg = {name: value for name, value in changes.items() if name in _LEG_FIELDS}
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16}
    asked.update({name: value for name, value in changes.items() if name not in _LEG_FIELDS})
    return Sampling(**asked), of_leg
