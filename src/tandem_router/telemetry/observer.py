"""The Observer: from events of the relay and the control loop to spans, metrics and log lines.

Nothing is done per token; FirstToken is the only event of a stream's inside. A fault of telemetry is logged once and
never reaches the caller.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tandem_router.core.events import JobCreated, JobEnded, WorkerStatusChanged
from tandem_router.core.relay_events import (
    AttemptLost,
    AttemptPlanned,
    FirstToken,
    LegClosed,
    PrefillLost,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestKind,
    RequestRefused,
)
from tandem_router.errors import TABLE
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, PairId, RankKey
from tandem_router.model.job import JobType
from tandem_router.model.pairing import LegRole, LegState
from tandem_router.model.stream import Finished, PhaseTimings
from tandem_router.telemetry.access_log import AccessLog, ended_line, refused_line
from tandem_router.telemetry.instruments import Instruments
from tandem_router.telemetry.live_calls import LiveCall, Tried
from tandem_router.telemetry.spans import SpanBook

__all__ = ["TelemetryObserver"]

LOG = logging.getLogger("tandem.telemetry")

_MODEL = "gen_ai.request.model"
_OPERATION = "gen_ai.operation.name"
_PHASES = ("queue", "prefill", "transfer", "first_token", "decode")


class TelemetryObserver:
    """ports.Observer and ports.LegTraces. One event loop owns it."""

    def __init__(
        self,
        instruments: Instruments,
        spans: SpanBook | None,
        access_log: AccessLog,
        label: Callable[[str], str],
        *,
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        spans: None makes none.
        label: the metrics' label of a model's name; one of few values.
        """
        self._instruments = instruments
        self._spans = spans
        self._access_log = access_log
        self._label = label
        self._monotonic_s = monotonic_s
        self._calls: dict[str, LiveCall] = {}
        self._plans: dict[PairId, AttemptPlanned] = {}
        self._jobs: dict[JobId, JobType] = {}
        self.faults = 0
        """Events that telemetry itself could not take."""
        self._on: dict[type, Callable[[Any], None]] = {
            RequestAccepted: self._accepted,
            RequestRefused: self._refused,
            RequestFinished: self._finished,
            RequestFailed: self._failed,
            AttemptPlanned: self._planned,
            AttemptLost: self._lost,
            FirstToken: self._first_token,
            LegClosed: self._leg_closed,
            PrefillLost: self._prefill_lost,
            JobCreated: self._job_created,
            JobEnded: self._job_ended,
            WorkerStatusChanged: self._worker_changed,
        }

    @property
    def live(self) -> int:
        """What it remembers: calls, plans, jobs and open spans; 0 when the router is idle."""
        return len(self._calls) + len(self._plans) + len(self._jobs) + (0 if self._spans is None else len(self._spans))

    def observe(self, event: object) -> None:
        """Take one event; those that tell telemetry nothing cost one look-up."""
        take = self._on.get(type(event))
        if take is None:
            return
        try:
            take(event)
        except Exception:
            self._note_fault(f"of {type(event).__name__}")

    def begin_leg(self, pair_id: PairId, leg_id: str, role: LegRole, key: RankKey) -> str | None:
        """ports.LegTraces."""
        plan = self._plans.get(pair_id)
        if self._spans is None or plan is None:
            return None
        try:
            return self._spans.begin_leg(plan, leg_id, role, key)
        except Exception:
            self._note_fault("of a leg's begin")
            return None

    def lag(self, seconds: float) -> None:
        """The loop was this late."""
        self._instruments.record("tandem.loop.lag", seconds, {})

    def call_ended(self, method: str, code: str, reason: str | None, seconds: float) -> None:
        """An rpc has its status. method: "/package.Service/Rpc"; never raises."""
        try:
            labels = {"rpc.method": method.lstrip("/"), "rpc.response.status_code": code, "error.type": reason or ""}
            self._instruments.record("rpc.server.call.duration", seconds, labels)
        except Exception:
            self._note_fault("of a call's end")

    def _accepted(self, event: RequestAccepted) -> None:
        self._calls[event.request_id] = LiveCall(
            event.request_id, event.model, event.principal, event.kind, began_s=self._monotonic_s()
        )
        if self._spans is not None:
            self._spans.begin_call(event.request_id, event.model, event.traceparent, event.kind)

    def _refused(self, event: RequestRefused) -> None:
        self._count_request(self._label(event.model), event.failure)
        if self._access_log.is_on:
            self._access_log.write(refused_line(event.request_id, event.model, event.failure))

    def _planned(self, event: AttemptPlanned) -> None:
        if (call := self._calls.get(event.request_id)) is not None:
            call.tried[event.pair_id] = Tried(event)
            self._plans[event.pair_id] = event

    def _lost(self, event: AttemptLost) -> None:
        call = self._calls.get(event.request_id)
        if call is None or (tried := call.tried.get(event.pair_id)) is None:
            return
        tried.failure = event.failure
        labels = {"handshake": tried.plan.kind.value, "reason": event.failure.reason.value}
        self._instruments.add("tandem.attempts", labels)

    def _first_token(self, event: FirstToken) -> None:
        call = self._calls.get(event.request_id)
        if call is not None and call.first_token_s is None:
            call.first_token_s = self._monotonic_s()
        if self._spans is not None:
            self._spans.first_token(event.request_id, event.pair_id)

    def _prefill_lost(self, event: PrefillLost) -> None:
        if self._spans is not None:
            self._spans.prefill_lost(event.pair_id, event.failure)

    def _leg_closed(self, event: LegClosed) -> None:
        is_failed = event.failure is not None or event.state is LegState.FAILED
        outcome = "failed" if event.state is LegState.FAILED else "done" if event.state is LegState.DONE else "aborted"
        self._instruments.add("tandem.legs", {"role": event.role.lower(), "outcome": outcome})
        if self._spans is not None:
            self._spans.end_leg(event.leg_id, event.state.value, event.failure, is_failed)

    def _finished(self, event: RequestFinished) -> None:
        finished = event.finished
        call = self._ended(event.request_id, finished, None)
        if call is None:
            return
        record = self._instruments.record
        model = {_MODEL: self._label(finished.model)}
        times = finished.timings
        if call.kind is not RequestKind.EMBEDDINGS:  # one rpc makes a vector, in no phases
            for phase, seconds in zip(_PHASES, _phases(times), strict=True):
                record("tandem.request.phase.duration", seconds, {**model, "phase": phase})
        tokens = finished.choices[0].completion_tokens if finished.choices else 0
        if tokens > 1:
            mean_s, labels = times.decode_s / (tokens - 1), {_OPERATION: call.kind.value, **model}
            record("gen_ai.server.time_per_output_token", mean_s, labels)
        usage = finished.usage
        for kind, count in (
            ("input", usage.prompt_tokens),
            ("output", usage.completion_tokens),
            ("cached", usage.cached_tokens),
        ):
            self._instruments.add("tandem.tokens", {**model, "gen_ai.token.type": kind}, count)

    def _failed(self, event: RequestFailed) -> None:
        self._ended(event.request_id, None, event.failure)

    def _ended(self, request_id: str, finished: Finished | None, failure: Failure | None) -> LiveCall | None:
        call = self._calls.pop(request_id, None)
        if call is None:
            return None
        now_s = self._monotonic_s()
        label = self._label(call.model if finished is None else finished.model)
        self._count_request(label, failure)
        reason = "" if failure is None else failure.reason.value
        labels = {_OPERATION: call.kind.value, _MODEL: label}
        self._instruments.record(
            "gen_ai.server.request.duration", now_s - call.began_s, {**labels, "error.type": reason}
        )
        if call.first_token_s is not None:
            self._instruments.record("gen_ai.server.time_to_first_token", call.first_token_s - call.began_s, labels)
        for pair_id in call.tried:
            del self._plans[pair_id]
        if finished is not None:
            # Added up first: an Embed call may have thousands.
            served = Counter(tried.plan.kind.value for tried in call.tried.values() if tried.failure is None)
            for handshake, count in served.items():
                self._instruments.add("tandem.attempts", {"handshake": handshake, "reason": "OK"}, count)
        if self._access_log.is_on:
            trace_id = "" if self._spans is None else self._spans.trace_id(request_id)
            self._access_log.write(ended_line(call, now_s=now_s, trace_id=trace_id, finished=finished, failure=failure))
        if self._spans is not None:
            self._spans.end_call(request_id, finished, failure)
        return call

    def _count_request(self, label: str, failure: Failure | None) -> None:
        code = "OK" if failure is None else TABLE[failure.reason].code.name
        reason = "OK" if failure is None else failure.reason.value
        self._instruments.add("tandem.requests", {_MODEL: label, "code": code, "reason": reason})

    def _job_created(self, event: JobCreated) -> None:
        self._jobs[event.job_id] = event.type

    def _job_ended(self, event: JobEnded) -> None:
        kind = self._jobs.pop(event.job_id, None)
        if kind is not None:
            self._instruments.add("tandem.jobs", {"type": kind.value, "state": event.state.value})

    def _worker_changed(self, event: WorkerStatusChanged) -> None:
        self._instruments.add("tandem.worker.status.changes", {"status": event.status.value})

    def _note_fault(self, what: str) -> None:
        self.faults += 1
        if self.faults == 1:
            LOG.exception("telemetry failed at an event %s; further faults of it are not logged", what)


def _phases(times: PhaseTimings) -> tuple[float, ...]:
    """In the order of _PHASES."""
    return (times.queue_s, times.prefill_s, times.transfer_s, times.first_token_s, times.decode_s)
