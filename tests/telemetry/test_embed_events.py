"""An Embed call of many inputs is one request, one span and one short line, whatever happened to its inputs."""

from __future__ import annotations

import json
import logging

import pytest
from tests.telemetry.observing import DECODE, bench

from tandem_router.core.relay_events import (
    AttemptLost,
    AttemptPlanned,
    LegClosed,
    LegSent,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestKind,
)
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import HandshakeKind, LegRole, LegState
from tandem_router.model.stream import Attempt, Finished, PhaseTimings, ServedBy, Usage
from tandem_router.telemetry.observer import TelemetryObserver

INPUTS = 2048
LOST = Failure(Reason.WORKER_LOST, "gone")
SERVED = ServedBy(PairId("0"), HandshakeKind.AGGREGATE, DECODE.worker_id, 0)
FINISHED = Finished(
    "m", (), Usage(9, 0, 0), PhaseTimings(0.1, 0.0, 0.0, 0.4, 0.0, 0.5), SERVED, (Attempt(1, SERVED),) * (INPUTS + 1)
)


def tries(observer: TelemetryObserver) -> None:
    """One try per input, and one more for the input whose first was lost."""
    observer.observe(RequestAccepted("r", "m", "anonymous", None, RequestKind.EMBEDDINGS))
    for number in range(INPUTS + 1):
        pair_id, leg_id = PairId(str(number)), f"leg {number}"
        observer.observe(AttemptPlanned("r", pair_id, 1, HandshakeKind.AGGREGATE, None, DECODE, None))
        observer.begin_leg(pair_id, leg_id, LegRole.DECODE, DECODE)
        observer.observe(LegSent(pair_id, leg_id, LegRole.DECODE, DECODE))
        state, failure = (LegState.FAILED, LOST) if number == 7 else (LegState.DONE, None)
        observer.observe(LegClosed(pair_id, leg_id, LegRole.DECODE, state, failure))
        if failure is not None:
            observer.observe(AttemptLost("r", pair_id, 1, failure))


def test_it_is_counted_as_one_request_and_its_tries_as_attempts() -> None:
    seen = bench()
    tries(seen.observer)
    seen.observer.observe(RequestFinished("r", FINISHED))
    assert list(seen.points("tandem.requests").values()) == [1]
    by_reason = {dict(labels)["reason"]: count for labels, count in seen.points("tandem.attempts").items()}
    assert by_reason == {"OK": INPUTS, "WORKER_LOST": 1}
    tokens = {dict(labels)["gen_ai.token.type"]: count for labels, count in seen.points("tandem.tokens").items()}
    assert tokens == {"input": 9, "output": 0, "cached": 0}
    for name in ("gen_ai.server.time_to_first_token", "tandem.request.phase.duration"):
        assert seen.points(name) == {}
    [duration] = seen.points("gen_ai.server.request.duration")
    assert dict(duration)["gen_ai.operation.name"] == "embeddings"
    assert (seen.observer.live, seen.observer.faults) == (0, 0)


def test_its_span_says_that_vectors_were_asked_for() -> None:
    seen = bench()
    tries(seen.observer)
    seen.observer.observe(RequestFinished("r", FINISHED))
    *legs, call = seen.spans()
    assert (call.name, len(legs)) == ("tandem.v1.RouterService/Embed", INPUTS + 1)
    attributes = dict(call.attributes or {})
    assert (attributes["gen_ai.operation.name"], attributes["rpc.method"]) == ("embeddings", call.name)


@pytest.mark.parametrize("is_good", [True, False], ids=["finished", "failed"])
def test_its_line_names_the_tries_that_were_lost_and_counts_the_rest(
    is_good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = bench()
    with caplog.at_level(logging.INFO, logger="tandem.access"):
        tries(seen.observer)
        seen.observer.observe(RequestFinished("r", FINISHED) if is_good else RequestFailed("r", LOST))
    [record] = caplog.records
    line = json.loads(record.getMessage())
    assert (line["operation"], line.get("inputs")) == ("embeddings", INPUTS if is_good else None)
    assert [one["reason"] for one in line["attempts"]] == ["WORKER_LOST"]
