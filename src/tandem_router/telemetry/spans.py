"""Spans: one SERVER span per Generate or Embed call, CLIENT spans `prefill` and `decode` per attempt below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tandem_router.core.relay_events import AttemptPlanned, RequestKind
from tandem_router.errors import TABLE, Code
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId, RankKey
from tandem_router.model.pairing import LegRole
from tandem_router.model.stream import Finished
from tandem_router.telemetry.names import EMBED_METHOD, METHOD, PROVIDER

__all__ = ["SpanBook"]

Value = str | int | float | bool

_OUR_FAULTS = {
    Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS
}  # fmt: skip
"""What makes a SERVER span an error by the rpc conventions; the other codes are news about the caller."""

_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Leg:
    """An open span of a leg."""

    span: Span
    pair_id: PairId


class SpanBook:
    """Open spans by call and by leg. One event loop owns it; every span that was begun is ended by its event."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._calls: dict[str, Span] = {}
        self._legs: dict[str, _Leg] = {}
        self._decodes: dict[PairId, Span] = {}
        """The decode leg of each pair; the second one where a handoff's decode was replaced."""

    def __len__(self) -> int:
        return len(self._calls) + len(self._legs)

    def begin_call(self, request_id: str, model: str, traceparent: str | None, kind: RequestKind) -> None:
        """Open the SERVER span, below the client's where its traceparent is valid."""
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        method = EMBED_METHOD if kind is RequestKind.EMBEDDINGS else METHOD
        attributes: dict[str, Value] = {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "gen_ai.operation.name": kind.value,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.response.id": request_id,
        }
        self._calls[request_id] = self._tracer.start_span(
            method, _PROPAGATOR.extract(carrier), SpanKind.SERVER, attributes
        )

    def trace_id(self, request_id: str) -> str:
        """Of a call that runs, 32 hex digits; empty when it has no span."""
        span = self._calls.get(request_id)
        return "" if span is None else trace.format_trace_id(span.get_span_context().trace_id)

    def begin_leg(self, plan: AttemptPlanned, leg_id: str, role: LegRole, key: RankKey) -> str | None:
        """Open a CLIENT span below the call's; its W3C traceparent."""
        call = self._calls.get(plan.request_id)
        if call is None:
            return None
        attributes: dict[str, Value] = {
            "tandem.pair.id": plan.pair_id,
            "tandem.attempt": plan.number,
            "tandem.handshake": plan.kind.value,
            "tandem.leg.id": leg_id,
            "tandem.worker.id": key.worker_id,
            "tandem.worker.epoch": key.epoch,
            "tandem.dp_rank": key.dp_rank,
        }
        if plan.room is not None:
            attributes["tandem.room"] = plan.room
        span = self._tracer.start_span(role.lower(), trace.set_span_in_context(call), SpanKind.CLIENT, attributes)
        self._legs[leg_id] = _Leg(span, plan.pair_id)
        if role is LegRole.DECODE:
            self._decodes[plan.pair_id] = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        return carrier.get("traceparent")

    def first_token(self, request_id: str, pair_id: PairId) -> None:
        """Mark the commit point on the call and on the pair's decode leg."""
        if (call := self._calls.get(request_id)) is not None:
            call.add_event("first_token")
        self._mark(pair_id, "first_token", {})

    def prefill_lost(self, pair_id: PairId, failure: Failure) -> None:
        """Note on the decode leg that it goes on without its prefill."""
        self._mark(pair_id, "prefill_lost", {"error.type": failure.reason.value})

    def end_leg(self, leg_id: str, state: str, failure: Failure | None, is_failed: bool) -> None:
        """End a leg's span; a leg that was never sent has none."""
        leg = self._legs.pop(leg_id, None)
        if leg is None:
            return
        if self._decodes.get(leg.pair_id) is leg.span:
            del self._decodes[leg.pair_id]
        leg.span.set_attribute("tandem.leg.state", state)
        if is_failed:
            _fail(leg.span, failure)
        leg.span.end()

    def end_call(self, request_id: str, finished: Finished | None, failure: Failure | None) -> None:
        """End a call's span with what `finished` says, or with why it failed."""
        span = self._calls.pop(request_id, None)
        if span is None:
            return
        if finished is not None:
            span.set_attributes(_results(finished))
        code = Code.OK if failure is None else TABLE[failure.reason].code
        span.set_attribute("rpc.response.status_code", code.name)
        if failure is not None:
            span.set_attribute("error.type", failure.reason.value)
            if code in _OUR_FAULTS:
                span.set_status(Status(StatusCode.ERROR, failure.sentence))
        span.end()

    def _mark(self, pair_id: PairId, event: str, attributes: Mapping[str, str]) -> None:
        span = self._decodes.get(pair_id)
        if span is not None:
            span.add_event(event, attributes)


def _fail(span: Span, failure: Failure | None) -> None:
    if failure is None:
        span.set_status(Status(StatusCode.ERROR))
        return
    span.set_attribute("error.type", failure.reason.value)
    span.set_status(Status(StatusCode.ERROR, failure.sentence))


def _results(finished: Finished) -> dict[str, Value | list[str]]:
    times, usage = finished.timings, finished.usage
    return {
        "gen_ai.response.model": finished.model,
        "gen_ai.response.finish_reasons": [choice.reason.value for choice in finished.choices],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "tandem.pair.id": finished.served_by.pair_id,
        "tandem.attempts": len(finished.attempts),
        "tandem.phase.queue_s": times.queue_s,
        "tandem.phase.prefill_s": times.prefill_s,
        "tandem.phase.transfer_s": times.transfer_s,
        "tandem.phase.first_token_s": times.first_token_s,
        "tandem.phase.decode_s": times.decode_s,
        "tandem.phase.total_s": times.total_s,
    }
