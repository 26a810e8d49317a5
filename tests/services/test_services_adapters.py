"""AdapterService: what reaches engines, what is shown, pages, and what is refused before any engine is asked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.fakes import House
from tests.services.operated import A, B, refusal

from tandem.v1 import adapter_service_pb2 as pb
from tandem.v1 import adapter_service_pb2_grpc
from tandem_router.errors import Reason
from tandem_router.model.operations import LoadAdapter
from tandem_router.model.selection import WorkerSelection

NOBODY: Any = {}


def stub(house: House) -> Any:
    return adapter_service_pb2_grpc.AdapterServiceStub(house.admin)


def load(**fields: Any) -> pb.LoadAdapterRequest:
    return pb.LoadAdapterRequest(**{"name": "de", "path": "/a/de", "workers": {"model": "m"}, **fields})


async def test_a_load_shows_the_adapter_and_how_each_worker_did(house: House) -> None:
    answer = await stub(house).LoadAdapter(load(pinned=True))
    [(asked, selection, _)] = house.engines.asked
    assert (asked, selection) == (LoadAdapter("de", "/a/de", True), WorkerSelection(model="m"))
    [placement] = answer.adapter.placements
    assert (placement.worker_id, placement.engine_id, placement.path, placement.pinned) == (
        A,
        "id-de",
        "/adapters/de",
        True,
    )
    assert [outcome.failure.reason for outcome in answer.outcomes] == ["", "ENGINE_ERROR"]


@pytest.mark.parametrize(
    ("fields", "selection"),
    [({}, None), ({"workers": {"worker_ids": [B]}}, WorkerSelection((B,)))],
    ids=["everywhere", "one worker"],
)
async def test_an_unload_without_a_selection_means_all_that_have_it(
    house: House, fields: dict[str, Any], selection: WorkerSelection | None
) -> None:
    await stub(house).UnloadAdapter(pb.UnloadAdapterRequest(name="de", **fields))
    [(name, asked, _)] = house.engines.asked
    assert (name, asked) == ("de", selection)


async def test_pages_go_through_all_adapters_by_name(house: House) -> None:
    names: list[str] = []
    token = ""
    while True:
        answer = await stub(house).ListAdapters(pb.ListAdaptersRequest(page_size=2, page_token=token, model="m"))
        names += [adapter.name for adapter in answer.adapters]
        token = answer.next_page_token
        if not token:
            break
    assert names == ["de", "fr", "nl"]
    assert house.engines.asked == [("m", None)] * 2


async def test_a_token_of_another_filter_is_refused(house: House) -> None:
    answer = await stub(house).ListAdapters(pb.ListAdaptersRequest(page_size=2, model="m"))
    error = await refusal(stub(house).ListAdapters(pb.ListAdaptersRequest(page_token=answer.next_page_token)))
    assert (error.reason, error.field) == (Reason.INVALID_REQUEST, "page_token")


async def test_a_worker_s_id_in_any_spelling_chooses_its_adapters(house: House) -> None:
    await stub(house).ListAdapters(pb.ListAdaptersRequest(worker_id=A.replace("-", "").upper()))
    assert house.engines.asked == [("", A)]


@pytest.mark.parametrize(
    ("method", "request_", "reason", "field"),
    [
        pytest.param("LoadAdapter", load(name=""), Reason.INVALID_REQUEST, "name", id="no name"),
        pytest.param("LoadAdapter", load(name="x" * 257), Reason.INVALID_REQUEST, "name", id="long name"),
        pytest.param("LoadAdapter", load(path=""), Reason.INVALID_REQUEST, "path", id="no path"),
        pytest.param("LoadAdapter", load(path="x" * 2049), Reason.INVALID_REQUEST, "path", id="long path"),
        pytest.param("LoadAdapter", load(workers={}), Reason.INVALID_REQUEST, "workers", id="nobody"),
        pytest.param("UnloadAdapter", pb.UnloadAdapterRequest(), Reason.INVALID_REQUEST, "name", id="unload nothing"),
        pytest.param(
            "UnloadAdapter",
            pb.UnloadAdapterRequest(name="de", workers=NOBODY),
            Reason.INVALID_REQUEST,
            "workers",
            id="an empty selection is not an absent one",
        ),
        pytest.param("GetAdapter", pb.GetAdapterRequest(), Reason.INVALID_REQUEST, "name", id="get nothing"),
        pytest.param(
            "ListAdapters",
            pb.ListAdaptersRequest(worker_id="x"),
            Reason.INVALID_WORKER_ID,
            "worker_id",
            id="list of no UUID",
        ),
    ],
)
async def test_what_is_out_of_range_asks_no_engine(
    house: House, method: str, request_: Any, reason: Reason, field: str
) -> None:
    error = await refusal(getattr(stub(house), method)(request_))
    assert (error.reason, error.field) == (reason, field)
    assert house.engines.asked == []
