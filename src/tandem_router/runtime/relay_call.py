"""One live client call: the task that carries it out, and the answer that whoever waits for it gets exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tandem_router.core.admission import Standing
from tandem_router.core.relay_events import RequestFinished
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import Embedded
from tandem_router.model.failure import Failure
from tandem_router.model.stream import Finished
from tandem_router.runtime.embedding import Embedding
from tandem_router.runtime.turn import Turn

if TYPE_CHECKING:
    from tandem_router.runtime.relay import Relay

__all__ = ["RETRY_AFTER_S", "EmbedCall", "RelayCall", "Work"]

RETRY_AFTER_S = 1.0
"""Hint sent with refusals of load; RetryInfo must have some value and the router has no forecast yet."""


class Work(Protocol):
    """What a call consists of: `Generation` or `Embedding`."""

    @property
    def request_id(self) -> str:
        """Its id."""

    @property
    def completion_tokens(self) -> int:
        """Generated so far."""

    def check_place(self) -> None:
        """Raise TandemError if waiting would be for nothing."""

    async def wait(self, turn: Turn, standing: Callable[[], Standing | None]) -> None:
        """Return when the turn has come."""

    def admit(self) -> None:
        """The turn has come."""

    def watch_deadlines(self, expire: Callable[[Failure], None]) -> None:
        """Call `expire` when a limit passes."""

    async def run(self) -> Finished:
        """Carry it out."""

    def cancel(self, failure: Failure) -> None:
        """End whatever runs."""

    def close(self) -> None:
        """Let go of everything."""


class RelayCall:
    """One live client call."""

    def __init__(self, relay: Relay, work: Work, principal: str, turn: Turn) -> None:
        self._relay = relay
        self._work = work
        self.turn = turn
        self._stopped: Failure | None = None
        self._answer: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.key = (principal, work.request_id)
        self._task = relay.env.scope.spawn(self._run(), f"request {work.request_id}")

    async def result(self) -> None:
        """Wait for the end; raises TandemError on a bad one. Cancelling the waiter does not cancel the call."""
        failure = await asyncio.shield(self._answer)
        if failure is not None:
            raise failure.to_error(RETRY_AFTER_S if self._is_load(failure) else None)

    def cancel(self, failure: Failure | None = None) -> None:
        """End the call with `failure` (REQUEST_CANCELLED when none is given). Idempotent, returns at once."""
        if self._answer.done():
            return
        self._stopped = failure or Failure(Reason.REQUEST_CANCELLED, "the request was cancelled")
        self._work.cancel(self._stopped)
        self._settle(self._stopped)
        self._task.cancel()

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return self._work.completion_tokens

    @staticmethod
    def _is_load(failure: Failure) -> bool:
        return failure.reason in (Reason.NO_READY_WORKER, Reason.NO_COMPATIBLE_PAIR, Reason.TOO_MANY_REQUESTS)

    async def _run(self) -> None:
        work = self._work
        if self.turn.has_come:
            work.admit()
        work.watch_deadlines(self.cancel)
        try:
            if not self.turn.has_come:
                work.check_place()
                await work.wait(self.turn, self._standing)
                work.admit()
            finished = await work.run()
            self._relay.env.observer.observe(RequestFinished(work.request_id, finished))
            self._settle(None)
        except TandemError as error:
            self._settle(Failure.of(error))
        except asyncio.CancelledError:
            self._settle(self._stopped or Failure(Reason.DRAINING, "the router is shutting down"))
        finally:
            work.close()
            # Whatever else came through is a fault of ours: the scope reports it, the client gets an answer.
            self._settle(Failure(Reason.INTERNAL_ERROR, f"a fault of the router in request {self.key[1]}"))

    def _standing(self) -> Standing | None:
        return self._relay.standing(self.turn.ticket)

    def _settle(self, failure: Failure | None) -> None:
        if self._answer.done():
            return
        self._answer.set_result(failure)
        self._relay.ended(self, failure)


class EmbedCall:
    """One live Embed call."""

    def __init__(self, call: RelayCall, embedding: Embedding) -> None:
        self._call = call
        self._embedding = embedding

    async def result(self) -> Embedded:
        """Wait for the vectors; raises TandemError. Cancelling the waiter does not cancel the call."""
        await self._call.result()
        assert self._embedding.embedded is not None, "a call that ended well has its answer"
        return self._embedding.embedded

    def cancel(self, failure: Failure | None = None) -> None:
        """As `RelayCall.cancel`."""
        self._call.cancel(failure)
