"""StartProfile and StopProfile. SGLang takes its options per request, vLLM at its launch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import grpc
from smg_grpc_proto.generated import common_pb2 as pb

from tandem_engine.profiling import ProfilerError
from tandem_engine.services.station import Context, Station

__all__ = ["start_like_sglang", "start_like_vllm", "stop_like_sglang", "stop_like_vllm"]

_PER_REQUEST = ("output_dir", "start_step", "num_steps", "with_stack", "record_shapes")


async def start_like_sglang(station: Station, request: pb.StartProfileRequest, context: Context) -> pb.ProfileResponse:
    """Success=false when it runs already or cannot write. Without output_dir: --profile-dir, else the system's own.

    `start_step` counts the engine's steps from 0; activities, stacks and shapes have no meaning here and are ignored.
    """
    if station.life.is_dead:
        await station.dead(context)
    folder = request.output_dir or station.options.profile_dir or tempfile.gettempdir()
    try:
        station.engine.profiler.start(
            Path(folder),
            first_step=request.start_step if request.HasField("start_step") else 0,
            num_steps=request.num_steps if request.HasField("num_steps") else None,
        )
    except ProfilerError as error:
        return pb.ProfileResponse(success=False, message=str(error))
    return pb.ProfileResponse(success=True, message="Start profiling succeeded")


async def stop_like_sglang(station: Station, request: pb.StopProfileRequest, context: Context) -> pb.ProfileResponse:
    """Success=false when it does not run (any more), or cannot write."""
    if station.life.is_dead:
        await station.dead(context)
    try:
        path = station.engine.profiler.stop()
    except ProfilerError as error:
        return pb.ProfileResponse(success=False, message=str(error))
    return pb.ProfileResponse(success=True, message=f"Stop profiling succeeded: {path}")


async def start_like_vllm(station: Station, request: pb.StartProfileRequest, context: Context) -> pb.ProfileResponse:
    """INVALID_ARGUMENT for any option; INTERNAL without --profile-dir, and when it runs already (vLLM 0.32)."""
    if station.life.is_dead:
        await station.dead(context)
    named = [name for name in _PER_REQUEST if request.HasField(name)]
    named += ["activities"] * bool(request.activities) + ["profile_by_stage"] * request.profile_by_stage
    if named:
        text = f"StartProfile options {', '.join(named)} are this engine's launch configuration; send none"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
    if station.options.profile_dir is None:
        text = "Start profiling failed: Profiling is not enabled. Please set --profile-dir"
        await context.abort(grpc.StatusCode.INTERNAL, text)
    try:
        station.engine.profiler.start(Path(station.options.profile_dir))
    except ProfilerError as error:
        await context.abort(grpc.StatusCode.INTERNAL, f"Start profiling failed: {error}")
    return pb.ProfileResponse(success=True, message="Start profiling succeeded")


async def stop_like_vllm(station: Station, request: pb.StopProfileRequest, context: Context) -> pb.ProfileResponse:
    """Success also when nothing runs; INTERNAL without --profile-dir, and when the trace cannot be written."""
    if station.life.is_dead:
        await station.dead(context)
    if station.options.profile_dir is None:
        text = "Stop profiling failed: Profiling is not enabled. Please set --profile-dir"
        await context.abort(grpc.StatusCode.INTERNAL, text)
    if station.engine.profiler.is_active:
        try:
            station.engine.profiler.stop()
        except ProfilerError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"Stop profiling failed: {error}")
    return pb.ProfileResponse(success=True, message="Stop profiling succeeded")
