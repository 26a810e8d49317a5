"""Workers, jobs, pairs and models as operators and clients read them."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import json_format
from tests.services.fakes import J1, W1, W2, House
from tests.services.test_services_guard import refused

from tandem.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    pair_service_pb2,
    pair_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
    worker_spec_pb2,
)
from tandem_router.errors import Reason


async def list_workers(house: House, **fields: object) -> worker_service_pb2.ListWorkersResponse:
    request = worker_service_pb2.ListWorkersRequest()
    json_format.ParseDict(fields, request)
    return await worker_service_pb2_grpc.WorkerServiceStub(house.admin).ListWorkers(request)


async def test_create_hands_over_spec_credentials_and_request_id(house: House) -> None:
    stub = worker_service_pb2_grpc.WorkerServiceStub(house.admin)
    answer = await stub.CreateWorker(
        worker_service_pb2.CreateWorkerRequest(
            spec=worker_spec_pb2.WorkerSpec(url="grpc://h:1"),
            credentials=worker_spec_pb2.WorkerCredentials(api_key="k"),
            request_id="once",
        )
    )
    spec, credentials, request_id = house.registry.created[0]
    assert (spec.url, credentials and credentials.api_key, request_id, answer.job.id) == ("grpc://h:1", "k", "once", J1)


async def test_create_without_spec_names_the_missing_url(house: House) -> None:
    stub = worker_service_pb2_grpc.WorkerServiceStub(house.admin)
    code, error, _ = await refused(stub.CreateWorker(worker_service_pb2.CreateWorkerRequest()))
    assert (code, error and error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "spec.url")


async def test_get_shows_the_current_job(house: House) -> None:
    stub = worker_service_pb2_grpc.WorkerServiceStub(house.admin)
    answer = await stub.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=W1))
    assert answer.worker.current_job.id == J1


async def test_list_carries_the_store_s_revision(house: House) -> None:
    assert (await list_workers(house)).revision == 7


async def test_list_goes_on_where_the_page_before_ended(house: House) -> None:
    first = await list_workers(house, pageSize=1)
    second = await list_workers(house, pageSize=1, pageToken=first.next_page_token)
    ids = [worker.id for page in (first, second) for worker in page.workers]
    assert (ids, second.next_page_token) == ([W1, W2], "")


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({"workerTypes": ["WORKER_TYPE_DECODE"]}, [W2]),
        ({"model": "tiny-alias"}, [W1, W2]),
        ({"model": "other"}, []),
        ({"statuses": ["WORKER_STATUS_FAILED"]}, []),
        ({"runtimeTypes": ["RUNTIME_TYPE_SGLANG"]}, [W1, W2]),
        ({"labels": {"kind": "PREFILL"}}, [W1]),
        ({"workerTypes": ["WORKER_TYPE_DECODE"], "labels": {"kind": "PREFILL"}}, []),
    ],
    ids=str,
)
async def test_list_keeps_what_matches_every_field(house: House, wanted: dict[str, object], ids: list[str]) -> None:
    assert [worker.id for worker in (await list_workers(house, filter=wanted)).workers] == ids


async def test_load_is_read_where_asked_for(house: House) -> None:
    with_load = (await list_workers(house, includeLoad=True)).workers[0].ranks[0]
    assert with_load.in_flight == 3


async def test_delete_hands_over_the_drain_timeout(house: House) -> None:
    request = worker_service_pb2.DeleteWorkerRequest(worker_id=W1)
    request.drain_timeout.FromMilliseconds(1500)
    answer = await worker_service_pb2_grpc.WorkerServiceStub(house.admin).DeleteWorker(request)
    assert (house.registry.deleted, answer.worker.id, answer.job.id) == ([(W1, 1.5, False)], W1, J1)


async def test_unknown_job_is_not_found(house: House) -> None:
    call = job_service_pb2_grpc.JobServiceStub(house.admin).GetJob(job_service_pb2.GetJobRequest(job_id="x"))
    code, error, _ = await refused(call)
    assert (code, error and error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)


@pytest.mark.parametrize(("state", "count"), [(job_pb2.JOB_STATE_RUNNING, 1), (job_pb2.JOB_STATE_FAILED, 0)])
async def test_jobs_are_listed_by_state(house: House, state: job_pb2.JobState.ValueType, count: int) -> None:
    stub = job_service_pb2_grpc.JobServiceStub(house.admin)
    answer = await stub.ListJobs(job_service_pb2.ListJobsRequest(states=[state]))
    assert len(answer.jobs) == count


async def test_jobs_are_listed_by_any_spelling_of_the_worker_s_id(house: House) -> None:
    stub = job_service_pb2_grpc.JobServiceStub(house.admin)
    answer = await stub.ListJobs(job_service_pb2.ListJobsRequest(worker_id=f"{{{W1}}}"))
    assert len(answer.jobs) == 1


async def test_pairs_are_listed_without_aggregated_requests(house: House) -> None:
    answer = await pair_service_pb2_grpc.PairServiceStub(house.admin).ListPairs(pair_service_pb2.ListPairsRequest())
    assert [(pair.id, pair.handoff.rendezvous.room.number) for pair in answer.pairs] == [("p", 1030)]


async def test_models_are_put_together_from_their_workers(house: House) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    model = (await stub.ListModels(router_service_pb2.ListModelsRequest())).models[0]
    assert (model.id, model.available, model.capacity.prefill_workers, model.capacity.decode_workers) == (
        "tiny", True, 1, 1,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tiny", "tiny-alias"])
async def test_model_is_read_by_id_or_alias(house: House, name: str) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    answer = await stub.GetModel(router_service_pb2.GetModelRequest(model=name))
    assert answer.model.id == "tiny"


async def test_unknown_model_is_not_found(house: House) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    _, error, _ = await refused(stub.GetModel(router_service_pb2.GetModelRequest(model="x")))
    assert error is not None
    assert (error.reason, error.metadata) == (Reason.MODEL_NOT_FOUND, {"model": "x"})


async def test_tokenize_and_detokenize_are_each_other_s_inverse(house: House) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    tokens = await stub.Tokenize(router_service_pb2.TokenizeRequest(text="ABC"))
    text = await stub.Detokenize(router_service_pb2.DetokenizeRequest(token_ids=tokens.token_ids))
    assert (list(tokens.token_ids), text.text) == ([65, 66, 67], "ABC")


async def test_chat_is_tokenized_as_its_template_renders_it(house: House) -> None:
    request = router_service_pb2.TokenizeRequest()
    json_format.ParseDict({"chat": {"messages": [{"role": "CHAT_ROLE_USER", "content": "A"}]}}, request)
    answer = await router_service_pb2_grpc.RouterServiceStub(house.public).Tokenize(request)
    assert answer.text == "<user>A"


async def test_token_outside_the_vocabulary_is_refused(house: House) -> None:
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    _, error, _ = await refused(stub.Detokenize(router_service_pb2.DetokenizeRequest(token_ids=[100])))
    assert error is not None
    assert error.reason is Reason.TOKEN_OUT_OF_VOCABULARY


async def test_tokenize_without_a_tokenizer_says_so(house: House) -> None:
    house.codecs.codec = None
    stub = router_service_pb2_grpc.RouterServiceStub(house.public)
    code, error, _ = await refused(stub.Tokenize(router_service_pb2.TokenizeRequest(text="A")))
    assert (code, error and error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION, Reason.TOKENIZER_UNAVAILABLE,
    )  # fmt: skip
