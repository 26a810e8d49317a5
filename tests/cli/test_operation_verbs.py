"""Verbs that have engines do things: who is meant, how long they have, and what they are told."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.cli.fakes import FakeRouter, run
from tests.cli.fleet import furnish
from tests.cli.things import W1, W2

from tandem.v1 import adapter_service_pb2, cache_service_pb2, profile_service_pb2, worker_selection_pb2

VERBS = ("adapters load de /a/de", "cache flush", "profile start", "profile stop")


@pytest.mark.parametrize("verb", VERBS)
def test_nobody_is_not_everybody(fake: FakeRouter, verb: str) -> None:
    code, _, err = run(*verb.split())
    assert (code, "say which workers" in err) == (2, True)
    assert fake.asked == []


@pytest.mark.parametrize("verb", [*VERBS, "adapters unload de"])
def test_workers_and_a_model_exclude_each_other(fake: FakeRouter, verb: str) -> None:
    code, _, err = run(*verb.split(), "--worker", W1, "--model", "tiny")
    assert (code, "exclude each other" in err) == (2, True)
    assert fake.asked == []


def test_beginnings_of_ids_are_made_whole(fake: FakeRouter) -> None:
    furnish(fake)
    run("cache", "flush", "--worker", "1a", "--worker", "1b")
    [request] = fake.requests("CacheService/FlushCache")
    wanted = worker_selection_pb2.WorkerSelection(worker_ids=[W1, W2])
    assert request == cache_service_pb2.FlushCacheRequest(workers=wanted)


def test_an_unload_of_everybody_s_names_nobody(fake: FakeRouter) -> None:
    furnish(fake)
    run("adapters", "unload", "de")
    [request] = fake.requests("AdapterService/UnloadAdapter")
    assert request == adapter_service_pb2.UnloadAdapterRequest(name="de")


def test_what_is_not_said_of_a_profile_is_absent(fake: FakeRouter) -> None:
    furnish(fake)
    run("profile", "start", "--model", "tiny")
    run("profile", "start", "--model", "tiny", "--start-step", "0", "--num-steps", "5", "--activity", "CPU")
    run("profile", "start", "--model", "tiny", "--no-stack", "--shapes", "--by-stage", "--output-dir", "/t")
    asked = fake.requests("ProfileService/StartProfile")
    start: Any = profile_service_pb2.StartProfileRequest
    assert asked == [
        start(workers={"model": "tiny"}),
        start(workers={"model": "tiny"}, start_step=0, num_steps=5, activities=["CPU"]),
        start(workers={"model": "tiny"}, with_stack=False, record_shapes=True, by_stage=True, output_dir="/t"),
    ]


@pytest.mark.parametrize(("verb", "rpc"), [("plan", "PairService/PlanPair"), ("generate", "RouterService/Generate")])
def test_adapters_of_a_request_are_named_in_order(fake: FakeRouter, verb: str, rpc: str) -> None:
    furnish(fake)
    run(verb, "hello", "--adapter", "b", "--adapter", "a")
    [asked] = fake.requests(rpc)
    request = asked.request if verb == "plan" else asked
    assert [(one.name, one.HasField("scale")) for one in request.adapters] == [("b", False), ("a", False)]


def test_engines_have_the_time_that_was_said(fake: FakeRouter) -> None:
    given_up = threading.Event()

    def slow(request: Any) -> Any:
        given_up.wait(30.0)
        return cache_service_pb2.FlushCacheResponse()

    fake.says(CacheService_FlushCache=slow)
    code, _, err = run("cache", "flush", "--model", "tiny", "--timeout", "0.1")
    given_up.set()
    assert (code, "did not answer in time" in err) == (3, True)
