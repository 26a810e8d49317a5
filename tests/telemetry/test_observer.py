"""What events become: counts, observations and spans; and that telemetry's own faults stay its own."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from tests.telemetry.observing import DECODE, PREFILL, begin, bench, finished

from tandem_router.core.relay_events import (
    AttemptLost,
    AttemptPlanned,
    FirstToken,
    LegClosed,
    PrefillLost,
    RequestFailed,
    RequestFinished,
    RequestKind,
    RequestRefused,
)
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import HandshakeKind, LegRole, LegState

AGAIN = AttemptPlanned("r", PairId("second"), 2, HandshakeKind.RENDEZVOUS, PREFILL, DECODE, 4097)
"""The second attempt of request "r"."""
LOST = Failure(Reason.WORKER_LOST, "the decode worker died")


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset((name.replace("__", "."), value) for name, value in given.items())


def test_time_to_first_token_counts_from_the_door() -> None:
    now = iter((10.0, 10.25, 11.0))
    seen = bench(monotonic_s=lambda: next(now))
    pair_id = begin(seen.observer, "r")
    seen.observer.observe(FirstToken("r", pair_id))
    seen.observer.observe(RequestFinished("r", finished(pair_id)))
    assert list(seen.points("gen_ai.server.time_to_first_token").values()) == [0.25]


def test_time_per_output_token_is_the_mean_between_the_tokens_of_a_stream() -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r")
    seen.observer.observe(RequestFinished("r", finished(pair_id, tokens=11, decode_s=0.5)))
    assert list(seen.points("gen_ai.server.time_per_output_token").values()) == [pytest.approx(0.05)]


@pytest.mark.parametrize("kind", [RequestKind.CHAT, RequestKind.TEXT])
def test_every_latency_of_a_stream_names_its_operation(kind: RequestKind) -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r", kind=kind)
    seen.observer.observe(FirstToken("r", pair_id))
    seen.observer.observe(RequestFinished("r", finished(pair_id)))
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        [point] = seen.points(f"gen_ai.server.{name}")
        assert dict(point)["gen_ai.operation.name"] == kind.value


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r")
    seen.observer.observe(RequestFinished("r", finished(pair_id, tokens=1)))
    assert not seen.points("gen_ai.server.time_per_output_token")


def test_a_failed_request_is_counted_by_code_and_reason() -> None:
    seen = bench()
    begin(seen.observer, "r")
    seen.observer.observe(RequestFailed("r", LOST))
    want = labels(gen_ai__request__model="m", code="UNAVAILABLE", reason="WORKER_LOST")
    assert seen.points("tandem.requests") == {want: 1}


def test_a_refused_request_is_counted_and_has_no_span() -> None:
    seen = bench()
    seen.observer.observe(RequestRefused("r", "m", Failure(Reason.TOO_MANY_REQUESTS, "full")))
    assert (list(seen.points("tandem.requests").values()), seen.spans()) == ([1], [])


def test_the_label_of_a_model_is_what_is_known_of_it() -> None:
    seen = bench(label=lambda _: "other")
    seen.observer.observe(RequestRefused("r", "a name that a client made up", LOST))
    assert [dict(key)["gen_ai.request.model"] for key in seen.points("tandem.requests")] == ["other"]


def test_legs_of_every_attempt_are_below_the_one_call() -> None:
    seen = bench()
    first = begin(seen.observer, "r")
    seen.observer.observe(AttemptLost("r", first, 1, LOST))
    seen.observer.observe(AGAIN)
    seen.observer.begin_leg(AGAIN.pair_id, "second leg", LegRole.DECODE, DECODE)
    for leg_id in ("PREFILL of r", "DECODE of r", "second leg"):
        seen.observer.observe(LegClosed(first, leg_id, LegRole.DECODE, LegState.DONE))
    seen.observer.observe(RequestFinished("r", finished(AGAIN.pair_id)))
    *legs, call = seen.spans()
    assert {leg.parent.span_id for leg in legs if leg.parent} == {call.get_span_context().span_id}  # type: ignore[union-attr]
    assert [(leg.attributes or {})["tandem.attempt"] for leg in legs] == [1, 1, 2]


def test_attempts_are_counted_by_how_they_ended() -> None:
    seen = bench()
    first = begin(seen.observer, "r")
    seen.observer.observe(AttemptLost("r", first, 1, LOST))
    seen.observer.observe(AGAIN)
    seen.observer.observe(RequestFinished("r", finished(AGAIN.pair_id)))
    want = {labels(handshake="RENDEZVOUS", reason=reason): 1 for reason in ("WORKER_LOST", "OK")}
    assert seen.points("tandem.attempts") == want


def test_a_lingering_legs_span_outlives_its_call() -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r")
    seen.observer.observe(RequestFailed("r", LOST))
    assert [span.name for span in seen.spans()] == ["tandem.v1.RouterService/Generate"]
    seen.observer.observe(LegClosed(pair_id, "DECODE of r", LegRole.DECODE, LegState.CLOSED, LOST))
    assert [span.name for span in seen.spans()][1:] == ["decode"]


def test_nothing_is_remembered_of_an_ended_request() -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r")
    for role in LegRole:
        seen.observer.observe(LegClosed(pair_id, f"{role} of r", role, LegState.DONE))
    seen.observer.observe(RequestFinished("r", finished(pair_id)))
    assert seen.observer.live == 0


@pytest.mark.parametrize(
    ("reason", "status"),
    [(Reason.WORKER_LOST, StatusCode.ERROR), (Reason.REQUEST_CANCELLED, StatusCode.UNSET)],
    ids=["ours", "the caller's"],
)
def test_a_calls_span_is_an_error_only_where_the_fault_is_ours(reason: Reason, status: StatusCode) -> None:
    seen = bench()
    begin(seen.observer, "r")
    seen.observer.observe(RequestFailed("r", Failure(reason, "so it is")))
    assert seen.spans()[0].status.status_code is status


def test_a_lost_prefill_is_an_event_of_the_decode_that_goes_on() -> None:
    seen = bench()
    pair_id = begin(seen.observer, "r")
    seen.observer.observe(PrefillLost(pair_id, LOST))
    seen.observer.observe(LegClosed(pair_id, "DECODE of r", LegRole.DECODE, LegState.DONE))
    assert [event.name for event in seen.spans()[0].events] == ["prefill_lost"]


@pytest.mark.parametrize("sent", [None, "", "00-abc", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_call_without_a_valid_traceparent_begins_a_trace(sent: str | None) -> None:
    seen = bench()
    begin(seen.observer, "r", traceparent=sent)
    seen.observer.observe(RequestFailed("r", LOST))
    span = seen.spans()[0]
    assert span.parent is None
    assert span.get_span_context().is_valid  # type: ignore[union-attr]


def test_a_trace_that_the_client_does_not_sample_is_not_kept_and_goes_on() -> None:
    seen = bench()
    trace_id = "1" * 32
    seen_parent = f"00-{trace_id}-{'2' * 16}-00"
    pair_id = begin(seen.observer, "r", traceparent=seen_parent)
    sent = seen.observer.begin_leg(pair_id, "another leg", LegRole.DECODE, DECODE)
    assert sent is not None
    assert (sent[3:35], sent[-2:]) == (trace_id, "00")
    seen.observer.observe(RequestFailed("r", LOST))
    assert seen.spans() == []


def test_a_fault_of_telemetry_does_not_reach_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bench()

    def broken(*_: Any) -> None:
        raise RuntimeError("an exporter's fault")

    monkeypatch.setattr(seen.observer, "_count_request", broken)
    seen.observer.observe(RequestRefused("r", "m", LOST))
    assert seen.observer.faults == 1


def test_faults_of_telemetry_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen = bench(label=lambda _: str(1 / 0))
    for _ in range(3):
        seen.observer.observe(RequestRefused("r", "m", LOST))
    assert len(caplog.records) == 1


def test_an_event_that_tells_telemetry_nothing_is_taken() -> None:
    seen = bench()
    seen.observer.observe("something new")
    assert (seen.observer.faults, seen.observer.live) == (0, 0)
