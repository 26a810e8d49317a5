"""StartProfile and StopProfile: the trace that is written, and how each engine refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2
from wire_fixtures import Engine, aggregated, engine, prompt

from tandem_engine.options import Protocol
from tandem_engine.profiling import ProfilerError, RankStep, StepProfiler

ROW = [RankStep(rank=0, rows=3, prompt_tokens=2, prompts=1, samples=1)]


def stub(worker: Engine, protocol: Protocol) -> Any:
    return worker.sglang if protocol is Protocol.SGLANG else worker.vllm


def start(worker: Engine, protocol: Protocol, **options: Any) -> Any:
    return stub(worker, protocol).StartProfile(common_pb2.StartProfileRequest(**options))


def stop(worker: Engine, protocol: Protocol) -> Any:
    return stub(worker, protocol).StopProfile(common_pb2.StopProfileRequest())


def steps(folder: Path) -> list[list[dict[str, Any]]]:
    """The events of each trace in the folder, oldest first."""
    return [json.loads(path.read_text())["traceEvents"] for path in sorted(folder.glob("*.trace.json"))]


@pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])
async def test_a_trace_has_every_step_between_start_and_stop(protocol: Protocol, tmp_path: Path) -> None:
    async with engine(protocol=protocol, profile_dir=str(tmp_path)) as alone:
        await aggregated(protocol, alone, prompt(40))
        assert (await start(alone, protocol)).success
        before = (await alone.ledger()).steps
        await aggregated(protocol, alone, prompt(40, 2))
        took = (await alone.ledger()).steps - before
        assert (await stop(alone, protocol)).success
        await aggregated(protocol, alone, prompt(40, 3))
    [trace] = steps(tmp_path)
    assert len(trace) == took
    assert sum(event["args"]["prompt_tokens"] for event in trace) == 40
    assert sum(event["args"]["samples"] for event in trace) == 8
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in trace)


async def test_sglang_writes_where_the_request_says_for_as_many_steps_as_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    async with engine() as alone:
        assert (await start(alone, Protocol.SGLANG, output_dir=str(folder), num_steps=3)).success
        await aggregated(Protocol.SGLANG, alone, prompt(40))
        again = await stop(alone, Protocol.SGLANG)
    assert [len(trace) for trace in steps(folder)] == [3]
    assert (again.success, again.message) == (False, "Profiling is not in progress")


async def test_sglang_begins_at_the_step_that_the_request_says(tmp_path: Path) -> None:
    async with engine() as alone:
        assert (await start(alone, Protocol.SGLANG, output_dir=str(tmp_path), start_step=5)).success
        await aggregated(Protocol.SGLANG, alone, prompt(40))
        await stop(alone, Protocol.SGLANG)
    [trace] = steps(tmp_path)
    assert [event["args"]["step"] for event in trace] == [5, 6, 7]


async def test_sglang_refuses_a_second_start_and_a_folder_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with engine() as alone:
        blocked = await start(alone, Protocol.SGLANG, output_dir=str(tmp_path / "file" / "under"))
        assert (await start(alone, Protocol.SGLANG, output_dir=str(tmp_path))).success
        second = await start(alone, Protocol.SGLANG, output_dir=str(tmp_path))
    assert (blocked.success, "Not a directory" in blocked.message) == (False, True)
    assert (second.success, second.message) == (False, "Profiling is already in progress")


@pytest.mark.parametrize(
    "options",
    [{"output_dir": "x"}, {"num_steps": 1}, {"activities": ["CPU"]}, {"profile_by_stage": True}],
    ids=lambda options: next(iter(options)),
)
async def test_vllm_refuses_options_that_belong_to_its_launch(options: dict[str, Any], tmp_path: Path) -> None:
    async with engine(protocol=Protocol.VLLM, profile_dir=str(tmp_path)) as alone:
        with pytest.raises(grpc.aio.AioRpcError, match=next(iter(options))) as caught:
            await start(alone, Protocol.VLLM, **options)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_vllm_without_a_folder_of_its_own_has_no_profiler() -> None:
    async with engine(protocol=Protocol.VLLM) as alone:
        for call in (start, stop):
            with pytest.raises(grpc.aio.AioRpcError, match="Profiling is not enabled") as caught:
                await call(alone, Protocol.VLLM)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_vllm_fails_a_second_start_and_forgives_a_second_stop(tmp_path: Path) -> None:
    async with engine(protocol=Protocol.VLLM, profile_dir=str(tmp_path)) as alone:
        await start(alone, Protocol.VLLM)
        with pytest.raises(grpc.aio.AioRpcError, match="already in progress") as caught:
            await start(alone, Protocol.VLLM)
        replies = [await stop(alone, Protocol.VLLM), await stop(alone, Protocol.VLLM)]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert [reply.success for reply in replies] == [True, True]


async def test_a_folder_name_that_no_system_has_is_refused() -> None:
    async with engine() as alone:
        reply = await start(alone, Protocol.SGLANG, output_dir="a\0b")
    assert (reply.success, reply.message.startswith("output_dir 'a")) == (False, True)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_a_profile_of_no_steps_is_refused(tmp_path: Path, num_steps: int) -> None:
    with pytest.raises(ProfilerError, match="num_steps must be at least 1"):
        StepProfiler().start(tmp_path, num_steps=num_steps)


def test_each_profile_is_a_file_of_its_own_with_times_in_microseconds(tmp_path: Path) -> None:
    profiler = StepProfiler()
    for number in range(2):
        profiler.start(tmp_path)
        profiler.took(number, 1.0, 1.25, ROW)
        profiler.stop()
    assert [(trace[0]["ts"], trace[0]["dur"], trace[0]["tid"]) for trace in steps(tmp_path)] == [(1e6, 250_000, 0)] * 2


def test_a_trace_that_cannot_be_written_ends_the_profile_all_the_same(tmp_path: Path) -> None:
    profiler = StepProfiler()
    profiler.start(tmp_path / "gone", num_steps=1)
    (tmp_path / "gone").rmdir()
    profiler.took(0, 1.0, 2.0, ROW)
    assert not profiler.is_active
    profiler.start(tmp_path)
