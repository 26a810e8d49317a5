"""What a real router exports while real engines serve: every documented metric moves, and none is undocumented."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf import duration_pb2
from tests.e2e.processes import EngineProcess, RouterProcess, eventually
from tests.telemetry.dashboard import queries, samples_asked
from tests.telemetry.documented import Documented, documented_metrics
from tests.telemetry.scraping import Samples, scrape

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("telemetry")]

PROMPT = "alphabet from a to z:"


@dataclass
class Watched:
    """Samples that changed between two scrapes, and all that were ever seen."""

    address: str
    moved: set[str] = field(default_factory=set)
    labels: dict[str, set[str]] = field(default_factory=dict)
    _last: Samples | None = None

    def rpcs(self) -> set[tuple[str, str, str]]:
        """(method, code, reason) of the calls that ended."""
        names = ("rpc_method", "rpc_response_status_code", "error_type")
        counted = [
            dict(labels) for name, labels in self._last or {} if name == "rpc_server_call_duration_seconds_count"
        ]
        return {(one[names[0]], one[names[1]], one[names[2]]) for one in counted}

    def look(self) -> None:
        now = scrape(self.address)
        for (name, labels), value in now.items():
            self.labels.setdefault(name, set()).update(key for key, _ in labels)
            before = 0.0 if self._last is None else self._last.get((name, labels), 0.0)
            if value != before:
                self.moved.add(name)
        self._last = now


def slow(engine: EngineProcess) -> None:
    engine.set_faults(step_latency=duration_pb2.Duration(nanos=40_000_000))


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A router through whose life everything happened that metrics tell of."""
    router = RouterProcess("--quiet", "--set", "max_in_flight=1")
    engines: list[EngineProcess] = []
    try:
        found = Watched(router.where["metrics_listen"])
        found.look()
        engines += [EngineProcess("sglang", mode) for mode in ("prefill", "decode")]
        for engine in engines:
            router.add(engine)
        slow(engines[1])
        whole = router.request(text=PROMPT, temperature=0.0, max_tokens=24)
        threads = [threading.Thread(target=router.generate, args=(whole,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            time.sleep(0.2)
            found.look()
        for thread in threads:
            thread.join()
        router.generate(router.request(text=PROMPT, top_p=2.0))
        engines[1].set_faults(crash_at_token=3)
        assert router.generate(whole).error is not None

        def is_counted() -> bool:
            found.look()
            return any(code == "UNAVAILABLE" for _, code, _ in found.rpcs())

        eventually(is_counted, within_s=5, what="the lost request is counted")
        yield found
    finally:
        router.stop()
        for engine in engines:
            engine.stop()


@pytest.mark.parametrize("metric", documented_metrics(), ids=lambda metric: metric.name)
def test_a_documented_metric_moves(watched: Watched, metric: Documented) -> None:
    assert set(metric.samples) <= watched.moved


@pytest.mark.parametrize(
    ("code", "reason"), [("OK", ""), ("INVALID_ARGUMENT", "INVALID_REQUEST"), ("UNAVAILABLE", "WORKER_LOST")]
)
def test_every_rpc_is_counted_by_code_and_reason(watched: Watched, code: str, reason: str) -> None:
    assert ("tandem.v1.RouterService/Generate", code, reason) in watched.rpcs()


def test_no_metric_is_undocumented(watched: Watched) -> None:
    assert set(watched.labels) <= {name for metric in documented_metrics() for name in metric.samples}


def test_the_dashboard_asks_for_nothing_that_is_not_exported(watched: Watched) -> None:
    assert set().union(*(samples_asked(query) for _, query in queries())) <= set(watched.labels)


@pytest.mark.parametrize("metric", documented_metrics(), ids=lambda metric: metric.name)
def test_a_metric_has_its_documented_labels(watched: Watched, metric: Documented) -> None:
    for name in metric.samples:
        assert watched.labels[name] - {"le"} == set(metric.labels)


def test_a_wedged_loop_is_still_scraped_and_its_lag_shows() -> None:
    router = RouterProcess("--quiet", "--set", "debug_wedge_s=1.5")
    try:
        where = router.where["metrics_listen"]
        before = scrape(where).get(("tandem_loop_lag_seconds_sum", ()), 0.0)
        router.process.send_signal(signal.SIGUSR2)
        began = time.monotonic()
        scrape(where)
        assert time.monotonic() - began < 1.4
        eventually(
            lambda: scrape(where).get(("tandem_loop_lag_seconds_sum", ()), 0.0) - before > 1.0,
            within_s=5,
            what="the lag is seen",
        )
    finally:
        router.stop()


def test_each_ended_request_is_one_line_of_json_on_stderr(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        router = RouterProcess(stderr=log)
        engines = [EngineProcess("vllm", mode) for mode in ("prefill", "decode")]
        try:
            for engine in engines:
                router.add(engine)
            request = router.request(text=PROMPT, temperature=0.0, max_tokens=8)
            request.request_id = "seen-in-the-log"
            finished = router.generate(request).finished
            router.generate(router.request(text=PROMPT, model="nobody"))
        finally:
            router.stop()
            for engine in engines:
                engine.stop()
        log.seek(0)
        good, bad = (json.loads(line) for line in log if line.startswith("{"))
    assert (good["request_id"], good["code"], good["completion_tokens"]) == ("seen-in-the-log", "OK", 8)
    phases = good["phases"]
    assert sum(phases.values()) - phases["total_s"] == pytest.approx(phases["total_s"], abs=1e-5)
    assert finished is not None
    assert good["attempts"][0]["pair_id"] == finished.served_by.pair_id
    assert (bad["code"], bad["reason"]) == ("NOT_FOUND", "MODEL_NOT_FOUND")
