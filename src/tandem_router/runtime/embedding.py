"""One Embed call's work: inputs to tokens, tokens to vectors, a few at a time, each tried again where that may help.

The call is one request to admission, however many inputs it has; engines see one request per input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

from tandem_router.core.admission import Standing
from tandem_router.core.guard import check_prompt
from tandem_router.core.relay_events import AttemptLost
from tandem_router.core.retry import AttemptLoop, GiveUp
from tandem_router.core.vectors import shaped
from tandem_router.errors import TABLE, Code, Reason, TandemError
from tandem_router.model.embedding import Embedded, EmbedLeg, EmbedRequest, Vector
from tandem_router.model.failure import Failure
from tandem_router.model.request import RequestContext, ServingMode
from tandem_router.model.stream import Attempt, Finished, PhaseTimings, ServedBy, Usage
from tandem_router.policies.contract import Candidate, Query, Refusal
from tandem_router.policies.filters import embeds
from tandem_router.ports import TextCodec
from tandem_router.runtime.embed_attempt import EmbedAttempt
from tandem_router.runtime.prompt import facts_of_model, resolve_model
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.runtime.together import run_together
from tandem_router.runtime.turn import Turn

__all__ = ["LANES", "Embedding"]

LANES = 16
"""Inputs of one call that run at once: enough to fill an engine's batch, and little beside what else it serves."""
_CHARS_PER_TURN = 2048
"""Tokenized before others get a turn of the loop: well under a millisecond."""


class Embedding:
    """The work of one call; `run` once, `cancel` at any time."""

    def __init__(self, env: RelayEnvironment, request: EmbedRequest, context: RequestContext) -> None:
        self._env = env
        self._request = request
        self._context = context
        self._accepted_s = env.clock.monotonic_s()
        total_s = request.timeouts.total_s
        limits = [context.deadline_s, None if total_s is None else self._accepted_s + total_s]
        self._deadline_s = min((limit for limit in limits if limit is not None), default=None)
        self._is_admitted = False
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[EmbedAttempt, None] = {}
        self._vectors: dict[int, tuple[float, ...]] = {}
        self._tries: dict[int, list[Attempt]] = {}
        self._sent_s: float | None = None
        self._ended: Failure | None = None
        self.embedded: Embedded | None = None
        """The answer, once `run` has returned."""

    @property
    def request_id(self) -> str:
        """As the client or the router named it."""
        return self._request.request_id

    @property
    def completion_tokens(self) -> int:
        """None are generated."""
        return 0

    def check_place(self) -> None:
        """Raise TandemError if there is no such model, so that nobody waits in the queue for nothing."""
        resolve_model(self._request.model, self._env.fleet.workers())

    async def wait(self, turn: Turn, standing: Callable[[], Standing | None]) -> None:
        """Return when the turn has come."""
        await turn.wait(self._env.clock, standing, None, None)

    def admit(self) -> None:
        """The queue is over: its limit applies no more."""
        self._is_admitted = True

    async def run(self) -> Finished:
        """Carry the call out; the answer is then in `embedded`. Raises TandemError on a bad end."""
        request, workers = self._request, self._env.fleet.workers()
        model = resolve_model(request.model, workers)
        prompts = await self._tokenize(model)
        query = Query(
            model,
            0,
            embeds=True,
            adapters=tuple(adapter.name for adapter in request.adapters),
            target_worker_id=request.target_worker_id,
            target_dp_rank=request.target_dp_rank,
            serving_mode=ServingMode.AGGREGATED,
        )
        self._tries = {index: [] for index in range(len(prompts))}
        waiting = iter(enumerate(prompts))
        lanes = [self._lane(query, waiting) for _ in range(min(LANES, len(prompts)))]
        await run_together(lanes, f"inputs of {self.request_id}")
        tries = [attempt for index in self._tries for attempt in self._tries[index]]
        self.embedded = Embedded(
            model=model,
            vectors=tuple(self._vectors[index] for index in range(len(prompts))),
            usage=Usage(sum(map(len, prompts)), 0, 0),
            attempts=tuple(Attempt(number, one.served_by, one.failure) for number, one in enumerate(tries, start=1)),
        )
        return self._finished(self.embedded, tries[-1].served_by)

    def cancel(self, failure: Failure) -> None:
        """End whatever runs, now."""
        self._ended = failure
        for attempt in list(self._running):
            attempt.cancel(failure)

    def close(self) -> None:
        """Let go of the timer and of what the inputs became; idempotent."""
        self._vectors, self._tries = {}, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch_deadlines(self, expire: Callable[[Failure], None]) -> None:
        """Call `expire` with the failure of whichever limit passes first; one timer, re-armed when it fires early."""
        now_s = self._env.clock.monotonic_s()
        limits = self._request.timeouts
        due: list[tuple[float, Failure]] = []
        if self._deadline_s is not None:
            due.append((self._deadline_s, Failure(Reason.TOTAL_TIMEOUT, "the request outlived its deadline")))
        if limits.queue_s is not None and not self._is_admitted:
            sentence = f"the request was not admitted within {limits.queue_s:g} s"
            due.append((self._accepted_s + limits.queue_s, Failure(Reason.QUEUE_TIMEOUT, sentence)))
        if limits.first_token_s is not None:
            sentence = f"no answer came within {limits.first_token_s:g} s"
            due.append((self._accepted_s + limits.first_token_s, Failure(Reason.FIRST_TOKEN_TIMEOUT, sentence)))
        if not due:
            return
        at_s, failure = min(due, key=lambda limit: limit[0])
        if now_s >= at_s:
            expire(failure)
            return
        self._timer = asyncio.get_running_loop().call_later(at_s - now_s, self.watch_deadlines, expire)

    async def _tokenize(self, model: str) -> list[tuple[int, ...]]:
        """Every input's tokens, each fit for an engine; raises TandemError with the input's path."""
        codec = self._env.codecs.get(model)
        facts = facts_of_model(model, self._env.fleet.workers(), embeds)
        vocab_size = None if codec is None else codec.vocab_size
        if facts is not None and facts.vocab_size is not None:
            vocab_size = facts.vocab_size
        context_length = None if facts is None else facts.context_length
        prompts, chars = [], 0
        for index, one in enumerate(self._request.inputs):
            path = f"inputs[{index}]"
            if isinstance(one, str):
                token_ids = await _encoded(codec, one, model, path)
                chars += len(one)
                if chars >= _CHARS_PER_TURN:
                    chars = 0
                    await asyncio.sleep(0)
            else:
                token_ids = one
            _check(token_ids, vocab_size, context_length, path)
            prompts.append(token_ids)
        return prompts

    async def _lane(self, query: Query, waiting: Iterator[tuple[int, tuple[int, ...]]]) -> None:
        """Take one input after the other."""
        request = self._request
        for index, token_ids in waiting:
            leg = EmbedLeg(
                "",
                token_ids,
                adapters=request.adapters,
                traceparent=self._context.traceparent,
                metadata=self._context.forwarded,
            )
            vector = await self._vector(index, replace(query, prompt_tokens=len(token_ids)), leg)
            self._vectors[index] = shaped(vector.values, dimensions=request.dimensions, normalize=request.normalize)

    async def _vector(self, index: int, query: Query, leg: EmbedLeg) -> Vector:
        """The attempt loop of one input."""
        env, loop, lost = self._env, AttemptLoop(self._env.settings.retry), None
        while True:
            place = self._place(replace(query, avoid=tuple(loop.avoid)))
            if isinstance(place, Refusal):
                raise place.failure.to_error() if lost is None else self._explained(lost, index, loop)
            number = loop.begin()
            attempt = EmbedAttempt(env, self.request_id, number, place, leg, self._deadline_s)
            if self._sent_s is None:
                self._sent_s = env.clock.monotonic_s()
            self._running[attempt] = None
            try:
                outcome = await attempt.run()
            finally:
                del self._running[attempt]
            if self._ended is not None:
                raise self._ended.to_error()
            if isinstance(outcome, Vector):
                self._tries[index].append(attempt.told(None))
                return outcome
            lost = outcome
            self._tries[index].append(attempt.told(lost))
            env.observer.observe(AttemptLost(self.request_id, attempt.pair_id, number, lost))
            decision = loop.decide(
                lost,
                blamed=(attempt.worker_id,),
                is_committed=False,
                now_s=env.clock.monotonic_s(),
                deadline_s=self._deadline_s,
                random=env.rng.random(),
            )
            if isinstance(decision, GiveUp):
                raise self._explained(decision.failure, index, loop)
            await asyncio.sleep(decision.after_s)

    def _place(self, query: Query) -> Candidate | Refusal:
        env = self._env
        plan = env.planner.plan(query, env.fleet.workers(), env.ledger.in_flight, random=env.rng.random())
        return plan if isinstance(plan, Refusal) else plan.decode

    def _explained(self, failure: Failure, index: int, loop: AttemptLoop) -> TandemError:
        """The failure with which input it was, how often it was tried, and where."""
        told = {"request_id": self.request_id, "input": str(index), "attempts": str(loop.attempts)}
        names_input = TABLE[failure.reason].code is Code.INVALID_ARGUMENT
        path = f"inputs[{index}]" if names_input else failure.field
        return TandemError(failure.reason, failure.sentence, field=path, metadata={**failure.metadata, **told})

    def _finished(self, embedded: Embedded, served_by: ServedBy) -> Finished:
        """The end as telemetry is told of it: a request without choices, whose answer is its first token."""
        now_s = self._env.clock.monotonic_s()
        sent_s = now_s if self._sent_s is None else self._sent_s
        timings = PhaseTimings(
            queue_s=sent_s - self._accepted_s,
            prefill_s=0.0,
            transfer_s=0.0,
            first_token_s=now_s - sent_s,
            decode_s=0.0,
            total_s=now_s - self._accepted_s,
        )
        return Finished(embedded.model, (), embedded.usage, timings, served_by, embedded.attempts)


async def _encoded(codec: TextCodec | None, text: str, model: str, path: str) -> tuple[int, ...]:
    if codec is None:
        sentence = f"no tokenizer is loaded for model {model}"
        raise TandemError(Reason.TOKENIZER_UNAVAILABLE, sentence, field=path, metadata={"model": model})
    try:
        return await codec.encode(text, adds_special=True)
    except TandemError as error:
        raise TandemError(error.reason, error.sentence, field=path, metadata=error.metadata) from None


def _check(token_ids: tuple[int, ...], vocab_size: int | None, context_length: int | None, path: str) -> None:
    try:
        check_prompt(token_ids, vocab_size=vocab_size)
    except TandemError as error:
        raise TandemError(error.reason, error.sentence, field=path, metadata=error.metadata) from None
    # Nothing is generated, so a prompt may fill the context.
    if context_length is not None and len(token_ids) > context_length:
        raise TandemError(
            Reason.PROMPT_TOO_LONG,
            f"an input of {len(token_ids)} tokens exceeds the context length {context_length}",
            field=path,
            metadata={"prompt_tokens": str(len(token_ids)), "context_length": str(context_length)},
        )
