"""A grpc.aio server whose every answer is a script, behind a TCP relay that can be cut like a killed process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang

from tandem_router.transport.connection import Connection

SERVICE = "sglang.grpc.scheduler.SglangScheduler"
_TIMEOUT_S = 5.0
Stream = Callable[[Any, Any], AsyncIterator[Any]]
Unary = Callable[[Any, Any], Awaitable[Any]]


def chunk(*ids: int, total: int) -> sglang.GenerateResponse:
    """A streamed chunk."""
    return sglang.GenerateResponse(chunk=sglang.GenerateStreamChunk(token_ids=ids, completion_tokens=total))


def complete(*ids: int, total: int, reason: str = "length") -> sglang.GenerateResponse:
    """The end of choice 0."""
    return sglang.GenerateResponse(
        complete=sglang.GenerateComplete(output_ids=ids, completion_tokens=total, finish_reason=reason)
    )


class ScriptedServer:
    """Speaks SGLang's protocol unless told otherwise. A method that is set to None is UNIMPLEMENTED."""

    def __init__(self, service: str = SERVICE, credentials: grpc.ServerCredentials | None = None) -> None:
        """credentials: None = plain text."""
        self.service = service
        self.credentials = credentials
        self.instance = "i-1"
        self.aborted: list[str] = []
        self.requests: list[bytes] = []
        self.metadata: list[dict[str, str]] = []
        """Of Generate calls."""
        self.calls: list[tuple[str, dict[str, str]]] = []
        """Method and metadata of every call."""
        self.more: dict[str, Unary | Stream] = {}
        """Bodies of further methods; async generators stream."""
        self.generate_ended = asyncio.Event()
        self.generate: Stream | None = self._answer
        self.tokenizer: list[common_pb2.GetTokenizerChunk] | None = None
        self.loads: sglang.GetLoadsResponse | None = None
        self.health: Unary = self._healthy
        self.server_info: Unary = self._server_info
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._relay: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Where clients reach it: the relay."""
        return f"{'grpc' if self.credentials is None else 'grpcs'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve; after a `stop` at the same port again."""
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Methods(self),))
        inner = (
            self._server.add_insecure_port("127.0.0.1:0")
            if self.credentials is None
            else self._server.add_secure_port("127.0.0.1:0", self.credentials)
        )
        await self._server.start()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", inner)
            self._writers += [writer, back]
            self._pumps += [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))]

        self._relay = await asyncio.start_server(accept, "127.0.0.1", self.port)
        self.port = self._relay.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection, as the kernel does when the process is killed."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        """Cut, and accept nobody until `start`."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        writers = tuple(self._writers)
        self.cut()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._pumps.clear()
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _answer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield chunk(1, total=1)
        yield chunk(2, total=2)
        yield complete(2, total=2)

    async def _healthy(self, request: Any, context: Any) -> Any:
        return sglang.HealthCheckResponse(healthy=True)

    async def _server_info(self, request: Any, context: Any) -> Any:
        answer = sglang.GetServerInfoResponse()
        answer.server_args.update({"instance": self.instance, "dp_size": 1})
        return answer


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    def service(self, details: Any) -> Any:
        script = self._script
        service, _, method = details.method[1:].rpartition("/")
        if service != script.service:
            return None
        metadata = {str(key): str(value) for key, value in details.invocation_metadata}
        script.calls.append((method, metadata))
        if method in script.more:
            body = script.more[method]
            if inspect.isasyncgenfunction(body):
                return grpc.unary_stream_rpc_method_handler(body, None, _bytes_of)
            return grpc.unary_unary_rpc_method_handler(body, None, _bytes_of)
        if method == "Generate" and script.generate is not None:
            return grpc.unary_stream_rpc_method_handler(self._generate, None, _bytes_of)
        if method == "GetTokenizer" and script.tokenizer is not None:
            return grpc.unary_stream_rpc_method_handler(self._tokenizer, None, _bytes_of)
        unary: dict[str, Unary | None] = {
            "HealthCheck": script.health,
            "Abort": self._abort,
            "GetModelInfo": self._model_info,
            "GetServerInfo": script.server_info,
            "GetLoads": self._loads if script.loads is not None else None,
        }
        answer = unary.get(method)
        return grpc.unary_unary_rpc_method_handler(answer, None, _bytes_of) if answer is not None else None

    async def _generate(self, request: bytes, context: Any) -> AsyncIterator[Any]:
        assert self._script.generate is not None
        self._script.requests.append(request)
        self._script.metadata.append(dict(context.invocation_metadata()))
        context.add_done_callback(lambda _: self._script.generate_ended.set())
        async for response in self._script.generate(request, context):
            yield response

    async def _tokenizer(self, request: bytes, context: Any) -> AsyncIterator[Any]:
        for piece in self._script.tokenizer or ():
            yield piece

    async def _abort(self, request: bytes, context: Any) -> Any:
        self._script.aborted.append(sglang.AbortRequest.FromString(request).request_id)
        return sglang.AbortResponse(success=True)

    async def _model_info(self, request: bytes, context: Any) -> Any:
        return sglang.GetModelInfoResponse(served_model_name="tiny", vocab_size=512)

    async def _loads(self, request: bytes, context: Any) -> Any:
        return self._script.loads


def _bytes_of(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def tokenizer_chunks(data: bytes, digest: str | None = None, pieces: int = 3) -> list[common_pb2.GetTokenizerChunk]:
    """An archive as engines stream it: the digest on the last chunk alone."""
    size = max(1, -(-len(data) // pieces))
    chunks = [common_pb2.GetTokenizerChunk(data=data[at : at + size]) for at in range(0, len(data), size)]
    chunks[-1].sha256 = hashlib.sha256(data).hexdigest() if digest is None else digest
    return chunks


async def until_lost(connection: Connection) -> None:
    """Until our end has noticed that the other end is gone."""
    async with asyncio.timeout(_TIMEOUT_S):
        while connection.is_ready:
            await connection.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
