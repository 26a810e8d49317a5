"""Health as probes see it: of a wedged loop, of a model whose worker dies, and by reflection alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.e2e.processes import EngineProcess, RouterProcess

pytestmark = pytest.mark.e2e

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
STALE_AFTER_S, WEDGE_S = 1.0, 3.0
LISTENERS = ("listen", "admin_listen", "health_listen")


@pytest.fixture(scope="module")
def router() -> Iterator[RouterProcess]:
    settings = {
        "health_stale_after_s": STALE_AFTER_S,
        "debug_wedge_s": WEDGE_S,
        "health.check_interval_s": 0.2,
    }
    started = RouterProcess(
        "--quiet", *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    )
    yield started
    started.stop()


def stub(router: RouterProcess, listener: str = "health_listen") -> Any:
    return health_pb2_grpc.HealthStub(router.channel(router.where[listener]))


def named(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


def test_wedged_loop_is_not_serving_within_its_stated_time_and_serves_again_after(router: RouterProcess) -> None:
    health = stub(router)
    assert health.Check(named("liveness"), timeout=5).status == SERVING
    sent_s = time.monotonic()
    router.process.send_signal(signal.SIGUSR2)
    seen: list[tuple[float, int]] = []
    slowest_s = 0.0
    while time.monotonic() - sent_s < WEDGE_S + 5 and [status for _, status in seen] != [SERVING, NOT_SERVING, SERVING]:
        asked_s = time.monotonic()
        status = health.Check(named("liveness"), timeout=5).status
        slowest_s = max(slowest_s, time.monotonic() - asked_s)
        if not seen or seen[-1][1] != status:
            seen.append((time.monotonic() - sent_s, status))
        time.sleep(0.01)
    print(f"after SIGUSR2: {seen}; slowest answer {slowest_s:.3f} s")
    assert [status for _, status in seen] == [SERVING, NOT_SERVING, SERVING]
    # The last beat was before the signal; an answer takes a while on a busy machine.
    assert seen[1][0] < STALE_AFTER_S + 0.25
    assert WEDGE_S <= seen[2][0] < WEDGE_S + 1


def test_watch_of_a_wedged_loop_tells_of_it_within_a_quarter_more(router: RouterProcess) -> None:
    watch = stub(router).Watch(named(""), timeout=30)
    statuses = [next(watch).status]
    sent_s = time.monotonic()
    router.process.send_signal(signal.SIGUSR2)
    statuses.append(next(watch).status)
    told_s = time.monotonic() - sent_s
    statuses.append(next(watch).status)
    watch.cancel()
    assert statuses == [SERVING, NOT_SERVING, SERVING]
    assert told_s < 1.25 * STALE_AFTER_S + 0.25


def test_model_is_unknown_then_serves_then_does_not_when_its_worker_dies(router: RouterProcess) -> None:
    engine = EngineProcess("vllm", "aggregated", "--served-model-name", "mortal")
    watches = [stub(router, listener).Watch(named("model/mortal"), timeout=60) for listener in LISTENERS]
    try:
        statuses = [[next(watch).status] for watch in watches]
        router.add(engine)
        for watch, seen in zip(watches, statuses, strict=True):
            while SERVING not in seen:
                seen.append(next(watch).status)
        engine.kill()
        for watch, seen in zip(watches, statuses, strict=True):
            seen.append(next(watch).status)
            watch.cancel()
    finally:
        engine.stop()
    # Between its registration and its readiness the model may be known and not serve.
    kept = [[status for status in seen[:-1] if status != NOT_SERVING] + seen[-1:] for seen in statuses]
    assert kept == [[UNKNOWN, SERVING, NOT_SERVING]] * len(LISTENERS)


def curl(address: str, method: str, data: dict[str, object], *flags: str) -> list[Any]:
    """The messages that `buf curl` prints, knowing nothing but the address."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf is not None, "buf-bin is a dev dependency"
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(data), *flags]
    done = subprocess.run(
        [*command, f"http://{address}/{method}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    decoder, text, messages = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].strip()
    return messages


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
@pytest.mark.parametrize("listener", LISTENERS)
def test_reflection_client_checks_health_on_every_listener(router: RouterProcess, listener: str, version: str) -> None:
    flags = ("--reflect-protocol", version)
    answer = curl(router.where[listener], "grpc.health.v1.Health/Check", {"service": "readiness"}, *flags)
    assert answer == [{"status": "SERVING"}]


@pytest.mark.parametrize("listener", LISTENERS)
def test_reflection_client_lists_every_name(router: RouterProcess, listener: str) -> None:
    (answer,) = curl(router.where[listener], "grpc.health.v1.Health/List", {})
    names = {name for name in answer["statuses"] if not name.startswith("model/")}
    assert names == {
        "", "liveness", "readiness", "tandem.v1.RouterService", "tandem.v1.WorkerService", "tandem.v1.JobService",
        "tandem.v1.PairService", "tandem.v1.AdapterService", "tandem.v1.CacheService", "tandem.v1.ProfileService",
    }  # fmt: skip


def test_channelz_shows_the_three_listeners_to_a_reflection_client(router: RouterProcess) -> None:
    (answer,) = curl(router.where["admin_listen"], "grpc.channelz.v1.Channelz/GetServers", {})
    assert [len(server["listenSocket"]) for server in answer["server"]] == [1, 1, 1]
