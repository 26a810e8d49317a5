"""Changes of workers and jobs as they arrive from the wire and go back to it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tests.services.fakes import J1, W1, W2, House, worker
from tests.services.test_services_guard import refused

from tandem.v1 import job_service_pb2, job_service_pb2_grpc, worker_pb2, worker_service_pb2, worker_service_pb2_grpc
from tandem_router.errors import Reason
from tandem_router.model.spec import WorkerType
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import CredentialsPatch


def workers(house: House) -> Any:
    return worker_service_pb2_grpc.WorkerServiceStub(house.admin)


def update(**fields: object) -> worker_service_pb2.UpdateWorkerRequest:
    request = worker_service_pb2.UpdateWorkerRequest(worker_id=W1)
    json_format.ParseDict(fields, request)
    return request


@pytest.mark.parametrize(
    ("fields", "patch"),
    [
        ({"spec": {"labels": {"a": "1"}, "kvBlockSize": 9}, "updateMask": "labels"}, SpecPatch({}, {"a": "1"})),
        (
            {"spec": {"health": {"timeout": "3s"}}, "updateMask": "health.timeout,kvBlockSize"},
            SpecPatch({("health", "timeout_s"): 3.0, ("kv_block_size",): None}),
        ),
        ({"spec": {"dpRank": 2}, "updateMask": "dpRank"}, SpecPatch({("dp_rank",): 2})),
        (
            {"spec": {"workerType": "WORKER_TYPE_DECODE"}, "updateMask": "workerType"},
            SpecPatch({("worker_type",): WorkerType.DECODE}),
        ),
        ({"removeLabels": ["a"]}, SpecPatch(remove_labels=("a",))),
        ({"spec": {"kvBlockSize": 9}}, SpecPatch()),
    ],
    ids=str,
)
async def test_update_carries_out_what_the_mask_names_and_nothing_else(
    house: House, fields: dict[str, object], patch: SpecPatch
) -> None:
    await workers(house).UpdateWorker(update(**fields))
    assert house.registry.calls == [("update", W1, patch, None, None)]


@pytest.mark.parametrize("path", ["speed", "url", "agent", "labels.a", "health.speed", "worker_type.x", "models.id"])
async def test_update_names_the_path_that_is_none_or_cannot_change(house: House, path: str) -> None:
    request = worker_service_pb2.UpdateWorkerRequest(worker_id=W1)
    request.update_mask.paths.append(path)
    code, error, message = await refused(workers(house).UpdateWorker(request))
    assert (code, error and error.field, house.registry.calls) == (grpc.StatusCode.INVALID_ARGUMENT, "update_mask", [])
    assert f'"{path}"' in message


async def test_update_checks_the_values_it_takes(house: House) -> None:
    request = update(spec={"health": {"timeout": "-1s"}}, updateMask="health.timeout")
    _, error, _ = await refused(workers(house).UpdateWorker(request))
    assert error is not None
    assert error.field == "spec.health.timeout"


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (None, None),
        ({}, CredentialsPatch()),
        ({"apiKey": ""}, CredentialsPatch("")),
        ({"apiKey": "k"}, CredentialsPatch("k")),
    ],
    ids=str,
)
async def test_absent_credentials_are_kept_and_empty_ones_deleted(
    house: House, credentials: dict[str, str] | None, expected: CredentialsPatch | None
) -> None:
    request = worker_service_pb2.ReplaceWorkerRequest(worker_id=W1, expected_generation=3)
    request.spec.url = "grpc://h:1"
    if credentials is not None:
        request.credentials.SetInParent()
        json_format.ParseDict(credentials, request.credentials)
    answer = await workers(house).ReplaceWorker(request)
    ((_, worker_id, spec, handed, generation),) = house.registry.calls
    assert (worker_id, spec.url, handed, generation, answer.job.id) == (W1, "grpc://h:1", expected, 3, J1)  # type: ignore[attr-defined]


async def test_drain_shows_deadline_reason_and_remaining_legs(house: House) -> None:
    request = worker_service_pb2.DrainWorkerRequest(worker_id=W1, reason="kernel", expected_generation=1)
    request.timeout.FromMilliseconds(1500)
    shown = (await workers(house).DrainWorker(request)).worker
    assert house.registry.calls == [("drain", W1, 1.5, "kernel", 1)]
    assert (shown.status, shown.drain.reason, shown.drain.remaining_legs) == (
        worker_pb2.WORKER_STATUS_DRAINING, "kernel", 2,
    )  # fmt: skip
    assert shown.drain.deadline.ToMilliseconds() == 10_500
    assert not shown.drain.HasField("drained_time")


async def test_undrain_and_delete_hand_over_the_expected_generation(house: House) -> None:
    await workers(house).UndrainWorker(worker_service_pb2.UndrainWorkerRequest(worker_id=W1, expected_generation=0))
    await workers(house).DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker_id=W1, expected_generation=7))
    assert house.registry.calls == [("undrain", W1, 0), ("delete", W1, None, False, 7)]


async def test_cancel_shows_that_it_was_asked_for(house: House) -> None:
    stub = job_service_pb2_grpc.JobServiceStub(house.admin)
    job = (await stub.CancelJob(job_service_pb2.CancelJobRequest(job_id=J1, reason="enough"))).job
    assert (house.registry.calls, job.cancel_requested) == ([("cancel", J1, "enough")], True)


async def test_counts_are_of_all_that_match_and_not_of_the_page(house: House) -> None:
    answer = await workers(house).ListWorkers(worker_service_pb2.ListWorkersRequest(page_size=1))
    counts = [(count.worker_type, count.status, count.count) for count in answer.counts]
    assert len(answer.workers) == 1
    assert counts == [(2, worker_pb2.WORKER_STATUS_READY, 1), (3, worker_pb2.WORKER_STATUS_READY, 1)]


async def test_a_page_goes_on_behind_a_worker_that_was_deleted_meanwhile(house: House) -> None:
    first = await workers(house).ListWorkers(worker_service_pb2.ListWorkersRequest(page_size=1))
    assert [one.id for one in first.workers] == [W1]
    house.registry.workers = [one for one in house.registry.workers if one.id != W1]
    newer = worker("00000000-0000-4000-8000-000000000000", WorkerType.DECODE, created_at_s=0.5)
    house.registry.workers.append(newer)
    request = worker_service_pb2.ListWorkersRequest(page_size=5, page_token=first.next_page_token)
    second = await workers(house).ListWorkers(request)
    assert ([one.id for one in second.workers], second.next_page_token) == ([W2], "")


@pytest.mark.parametrize("token", ["", "x", "%%%", "AAAA"])
async def test_a_token_of_other_arguments_is_refused(house: House, token: str) -> None:
    if not token:
        first = await workers(house).ListWorkers(worker_service_pb2.ListWorkersRequest(page_size=1))
        token = first.next_page_token
        assert token.replace("-", "").replace("_", "").isalnum(), "it fits a URL as it is"
    request = worker_service_pb2.ListWorkersRequest(page_token=token)
    request.filter.model = "tiny"
    _, error, _ = await refused(workers(house).ListWorkers(request))
    assert error is not None
    assert (error.reason, error.field) == (Reason.INVALID_REQUEST, "page_token")
