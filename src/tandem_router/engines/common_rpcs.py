"""The messages that engine protocols share (`smg.grpc.common`): flushing the cache and profiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smg_grpc_proto.generated import common_pb2

from tandem_router.engines.contract import OperationRpc, Rpc
from tandem_router.engines.guards import operation_failure
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import FlushCache, Operated, Operation, StartProfile, StopProfile

__all__ = ["operated", "shared_operations"]

_NO_PROFILER = "profiling is not enabled"
"""What vLLM (0.32) writes under INTERNAL without `--profiler-config`. SGLang always has a profiler; what it refuses is
to start one that runs and to stop one that does not."""


def shared_operations(service: str) -> Mapping[type[Operation], OperationRpc]:
    """FlushCache, StartProfile and StopProfile of a service that has them. service: its full name."""
    return {
        FlushCache: OperationRpc(Rpc(f"/{service}/FlushCache", common_pb2.FlushCacheResponse), _flush, operated),
        StartProfile: OperationRpc(
            Rpc(f"/{service}/StartProfile", common_pb2.ProfileResponse), _start, operated, _profile_failure
        ),
        StopProfile: OperationRpc(
            Rpc(f"/{service}/StopProfile", common_pb2.ProfileResponse), _stop, operated, _profile_failure
        ),
    }


def operated(response: Any) -> Operated:
    """The engine's words; raises EngineFailure(ENGINE_ERROR) where `success` is false under status OK."""
    if not response.success:
        words = response.message or "it does not say why"
        raise EngineFailure(Reason.ENGINE_ERROR, f"the engine did not do it: {words}", code=Code.OK)
    return Operated(message=response.message)


def _flush(operation: FlushCache) -> common_pb2.FlushCacheRequest:
    return common_pb2.FlushCacheRequest(timeout_s=operation.wait_idle_s)


def _start(operation: StartProfile) -> common_pb2.StartProfileRequest:
    return common_pb2.StartProfileRequest(
        output_dir=operation.output_dir,
        start_step=operation.start_step,
        num_steps=operation.num_steps,
        activities=operation.activities,
        with_stack=operation.with_stack,
        record_shapes=operation.record_shapes,
        profile_by_stage=operation.by_stage,
    )


def _profile_failure(failure: EngineFailure) -> EngineFailure:
    """RUNTIME_CANNOT_PROFILE for an engine that was started without its profiler: repeating changes nothing."""
    if _NO_PROFILER in failure.sentence.lower():
        return EngineFailure(Reason.RUNTIME_CANNOT_PROFILE, failure.sentence, code=failure.code)
    return operation_failure(failure)


def _stop(operation: StopProfile) -> common_pb2.StopProfileRequest:
    return common_pb2.StopProfileRequest()
