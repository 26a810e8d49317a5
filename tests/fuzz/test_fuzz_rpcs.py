"""Whatever bytes arrive, every rpc answers: well, or with a reason of the table; never with a fault, never not at all.

Through the real servers on unix sockets, with stand-ins behind them. TANDEM_FUZZ_SEED repeats a run (its seed is
printed), TANDEM_FUZZ_FACTOR=50 makes a night of it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.fuzz.wire_bytes import nearly_a_message
from tests.services.fakes import J1, W1, FakeRelay, served

from tandem.v1 import (
    embed_pb2,
    generate_pb2,
    job_service_pb2,
    message_pb2,
    pair_service_pb2,
    router_service_pb2,
    worker_service_pb2,
    worker_spec_pb2,
)
from tandem_router.model.request import GenerateRequest
from tandem_router.wire.status import decode

SEED = int(os.environ.get("TANDEM_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
FACTOR = int(os.environ.get("TANDEM_FUZZ_FACTOR") or 1)
ANSWER_WITHIN_S = 10.0
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
"""What no client may cause: our fault, an exception's text, no answer."""
INT32_MOST = 2**31 - 1
SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (router_service_pb2, "RouterService"),
        (worker_service_pb2, "WorkerService"),
        (job_service_pb2, "JobService"),
        (pair_service_pb2, "PairService"),
    )
)
RPCS = {f"{service.name}/{rpc.name}": rpc for service in SERVICES for rpc in service.methods}

_TEXT = generate_pb2.GenerateRequest(text="hi", model="tiny")
_IDS = generate_pb2.GenerateRequest(token_ids=message_pb2.TokenIds(ids=[1, 2]))
_CHAT = generate_pb2.GenerateRequest(
    chat=message_pb2.ChatInput(messages=[message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_USER, content="hi")])
)
_EMBED = embed_pb2.EmbedRequest(
    inputs=[embed_pb2.EmbedInput(text="hi"), embed_pb2.EmbedInput(token_ids=message_pb2.TokenIds(ids=[1, 2]))]
)
_SPEC = worker_spec_pb2.WorkerSpec(url="grpc://h:1")
VALID: dict[str, tuple[bytes, ...]] = {
    "Generate": tuple(one.SerializeToString() for one in (_TEXT, _IDS, _CHAT)),
    "PlanPair": (pair_service_pb2.PlanPairRequest(request=_TEXT).SerializeToString(),),
    "Embed": (_EMBED.SerializeToString(),),
    "Tokenize": (router_service_pb2.TokenizeRequest(text="hi").SerializeToString(),),
    "CreateWorker": (worker_service_pb2.CreateWorkerRequest(spec=_SPEC).SerializeToString(),),
    "ReplaceWorker": (worker_service_pb2.ReplaceWorkerRequest(worker_id=W1, spec=_SPEC).SerializeToString(),),
    "UpdateWorker": (worker_service_pb2.UpdateWorkerRequest(worker_id=W1, spec=_SPEC).SerializeToString(),),
    "GetJob": (job_service_pb2.GetJobRequest(job_id=J1).SerializeToString(),),
}
"""Where odd fields find a way deeper in; other rpcs begin with nothing."""


@dataclass
class Door:
    """Both listeners, served by a loop in a thread of its own."""

    relay: FakeRelay
    public: grpc.Channel
    admin: grpc.Channel

    def knock(self, rpc: MethodDescriptor, body: bytes) -> grpc.RpcError | None:
        """How a call ended; a stream is read to its end, a watch to its first message."""
        service = rpc.containing_service
        channel = self.public if service.name == "RouterService" else self.admin
        path = f"/{service.full_name}/{rpc.name}"
        try:
            if rpc.client_streaming:
                many: Any = channel.stream_stream(path)
                list(many(iter([body]), timeout=ANSWER_WITHIN_S))
            elif rpc.server_streaming:
                stream: Any = channel.unary_stream(path)
                call = stream(body, timeout=ANSWER_WITHIN_S)
                for _ in call:
                    if rpc.name.startswith("Watch"):
                        call.cancel()
                        return None
            else:
                one: Any = channel.unary_unary(path)
                one(body, timeout=ANSWER_WITHIN_S)
        except grpc.RpcError as error:
            return error
        return None


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("fuzz")
    print(f"TANDEM_FUZZ_SEED={SEED}")
    opened: list[FakeRelay] = []
    is_open = threading.Event()
    close: list[Any] = []

    async def serve(where: Path) -> None:
        is_closed = asyncio.Event()
        async with served(where) as house:
            opened.append(house.relay)
            close.append((asyncio.get_running_loop(), is_closed))
            is_open.set()
            await is_closed.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve(folder)), name="fuzz server")
    thread.start()
    assert is_open.wait(30)
    with (
        grpc.insecure_channel(f"unix:{folder}/public") as public,
        grpc.insecure_channel(f"unix:{folder}/admin") as admin,
    ):
        yield Door(opened[0], public, admin)
    loop, is_closed = close[0]
    loop.call_soon_threadsafe(is_closed.set)
    thread.join(30)


def _knock_with_anything(door: Door, rpc: MethodDescriptor, examples: int) -> None:
    @seed(SEED)
    @settings(
        max_examples=examples * FACTOR,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(body=_bodies(rpc.input_type, rpc.name))
    def claim(body: bytes) -> None:
        door.relay.started.clear()
        error: Any = door.knock(rpc, body)
        if error is not None:
            message = str(error.details())
            assert error.code() not in FAULTS, message
            row = decode(error.trailing_metadata() or ())
            assert row is not None, f"{error.code().name} without a reason: {message}"
            assert message == str(row)
        for request, _ in door.relay.started:
            _check_guarded(request)

    claim()


def _bodies(descriptor: Descriptor, rpc: str) -> st.SearchStrategy[bytes]:
    return nearly_a_message(descriptor, VALID.get(rpc, (b"",)))


def _check_guarded(request: GenerateRequest) -> None:
    """What a worker could be given holds nothing that is known to kill or hang one."""
    sampling = request.sampling
    assert request.token_ids != (), "an empty prompt"
    assert all(0 <= token <= INT32_MOST for token in (*(request.token_ids or ()), *sampling.stop_token_ids))
    assert all(math.isfinite(bias) for bias in sampling.logit_bias.values())
    for value in (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty):
        assert value is None or (math.isfinite(value) and value >= 0), sampling
    assert sampling.top_p is None or 0 < sampling.top_p <= 1
    assert sampling.max_tokens is None or 1 <= sampling.max_tokens <= INT32_MOST
    assert 1 <= sampling.n <= 128
    assert all(1 <= len(stop.encode()) <= 256 for stop in sampling.stop)
    assert request.request_id.isascii()
    assert request.request_id.isprintable()


def test_generate_answers_any_bytes_and_guards_the_workers(door: Door) -> None:
    _knock_with_anything(door, RPCS["RouterService/Generate"], examples=2000)


@pytest.mark.parametrize("name", [name for name in RPCS if name != "RouterService/Generate"])
def test_rpc_answers_any_bytes(door: Door, name: str) -> None:
    _knock_with_anything(door, RPCS[name], examples=80)
