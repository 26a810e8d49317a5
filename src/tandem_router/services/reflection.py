"""Server reflection, v1 and v1alpha, for the services of one listener.

grpcio-reflection ships v1alpha only. v1 differs in its package name alone, so its descriptor is derived at start from
v1alpha's and both answer through one servicer; this ends when grpcio-reflection ships v1.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

__all__ = ["SERVICE_NAMES", "add_reflection", "add_sync_reflection"]

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_V1_FILE = "grpc/reflection/v1/reflection.proto"

SERVICE_NAMES = (f"{_V1}.ServerReflection", f"{_ALPHA}.ServerReflection")

_MAX_SYNC_STREAMS = 4
"""Open reflection calls on a sync server: each holds a thread for as long as its client likes."""


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Offer both versions on `server`, listing `services` and themselves."""
    _define_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES))
    server.add_generic_rpc_handlers(_handlers(servicer.ServerReflectionInfo))


def add_sync_reflection(server: grpc.Server, services: Sequence[str]) -> None:
    """The same on a server of threads; further calls than _MAX_SYNC_STREAMS at once are RESOURCE_EXHAUSTED."""
    _define_v1()
    servicer = _BoundedReflection((*services, *SERVICE_NAMES))
    server.add_generic_rpc_handlers(_handlers(servicer.ServerReflectionInfo))


class _BoundedReflection(reflection.ReflectionServicer):
    def __init__(self, services: Sequence[str]) -> None:
        super().__init__(services)
        self._open = threading.BoundedSemaphore(_MAX_SYNC_STREAMS)

    def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        if not self._open.acquire(blocking=False):
            sentence = f"{_MAX_SYNC_STREAMS} reflection calls are open; end one."
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._open.release()


def _handlers(behaviour: Any) -> tuple[grpc.GenericRpcHandler, ...]:
    """Both versions, answered by one servicer's method."""
    handler = grpc.stream_stream_rpc_method_handler(
        behaviour,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    return tuple(grpc.method_handlers_generic_handler(name, methods) for name in SERVICE_NAMES)


def _define_v1() -> None:
    """Add v1's descriptor to the default pool, so that a client may ask about the service it is asking."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
        return
    except KeyError:
        pass
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = _V1_FILE, _V1
    for message in file.message_type:
        for field in message.field:
            if field.type_name:  # writing "" to a scalar's would give it one
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_V1}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_V1}.")
    pool.Add(file)
