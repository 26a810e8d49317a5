"""A prefill and a decode worker that compute nothing: every running request gets one token per step, on time.

They speak vLLM's engine protocol with handoff, so that the router does all it does for real workers; the reference
engine would spend the machine on arithmetic. Prints one line of JSON with both addresses and ends with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

import tandem_engine
from tandem_engine.services.tokenizer_archive import TokenizerArchive

SERVICE = "vllm.grpc.engine.VllmEngine"
ENGINE = "metronome"
PROMPT_TOKENS = 16
HANDLE = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [1],
    "remote_engine_id": ENGINE,
    "remote_host": "127.0.0.1",
    "remote_port": 1,
}
PREFILLED = pb.GenerateResponse(
    complete=pb.GenerateComplete(
        output_ids=[7],
        finish_reason="length",
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=1,
        kv_transfer_params_json=json.dumps(HANDLE),
    )
)
TOKEN = pb.GenerateResponse(
    chunk=pb.GenerateStreamChunk(token_ids=[7], prompt_tokens=PROMPT_TOKENS, completion_tokens=1)
).SerializeToString()
"""Serialised once: the worker's own cost is not what is measured."""


class Worker(grpc.GenericRpcHandler):
    """One role of the pair."""

    def __init__(self, role: str, step_s: float, archive: TokenizerArchive | None) -> None:
        self._role = role
        self._step_s = step_s
        unary: dict[str, tuple[Any, Any]] = {
            "HealthCheck": (pb.HealthCheckRequest, pb.HealthCheckResponse(healthy=True)),
            "GetModelInfo": (pb.GetModelInfoRequest, self._model_info()),
            "GetServerInfo": (pb.GetServerInfoRequest, self._server_info()),
            "Abort": (pb.AbortRequest, pb.AbortResponse()),
        }
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
                _always(answer), request.FromString, lambda message: message.SerializeToString()
            )
            for name, (request, answer) in unary.items()
        }
        self._methods[f"/{SERVICE}/Generate"] = grpc.unary_stream_rpc_method_handler(
            self._generate, pb.GenerateRequest.FromString, None
        )
        if archive is not None:
            self._methods[f"/{SERVICE}/GetTokenizer"] = grpc.unary_stream_rpc_method_handler(
                _hand_out(archive),
                common_pb2.GetTokenizerRequest.FromString,
                lambda message: message.SerializeToString(),
            )

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._methods.get(details.method)

    async def _generate(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        if self._role == "kv_producer":
            yield PREFILLED.SerializeToString()
            return
        loop = asyncio.get_running_loop()
        for _ in range(request.sampling_params.max_tokens - 1):
            # On the beat of all: an engine's step emits for every running request at once.
            await asyncio.sleep(self._step_s - loop.time() % self._step_s)
            yield TOKEN
        end = pb.GenerateComplete(output_ids=[7], finish_reason="length", prompt_tokens=PROMPT_TOKENS)
        yield pb.GenerateResponse(complete=end).SerializeToString()

    def _model_info(self) -> Any:
        return pb.GetModelInfoResponse(
            model_path=ENGINE, served_model_name=ENGINE, is_generation=True, max_context_length=1 << 20, vocab_size=1000
        )

    def _server_info(self) -> Any:
        return pb.GetServerInfoResponse(
            server_type="vllm-grpc",
            kv_connector="NixlConnector",
            kv_role=self._role,
            kv_engine_id=f"{ENGINE}-{self._role}",
            data_parallel_size=1,
            block_size=16,
            kv_cache_dtype="float16",
            max_num_seqs=4096,
            pairing_protocol=ENGINE,
        )


def _always(answer: Any) -> Callable[[Any, Any], Any]:
    async def behaviour(request: Any, context: Any) -> Any:
        return answer

    return behaviour


def _hand_out(archive: TokenizerArchive) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
        async for chunk in archive.chunks():
            yield chunk

    return behaviour


async def serve(step_s: float, archive: TokenizerArchive | None) -> None:
    """Serve both until the parent is gone."""
    where, servers = {}, []
    for role in ("kv_producer", "kv_consumer"):
        options = [
            ("grpc.server.max_pending_requests", 20_000),
            ("grpc.server.max_pending_requests_hard_limit", 20_000),
            ("grpc.max_receive_message_length", 16 << 20),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((Worker(role, step_s, archive),))
        where[role] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    parent = os.getppid()
    print(json.dumps(where), flush=True)
    while os.getppid() == parent:  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.5)
    for server in servers:
        await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=0.02, help="seconds per token of every stream")
    parser.add_argument("--tokenizer", action="store_true", help="hand out the demo model's tokenizer")
    given = parser.parse_args()
    demo = Path(tandem_engine.__file__).parent / "demo/model"
    asyncio.run(serve(given.step, TokenizerArchive(demo) if given.tokenizer else None))
