"""A new engine takes one file in engines/, one line in its factory, tests and docs: docs/adding-an-engine.md, done.

The factory's line is put in by the fixture below, and nothing else in the router is touched; then the conformance suite
judges the engine, and a router serves it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from router_world import router
from tests.conformance.abacus_dialect import AbacusDialect
from tests.conformance.abacus_engine import abacus_engine

from tandem.v1 import job_pb2, worker_pb2, worker_service_pb2, worker_spec_pb2
from tandem_router.engines import registry
from tandem_router.engines.contract import Dialect
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import RuntimeType, WorkerSpec
from tandem_router.testing.conformance import Outcome, Target, check_engine
from tandem_router.transport import dialer

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-engine.md"


@pytest.fixture
def one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PROBE_ORDER` with `AbacusDialect(),` at its end."""
    longer: tuple[Dialect, ...] = (*registry.PROBE_ORDER, AbacusDialect())
    # The name is bound in the factory and where it is read.
    monkeypatch.setattr(registry, "PROBE_ORDER", longer)
    monkeypatch.setattr(dialer, "PROBE_ORDER", longer)


@pytest.mark.usefixtures("one_line")
async def test_the_suite_judges_an_engine_that_was_added() -> None:
    async with abacus_engine() as url:
        report = await check_engine(Target(WorkerSpec(url=url)), seed=1)
    assert [f"{one.check}: {one.finding}" for one in report.verdicts if one.outcome is Outcome.FAIL] == []
    found = {one.check: one for one in report.verdicts}
    assert found["connect/detected"].measured["runtime"] == RuntimeType.NATIVE
    assert found["stream/chunk-counts"].measured["counts"] == "running"
    assert found["stream/end-ids"].measured["end_ids"] == "none"
    passed = {one.check for one in report.verdicts if one.outcome is Outcome.PASS}
    stops = {"limits/stop-token-under-ignore-eos", "ending/abort-ends-the-stream", "ending/deadline"}
    assert {"answer/greedy-repeats", *stops} <= passed


@pytest.mark.usefixtures("one_line")
async def test_the_router_serves_an_engine_that_was_added() -> None:
    async with abacus_engine() as url, router() as world:
        spec = worker_spec_pb2.WorkerSpec(url=url, worker_type=worker_spec_pb2.WORKER_TYPE_REGULAR)
        created = await world.workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec))
        job = await world.job_end(created.job.id)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure.message
        await world.until_status(created.worker.id, worker_pb2.WORKER_STATUS_READY)
        answer = await world.generate(world.request(1, 2, model="beads", temperature=0.0))
        assert answer.tokens == {0: [3, 4, 5, 6]}, answer


async def test_without_the_line_it_is_an_engine_of_no_protocol() -> None:
    async with abacus_engine() as url:
        with pytest.raises(EngineFailure) as failed:
            await check_engine(Target(WorkerSpec(url=url)))
    assert failed.value.reason is Reason.RUNTIME_NOT_DETECTED


def test_the_page_names_the_files_that_show_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ("abacus_proto.py", "abacus_dialect.py", "abacus_engine.py", "test_adding_an_engine.py"):
        assert name in page
        assert (Path(__file__).parent / name).exists()
