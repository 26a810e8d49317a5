"""An Abacus engine over real gRPC: it counts on from the sum of the prompt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from tests.conformance import abacus_proto as pb

__all__ = ["abacus_engine"]

_BEADS, _LAST, _WINDOW = 64, 0, 512
_STEP_S = 0.001


class _Abacus:
    def __init__(self) -> None:
        self.aborted: set[str] = set()

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        made: list[int] = []
        counted = {"prompt_tokens": len(request.beads)}
        reason = ""
        while not reason:
            await asyncio.sleep(_STEP_S)
            if request.call in self.aborted:
                reason = "abort"
                break
            bead = (sum(request.beads) + len(made)) % _BEADS
            made.append(bead)
            if bead in request.halts or (bead == _LAST and not request.runs_on):
                reason = "stop"
            elif len(made) >= request.limit:
                reason = "length"
            if not request.whole:
                chunk = {"token_ids": [bead], "completion_tokens": len(made), **counted}
                yield pb.GenerateResponse(chunk=chunk)
        told = made if request.whole else []
        end = {"output_ids": told, "finish_reason": reason, "completion_tokens": len(made), **counted}
        yield pb.GenerateResponse(complete=end)

    async def abort(self, request: Any, context: Any) -> Any:
        self.aborted.add(request.call)
        return pb.Empty()

    async def state(self, request: Any, context: Any) -> Any:
        return pb.State(works=True)

    async def info(self, request: Any, context: Any) -> Any:
        return pb.Info(model="beads", window=_WINDOW, beads=_BEADS, last_bead=_LAST, age_seconds=60, at_once=4)


@contextlib.asynccontextmanager
async def abacus_engine() -> AsyncIterator[str]:
    """A running engine; its URL."""
    abacus, server = _Abacus(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])

    def unary(body: Callable[..., Any], request: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(body, request.FromString, lambda answer: answer.SerializeToString())

    methods = {
        "Generate": grpc.unary_stream_rpc_method_handler(
            abacus.generate, pb.GenerateRequest.FromString, lambda answer: answer.SerializeToString()
        ),
        "Abort": unary(abacus.abort, pb.Abort),
        "State": unary(abacus.state, pb.Empty),
        "Info": unary(abacus.info, pb.Empty),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(None)
