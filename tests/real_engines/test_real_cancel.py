"""Whoever stops a request, and however: the engine stops too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.e2e.processes import eventually
from tests.real_engines.house import ALONE, PAIR, System
from tests.real_engines.prompts import PROMPTS

from tandem.v1 import generate_pb2, router_service_pb2

pytestmark = pytest.mark.e2e

IDLE_WITHIN_S = 5.0
WAYS = [ALONE, PAIR]


@pytest.fixture(autouse=True)
def idle(system: System) -> Iterator[None]:
    """Before and after every test here."""
    eventually(system.is_idle, within_s=IDLE_WITHIN_S, what="nothing runs before the test")
    yield
    eventually(system.is_idle, within_s=IDLE_WITHIN_S, what="nothing runs after the test")


def endless(system: System, model: str, request_id: str = "") -> generate_pb2.GenerateRequest:
    """A request for thousands of tokens."""
    asked = {"temperature": 0.0, "max_tokens": 4000, "ignore_eos": True}
    request = system.router.request(token_ids=PROMPTS["alphabet"], model=model, **asked)
    request.request_id = request_id
    return request


def begin(system: System, model: str, request_id: str = "") -> Any:
    """A call for it, with its first token received."""
    call = system.router.router.Generate(endless(system, model, request_id), timeout=90)
    assert next(call).WhichOneof("event") == "chunk"
    return call


def end_of(call: Any) -> Any:
    """How a call ends."""
    with pytest.raises(grpc.RpcError) as ended:
        for _ in call:
            pass
    return ended.value


@pytest.mark.parametrize("model", WAYS)
def test_a_client_that_cancels_stops_the_engine(system: System, model: str) -> None:
    call = begin(system, model)
    assert not system.is_idle()
    call.cancel()
    assert end_of(call).code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("model", WAYS)
def test_a_deadline_stops_the_engine(system: System, model: str) -> None:
    ended = end_of(system.router.router.Generate(endless(system, model), timeout=3.0))
    assert ended.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("model", WAYS)
def test_an_abort_ends_the_stream_and_the_engine(system: System, model: str) -> None:
    call = begin(system, model, f"abort-{model}")
    system.router.router.Abort(router_service_pb2.AbortRequest(request_id=f"abort-{model}"))
    ended = end_of(call)
    assert ended.code() is grpc.StatusCode.CANCELLED
    assert ended.details().startswith("REQUEST_CANCELLED")


@pytest.mark.parametrize("model", WAYS)
def test_a_stop_string_that_the_router_finds_stops_the_engine(system: System, model: str) -> None:
    asked = {"temperature": 0.0, "max_tokens": 4000, "ignore_eos": True, "stop": [" m n"]}
    answer = system.router.generate(system.router.request(token_ids=PROMPTS["alphabet"], model=model, **asked))
    assert answer.error is None, answer.error
    assert answer.text == " a b c d e f g h i j k l"
