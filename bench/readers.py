"""Many clients of a router in one process: opens streams, counts their tokens, prints a line of JSON per second.

A line is {"streams": started and not ended, "tokens": since the line before, "failed": ended with an error, in all}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

import grpc

from tandem.v1 import generate_pb2, router_service_pb2_grpc

CHANNELS = 4
"""Connections; a real client fleet has many, one would make HTTP/2 the bottleneck."""


@dataclass
class Count:
    """What the next line says."""

    streams: int = 0
    tokens: int = 0
    failed: int = 0


async def read(stub: Any, count: Count, max_tokens: int) -> None:
    """One stream, to its end."""
    request = generate_pb2.GenerateRequest(output=generate_pb2.OUTPUT_MODE_TOKENS)
    request.token_ids.ids.extend(range(1, 17))
    request.sampling.max_tokens, request.sampling.ignore_eos = max_tokens, True
    is_first = True
    try:
        async for response in stub.Generate(request):
            count.streams += is_first
            is_first = False
            count.tokens += len(response.chunk.token_ids)
    except grpc.aio.AioRpcError as error:
        count.failed += 1
        print(json.dumps({"error": error.details()}), flush=True)
    count.streams -= not is_first


async def run(address: str, streams: int, max_tokens: int) -> None:
    """Read until the parent is gone or ends us."""
    count = Count()
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)
    ]
    stubs = [router_service_pb2_grpc.RouterServiceStub(channel) for channel in channels]
    running = [asyncio.create_task(read(stubs[number % CHANNELS], count, max_tokens)) for number in range(streams)]
    parent = os.getppid()
    while os.getppid() == parent and not all(task.done() for task in running):
        await asyncio.sleep(1)
        print(json.dumps({"streams": count.streams, "tokens": count.tokens, "failed": count.failed}), flush=True)
        count.tokens = 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=100_000)
    given = parser.parse_args()
    asyncio.run(run(given.address, given.streams, given.max_tokens))
