"""Operators' verbs on real engine processes: an adapter changes answers over a pair and alone, caches, profiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, eventually, system
from tests.engine.adapter_folders import write_adapter

from tandem.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    cache_service_pb2,
    cache_service_pb2_grpc,
    generate_pb2,
    pair_service_pb2,
    profile_service_pb2,
    profile_service_pb2_grpc,
    worker_service_pb2,
)
from tandem_engine.config import ModelConfig
from tandem_engine.demo import MODEL_DIR
from tandem_router.errors import Reason, TandemError
from tandem_router.wire.status import decode

pytestmark = pytest.mark.e2e

PROMPT = "count from 7 to 12:"
Running = tuple[RouterProcess, list[EngineProcess], Path]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A SGLang-like pair and one that serves alone, and an adapter's folder."""
    with system("sglang", alone=True) as (router, prefills, decodes):
        folder = write_adapter(tmp_path_factory.mktemp("adapter"), ModelConfig.from_folder(MODEL_DIR), strength=1.0)
        yield router, [*prefills, *decodes], folder


class Admin:
    """The three services of a router, and errors as values."""

    def __init__(self, router: RouterProcess) -> None:
        channel = router.channel(router.where["admin_listen"])
        self.adapters: Any = adapter_service_pb2_grpc.AdapterServiceStub(channel)
        self.cache: Any = cache_service_pb2_grpc.CacheServiceStub(channel)
        self.profile: Any = profile_service_pb2_grpc.ProfileServiceStub(channel)

    def load(self, name: str, path: Path | str, **workers: Any) -> Any:
        asked: Any = adapter_service_pb2.LoadAdapterRequest
        return self.adapters.LoadAdapter(asked(name=name, path=str(path), workers=workers), timeout=60)

    def unload(self, name: str) -> Any:
        return self.adapters.UnloadAdapter(adapter_service_pb2.UnloadAdapterRequest(name=name), timeout=60)

    def listed(self) -> dict[str, list[str]]:
        answer = self.adapters.ListAdapters(adapter_service_pb2.ListAdaptersRequest(), timeout=60)
        return {one.name: [place.worker_id for place in one.placements] for one in answer.adapters}

    def flush(self, **workers: Any) -> Any:
        asked: Any = cache_service_pb2.FlushCacheRequest
        return self.cache.FlushCache(asked(workers=workers), timeout=60)


def refusal(error: grpc.RpcError) -> TandemError:
    found = decode([(str(key), value) for key, value in error.trailing_metadata() or ()])  # type: ignore[attr-defined]
    assert found is not None, error
    return found


def answered(router: RouterProcess, model: str, *adapters: str) -> list[int]:
    request = router.request(text=PROMPT, model=model, temperature=0, max_tokens=24)
    request.adapters.extend(generate_pb2.AdapterRef(name=name) for name in adapters)
    answer = router.generate(request)
    if answer.error is not None:
        raise answer.error
    return answer.tokens[0]


def test_an_adapter_is_loaded_used_on_both_legs_and_unloaded(running: Running) -> None:
    router, _, folder = running
    admin = Admin(router)
    plain = answered(router, "tandem-demo")
    with pytest.raises(grpc.RpcError) as refused:
        answered(router, "tandem-demo", "odd")
    assert refusal(refused.value).reason is Reason.ADAPTER_NOT_FOUND

    loaded = admin.load("odd", folder, model="tandem-demo")
    assert [one.HasField("failure") for one in loaded.outcomes] == [False, False]
    assert len(loaded.adapter.placements) == 2
    changed = answered(router, "tandem-demo", "odd")
    assert changed != plain
    assert answered(router, "tandem-demo") == plain

    # Alone it is the same model and adapter, so the same answer: the pair's KV was computed with the adapter too.
    with pytest.raises(grpc.RpcError) as refused:
        answered(router, "alone", "odd")
    assert refusal(refused.value).reason is Reason.ADAPTER_NOT_FOUND
    admin.load("odd", folder, model="alone")
    assert answered(router, "alone", "odd") == changed
    assert len(admin.listed()["odd"]) == 3

    assert len(admin.unload("odd").outcomes) == 3
    assert admin.listed() == {}
    with pytest.raises(grpc.RpcError) as refused:
        answered(router, "tandem-demo", "odd")
    assert refusal(refused.value).reason is Reason.ADAPTER_NOT_FOUND
    with pytest.raises(grpc.RpcError) as refused:
        admin.unload("odd")
    assert refusal(refused.value).reason is Reason.ADAPTER_NOT_FOUND


def test_a_repeated_load_does_nothing_and_a_bad_folder_says_the_engine_s_words(running: Running) -> None:
    router, _, folder = running
    admin = Admin(router)
    for _ in range(2):
        assert not admin.load("again", folder, model="alone").outcomes[0].HasField("failure")
    with pytest.raises(grpc.RpcError) as refused:
        admin.load("bad", folder / "nothing", model="alone")
    error = refusal(refused.value)
    assert (error.reason, error.field) == (Reason.ADAPTER_NOT_LOADABLE, "path")
    assert "adapter_config.json" in error.sentence
    admin.unload("again")


def test_a_plan_says_which_worker_lacks_the_adapter(running: Running) -> None:
    router, _, folder = running
    admin = Admin(router)
    prefill = next(iter(router.engines))
    admin.load("half", folder, worker_ids=[prefill])
    asked = pair_service_pb2.PlanPairRequest(request=router.request(text=PROMPT, model="tandem-demo"))
    asked.request.adapters.add(name="half")
    plan = router.pairs.PlanPair(asked).plan
    assert [one.refusal.reason for one in plan.prefill_candidates] == [""]
    assert [one.refusal.reason for one in plan.decode_candidates] == ["LACKS_ADAPTER"]
    assert (plan.failure.reason, "no decode worker" in plan.failure.message) == ("ADAPTER_NOT_FOUND", True)
    admin.unload("half")


def test_a_flushed_cache_has_nothing_for_the_next_prompt(running: Running) -> None:
    router, _, _ = running
    request = router.request(text=PROMPT * 8, model="alone", temperature=0, max_tokens=2)

    def cached() -> int:
        answer = router.generate(request)
        assert answer.finished is not None
        return int(answer.finished.usage.cached_prompt_tokens)

    cached()
    assert cached() > 0
    [outcome] = Admin(router).flush(model="alone").outcomes
    assert not outcome.HasField("failure")
    assert cached() == 0


def test_a_profile_leaves_a_trace_on_the_engine_s_machine(running: Running, tmp_path: Path) -> None:
    router, _, _ = running
    profile = Admin(router).profile
    alone: Any = {"model": "alone"}
    start: Any = profile_service_pb2.StartProfileRequest(workers=alone, output_dir=str(tmp_path))
    stop = profile_service_pb2.StopProfileRequest(workers=alone)
    with pytest.raises(grpc.RpcError) as refused:
        profile.StopProfile(stop)
    assert refusal(refused.value).reason is Reason.ENGINE_ERROR
    profile.StartProfile(start)
    with pytest.raises(grpc.RpcError) as refused:
        profile.StartProfile(start)
    assert refusal(refused.value).reason is Reason.ENGINE_ERROR
    answered(router, "alone")
    profile.StopProfile(stop)
    [trace] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert json.loads(trace.read_text())


def test_what_an_engine_can_do_is_shown(running: Running) -> None:
    router, _, _ = running
    for worker in router.workers.ListWorkers(worker_service_pb2.ListWorkersRequest()).workers:
        can = worker.facts.capabilities
        shown = (can.adapters, can.flush_cache, can.profile, can.loads, can.tokenizer, can.multiple_choices)
        assert shown == (True,) * 6


def test_a_restarted_engine_has_lost_its_adapters_and_the_router_knows(running: Running) -> None:
    router, _, folder = running
    admin = Admin(router)
    extra = EngineProcess("sglang", "aggregated")
    try:
        worker_id = router.add(extra, model="extra")
        admin.load("gone", folder, worker_ids=[worker_id])
        assert answered(router, "extra", "gone")
        extra.kill()
        again = EngineProcess("sglang", "aggregated", "--listen", extra.address)
        try:
            eventually(lambda: not router.is_ready(worker_id), within_s=30, what="the loss is seen")
            eventually(lambda: router.is_ready(worker_id), within_s=60, what="the next life is READY")
            with pytest.raises(grpc.RpcError) as refused:
                answered(router, "extra", "gone")
            assert refusal(refused.value).reason is Reason.ADAPTER_NOT_FOUND
        finally:
            router.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker_id=worker_id))
            again.stop()
    finally:
        extra.stop()
