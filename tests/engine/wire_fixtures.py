"""Engines that serve on loopback inside the test's own loop, and clients that speak each protocol."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct
from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from tandem.engine.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tandem_engine.faults import Faults
from tandem_engine.model import Model
from tandem_engine.options import EngineOptions, Mode, Protocol
from tandem_engine.server import ServedEngine, serve

SEED = 20261122
LENGTHS = (1, 15, 16, 17, 200, 2000)
"""Below, at and above one page; and many pages, in several chunks."""

_rooms = itertools.count(5000)


@functools.cache
def demo_model() -> Model:
    return Model.from_folder(EngineOptions().model_folder)


def prompt(length: int, seed: int = SEED) -> list[int]:
    """`length` ordinary tokens, the same for the same seed."""
    return random.Random(seed * 7919 + length).choices(range(8, demo_model().config.vocab_size), k=length)


@dataclass
class Engine:
    """A served engine and a channel to it."""

    served: ServedEngine
    channel: grpc.aio.Channel

    @property
    def bootstrap_port(self) -> int:
        return self.served.bootstrap_port

    @property
    def sglang(self) -> Any:
        return sglang_scheduler_pb2_grpc.SglangSchedulerStub(self.channel)

    @property
    def vllm(self) -> Any:
        return vllm_engine_pb2_grpc.VllmEngineStub(self.channel)

    @property
    def books(self) -> Any:
        return ledger_service_pb2_grpc.LedgerServiceStub(self.channel)

    async def ledger(self) -> ledger_pb2.LedgerCounts:
        return (await self.books.GetLedger(ledger_service_pb2.GetLedgerRequest())).ledger.totals

    async def set_faults(self, **faults: Any) -> None:
        plan = ledger_pb2.FaultPlan()
        for name, value in faults.items():
            if isinstance(value, float):
                getattr(plan, name).FromNanoseconds(int(value * 1e9))
            else:
                setattr(plan, name, value)
        await self.books.SetFaults(ledger_service_pb2.SetFaultsRequest(plan=plan))

    async def idle(self) -> tuple[int, int, int, int]:
        """running, waiting, held_pages and open_rooms, as soon as all are zero, or after 8 s as they are."""
        deadline_s = asyncio.get_running_loop().time() + 8.0
        while True:
            totals = await self.ledger()
            gauges = (totals.running, totals.waiting, totals.held_pages, totals.open_rooms)
            if gauges == (0, 0, 0, 0) or asyncio.get_running_loop().time() > deadline_s:
                return gauges
            await asyncio.sleep(0.005)


async def until(holds: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Returns once `holds`; fails the test after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - engines have no event for what tests look at
            await asyncio.sleep(0.002)


@asynccontextmanager
async def engine(faults: Faults | None = None, **options: Any) -> AsyncIterator[Engine]:
    async with (
        serve(EngineOptions(**options), model=demo_model(), faults=faults) as served,
        grpc.aio.insecure_channel(served.listen) as channel,
    ):
        yield Engine(served, channel)


@asynccontextmanager
async def pair(protocol: Protocol, **options: Any) -> AsyncIterator[tuple[Engine, Engine]]:
    """A prefill engine and a decode engine."""
    async with (
        engine(protocol=protocol, mode=Mode.PREFILL, **options) as prefill,
        engine(protocol=protocol, mode=Mode.DECODE, **options) as decode,
    ):
        yield prefill, decode


def new_room() -> int:
    return next(_rooms)


def sglang_request(tokens: list[int], *, room: int | None = None, port: int = 0, **changes: Any) -> Any:
    """A greedy streamed request of 8 tokens, as a router fills it in. `seed` makes it sampled."""
    seed = changes.pop("seed", None)
    top = {name: changes.pop(name) for name in ("stream", "return_logprob", "top_logprobs_num") if name in changes}
    sampling: dict[str, Any] = {
        "temperature": 0.0 if seed is None else 0.9,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "max_new_tokens": 8,
        "n": 1,
        "ignore_eos": True,
    }
    request_id = changes.pop("request_id", f"r{new_room()}")
    sampling.update(changes)
    if seed is not None:
        custom = Struct()
        custom.update({"sampling_seed": seed})
        sampling["custom_params"] = custom
    request = sglang_scheduler_pb2.GenerateRequest(
        request_id=request_id,
        tokenized=sglang_scheduler_pb2.TokenizedInput(input_ids=tokens),
        sampling_params=sglang_scheduler_pb2.SamplingParams(**sampling),
        **{"stream": True, "logprob_start_len": -1, **top},
    )
    if room is not None:
        request.disaggregated_params.bootstrap_host = "127.0.0.1"
        request.disaggregated_params.bootstrap_port = port
        request.disaggregated_params.bootstrap_room = room
    return request


def vllm_request(tokens: list[int], *, kv: dict[str, Any] | str | None = None, **changes: Any) -> Any:
    """A greedy streamed request of 8 tokens, as a router fills it in. `seed` makes it sampled."""
    stream = changes.pop("stream", True)
    request_id = changes.pop("request_id", f"r{new_room()}")
    sampling: dict[str, Any] = {
        "temperature": 0.9 if "seed" in changes else 0.0,
        "max_tokens": 8,
        "n": 1,
        "ignore_eos": True,
    }
    sampling.update(changes)
    request = vllm_engine_pb2.GenerateRequest(
        request_id=request_id,
        tokenized=vllm_engine_pb2.TokenizedInput(input_ids=tokens),
        sampling_params=vllm_engine_pb2.SamplingParams(**sampling),
        stream=stream,
    )
    if kv is not None:
        request.kv_transfer_params_json = kv if isinstance(kv, str) else json.dumps(kv)
    return request


async def messages(call: Any) -> list[Any]:
    """Everything (more) that a call says. Raises AioRpcError for a status other than OK."""
    replies = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        replies.append(reply)
    return replies


async def tail(call: Any) -> tuple[int, grpc.StatusCode]:
    """How many more messages a call says, and the status it ends with."""
    count = 0
    try:
        while await call.read() is not grpc.aio.EOF:
            count += 1
    except grpc.aio.AioRpcError as error:
        return count, error.code()
    return count, grpc.StatusCode.OK


def tokens_of(replies: list[Any]) -> dict[int, list[int]]:
    """What was streamed, per choice."""
    out: dict[int, list[int]] = {}
    for reply in replies:
        if reply.HasField("chunk"):
            out.setdefault(reply.chunk.index, []).extend(reply.chunk.token_ids)
    return out


PREFILL_PARAMS = {"do_remote_decode": True, "do_remote_prefill": False}


async def vllm_prefill(prefill: Engine, tokens: list[int], **changes: Any) -> str:
    """Runs the prefill as a router does and returns the handle, verbatim."""
    changes = {key: value for key, value in changes.items() if key not in ("n", "max_tokens")}
    request = vllm_request(tokens, kv=PREFILL_PARAMS, stream=False, max_tokens=1, n=1, **changes)
    [reply] = await messages(prefill.vllm.Generate(request))
    return str(reply.complete.kv_transfer_params_json)


async def disaggregated(protocol: Protocol, prefill: Engine, decode: Engine, tokens: list[int], **changes: Any) -> Any:
    """The decode side's replies to one request served by both engines."""
    if protocol is Protocol.VLLM:
        handle = await vllm_prefill(prefill, tokens, **changes)
        return await messages(decode.vllm.Generate(vllm_request(tokens, kv=handle, **changes)))
    room = new_room()
    request = sglang_request(tokens, room=room, port=prefill.bootstrap_port, **changes)
    _, replies = await asyncio.gather(
        messages(prefill.sglang.Generate(request)), messages(decode.sglang.Generate(request))
    )
    return replies


async def aggregated(protocol: Protocol, alone: Engine, tokens: list[int], **changes: Any) -> Any:
    if protocol is Protocol.VLLM:
        return await messages(alone.vllm.Generate(vllm_request(tokens, **changes)))
    return await messages(alone.sglang.Generate(sglang_request(tokens, **changes)))
