"""One JSON object per ended Generate or Embed call, on the logger `tandem.access` at INFO.

Lines are written by a thread of their own: a log reader that stands still must not stop the event loop. When 10,000
lines wait, further ones are dropped, and the count of those is in the next line that is written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener

from tandem_router.core.relay_events import RequestKind
from tandem_router.errors import TABLE
from tandem_router.model.failure import Failure
from tandem_router.model.stream import Finished
from tandem_router.telemetry.live_calls import LiveCall, Tried

__all__ = ["AccessLog", "ended_line", "refused_line"]

LOG = logging.getLogger("tandem.access")
_MAX_WAITING = 10_000
_LAST_LINES_S = 1.0
"""How long a close waits for lines to be written, twice."""


def ended_line(
    call: LiveCall, *, now_s: float, trace_id: str, finished: Finished | None, failure: Failure | None
) -> dict[str, object]:
    """The facts of a call that was let in; `finished` or `failure` is given. now_s: telemetry's monotonic clock."""
    line = _head(call.request_id, call.model if finished is None else finished.model, failure)
    line["operation"], line["principal"] = call.kind.value, call.principal
    if trace_id:
        line["trace_id"] = trace_id
    line["duration_s"] = _us(now_s - call.began_s)
    if call.first_token_s is not None:
        line["first_token_after_s"] = _us(call.first_token_s - call.began_s)
    if finished is not None:
        times, usage = finished.timings, finished.usage
        names = ("queue_s", "prefill_s", "transfer_s", "first_token_s", "decode_s", "total_s")
        line["phases"] = {name: _us(getattr(times, name)) for name in names}
        line["prompt_tokens"] = usage.prompt_tokens
        line["completion_tokens"] = usage.completion_tokens
        line["cached_tokens"] = usage.cached_tokens
        line["finish_reasons"] = [choice.reason.value for choice in finished.choices]
    tries = list(call.tried.values())
    if call.kind is RequestKind.EMBEDDINGS:
        # There may be thousands, one per input: those that went well are a number here.
        if finished is not None:
            line["inputs"] = sum(tried.failure is None for tried in tries)
        tries = [tried for tried in tries if tried.failure is not None]
    line["attempts"] = [_attempt(tried) for tried in tries]
    return line


def refused_line(request_id: str, model: str, failure: Failure) -> dict[str, object]:
    """The facts of a call that was turned away at the relay's door."""
    return _head(request_id, model, failure)


class AccessLog:
    """Writes lines; `start` and `close` once. Where the logger is not enabled for INFO it does nothing."""

    def __init__(self) -> None:
        self._listener: _Writer | None = None
        self._handler: _Dropping | None = None
        self._propagated = LOG.propagate

    @property
    def is_on(self) -> bool:
        """Whether anybody would see a line."""
        return LOG.isEnabledFor(logging.INFO)

    def start(self) -> None:
        """Begin to write to stderr, one bare JSON object per line."""
        if not self.is_on or self._listener is not None:
            return
        stream = logging.StreamHandler(sys.stderr)
        stream.setFormatter(logging.Formatter("%(message)s"))
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_WAITING)
        self._handler = _Dropping(lines)
        self._listener = _Writer(lines, stream)
        self._listener.start()
        self._propagated, LOG.propagate = LOG.propagate, False
        LOG.addHandler(self._handler)

    def write(self, line: Mapping[str, object]) -> None:
        """One line; returns at once."""
        dropped = 0 if self._handler is None else self._handler.take_dropped()
        LOG.info("%s", json.dumps({**line, "dropped_lines": dropped} if dropped else line, ensure_ascii=False))

    def close(self) -> None:
        """Write what waits and stop; blocks until it is written, two seconds at most. Idempotent."""
        if self._listener is None or self._handler is None:
            return
        LOG.removeHandler(self._handler)
        LOG.propagate = self._propagated
        self._listener.stop()
        self._listener = self._handler = None


class _Writer(QueueListener):
    """Its end waits only so long for a log that stands still; the thread is a daemon and dies with the process."""

    def stop(self) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put(self._sentinel, timeout=_LAST_LINES_S)  # type: ignore[attr-defined]
        if self._thread is not None:
            self._thread.join(_LAST_LINES_S)


class _Dropping(QueueHandler):
    """Counts what finds the queue full, instead of telling stderr of each."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lines = lines
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def take_dropped(self) -> int:
        """How many since the last question."""
        dropped, self._dropped = self._dropped, 0
        return dropped


def _head(request_id: str, model: str, failure: Failure | None) -> dict[str, object]:
    line: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": "request_finished" if failure is None else "request_failed",
        "request_id": request_id,
        "model": model,
        "code": "OK" if failure is None else TABLE[failure.reason].code.name,
        "reason": "OK" if failure is None else failure.reason.value,
    }
    if failure is not None:
        line["message"] = failure.sentence
    return line


def _attempt(tried: Tried) -> dict[str, object]:
    plan = tried.plan
    line: dict[str, object] = {"number": plan.number, "pair_id": plan.pair_id, "handshake": plan.kind.value}
    for role, key in (("prefill", plan.prefill), ("decode", plan.decode)):
        if key is not None:
            line[role] = {"worker_id": key.worker_id, "epoch": key.epoch, "dp_rank": key.dp_rank}
    if plan.room is not None:
        line["room"] = plan.room
    if tried.failure is not None:
        line["reason"] = tried.failure.reason.value
    return line


def _us(seconds: float) -> float:
    """To the microsecond, which is what the clock is good for."""
    return round(seconds, 6)
