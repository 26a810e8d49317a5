"""Who is asked for vectors, and what is said when nobody can make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import fleet, worker

from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.ids import RankKey
from tandem_router.model.request import ServingMode
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Plan, Query, Refusal
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight

PLANNER = Planner(RuntimeSettings(), LeastInFlight())
QUERY = Query("m", 4, embeds=True, serving_mode=ServingMode.AGGREGATED)
VECTORS = worker(1, WorkerType.REGULAR, can_embed=True)
TOKENS = worker(2, WorkerType.REGULAR)
NOT_READY = replace(VECTORS, status=WorkerStatus.NOT_READY)
PREFILL = worker(3, WorkerType.PREFILL, can_embed=True)
DECODE = worker(4, WorkerType.DECODE, can_embed=True)
UNREAD = replace(VECTORS, status=WorkerStatus.PENDING, facts=None, spec=replace(VECTORS.spec, models=VECTORS.models))


def idle(key: RankKey) -> int:
    return 0


def placed(*workers: Worker, **changes: Any) -> Plan | Refusal:
    return PLANNER.plan(replace(QUERY, **changes), fleet(*workers), idle, random=0.0)


@pytest.mark.parametrize("others", [(TOKENS,), (PREFILL, DECODE), (TOKENS, PREFILL, DECODE)], ids=["1", "2", "3"])
def test_the_worker_that_can_embed_is_taken_among_those_that_cannot(others: tuple[Worker, ...]) -> None:
    plan = placed(*others, VECTORS)
    assert isinstance(plan, Plan)
    assert (plan.decode.worker.id, plan.prefill) == (VECTORS.id, None)


REFUSALS: list[tuple[str, tuple[Worker, ...], dict[str, Any], Reason]] = [
    ("tokens only", (TOKENS,), {}, Reason.RUNTIME_CANNOT_EMBED),
    ("halves of pairs", (PREFILL, DECODE), {}, Reason.RUNTIME_CANNOT_EMBED),
    ("tokens only, not ready", (replace(TOKENS, status=WorkerStatus.NOT_READY),), {}, Reason.RUNTIME_CANNOT_EMBED),
    ("not ready", (NOT_READY, TOKENS), {}, Reason.NO_READY_WORKER),
    ("not read yet", (UNREAD,), {}, Reason.NO_READY_WORKER),
    ("target makes none", (VECTORS, TOKENS), {"target_worker_id": TOKENS.id}, Reason.RUNTIME_CANNOT_EMBED),
    ("target is a prefill", (VECTORS, PREFILL), {"target_worker_id": PREFILL.id}, Reason.RUNTIME_CANNOT_EMBED),
    ("target is not ready", (NOT_READY, TOKENS), {"target_worker_id": VECTORS.id}, Reason.NO_READY_WORKER),
    ("target is unknown", (VECTORS,), {"target_worker_id": TOKENS.id}, Reason.WORKER_NOT_FOUND),
    ("no adapters", (VECTORS,), {"adapters": ("poet",)}, Reason.RUNTIME_CANNOT_APPLY_ADAPTERS),
]


@pytest.mark.parametrize(
    ("workers", "changes", "reason"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_nobody_for_a_vector(workers: tuple[Worker, ...], changes: dict[str, Any], reason: Reason) -> None:
    refusal = placed(*workers, **changes)
    assert isinstance(refusal, Refusal)
    assert refusal.failure.reason is reason


def test_a_target_that_can_is_taken() -> None:
    other = worker(9, WorkerType.REGULAR, can_embed=True)
    plan = placed(other, VECTORS, target_worker_id=VECTORS.id)
    assert isinstance(plan, Plan)
    assert plan.decode.worker.id == VECTORS.id


def test_adapters_are_looked_for_among_those_that_can_embed() -> None:
    adapted = worker(
        5, WorkerType.REGULAR, can_embed=True, applies_adapters=True, adapters=(LoadedAdapter("poet", "1", "/poet"),)
    )
    plan = placed(VECTORS, adapted, adapters=("poet",))
    assert isinstance(plan, Plan)
    assert plan.decode.worker.id == adapted.id
    refusal = placed(VECTORS, adapted, adapters=("nobody",))
    assert isinstance(refusal, Refusal)
    assert (refusal.failure.reason, refusal.failure.field) == (Reason.ADAPTER_NOT_FOUND, "adapters[0].name")


def test_tokens_may_still_come_from_a_worker_that_can_embed() -> None:
    plan = placed(VECTORS, embeds=False)
    assert isinstance(plan, Plan)
    assert plan.decode.worker.id == VECTORS.id
