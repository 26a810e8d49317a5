"""Requests that name adapters go where these are loaded, on both legs of a pair, or are refused with why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.request import ServingMode
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.policies.explain import explain
from tandem_router.policies.filters import lacks
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

P, D, R = WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR
DE = Query("m", 100, adapters=("de",))
BOTH = Query("m", 100, adapters=("de", "fr"))
PLANNER = Planner(RuntimeSettings(), LeastInFlight())


def holding(number: int, kind: WorkerType, names: str = "", status: WorkerStatus = WorkerStatus.READY) -> Worker:
    """A worker that applies adapters and has these loaded."""
    adapters = tuple(LoadedAdapter(name) for name in names.split())
    return worker(number, kind, status=status, applies_adapters=True, adapters=adapters)


def plan(query: Query, *workers: Worker) -> Plan | Refusal:
    return PLANNER.plan(query, fleet(*workers), lambda key: 0, random=0.0)


def test_the_worker_that_has_the_adapter_is_taken() -> None:
    made = plan(DE, holding(1, R), holding(2, R, "fr"), holding(3, R, "de fr"), worker(4, R))
    assert isinstance(made, Plan)
    assert made.decode.worker.id[-1] == "3"
    assert [(one.worker_id[-1], one.reason) for one in made.rejections] == [
        ("1", "LACKS_ADAPTER"),
        ("2", "LACKS_ADAPTER"),
        ("4", "CANNOT_APPLY_ADAPTERS"),
    ]


def test_both_legs_of_a_pair_have_the_adapter() -> None:
    made = plan(DE, holding(1, P), holding(2, P, "de"), holding(3, D), holding(4, D, "de"))
    assert isinstance(made, Plan)
    assert made.prefill is not None
    assert (made.prefill.worker.id[-1], made.decode.worker.id[-1]) == ("2", "4")


def test_another_decode_for_an_unused_handle_has_the_adapter_too() -> None:
    workers = [holding(1, P, "de"), holding(2, D, "de"), holding(3, D), holding(4, D, "de")]
    made = plan(DE, *workers)
    assert isinstance(made, Plan)
    query = replace(DE, avoid=(made.decode.worker.id,))
    other = PLANNER.replace_decode(made, query, fleet(*workers), lambda key: 0, random=0.0)
    assert other is not None
    assert {made.decode.worker.id[-1], other.worker.id[-1]} == {"2", "4"}


def test_an_engine_that_cannot_list_its_adapters_is_asked_itself() -> None:
    made = plan(DE, worker(1, R, applies_adapters=True, lists_adapters=False))
    assert isinstance(made, Plan)


REFUSED: list[tuple[str, Query, tuple[Worker, ...], Reason, str | None, str]] = [
    (
        "nobody has it",
        DE,
        (holding(1, R), holding(2, R, "fr")),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no worker of m has the adapter de",
    ),
    (
        "the second name is missing",
        BOTH,
        (holding(1, R, "de"),),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[1].name",
        "no worker of m has the adapter fr",
    ),
    (
        "each name is elsewhere",
        BOTH,
        (holding(1, R, "de"), holding(2, R, "fr")),
        Reason.ADAPTER_NOT_FOUND,
        "adapters",
        "no worker of m has all of the adapters",
    ),
    (
        "the prefill leg lacks it",
        DE,
        (holding(1, P), holding(2, D, "de")),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no prefill worker of m has the adapter de",
    ),
    (
        "the decode leg lacks it",
        DE,
        (holding(1, P, "de"), holding(2, D)),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no decode worker of m has the adapter de",
    ),
    (
        "only a pair has it and one worker is asked for",
        replace(DE, serving_mode=ServingMode.AGGREGATED),
        (holding(1, P, "de"), holding(2, D, "de"), holding(3, R)),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no regular worker of m has the adapter de",
    ),
    (
        "only one worker has it and a pair is asked for",
        replace(DE, serving_mode=ServingMode.DISAGGREGATED),
        (holding(1, P), holding(2, D), holding(3, R, "de")),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no worker of m has the adapter de",
    ),
    (
        "the target lacks it",
        replace(DE, target_worker_id=worker(2, R).id),
        (holding(1, R, "de"), holding(2, R)),
        Reason.ADAPTER_NOT_FOUND,
        "adapters[0].name",
        "no worker of m has the adapter de",
    ),
    (
        "no engine applies adapters",
        DE,
        (worker(1, R), worker(2, P), worker(3, D)),
        Reason.RUNTIME_CANNOT_APPLY_ADAPTERS,
        "adapters",
        "no worker of m applies adapters",
    ),
    (
        "the one that has it is not READY",
        DE,
        (holding(1, R), holding(2, R, "de", WorkerStatus.NOT_READY)),
        Reason.NO_READY_WORKER,
        None,
        "no worker of m can take it now",
    ),
]


@pytest.mark.parametrize(
    ("query", "workers", "reason", "field", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_without_a_place_the_refusal_says_what_is_missing_where(
    query: Query, workers: tuple[Worker, ...], reason: Reason, field: str | None, sentence: str
) -> None:
    refused = plan(query, *workers)
    assert isinstance(refused, Refusal)
    assert (refused.failure.reason, refused.failure.field) == (reason, field)
    assert sentence in refused.failure.sentence


@settings(deadline=None)  # two busy cores may pause any example
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from([P, D, R]), st.sets(st.sampled_from(["de", "fr"])), st.booleans()), max_size=6
    ),
    mode=st.sampled_from([None, *ServingMode]),
)
def test_a_plan_never_names_a_worker_without_the_adapters_and_explains_itself(
    kinds: list[tuple[WorkerType, set[str], bool]], mode: ServingMode | None
) -> None:
    ready = {True: WorkerStatus.READY, False: WorkerStatus.NOT_READY}
    workers = [
        holding(number, kind, " ".join(sorted(names)), ready[is_ready])
        for number, (kind, names, is_ready) in enumerate(kinds, start=1)
    ]
    query = replace(BOTH, serving_mode=mode)
    made = plan(query, *workers)
    shown = explain(PLANNER, query, fleet(*workers), lambda key: 0, random=0.0, prompt_tokens=100)
    if isinstance(made, Plan):
        used = [made.decode.worker, *([] if made.prefill is None else [made.prefill.worker])]
        assert [lacks(one, BOTH.adapters) for one in used] == [()] * len(used)
        assert shown.decode == made.decode.key
        return
    assert shown.failure == made.failure
    if made.failure.reason is Reason.ADAPTER_NOT_FOUND:
        # Then making every worker READY changes nothing.
        again = plan(query, *(replace(one, status=WorkerStatus.READY) for one in workers))
        assert isinstance(again, Refusal)


@pytest.mark.parametrize(("choices", "taken"), [(1, "1"), (2, "2"), (4, "2"), (5, "3")])
def test_choices_of_one_call_go_where_one_call_can_ask_for_them(choices: int, taken: str) -> None:
    one, four, any_number = worker(1, R, max_choices=1), worker(2, R, max_choices=4), worker(3, R)
    preferred = [
        replace(each, spec=replace(each.spec, priority=90 - at)) for at, each in enumerate((one, four, any_number))
    ]
    made = plan(Query("m", 100, choices=choices), *preferred)
    assert isinstance(made, Plan)
    assert made.decode.worker.id[-1] == taken


@pytest.mark.parametrize(
    ("temperature", "default", "is_taken"),
    [(0.0, None, False), (0.5, None, True), (None, 0.0, False), (None, 0.7, True), (None, None, True)],
)
def test_greedy_choices_have_a_limit_of_their_own(
    temperature: float | None, default: float | None, is_taken: bool
) -> None:
    said = {} if default is None else {"temperature": default}
    made = plan(
        Query("m", 100, choices=2, temperature=temperature), worker(1, R, max_greedy_choices=1, default_sampling=said)
    )
    assert isinstance(made, Plan) is is_taken
