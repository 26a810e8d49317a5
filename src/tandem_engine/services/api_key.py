"""The engine's API key: calls must carry `authorization: Bearer KEY`, but for health checks."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

__all__ = ["ApiKeyGuard"]

_HEALTH = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"


class ApiKeyGuard(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED for every call without the key; the key itself is never in an answer."""

    def __init__(self, key: str) -> None:
        self._expected = f"Bearer {key}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        path = method.decode() if isinstance(method, bytes) else str(method)
        if handler is None or path.startswith(_HEALTH) or self._has_key(handler_call_details):
            return handler
        return _refusing(handler)

    def _has_key(self, details: grpc.HandlerCallDetails) -> bool:
        given = [value for name, value in details.invocation_metadata or () if name == "authorization"]
        return len(given) == 1 and hmac.compare_digest(_octets(given[0]), self._expected)


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _refusing(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same shape that refuses: the shape decides how the request is read."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "authorization: Bearer and this engine's API key are needed"
        )

    shapes = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    shape: Any = shapes[handler.request_streaming, handler.response_streaming]
    refusing: grpc.RpcMethodHandler[Any, Any] = shape(
        refuse,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return refusing
