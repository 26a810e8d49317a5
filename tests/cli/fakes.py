"""A server in this process that answers any rpc with what a test hands it, and remembers what was asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from typer.testing import CliRunner

from tandem_router.cli.app import app
from tandem_router.errors import TandemError
from tandem_router.wire.status import encode

__all__ = ["FakeRouter", "Terminal", "message", "run"]


def message(kind: Any, **fields: Any) -> Any:
    """A message from its JSON fields."""
    return json_format.ParseDict(fields, kind())


class Terminal(io.StringIO):
    """Output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(*arguments: str, env: dict[str, str] | None = None, stdin: bytes | None = None) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command line."""
    result = CliRunner().invoke(app, list(arguments), env=env, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


Answer = Callable[[Any], Any]
"""A request to a message, to a list of messages and errors (a stream), or to an error."""


@dataclass(slots=True)
class FakeRouter:
    """Every rpc that has no answer is UNIMPLEMENTED."""

    answers: dict[str, Answer] = field(default_factory=dict)
    """By rpc name, for example "WorkerService/GetWorker"."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    address: str = ""

    def says(self, **answers: Any) -> None:
        """Answer rpcs (Service_Method) with a message, a list (a stream), an error, or what a function gives."""
        for name, answer in answers.items():
            self.answers[name.replace("_", "/")] = answer if callable(answer) else lambda _, fixed=answer: fixed

    def requests(self, name: str) -> list[Any]:
        """What one rpc was asked."""
        return [request for asked, request in self.asked if asked == name]

    @contextmanager
    def listening(self) -> Iterator[FakeRouter]:
        """On a free port of the loopback, until the block ends."""
        with ThreadPoolExecutor(4) as pool:
            server = grpc.server(pool)
            server.add_generic_rpc_handlers((_Rpcs(self),))
            self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            yield self
            server.stop(0).wait()


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _Rpcs(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeRouter) -> None:
        self._fake = fake

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        service, method = handler_call_details.method.lstrip("/").split("/")
        name = f"{service.rpartition('.')[2]}/{method}"
        described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
        read = message_factory.GetMessageClass(described.input_type).FromString

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._fake.asked.append((name, request))
            answer = self._fake.answers[name](request) if name in self._fake.answers else None
            for one in answer if isinstance(answer, (list, Iterator)) else [answer]:
                if one is None:
                    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no answer to {name}")
                if isinstance(one, TandemError):
                    status = encode(one)
                    context.set_trailing_metadata(status.trailers)
                    context.abort(_CODES[status.code], status.message)
                if isinstance(one, grpc.StatusCode):
                    context.abort(one, "from the fake")
                yield one

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            return next(stream(request, context))

        write = message_factory.GetMessageClass(described.output_type).SerializeToString
        if described.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, read, write)
        return grpc.unary_unary_rpc_method_handler(unary, read, write)
