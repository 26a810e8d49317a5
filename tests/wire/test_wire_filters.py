"""Filters that name a value which no thing can have are refused, in lists and in watches."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.v1 import job_service_pb2, pair_service_pb2, worker_service_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.wire.filters import checked_job_filter, checked_pair_filter, checked_worker_filter

Workers: Any = worker_service_pb2.WorkerFilter
Jobs: Any = job_service_pb2.ListJobsRequest
Pairs: Any = pair_service_pb2.PairFilter

UNKNOWN: list[tuple[Any, Any, str]] = [
    (checked_worker_filter, Workers(worker_types=[1, 99]), "filter.worker_types[1]"),
    (checked_worker_filter, Workers(worker_types=[0]), "filter.worker_types[0]"),
    (checked_worker_filter, Workers(statuses=[99]), "filter.statuses[0]"),
    (checked_worker_filter, Workers(runtime_types=[99]), "filter.runtime_types[0]"),
    (checked_job_filter, Jobs(states=[99]), "states[0]"),
    (checked_job_filter, Jobs(types=[99]), "types[0]"),
    (checked_pair_filter, Pairs(states=[99]), "filter.states[0]"),
    (checked_pair_filter, Pairs(worker_id="x"), "filter.worker_id"),
]


@pytest.mark.parametrize(
    ("checked", "wanted", "path"), UNKNOWN, ids=[f"{type(row[1]).__name__} {row[2]}" for row in UNKNOWN]
)
def test_unknown_value_is_refused_by_path(checked: Any, wanted: Any, path: str) -> None:
    with pytest.raises(TandemError) as refused:
        checked(wanted)
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_REQUEST, path)


@pytest.mark.parametrize(
    ("checked", "wanted"),
    [
        (checked_worker_filter, Workers(worker_types=[1], statuses=[2, 3], runtime_types=[5])),
        (checked_job_filter, Jobs(states=[1], types=[2])),
        (checked_pair_filter, Pairs(states=[1])),
    ],
    ids=["workers", "jobs", "pairs"],
)
def test_known_values_pass_as_they_are(checked: Any, wanted: Any) -> None:
    assert checked(wanted) is wanted
