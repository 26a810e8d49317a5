"""One client call's work: prompt to tokens, choices to attempts, items to output.

A pair serves one choice (a KV handle is single use, a room carries one request), so n choices over a pair are n pairs,
choice i seeded with seed + i: what vLLM does with the children of a request, so the answer equals the aggregated one. A
worker that serves alone gets all n at once, or one by one where its engine takes fewer in one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from tandem_router.core.admission import Standing
from tandem_router.core.guard import allowed_new_tokens, check_biased_tokens, check_prompt
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import GenerateRequest, LegRequest, RequestContext, Sampling, ServingMode
from tandem_router.model.stream import Attempt, EngineItem, Finished, PhaseTimings, Usage
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.policies.filters import generates, most_choices
from tandem_router.ports import TokenSink
from tandem_router.runtime.attempt import PairAttempt
from tandem_router.runtime.choices import ChoiceOutputs
from tandem_router.runtime.delivery import StreamBuffer
from tandem_router.runtime.leg_requests import defaulted
from tandem_router.runtime.prompt import facts_of_model, query_of, resolve_model, tokenize
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.runtime.together import run_together
from tandem_router.runtime.tries import Tries
from tandem_router.runtime.turn import Turn

__all__ = ["Generation"]

_LEAST_POLL_S = 0.001
"""Between two looks for a first token, however small inter_token is: a client must not keep the loop busy."""


_STOP_GRACE_S = 0.02
"""An engine that has found the same stop says so in the same step; only one that goes on is told to end."""


class Generation:
    """The work of one call; `run` once, `cancel` at any time."""

    def __init__(
        self, env: RelayEnvironment, request: GenerateRequest, context: RequestContext, sink: TokenSink
    ) -> None:
        self._env = env
        self.request = request
        self._context = context
        self._sink = sink
        self._accepted_s = env.clock.monotonic_s()
        self._deadline_s = _earliest(context.deadline_s, _after(self._accepted_s, request.timeouts.total_s))
        self._outputs: ChoiceOutputs | None = None
        self._tries: list[Tries] = []
        self._buffer = StreamBuffer(env.settings.max_stream_buffer_bytes)
        self._is_admitted = False
        self._timer: asyncio.TimerHandle | None = None
        self._stops: dict[int, asyncio.TimerHandle] = {}

    @property
    def request_id(self) -> str:
        """As the client or the router named it."""
        return self.request.request_id

    async def wait(self, turn: Turn, standing: Callable[[], Standing | None]) -> None:
        """Return when the turn has come; the client is told of the queue if it asked."""
        await turn.wait(self._env.clock, standing, self.request.queue_updates_s, self._sink)

    def check_place(self) -> None:
        """Raise TandemError if there is no such model, so that nobody waits in the queue for nothing."""
        resolve_model(self.request.model, self._env.fleet.workers())

    def admit(self) -> None:
        """The queue is over: its limit applies no more."""
        self._is_admitted = True

    @property
    def completion_tokens(self) -> int:
        """Tokens that engines have generated so far, over all choices."""
        delivered = 0 if self._outputs is None else self._outputs.completion_tokens
        return delivered + sum(tries.pending_tokens for tries in self._tries)

    async def run(self) -> Finished:
        """Carry the call out, to the sink; returns what the last message said. Raises TandemError on a bad end."""
        workers = self._env.fleet.workers()
        model = resolve_model(self.request.model, workers)
        codec = self._env.codecs.get(model)
        token_ids = await tokenize(self.request, model, codec)
        facts = facts_of_model(model, workers, generates)
        vocab_size = codec.vocab_size if codec is not None else None
        if facts is not None and facts.vocab_size is not None:
            vocab_size = facts.vocab_size
        highest = check_prompt(token_ids, vocab_size=vocab_size)
        check_biased_tokens(self.request.sampling.logit_bias, vocab_size=vocab_size)
        sampling = self._bounded(len(token_ids), None if facts is None else facts.context_length)
        common = LegRequest(
            leg_id="",
            kind=HandshakeKind.AGGREGATE,
            role=LegRole.DECODE,
            token_ids=token_ids,
            sampling=sampling,
            adapters=self.request.adapters,
            output_logprobs=self.request.output_logprobs,
            prompt_logprobs=self.request.prompt_logprobs,
            top_logprobs=self.request.top_logprobs,
            highest_token_id=highest,
            traceparent=self._context.traceparent,
            metadata=self._context.forwarded,
        )
        query = query_of(self.request, model, len(token_ids))
        self._outputs = ChoiceOutputs(self.request, codec, self._sink)
        plan = self._plan(query)
        await self._serve(plan, query, common, self._outputs)
        finished = self._finish(model, len(token_ids), self._outputs)
        await self._sink.finish(finished)
        return finished

    def cancel(self, failure: Failure) -> None:
        """End whatever runs, now."""
        for tries in self._tries:
            tries.cancel(failure)

    def close(self) -> None:
        """Let go of the timers, and of what the call was made of: long prompts must not wait for the collector."""
        self._tries = []
        for stop in self._stops.values():
            stop.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Deadlines: one timer per call, re-armed when it fires early; never one per token.

    def watch_deadlines(self, expire: Callable[[Failure], None]) -> None:
        """Call `expire` with the failure of whichever limit passes first."""
        failure, at_s = self._next_limit()
        now_s = self._env.clock.monotonic_s()
        if failure is None or at_s is None:
            return
        if now_s >= at_s:
            expire(failure)
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(at_s - now_s, self.watch_deadlines, expire)

    def _next_limit(self) -> tuple[Failure | None, float | None]:
        limits = self.request.timeouts
        silences = [tries.silent_since_s for tries in self._tries if tries.silent_since_s is not None]
        is_committed = any(tries.is_committed for tries in self._tries)
        total = Failure(Reason.TOTAL_TIMEOUT, "the request outlived its deadline")
        due: tuple[Failure | None, float | None] = (total, self._deadline_s) if self._deadline_s else (None, None)
        if not self._is_admitted and limits.queue_s is not None:
            queue = Failure(Reason.QUEUE_TIMEOUT, f"the request was not admitted within {limits.queue_s:g} s")
            due = _sooner(due, (queue, self._accepted_s + limits.queue_s))
        if not is_committed and limits.first_token_s is not None:
            first = Failure(Reason.FIRST_TOKEN_TIMEOUT, f"no token came within {limits.first_token_s:g} s")
            due = _sooner(due, (first, self._accepted_s + limits.first_token_s))
        if limits.inter_token_s is not None:
            inter = Failure(Reason.INTER_TOKEN_TIMEOUT, f"no further token came within {limits.inter_token_s:g} s")
            # While no choice is between two tokens this only re-arms: the limit counts from a token.
            next_look_s = self._env.clock.monotonic_s() + max(limits.inter_token_s, _LEAST_POLL_S)
            due_s = min(silences) + limits.inter_token_s if silences else next_look_s
            due = _sooner(due, (inter, due_s))
        return due

    def _bounded(self, prompt_tokens: int, context_length: int | None) -> Sampling:
        sampling = self.request.sampling
        default = self._env.settings.default_max_tokens
        limit = allowed_new_tokens(prompt_tokens, sampling.max_tokens, context_length=context_length, default=default)
        return replace(sampling, max_tokens=limit)

    def _plan(self, query: Query) -> Plan:
        env = self._env
        plan = env.planner.plan(query, env.fleet.workers(), env.ledger.in_flight, random=env.rng.random())
        if isinstance(plan, Refusal):
            raise plan.failure.to_error()
        return plan

    async def _serve(self, plan: Plan, query: Query, common: LegRequest, outputs: ChoiceOutputs) -> None:
        n = common.sampling.n
        if n == 1:
            await self._try(0, plan, query, common, outputs)
            return
        drawn = defaulted(common, plan.decode, query.model, self._env.default_sampling).sampling
        most = most_choices(plan.decode.worker, query.model, drawn.temperature)
        if plan.handshake is None and (most is None or n <= most):
            # Where it is tried again, it must be where all of them can be had at once too.
            whole = replace(
                query, choices=n, temperature=common.sampling.temperature, serving_mode=ServingMode.AGGREGATED
            )
            await self._try(0, plan, whole, common, outputs)
            return
        pieces = []
        for index in range(n):
            prompt_logprobs = common.prompt_logprobs and index == 0
            sampling = _choice_sampling(common.sampling, index)
            choice = replace(common, sampling=sampling, prompt_logprobs=prompt_logprobs)
            pieces.append(self._try(index, plan, query, choice, outputs))
        await run_together(pieces, f"choice of {self.request.request_id}")

    async def _try(
        self, first_choice: int, plan: Plan, query: Query, common: LegRequest, outputs: ChoiceOutputs
    ) -> None:
        tries = Tries(self._env, self.request.request_id, query, common, self._deadline_s, self._buffer)
        self._tries.append(tries)

        async def deliver(item: EngineItem) -> None:
            await outputs.put(first_choice, item)
            if outputs.has_cut and first_choice not in self._stops and outputs.has_enough(first_choice, sampling.n):
                loop = asyncio.get_running_loop()
                self._stops[first_choice] = loop.call_later(_STOP_GRACE_S, tries.finish_early)

        sampling = common.sampling
        await tries.run(plan, deliver)

    def _finish(self, model: str, prompt_tokens: int, outputs: ChoiceOutputs) -> Finished:
        winner = self._tries[0].winner
        assert winner is not None, "a call that ended well has a winner"
        cached = outputs.cached_tokens
        if winner.prefill_end is not None:
            cached = winner.prefill_end.cached_tokens
        return Finished(
            model=model,
            choices=outputs.ends(),
            usage=Usage(prompt_tokens, outputs.completion_tokens, cached),
            timings=self._timings(winner),
            served_by=winner.served_by(),
            attempts=_numbered([attempt for tries in self._tries for attempt in tries.attempts]),
        )

    def _timings(self, winner: PairAttempt) -> PhaseTimings:
        """Phases of the first choice's winning attempt; each is the difference of two ordered boundaries."""
        end_s = self._env.clock.monotonic_s()
        marks = winner.boundaries
        sent_s = marks.planned_s if marks.sent_s is None else marks.sent_s
        first_s = end_s if marks.first_token_s is None else marks.first_token_s
        if winner.plan.prefill is None:
            prefilled_s = sent_s
        else:
            prefilled_s = first_s if marks.prefill_ended_s is None else min(marks.prefill_ended_s, first_s)
        is_pair = winner.plan.prefill is not None
        return PhaseTimings(
            queue_s=sent_s - self._accepted_s,
            prefill_s=prefilled_s - sent_s,
            transfer_s=first_s - prefilled_s if is_pair else 0.0,
            first_token_s=0.0 if is_pair else first_s - sent_s,
            decode_s=end_s - first_s,
            total_s=end_s - self._accepted_s,
        )


def _choice_sampling(sampling: Sampling, index: int) -> Sampling:
    seed = None if sampling.seed is None else sampling.seed + index
    return replace(sampling, n=1, seed=seed)


def _numbered(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """Numbered through: the choices of a request over pairs are tried one by one."""
    return tuple(replace(attempt, number=number) for number, attempt in enumerate(attempts, start=1))


def _after(now_s: float, limit_s: float | None) -> float | None:
    return None if limit_s is None else now_s + limit_s


def _earliest(*moments: float | None) -> float | None:
    known = [moment for moment in moments if moment is not None]
    return min(known) if known else None


def _sooner(
    one: tuple[Failure | None, float | None], other: tuple[Failure | None, float | None]
) -> tuple[Failure | None, float | None]:
    if one[1] is None:
        return other
    return one if other[1] is None or one[1] <= other[1] else other
