"""The dry run chooses what the real one chooses and names everything that it looked at."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.explanation import Explanation
from tandem_router.model.ids import RankKey
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query
from tandem_router.policies.explain import explain
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

P, D, R = WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR
PLANNER = Planner(RuntimeSettings(), LeastInFlight())


def explained(*workers: Worker, random: float = 0.0, load: dict[str, int] | None = None) -> Explanation:
    def in_flight(key: RankKey) -> int:
        return (load or {}).get(key.worker_id, 0)

    return explain(PLANNER, Query("m", 100), fleet(*workers), in_flight, random=random, prompt_tokens=100)


@settings(deadline=None)  # two busy cores may pause any example
@given(
    kinds=st.lists(st.tuples(st.sampled_from([P, D, R]), st.booleans()), min_size=1, max_size=7),
    random=st.floats(0, 1, exclude_max=True),
)
def test_the_dry_run_picks_what_the_planner_picks(kinds: list[tuple[WorkerType, bool]], random: float) -> None:
    workers = [worker(n, kind, kv_block_size=16 if fits else 32) for n, (kind, fits) in enumerate(kinds, start=1)]
    shown = explained(*workers, random=random)
    made = PLANNER.plan(Query("m", 100), fleet(*workers), lambda key: 0, random=random)
    if isinstance(made, Plan):
        assert shown.decode == made.decode.key
        assert shown.prefill == (None if made.prefill is None else made.prefill.key)
        picked = [slot for role in shown.judged.values() for slot in role if slot.is_picked]
        assert len(picked) == (1 if made.prefill is None else 2)
    else:
        assert shown.failure == made.failure


@settings(deadline=None)
@given(kinds=st.lists(st.tuples(st.sampled_from([P, D, R]), st.sampled_from(list(WorkerStatus))), max_size=8))
def test_every_worker_of_the_model_is_accounted_for_once(kinds: list[tuple[WorkerType, WorkerStatus]]) -> None:
    workers = [worker(n, kind, status=status) for n, (kind, status) in enumerate(kinds, start=1)]
    shown = explained(*workers)
    seen = sorted(slot.worker_id for role in shown.judged.values() for slot in role)
    assert seen == sorted(each.id for each in workers)


def test_two_workers_that_do_not_fit_are_named_with_the_reason() -> None:
    shown = explained(worker(1, P), worker(2, D, kv_dtype="float16"))
    [clash] = shown.clashes
    assert clash.failure.reason is Reason.NO_COMPATIBLE_PAIR
    assert "kv_dtype" in clash.failure.sentence
    assert shown.serving_mode is None
    assert shown.failure is not None


def test_the_picked_slot_comes_first_and_the_rest_by_score() -> None:
    workers = [worker(1, P), worker(2, D), worker(3, D), worker(4, D)]
    shown = explained(*workers, load={workers[1].id: 4, workers[2].id: 2})
    assert [slot.worker_id[-1] for slot in shown.judged[D]] == ["4", "3", "2"]
    assert [slot.score for slot in shown.judged[D]] == [1.0, 0.5, 0.0]
