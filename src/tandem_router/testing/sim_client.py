"""Simulated clients: each makes one call, reads or stalls, may give up, and writes down what it got and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tandem_router.errors import TandemError
from tandem_router.model.request import RequestContext
from tandem_router.model.stream import Finished, OutputChunk, QueueStatus
from tandem_router.runtime.relay import Relay
from tandem_router.runtime.relay_call import RelayCall
from tandem_router.testing.scenario import ClientPlan, Stop

__all__ = ["ClientRecord", "SimSink", "run_client"]

PRINCIPAL = "simulated"


@dataclass(slots=True)
class ClientRecord:
    """What a client saw. Times are virtual seconds of the loop."""

    plan: ClientPlan
    started_s: float | None = None
    first_chunk_s: float | None = None
    stopped_s: float | None = None
    """When it gave up."""
    deadline_s: float | None = None
    ended_s: float | None = None
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: Finished | None = None
    error: TandemError | None = None
    queue: list[QueueStatus] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Breaches of the sink's contract."""

    @property
    def request_id(self) -> str:
        """The call's id."""
        return self.plan.request.request_id

    @property
    def is_live(self) -> bool:
        """Whether the call is running."""
        return self.started_s is not None and self.ended_s is None


class SimSink:
    """A client that reads, and stops reading for a while where its plan says so. ports.TokenSink."""

    def __init__(self, record: ClientRecord, loop: asyncio.AbstractEventLoop) -> None:
        self._record = record
        self._loop = loop
        self._chunks = 0
        self._is_inside = False

    async def queued(self, status: QueueStatus) -> None:
        """Take a word on the queue; must come before any chunk."""
        self._enter("queued")
        self._is_inside = False
        if self._chunks:
            self._record.problems.append("queued after a chunk")
        self._record.queue.append(status)

    async def chunk(self, chunk: OutputChunk) -> None:
        """Take a chunk; must be called one at a time, with contiguous offsets per choice."""
        record = self._record
        self._enter("chunk")
        if record.first_chunk_s is None:
            record.first_chunk_s = self._loop.time()
        tokens = record.tokens.setdefault(chunk.choice, [])
        tokens.extend(chunk.token_ids)
        if chunk.next_offset != len(tokens):
            record.problems.append(f"choice {chunk.choice}: offset {chunk.next_offset} after {len(tokens)} tokens")
        self._chunks += 1
        try:
            if self._chunks == record.plan.stall_at_chunk:
                await asyncio.sleep(record.plan.stall_s)
        finally:
            self._is_inside = False

    async def finish(self, finished: Finished) -> None:
        """Take the last message."""
        self._enter("finish")
        self._is_inside = False
        self._record.finished = finished

    def _enter(self, what: str) -> None:
        if self._record.finished is not None:
            self._record.problems.append(f"{what} after finish")
        if self._record.ended_s is not None:
            self._record.problems.append(f"{what} after the call's end")
        if self._is_inside:
            self._record.problems.append(f"{what} while another chunk is being taken")
        self._is_inside = True


async def run_client(relay: Relay, record: ClientRecord) -> None:
    """Make the call and wait for its end, whatever it is."""
    loop = asyncio.get_running_loop()
    plan = record.plan
    record.started_s = loop.time()
    if plan.deadline_after_s is not None:
        record.deadline_s = record.started_s + plan.deadline_after_s
    context = RequestContext(principal=PRINCIPAL, deadline_s=record.deadline_s)
    stop: asyncio.TimerHandle | None = None
    try:
        call = relay.start(plan.request, context, SimSink(record, loop))
        if plan.stop is not None:
            stop = loop.call_later(plan.stop_after_s, _give_up, relay, call, record)
        await call.result()
    except TandemError as error:
        record.error = error
    finally:
        record.ended_s = loop.time()
        if stop is not None:
            stop.cancel()


def _give_up(relay: Relay, call: RelayCall, record: ClientRecord) -> None:
    record.stopped_s = asyncio.get_running_loop().time()
    if record.plan.stop is Stop.CANCEL:
        call.cancel()
    elif not relay.abort(PRINCIPAL, record.request_id):
        # `result` may be on its way to a client that has not run yet; a live call that Abort does not find is a fault.
        record.stopped_s = None
