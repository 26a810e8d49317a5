"""Who is asked for tokens where some workers of the model make vectors, and what is said when all of them do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.ids import RankKey
from tandem_router.model.request import ConstraintKind, ServingMode
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.policies.explain import explain
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

PLANNER = Planner(RuntimeSettings(), LeastInFlight())
QUERY = Query("m", 4)
TOKENS = worker(1, WorkerType.REGULAR)
VECTORS = worker(2, WorkerType.REGULAR, can_generate=False, can_embed=True, supports_seed=False)
PREFILL = worker(3, WorkerType.PREFILL)
DECODE = worker(4, WorkerType.DECODE)
UNREAD = replace(TOKENS, status=WorkerStatus.PENDING, facts=None, spec=replace(TOKENS.spec, models=TOKENS.models))
ADAPTED = replace(
    VECTORS,
    facts=replace(VECTORS.facts, applies_adapters=True, adapters=(LoadedAdapter("poet", "1", "/poet"),)),
)


def idle(key: RankKey) -> int:
    return 0


def busy_tokens(key: RankKey) -> int:
    return 9 if key.worker_id == TOKENS.id else 0


def placed(*workers: Worker, **changes: Any) -> Plan | Refusal:
    return PLANNER.plan(replace(QUERY, **changes), fleet(*workers), busy_tokens, random=0.0)


@pytest.mark.parametrize("mode", [None, ServingMode.AGGREGATED])
def test_an_idle_worker_that_only_embeds_is_passed_over(mode: ServingMode | None) -> None:
    plan = placed(VECTORS, TOKENS, serving_mode=mode)
    assert isinstance(plan, Plan)
    assert plan.decode.worker.id == TOKENS.id
    assert [(one.worker_id, one.reason) for one in plan.rejections] == [(VECTORS.id, "CANNOT_GENERATE")]


def test_a_pair_is_taken_beside_a_worker_that_only_embeds() -> None:
    plan = placed(VECTORS, PREFILL, DECODE)
    assert isinstance(plan, Plan)
    assert (plan.decode.worker.id, plan.prefill is not None) == (DECODE.id, True)


@pytest.mark.parametrize("half", [WorkerType.PREFILL, WorkerType.DECODE])
def test_a_worker_that_only_embeds_is_no_half_of_a_pair(half: WorkerType) -> None:
    other = PREFILL if half is WorkerType.DECODE else DECODE
    refusal = placed(worker(8, half, can_generate=False), other)
    assert isinstance(refusal, Refusal)
    assert refusal.failure.reason is Reason.NO_READY_WORKER


REFUSALS: list[tuple[str, tuple[Worker, ...], dict[str, Any], Reason, str | None]] = [
    ("vectors only", (VECTORS,), {}, Reason.RUNTIME_CANNOT_GENERATE, "model"),
    (
        "vectors only, not ready",
        (replace(VECTORS, status=WorkerStatus.NOT_READY),),
        {},
        Reason.RUNTIME_CANNOT_GENERATE,
        "model",
    ),
    (
        "target makes vectors",
        (VECTORS, TOKENS),
        {"target_worker_id": VECTORS.id},
        Reason.RUNTIME_CANNOT_GENERATE,
        "target_worker.worker_id",
    ),
    ("nobody ready", (VECTORS, replace(TOKENS, status=WorkerStatus.NOT_READY)), {}, Reason.NO_READY_WORKER, None),
    ("not read yet", (VECTORS, UNREAD), {}, Reason.NO_READY_WORKER, None),
    (
        "no seed beside vectors",
        (VECTORS, worker(6, WorkerType.REGULAR, supports_seed=False)),
        {"needs_seed": True},
        Reason.RUNTIME_CANNOT_SEED,
        "sampling.seed",
    ),
    (
        "no constraint beside vectors",
        (VECTORS, TOKENS),
        {"constraint": ConstraintKind.REGEX},
        Reason.RUNTIME_CANNOT_CONSTRAIN,
        "constraint",
    ),
    (
        "an adapter of vectors",
        (ADAPTED, TOKENS),
        {"adapters": ("poet",)},
        Reason.RUNTIME_CANNOT_APPLY_ADAPTERS,
        "adapters",
    ),
]


@pytest.mark.parametrize(
    ("workers", "changes", "reason", "field"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_nobody_for_tokens(
    workers: tuple[Worker, ...], changes: dict[str, Any], reason: Reason, field: str | None
) -> None:
    refusal = placed(*workers, **changes)
    assert isinstance(refusal, Refusal)
    assert (refusal.failure.reason, refusal.failure.field) == (reason, field)


def test_a_plan_that_is_explained_names_who_makes_no_tokens() -> None:
    told = explain(PLANNER, QUERY, fleet(VECTORS, TOKENS), idle, random=0.0, prompt_tokens=4)
    refused = [judged for judged in told.judged[WorkerType.REGULAR] if judged.refusal is not None]
    assert [(one.worker_id, one.refusal and one.refusal[0]) for one in refused] == [(VECTORS.id, "CANNOT_GENERATE")]
