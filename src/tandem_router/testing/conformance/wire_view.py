"""A Generate call as it stands on the wire, beside what the dialect makes of it: habits show only here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from tandem_router.model.request import LegRequest
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.verdict import CheckSkipped

__all__ = ["Exchange", "exchange", "prompt_field", "send"]


@dataclass(slots=True)
class Exchange:
    """The messages inside the responses, in order, and how the stream ended."""

    chunks: list[Any] = field(default_factory=list)
    completes: list[Any] = field(default_factory=list)
    code: str = ""
    """Name of the status; empty = it never came within the time."""
    details: str = ""
    status_after_s: float | None = None
    """From the last message to the status."""


def prompt_field(request: Any, prompt: Sequence[int]) -> Any:
    """The repeated field that holds a request's prompt, wherever its protocol has it; raises LookupError."""
    for one, value in request.ListFields():
        if one.message_type is None and one.is_repeated and list(value) == list(prompt):
            return value
        if one.message_type is not None and not one.is_repeated:
            with contextlib.suppress(LookupError):
                return prompt_field(value, prompt)
    raise LookupError("no field holds the prompt")


async def exchange(subject: Subject, leg: LegRequest, within_s: float) -> Exchange:
    """Send what the dialect makes of a leg and keep what comes back, for at most so long."""
    return await send(subject, subject.client.dialect.generate_request(leg, subject.facts), within_s)


async def send(subject: Subject, request: Message, within_s: float) -> Exchange:
    """Send a message as it is, past every guard, and keep what comes back for at most so long; then cancel.

    Raises CheckSkipped for a protocol whose responses are not `oneof response {chunk, complete}`.
    """
    rpc, seen = subject.client.dialect.methods.generate, Exchange()
    if "response" not in rpc.response.DESCRIPTOR.oneofs_by_name:
        raise CheckSkipped("its responses are not chunk or complete; their habits are its dialect's own affair")
    stub: Any = subject.client.connection.channel.unary_stream(
        rpc.path, request_serializer=lambda message: message.SerializeToString()
    )
    loop = asyncio.get_running_loop()
    call = stub(request, metadata=subject.metadata)
    last_s = loop.time()
    try:
        async with asyncio.timeout(within_s):
            while (data := await call.read()) is not grpc.aio.EOF:
                response: Any = rpc.response.FromString(data)
                kind, last_s = response.WhichOneof("response"), loop.time()
                if kind is not None:
                    (seen.completes if kind == "complete" else seen.chunks).append(getattr(response, kind))
        seen.code = "OK"
    except TimeoutError:
        return seen
    except grpc.aio.AioRpcError as error:
        seen.code, seen.details = error.code().name, (error.details() or "")[:200]
    finally:
        call.cancel()
    seen.status_after_s = loop.time() - last_s
    return seen
