"""Adapters of a fleet: engines are asked, and what they say becomes their workers' facts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.policies.fleet import worker
from tests.runtime.operated_engines import OperatedFleet

from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import LoadAdapter
from tandem_router.model.selection import WorkerSelection
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import WorkerStatus

R = WorkerType.REGULAR
M = WorkerSelection(model="m")
DE = LoadAdapter("de", "/a/de")


def fleet_of(count: int = 2, **facts: Any) -> OperatedFleet:
    return OperatedFleet(*(worker(number, R, **{"applies_adapters": True, **facts}) for number in range(1, count + 1)))


def test_a_loaded_adapter_is_in_the_facts_before_the_answer() -> None:
    fleet = fleet_of()
    adapter, outcomes = fleet.play(fleet.adapters.load(DE, M, None))
    assert [one.message for one in outcomes] == ["loaded", "loaded"]
    assert (fleet.known(0), fleet.known(1)) == (["de"], ["de"])
    assert [(worker_id, loaded.engine_id, loaded.path) for worker_id, loaded in adapter.placements] == [
        (each, "id-de", "/a/de") for each in fleet.snapshot
    ]


def test_what_is_loaded_from_the_same_path_is_left_alone() -> None:
    fleet = fleet_of()
    fleet.hold(0, "de")
    _, outcomes = fleet.play(fleet.adapters.load(DE, M, None))
    assert [one.failure for one in outcomes] == [None, None]
    assert fleet.engine(0).verbs == ["ListAdapters"]
    assert fleet.known(0) == ["de"]


def test_another_path_under_the_name_is_the_engine_s_to_refuse() -> None:
    fleet = fleet_of()
    fleet.hold(0, "de")
    _, (refused, good) = fleet.play(fleet.adapters.load(LoadAdapter("de", "/other"), M, None))
    assert good.failure is None
    assert refused.failure is not None
    assert refused.failure.reason is Reason.ENGINE_ERROR


def test_an_unload_without_a_selection_reaches_what_was_loaded_past_the_router() -> None:
    fleet = fleet_of(3)
    fleet.hold(1, "de", "fr")
    outcomes = fleet.play(fleet.adapters.unload("de", None, None))
    assert [one.worker_id for one in outcomes] == [list(fleet.snapshot)[1]]
    assert fleet.known(1) == ["fr"]
    assert fleet.engine(0).verbs == ["ListAdapters"]


def test_an_unload_without_a_selection_tells_of_a_holder_that_cannot_be_asked() -> None:
    """Drained today and undrained tomorrow, it would be sent requests for the adapter again."""
    loaded = (LoadedAdapter("de", "id-de", "/a/de"),)
    fleet = OperatedFleet(
        worker(1, R, applies_adapters=True),
        worker(2, R, applies_adapters=True, adapters=loaded, status=WorkerStatus.DRAINING),
        worker(3, R, applies_adapters=True, status=WorkerStatus.DRAINING),
    )
    fleet.hold(0, "de")
    first, second = fleet.play(fleet.adapters.unload("de", None, None))
    assert (first.message, first.failure) == ("unloaded", None)
    assert second.worker_id == list(fleet.snapshot)[1]
    assert second.failure is not None
    assert (second.failure.reason, second.failure.sentence) == (Reason.NO_READY_WORKER, "its status is DRAINING")


def test_a_fleet_with_nobody_to_ask_has_no_adapters() -> None:
    fleet = OperatedFleet(worker(1, R, applies_adapters=True, status=WorkerStatus.NOT_READY))

    async def scene() -> None:
        assert await fleet.adapters.list() == ()
        await fleet.adapters.unload("de", None, None)

    with pytest.raises(TandemError) as refused:
        fleet.play(scene())
    assert refused.value.reason is Reason.ADAPTER_NOT_FOUND


def test_a_selected_worker_without_the_adapter_has_nothing_to_do() -> None:
    fleet = fleet_of()
    fleet.hold(0, "de")
    outcomes = fleet.play(fleet.adapters.unload("de", M, None))
    assert [(one.message, one.failure) for one in outcomes] == [("unloaded", None), ("", None)]


@pytest.mark.parametrize("selection", [None, M], ids=["everywhere", "selected"])
def test_unloading_what_nobody_has_is_refused(selection: WorkerSelection | None) -> None:
    fleet = fleet_of()
    with pytest.raises(TandemError) as refused:
        fleet.play(fleet.adapters.unload("de", selection, None))
    assert refused.value.reason is Reason.ADAPTER_NOT_FOUND


def test_an_engine_that_could_not_be_asked_is_not_taken_for_one_without_the_adapter() -> None:
    fleet = fleet_of()
    fleet.engine(0).fails = EngineFailure(Reason.WORKER_LOST, "gone", connection_lost=True)
    outcomes = fleet.play(fleet.adapters.unload("de", M, None))
    assert outcomes[0].failure is not None
    assert outcomes[0].failure.reason is Reason.WORKER_LOST


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_engines_without_the_rpc_say_so(verb: str) -> None:
    fleet = fleet_of()
    for number in range(2):
        fleet.engine(number).manages_adapters = False
    call = fleet.adapters.load(DE, M, None) if verb == "load" else fleet.adapters.unload("de", M, None)
    with pytest.raises(TandemError) as refused:
        fleet.play(call)
    assert refused.value.reason is Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS


def test_a_list_shows_what_engines_say_now_by_name() -> None:
    fleet = fleet_of()
    fleet.hold(0, "fr", "de")
    fleet.hold(1, "de")
    shown = fleet.play(fleet.adapters.list())
    first, second = fleet.snapshot
    assert [(one.name, [worker_id for worker_id, _ in one.placements]) for one in shown] == [
        ("de", [first, second]),
        ("fr", [first]),
    ]


def test_an_engine_that_does_not_answer_a_list_is_shown_as_it_was() -> None:
    fleet = fleet_of()
    fleet.hold(0, "de")

    async def scene() -> list[str]:
        await fleet.adapters.list()
        fleet.engine(0).takes_s = 1000.0
        return [one.name for one in await fleet.adapters.list()]

    assert fleet.play(scene()) == ["de"]
    assert fleet.took_s < 5.1


def test_a_list_asks_only_engines_that_can_have_adapters_and_are_meant() -> None:
    fleet = OperatedFleet(
        worker(1, R, applies_adapters=True),
        worker(2, R, applies_adapters=True, lists_adapters=False),
        worker(3, R, applies_adapters=True, status=WorkerStatus.NOT_READY),
        worker(4, R, applies_adapters=True, model_id="other"),
    )

    async def scene() -> list[list[int]]:
        seen = []
        for chosen in ({"model": "m"}, {"worker_id": list(fleet.snapshot)[3]}):
            await fleet.adapters.list(**chosen)
            seen.append([len(fleet.engine(number).asked) for number in range(4)])
        return seen

    assert fleet.play(scene()) == [[1, 0, 0, 0], [1, 0, 0, 1]]


def test_get_refuses_an_unknown_name() -> None:
    fleet = fleet_of()
    fleet.hold(0, "de")

    async def scene() -> None:
        assert (await fleet.adapters.get("de")).name == "de"
        await fleet.adapters.get("fr")

    with pytest.raises(TandemError) as refused:
        fleet.play(scene())
    assert (refused.value.reason, refused.value.metadata["adapter"]) == (Reason.ADAPTER_NOT_FOUND, "fr")


def test_facts_that_have_not_changed_are_not_recorded_again() -> None:
    fleet = fleet_of(1)
    fleet.hold(0, "de")

    async def scene() -> None:
        for _ in range(3):
            await fleet.adapters.list()

    fleet.play(scene())
    assert len(fleet.submitted) == 1


def test_two_loads_at_once_on_one_engine_both_stay_in_its_facts() -> None:
    fleet = fleet_of(1)

    async def both() -> None:
        loads = [fleet.adapters.load(LoadAdapter(name, f"/a/{name}"), M, None) for name in ("de", "fr", "nl")]
        await asyncio.gather(*loads, fleet.adapters.list())

    fleet.play(both())
    assert sorted(fleet.known(0)) == ["de", "fr", "nl"]
    assert fleet.engine(0).most_running == 1
