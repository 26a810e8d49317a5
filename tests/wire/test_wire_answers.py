"""What goes out: jobs, workers, pairs, models, chunks and `finished`, value by value."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.v1 import generate_result_pb2, job_pb2, kv_pb2, pair_pb2, worker_pb2
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, PairId, RankKey, WorkerId
from tandem_router.model.job import Job, JobState, JobStep, JobType, StepState
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, LegState, PairState, PairView
from tandem_router.model.spec import ModelCard, RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.stream import (
    Attempt,
    ChoiceEnd,
    Finished,
    FinishReason,
    OutputChunk,
    PhaseTimings,
    ServedBy,
    TokenLogprob,
    Usage,
)
from tandem_router.model.worker import Condition, Drain, Outage, Rank, RankLoad, Worker, WorkerFacts, WorkerStatus
from tandem_router.wire.job import job_pb
from tandem_router.wire.model import model_pb
from tandem_router.wire.paging import page
from tandem_router.wire.pair import pair_pb
from tandem_router.wire.result import chunk_pb, finished_pb
from tandem_router.wire.sampling import default_sampling_pb
from tandem_router.wire.scalars import failure_pb
from tandem_router.wire.worker import worker_pb

FAILURE = Failure(Reason.WORKER_LOST, "It broke.", {"worker_id": "w"})


def worker(kind: WorkerType = WorkerType.PREFILL, status: WorkerStatus = WorkerStatus.READY, ranks: int = 1) -> Worker:
    facts = WorkerFacts(
        RuntimeType.SGLANG,
        "tiny",
        served_names=("tiny", "alias"),
        dp_size=ranks,
        supports_seed=True,
        bootstrap=BootstrapEndpoint("h", 8998) if kind is WorkerType.PREFILL else None,
        default_sampling={"temperature": 0.5, "top_k": -1.0, "unheard_of": 1.0},
        instance="i-1",
    )
    return Worker(
        id=WorkerId("w"),
        spec=WorkerSpec(url="grpc://h:1", worker_type=kind),
        url="grpc://h:1",
        status=status,
        revision=3,
        generation=2,
        epoch=1,
        created_at_s=10.0,
        updated_at_s=20.5,
        facts=facts,
        ranks=tuple(Rank(rank, load=RankLoad(1, 2, 30, 60, 5.0)) for rank in range(ranks)),
        conditions=(Condition("PAIRABLE", False, "NO_COMPATIBLE_PAIR", "No partner.", 15.0),),
    )


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("kind", list(JobType))
def test_every_job_state_and_type_has_its_wire_name(state: JobState, kind: JobType) -> None:
    message = job_pb(Job(JobId("j"), kind, WorkerId("w"), state, (), 1, 0.0))
    assert (job_pb2.JobState.Name(message.state), job_pb2.JobType.Name(message.type)) == (
        f"JOB_STATE_{state}", f"JOB_TYPE_{kind}",
    )  # fmt: skip


@pytest.mark.parametrize("state", list(StepState))
def test_every_step_state_has_its_wire_name(state: StepState) -> None:
    step = JobStep("connect", state, 2, "tries", FAILURE, 1.0)
    message = job_pb(Job(JobId("j"), JobType.REGISTER_WORKER, WorkerId("w"), JobState.RUNNING, (step,), 1, 0.0)).steps[
        0
    ]
    assert (job_pb2.StepState.Name(message.state), message.failure.reason, message.HasField("end_time")) == (
        f"STEP_STATE_{state}", "WORKER_LOST", False,
    )  # fmt: skip


@pytest.mark.parametrize("status", list(WorkerStatus))
def test_every_worker_status_has_its_wire_name(status: WorkerStatus) -> None:
    assert worker_pb2.WorkerStatus.Name(worker_pb(worker(status=status)).status) == f"WORKER_STATUS_{status}"


def test_load_is_shown_only_where_asked_for() -> None:
    without = worker_pb(worker()).ranks[0]
    assert (without.HasField("load"), without.HasField("in_flight")) == (False, False)


def test_load_is_shown_with_our_own_legs_in_wall_time() -> None:
    rank = worker_pb(worker(), in_flight={0: 4}, include_load=True, wall_minus_monotonic_s=100.0).ranks[0]
    assert (rank.in_flight, rank.load.token_usage, rank.load.sample_time.seconds) == (4, 0.5, 105)


def test_dp_rank_is_absent_on_a_worker_with_one_rank() -> None:
    assert not worker_pb(worker()).ranks[0].HasField("dp_rank")


def test_dp_rank_zero_is_present_on_a_parallel_worker() -> None:
    assert [rank.dp_rank if rank.HasField("dp_rank") else None for rank in worker_pb(worker(ranks=2)).ranks] == [0, 1]


def test_a_rank_that_is_out_says_why_since_when_and_until_when() -> None:
    outage = Outage(Failure(Reason.ENGINE_ERROR, "device-side assert"), 40.0, 70.0)
    broken = worker(ranks=2)
    sound, out = worker_pb(replace(broken, ranks=(broken.ranks[0], replace(broken.ranks[1], outage=outage)))).ranks
    assert (out.healthy, out.routable, out.outage_time.seconds, out.trial_time.seconds) == (False, False, 40, 70)
    assert (out.failure.reason, out.failure.message) == ("ENGINE_ERROR", "device-side assert")
    assert (sound.healthy, sound.routable) == (True, True)
    assert not any(sound.HasField(name) for name in ("failure", "outage_time", "trial_time"))


def test_a_rank_that_is_out_tells_its_own_failure_before_the_worker_s() -> None:
    lost = Failure(Reason.WORKER_LOST, "connection reset")
    broken = replace(worker(status=WorkerStatus.NOT_READY, ranks=2), failure=lost)
    outage = Outage(Failure(Reason.ENGINE_ERROR, "device-side assert"), 40.0, 70.0)
    shown = worker_pb(replace(broken, ranks=(broken.ranks[0], replace(broken.ranks[1], outage=outage)))).ranks
    assert [rank.failure.reason for rank in shown] == ["WORKER_LOST", "ENGINE_ERROR"]


def test_a_failure_names_the_field_at_fault_for_programs() -> None:
    at_fault = Failure(Reason.ADAPTER_NOT_LOADABLE, "no such file", {"path": "/a"}, "path")
    assert dict(failure_pb(at_fault).metadata) == {"path": "/a", "field": "path"}


def test_false_condition_carries_its_failure() -> None:
    condition = worker_pb(worker()).conditions[0]
    assert (condition.status, condition.failure.reason) == (worker_pb2.CONDITION_STATUS_FALSE, "NO_COMPATIBLE_PAIR")


def test_unknown_sampling_defaults_are_left_out_and_minus_one_is_off() -> None:
    message = default_sampling_pb({"temperature": 0.5, "top_k": -1.0, "unheard_of": 1.0})
    assert message is not None
    assert (message.temperature, message.top_k, message.HasField("top_k")) == (0.5, 0, True)


def test_draining_worker_shows_since_when() -> None:
    draining = replace(worker(status=WorkerStatus.DRAINING), drain=Drain(20.0, 30.0, "kernel", 25.0))
    shown = worker_pb(draining).drain
    seconds = (shown.start_time.seconds, shown.deadline.seconds, shown.drained_time.seconds)
    assert (seconds, shown.reason, shown.HasField("remaining_legs")) == ((20, 30, 25), "kernel", False)


@pytest.mark.parametrize("state", list(PairState))
@pytest.mark.parametrize("leg", list(LegState))
def test_every_pair_and_leg_state_has_its_wire_name(state: PairState, leg: LegState) -> None:
    key = RankKey(WorkerId("w"), 1, 0)
    view = PairView(PairId("p"), "r", 1, HandshakeKind.RENDEZVOUS, state, key, leg, key, leg, 1024, 0.0)
    message = pair_pb(view)
    assert (pair_pb2.PairState.Name(message.state), pair_pb2.LegState.Name(message.prefill.state)) == (
        f"PAIR_STATE_{state}", f"LEG_STATE_{leg}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "connector"),
    [
        (HandshakeKind.RENDEZVOUS, None, kv_pb2.KV_CONNECTOR_RENDEZVOUS),
        (HandshakeKind.HANDOFF, "NixlConnector", kv_pb2.KV_CONNECTOR_NIXL),
        (HandshakeKind.HANDOFF, "P2pNcclConnector", kv_pb2.KV_CONNECTOR_PASSTHROUGH),
        (HandshakeKind.AGGREGATE, "NixlConnector", kv_pb2.KV_CONNECTOR_UNSPECIFIED),
    ],
)
def test_connector_is_told_from_handshake_and_name(kind: HandshakeKind, name: str | None, connector: int) -> None:
    key = RankKey(WorkerId("w"), 1, 0)
    state = LegState.SENT
    view = PairView(PairId("p"), "r", 1, kind, PairState.RESERVED, key, state, key, state, None, 0.0, connector=name)
    assert pair_pb(view).connector == connector


def test_model_is_available_through_a_pair_that_fits() -> None:
    pair = [worker(WorkerType.PREFILL), worker(WorkerType.DECODE)]
    assert [model_pb(ModelCard("tiny"), pair, lambda p, d, fits=fits: fits).available for fits in (True, False)] == [
        True, False,
    ]  # fmt: skip


def test_chunk_merges_by_concatenation_of_bytes() -> None:
    first = chunk_pb(OutputChunk(0, 2, (5, 6), "ab"), 2, "r").SerializeToString()
    second = chunk_pb(OutputChunk(0, 3, (7,), "é"), 4, "").SerializeToString()
    merged = generate_result_pb2.GenerateResponse.FromString(first + second)
    chunk = merged.chunk
    offsets = (chunk.next_offset, chunk.next_text_offset)
    assert (list(chunk.token_ids), "".join(chunk.text), offsets, merged.request_id) == ([5, 6, 7], "abé", (3, 4), "r")


def test_logprobs_travel_with_their_alternatives() -> None:
    chunk = OutputChunk(1, 1, (5,), logprobs=(TokenLogprob(5, -0.5, ((5, -0.5), (6, -2.0))),))
    logprob = chunk_pb(chunk, 0, "").chunk.logprobs[0]
    assert (logprob.logprob, [top.token_id for top in logprob.top]) == (-0.5, [5, 6])


def finished(parts: tuple[float, ...] = (0.1,) * 5, stop: int | str | None = None) -> generate_result_pb2.Finished:
    served = ServedBy(
        PairId("p"), HandshakeKind.RENDEZVOUS, WorkerId("d"), 0, WorkerId("f"), 0, 1030, "sglang"
    )  # fmt: skip
    value = Finished(
        "tiny",
        (ChoiceEnd(0, FinishReason.STOP, stop, 3),),
        Usage(5, 3, 1),
        PhaseTimings(*parts, total_s=sum(parts)),
        served,
        (Attempt(1, served, FAILURE), Attempt(2, served)),
    )
    return finished_pb(value, request_id="r", requested_model="alias")


@given(st.lists(st.floats(0, 1000), min_size=5, max_size=5))
def test_phase_times_sum_to_the_total_to_the_nanosecond(parts: list[float]) -> None:
    timings = finished(tuple(parts)).timings
    total = sum(
        getattr(timings, name).ToNanoseconds()
        for name in ("queue", "plan", "prefill", "kv_transfer", "first_token", "decode")
    )
    assert total == timings.total.ToNanoseconds()


def test_finished_names_pair_room_and_models() -> None:
    message = finished()
    served = message.served_by
    assert (served.pair_id, served.bootstrap_room.number, message.requested_model, message.served_model) == (
        "p", 1030, "alias", "tiny",
    )  # fmt: skip


def test_failed_attempts_carry_their_failure() -> None:
    assert [attempt.failure.reason for attempt in finished().attempts] == ["WORKER_LOST", ""]


@pytest.mark.parametrize(("stop", "kind"), [(0, "stop_token_id"), ("END", "stop_text"), (None, None)])
def test_matched_stop_tells_token_from_text(stop: int | str | None, kind: str | None) -> None:
    assert finished(stop=stop).choices[0].WhichOneof("matched_stop") == kind


FILTER = job_pb2.Job()


def test_pages_cover_the_list_once_and_end_with_an_empty_token() -> None:
    items, seen, token = [str(i) for i in range(7)], [], ""
    while True:
        part, token = page(items, str, size=3, token=token, filters=FILTER)
        seen += part
        if not token:
            break
    assert seen == items


def test_token_of_another_filter_is_refused() -> None:
    _, token = page(["a", "b"], str, size=1, token="", filters=FILTER)
    with pytest.raises(Exception, match="INVALID_REQUEST: page_token"):
        page(["a", "b"], str, size=1, token=token, filters=job_pb2.Job(id="x"))


@pytest.mark.parametrize("token", ["?", "bm8", "AAAA"])
def test_garbage_token_is_refused(token: str) -> None:
    with pytest.raises(Exception, match="INVALID_REQUEST: page_token"):
        page(["a"], str, size=1, token=token, filters=FILTER)


def test_page_over_the_limit_is_refused() -> None:
    with pytest.raises(Exception, match="INVALID_REQUEST: page_size"):
        page(["a"], str, size=1001, token="", filters=FILTER)
