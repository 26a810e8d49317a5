"""How a scripted engine answers: token by token, until the end that its script and its protocol's habits give."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID
from tandem_router.testing.grpc_engines.script import Failing, GrpcScript
from tandem_router.testing.grpc_engines.work import Step, Work, answer

__all__ = ["AfterAbort", "Answering", "Context"]

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_DEFAULT_MAX_TOKENS = 16
_FOR_EVER_S = 1e9


class AfterAbort(enum.Enum):
    """What a protocol's stream does when its request was aborted from outside."""

    COMPLETES = "completes"
    """A `complete` with a finish_reason that says so."""
    STAYS_SILENT = "stays silent"
    ENDS = "ends"
    """Status OK, no `complete`."""
    FAILS = "fails"
    """Status INTERNAL."""


@dataclass(slots=True)
class _Live:
    work: Work
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    is_mixed: bool = False
    """Its id was taken by a later request; nothing reaches this one any more (SGLang)."""


class _Aborted(Exception):
    pass


class Answering:
    """The requests that one engine is working on."""

    def __init__(
        self, script: Callable[[], GrpcScript], after_abort: AfterAbort, word: str, *, mixes_ids: bool = False
    ) -> None:
        """Args:
        word: the finish_reason of an aborted request.
        mixes_ids: of two live requests with one id only the later one is answered.
        """
        self._script = script
        self._after_abort = after_abort
        self._word = word
        self._mixes_ids = mixes_ids
        self._live: list[_Live] = []
        self._failed = 0

    @property
    def running(self) -> int:
        """Requests under way."""
        return len(self._live)

    @property
    def tokens(self) -> int:
        """Prompt tokens of the requests under way."""
        return sum(len(live.work.prompt) for live in self._live)

    def abort(self, request_id: str, *, by_prefix: bool = False) -> bool:
        """Stop requests; whether there was one."""
        hit = [
            live
            for live in self._live
            if live.work.request_id == request_id or (by_prefix and live.work.request_id.startswith(request_id))
        ]
        for live in hit:
            live.aborted.set()
        return bool(hit)

    async def steps(self, work: Work, context: Context) -> AsyncGenerator[Step, None]:
        """Answer a request. Ends the call with a status where the script or the protocol says so."""
        script, live = self._script(), _Live(work)
        if self._mixes_ids:
            for other in self._live:
                other.is_mixed = other.is_mixed or other.work.request_id == work.request_id
        self._live.append(live)
        failing = self._failing(script)
        open_choices: dict[int, Step] = {index: Step(index, (), ()) for index in range(work.n)}
        try:
            await self._fail(failing, 0, context)
            await _pause(live, script.prefill_s)
            if failing is not None and failing.after_tokens == 0:
                for step in open_choices.values():
                    yield Step(step.index, (), (), failing.finish_reason)
                return
            made = 0
            while open_choices:
                if script.silent_after_tokens is not None and made >= script.silent_after_tokens:
                    await _pause(live, _FOR_EVER_S)
                await _pause(live, script.token_s * script.chunk_tokens)
                if live.is_mixed:
                    await asyncio.Event().wait()
                for index in tuple(open_choices):
                    step = open_choices[index] = _next(work, script, open_choices[index])
                    if work.is_streaming:
                        yield Step(index, step.ids, step.all_ids, is_first=step.is_first)
                    if step.reason is not None:
                        del open_choices[index]
                        yield step
                made += script.chunk_tokens
                if failing is not None and made >= failing.after_tokens:
                    await self._fail(failing, made, context)
                    for step in open_choices.values():
                        yield Step(step.index, step.ids, step.all_ids, failing.finish_reason)
                    return
            if script.stays_open:
                await asyncio.Event().wait()
        except _Aborted:
            for step in await self._aborted(script, open_choices, context):
                yield step
        finally:
            self._live.remove(live)

    def _failing(self, script: GrpcScript) -> Failing | None:
        failing = script.failing
        if failing is None or (failing.times is not None and self._failed >= failing.times):
            return None
        self._failed += 1
        return failing

    async def _fail(self, failing: Failing | None, made: int, context: Context) -> None:
        if failing is not None and failing.code is not None and made >= failing.after_tokens:
            await context.abort(failing.code, failing.details)

    async def _aborted(self, script: GrpcScript, open_choices: dict[int, Step], context: Context) -> list[Step]:
        habit = AfterAbort.STAYS_SILENT if script.never_ends_after_abort else self._after_abort
        if habit is AfterAbort.STAYS_SILENT:
            await asyncio.Event().wait()
        if habit is AfterAbort.FAILS:
            await context.abort(grpc.StatusCode.INTERNAL, "aborted")
        if habit is AfterAbort.ENDS:
            return []
        return [Step(step.index, step.ids, step.all_ids, self._word) for step in open_choices.values()]


async def _pause(live: _Live, wait_s: float) -> None:
    """Let time pass, or at least the others have their turn; raises _Aborted."""
    if wait_s:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await live.aborted.wait()
    else:
        await asyncio.sleep(0)
    if live.aborted.is_set():
        raise _Aborted


def _next(work: Work, script: GrpcScript, before: Step) -> Step:
    """The next tokens of a choice, and its reason when it ends with them."""
    limit = 1 if work.is_prefill else _DEFAULT_MAX_TOKENS if work.max_tokens is None else work.max_tokens
    own_end = None if work.ignores_eos else script.answer_tokens
    ids: list[int] = []
    reason, matched = None, None
    while len(ids) < script.chunk_tokens and reason is None:
        position = len(before.all_ids) + len(ids)
        token = answer(work.prompt, before.index, position)
        may_stop = position >= work.min_tokens
        if own_end is not None and position >= own_end and may_stop:
            token = EOS_TOKEN_ID
        ids.append(token)
        if may_stop and (token in work.stops or (token == EOS_TOKEN_ID and not work.ignores_eos)):
            reason, matched = "stop", token
        elif position + 1 >= limit:
            reason = "length"
    return Step(before.index, tuple(ids), (*before.all_ids, *ids), reason, matched, is_first=not before.all_ids)
