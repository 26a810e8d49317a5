"""Stream an answer under asyncio, with every edge in your own hands: deadline, cancel, retry, and what failed.

    python generate_aio.py 'repeat “hello” :'
    python generate_aio.py --timeout 0.5 'count from 20 to 30:'
    python generate_aio.py --stop-after 3 'count from 20 to 30:'

The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncGenerator

import grpc
from refusal import refusal_of

from tandem.v1 import generate_pb2, generate_result_pb2, router_service_pb2_grpc, sampling_pb2

ADDRESS = os.environ.get("TANDEM_ADDRESS", "127.0.0.1:50051")
MOST_ATTEMPTS = 5


async def generate(
    stub: router_service_pb2_grpc.RouterServiceAsyncStub, request: generate_pb2.GenerateRequest, timeout_s: float
) -> AsyncGenerator[generate_result_pb2.GenerateResponse, None]:
    """The messages of one answer; repeats the call only while no message has come. Raises AioRpcError.

    After a message a repeat would be another answer, so a failure then is the caller's to see. `timeout_s` spans all
    attempts. Leave request_id empty, or take a fresh one per attempt: the router may still know the old one.
    """
    ends_at = asyncio.get_running_loop().time() + timeout_s
    for attempt in range(1, MOST_ATTEMPTS + 1):
        call = stub.Generate(request, timeout=ends_at - asyncio.get_running_loop().time())
        is_committed = False
        try:
            async for message in call:
                is_committed = True
                yield message
            return
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if is_committed or not refusal.may_be_repeated or attempt == MOST_ATTEMPTS:
                raise
            wait_s = refusal.retry_after_s
            if wait_s is None:  # nobody told us: the router itself was not reached
                wait_s = random.uniform(0.5, 1) * 0.2 * 2 ** (attempt - 1)
            if asyncio.get_running_loop().time() + wait_s >= ends_at:
                raise
            print(f"[attempt {attempt}: {refusal.reason or refusal.code.name}, again in {wait_s:g} s]", file=sys.stderr)
        finally:
            # Also when the reader leaves early: an abandoned call would run on until its deadline.
            call.cancel()
        await asyncio.sleep(wait_s)


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    parser.add_argument("--timeout", type=float, default=30.0, help="deadline in seconds")
    parser.add_argument("--stop-after", type=int, help="cancel after so many tokens")
    asked = parser.parse_args()
    request = generate_pb2.GenerateRequest(
        text=asked.prompt,
        output=generate_pb2.OUTPUT_MODE_BOTH,
        sampling=sampling_pb2.SamplingParams(temperature=0, max_tokens=64),
    )
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        stub: router_service_pb2_grpc.RouterServiceAsyncStub = router_service_pb2_grpc.RouterServiceStub(channel)
        try:
            # aclosing ends the generator, and with it the call, as soon as we break.
            async with contextlib.aclosing(generate(stub, request, asked.timeout)) as answer:
                async for message in answer:
                    chunk = message.chunk
                    print("".join(chunk.text), end="", flush=True)
                    if asked.stop_after is not None and chunk.next_offset >= asked.stop_after:
                        print(f"\n[cancelled after {chunk.next_offset} tokens]", file=sys.stderr)
                        break
        except grpc.aio.AioRpcError as error:
            return explain(error)
    print()
    return 0


def explain(error: grpc.aio.AioRpcError) -> int:
    """Say what a person can do about it. Reasons are stable; messages are for people and may change."""
    refusal = refusal_of(error)
    match refusal.reason:
        case "PROMPT_TOO_LONG":
            advice = "shorten the prompt, or ask for fewer tokens"
        case "MODEL_NOT_FOUND":
            advice = "ListModels has the names"
        case "INVALID_REQUEST":
            advice = f"correct {refusal.field}"
        case "WORKER_LOST":
            advice = "what was printed is true but incomplete; ask again"
        case "" if refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            advice = "allow more time"  # our own clock was faster than the router's answer
        case "FIRST_TOKEN_TIMEOUT" | "INTER_TOKEN_TIMEOUT" | "TOTAL_TIMEOUT" | "QUEUE_TIMEOUT":
            advice = "allow more time"
        case _:
            advice = f"see docs/errors.md; quote request {refusal.request_id or '(none)'}"
    print(f"\n{refusal.code.name}: {refusal.message}\n[{advice}]", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
