"""Where a request goes, and why not elsewhere."""

from __future__ import annotations

import random as stdlib_random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.ids import RankKey
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import ConstraintKind, ServingMode
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Candidate, Plan, Query, Refusal
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

P, D, R = WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR
QUERY = Query("m", 100)
PLANNER = Planner(RuntimeSettings(), LeastInFlight())


def plan(
    *workers: Worker, query: Query = QUERY, load: dict[str, int] | None = None, settings: RuntimeSettings | None = None
) -> Plan | Refusal:
    planner = PLANNER if settings is None else Planner(settings, LeastInFlight())

    def in_flight(key: RankKey) -> int:
        return (load or {}).get(key.worker_id, 0)

    return planner.plan(query, fleet(*workers), in_flight, random=0.0)


def test_a_prefill_and_a_decode_worker_make_a_pair() -> None:
    made = plan(worker(1, P), worker(2, D))
    assert isinstance(made, Plan)
    assert made.kind is HandshakeKind.RENDEZVOUS
    assert made.prefill is not None
    assert (made.prefill.worker.id[-1], made.decode.worker.id[-1]) == ("1", "2")


def test_the_least_loaded_of_each_role_is_taken() -> None:
    workers = [worker(1, P), worker(2, P), worker(3, D), worker(4, D)]
    made = plan(*workers, load={workers[0].id: 3, workers[2].id: 1})
    assert isinstance(made, Plan)
    assert made.prefill is not None
    assert (made.prefill.worker.id[-1], made.decode.worker.id[-1]) == ("2", "4")


def test_a_decode_without_a_fitting_prefill_gives_way_to_one_that_has_one() -> None:
    made = plan(worker(1, P), worker(2, D, kv_block_size=32), worker(3, D), load={worker(3, D).id: 9})
    assert isinstance(made, Plan)
    assert made.decode.worker.id[-1] == "3"
    assert [rejection.reason for rejection in made.rejections] == ["INCOMPATIBLE"]


def test_without_a_pair_a_regular_worker_serves_alone() -> None:
    made = plan(worker(1, P), worker(3, R))
    assert isinstance(made, Plan)
    assert made.kind is HandshakeKind.AGGREGATE
    assert made.prefill is None


def test_without_permission_a_regular_worker_does_not_stand_in_for_a_pair() -> None:
    refused = plan(worker(1, P), worker(3, R), settings=RuntimeSettings(allow_aggregated_fallback=False))
    assert isinstance(refused, Refusal)
    assert refused.failure.reason is Reason.NO_READY_WORKER


def test_workers_that_never_registered_are_not_counted_as_if_they_had() -> None:
    failed = [worker(number, R, status=WorkerStatus.FAILED) for number in (1, 2)]
    refused = plan(*failed, worker(3, R, status=WorkerStatus.NOT_READY), worker(4, P))
    assert isinstance(refused, Refusal)
    told = "no worker of m can take it now (1 regular NOT_READY, 2 regular FAILED, 1 prefill READY)"
    assert refused.failure.sentence == told


def test_a_short_prompt_stays_on_one_worker() -> None:
    settings = RuntimeSettings(disaggregate_min_tokens=50)
    workers = [worker(1, P), worker(2, D), worker(3, R)]
    short = plan(*workers, query=replace(QUERY, prompt_tokens=49), settings=settings)
    long = plan(*workers, query=replace(QUERY, prompt_tokens=50), settings=settings)
    assert isinstance(short, Plan)
    assert isinstance(long, Plan)
    assert short.kind is HandshakeKind.AGGREGATE
    assert long.kind is HandshakeKind.RENDEZVOUS


def test_a_worker_that_failed_this_request_is_taken_only_when_there_is_no_other() -> None:
    workers = [worker(1, P), worker(2, D), worker(3, D)]
    elsewhere = plan(*workers, query=replace(QUERY, avoid=(workers[1].id,)), load={workers[2].id: 5})
    again = plan(*workers[:2], query=replace(QUERY, avoid=(workers[1].id,)))
    assert isinstance(elsewhere, Plan)
    assert isinstance(again, Plan)
    assert (elsewhere.decode.worker.id[-1], again.decode.worker.id[-1]) == ("3", "2")


def test_a_target_worker_decodes_and_its_rank_is_kept() -> None:
    workers = [worker(1, P), worker(2, D, dp_size=4), worker(3, D)]
    made = plan(*workers, query=replace(QUERY, target_worker_id=workers[1].id, target_dp_rank=2))
    assert isinstance(made, Plan)
    assert made.decode.key == RankKey(workers[1].id, 1, 2)


def stated(each: Worker, **spec: Any) -> Worker:
    return replace(each, spec=replace(each.spec, **spec))


def test_a_lower_priority_stands_by_until_no_higher_one_can_take_the_request() -> None:
    first, standby = stated(worker(1, R), priority=80), worker(2, R)
    busy = plan(first, standby, load={first.id: 99})
    gone = plan(replace(first, status=WorkerStatus.NOT_READY), standby)
    assert isinstance(busy, Plan)
    assert isinstance(gone, Plan)
    assert (busy.decode.worker.id, gone.decode.worker.id) == (first.id, standby.id)


@pytest.mark.parametrize(("dear_load", "cheap_load", "taken"), [(0, 0, "2"), (0, 1, "2"), (0, 2, "1"), (1, 4, "1")])
def test_a_worker_of_twice_the_cost_gets_half_the_legs(dear_load: int, cheap_load: int, taken: str) -> None:
    dear, cheap = stated(worker(1, R), cost=2.0), worker(2, R)
    # At equal cost either may be taken; a random number near 1 takes the last of the equals, the cheap one.
    made = PLANNER.plan(
        QUERY, fleet(dear, cheap), lambda key: dear_load if key.worker_id == dear.id else cheap_load, random=0.999
    )
    assert isinstance(made, Plan)
    assert made.decode.worker.id[-1] == taken


def test_a_stated_serving_mode_is_kept() -> None:
    workers = [worker(1, P), worker(2, D), worker(3, R)]
    alone = plan(*workers, query=replace(QUERY, serving_mode=ServingMode.AGGREGATED))
    pair = plan(*workers, query=replace(QUERY, serving_mode=ServingMode.DISAGGREGATED))
    assert isinstance(alone, Plan)
    assert isinstance(pair, Plan)
    assert (alone.kind, alone.reason) == (HandshakeKind.AGGREGATE, "REQUESTED")
    assert pair.kind is HandshakeKind.RENDEZVOUS


@pytest.mark.parametrize(
    ("workers", "mode"),
    [([worker(3, R)], ServingMode.DISAGGREGATED), ([worker(1, P), worker(2, D)], ServingMode.AGGREGATED)],
)
def test_a_serving_mode_that_no_worker_offers_is_refused(workers: list[Worker], mode: ServingMode) -> None:
    refused = plan(*workers, query=replace(QUERY, serving_mode=mode))
    assert isinstance(refused, Refusal)
    assert refused.failure.reason is Reason.NO_READY_WORKER


def test_a_target_prefill_prefills_whatever_its_load() -> None:
    workers = [worker(1, P), worker(2, P), worker(3, D)]
    made = plan(*workers, query=replace(QUERY, target_prefill_id=workers[1].id), load={workers[1].id: 9})
    assert isinstance(made, Plan)
    assert made.prefill is not None
    assert made.prefill.worker.id == workers[1].id


@pytest.mark.parametrize(
    ("workers", "query", "reason"),
    [
        ([], QUERY, Reason.MODEL_NOT_FOUND),
        ([worker(1, R)], replace(QUERY, model="x"), Reason.MODEL_NOT_FOUND),
        ([worker(1, R, status=WorkerStatus.NOT_READY)], QUERY, Reason.NO_READY_WORKER),
        ([worker(1, R, status=WorkerStatus.DRAINING)], QUERY, Reason.NO_READY_WORKER),
        ([worker(1, P)], QUERY, Reason.NO_READY_WORKER),
        ([worker(1, P), worker(2, D, kv_block_size=32)], QUERY, Reason.NO_COMPATIBLE_PAIR),
        ([worker(1, R, supports_seed=False)], replace(QUERY, needs_seed=True), Reason.RUNTIME_CANNOT_SEED),
        (
            [worker(1, R), worker(2, P), worker(3, D, constraints=(ConstraintKind.EBNF,))],
            replace(QUERY, constraint=ConstraintKind.REGEX),
            Reason.RUNTIME_CANNOT_CONSTRAIN,
        ),
        ([worker(1, R)], replace(QUERY, target_worker_id=worker(9, R).id), Reason.WORKER_NOT_FOUND),
    ],
)
def test_no_place_says_why(workers: list[Worker], query: Query, reason: Reason) -> None:
    refused = plan(*workers, query=query)
    assert isinstance(refused, Refusal)
    assert refused.failure.reason is reason


@given(loads=st.lists(st.integers(0, 1000), min_size=1, max_size=20), seed=st.integers())
def test_scores_are_in_the_unit_interval_and_do_not_depend_on_order(loads: list[int], seed: int) -> None:
    candidates = [Candidate(worker(index + 1, R), 0, load) for index, load in enumerate(loads)]
    scores = dict(zip([c.key for c in candidates], LeastInFlight().score(QUERY, candidates), strict=True))
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    stdlib_random.Random(seed).shuffle(candidates)
    again = dict(zip([c.key for c in candidates], LeastInFlight().score(QUERY, candidates), strict=True))
    assert scores == again


@given(data=st.data(), random=st.floats(0, 1, exclude_max=True))
def test_a_plan_names_only_ready_workers_that_fit(data: st.DataObject, random: float) -> None:
    kinds = data.draw(
        st.lists(st.tuples(st.sampled_from([P, D, R]), st.sampled_from(list(WorkerStatus)), st.booleans()), max_size=8)
    )
    workers = [
        worker(index + 1, kind, status=status, kv_block_size=16 if fits else 32)
        for index, (kind, status, fits) in enumerate(kinds)
    ]
    made = PLANNER.plan(QUERY, fleet(*workers), lambda key: 0, random=random)
    if isinstance(made, Plan):
        chosen = [made.decode] + ([] if made.prefill is None else [made.prefill])
        assert all(candidate.worker.status is WorkerStatus.READY for candidate in chosen)
        if made.prefill is not None:
            assert made.prefill.worker.facts is not None
            assert made.decode.worker.facts is not None
            assert made.prefill.worker.facts.kv_block_size == made.decode.worker.facts.kv_block_size


def test_a_constraint_goes_to_workers_that_take_it() -> None:
    regex = (ConstraintKind.REGEX,)
    made = plan(
        worker(1, P),
        worker(2, P, constraints=regex),
        worker(3, D),
        worker(4, D, constraints=regex),
        query=replace(QUERY, constraint=ConstraintKind.REGEX),
    )
    assert isinstance(made, Plan)
    assert made.prefill is not None
    assert (made.prefill.worker.id, made.decode.worker.id) == (worker(2, P).id, worker(4, D).id)
