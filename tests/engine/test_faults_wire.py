"""Every knob of the fault plan, by rpc and by flag."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from wire_fixtures import engine, messages, prompt, tail, tokens_of, until, vllm_request

from tandem.engine.v1 import ledger_pb2, ledger_service_pb2
from tandem_engine.faults import FaultError, FaultPlan, Faults, parse_duration, parse_faults
from tandem_engine.options import Protocol
from tandem_engine.services.ledger import plan_from_proto, plan_to_proto

VLLM = Protocol.VLLM


def test_flags_and_proto_describe_the_same_plan() -> None:
    plan = parse_faults(["step_latency=20ms", "drop_page=3", "refuse", "refuse_code=8", "crash_at_token=0"])
    assert plan == FaultPlan(step_latency=0.02, drop_page=3, refuse=True, refuse_code=8, crash_at_token=0)
    assert plan_from_proto(plan_to_proto(plan)) == plan


@pytest.mark.parametrize("name", [field.name for field in ledger_pb2.FaultPlan.DESCRIPTOR.fields])
def test_every_field_of_the_proto_is_a_knob(name: str) -> None:
    assert name in FaultPlan.__slots__


@pytest.mark.parametrize(
    "flag", ["nonsense", "drop_page", "drop_page=x", "drop_page=-1", "step_latency=5", "step_latency=2m", "refuse=1"]
)
def test_bad_flag_is_refused(flag: str) -> None:
    with pytest.raises(FaultError):
        parse_faults([flag])


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5s", 1.5), ("2m", 120.0), ("5us", 5e-6)])
def test_durations_carry_their_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


async def test_plan_out_of_range_is_invalid_and_changes_nothing() -> None:
    async with engine(protocol=VLLM) as alone:
        await alone.set_faults(drop_page=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await alone.set_faults(refuse_code=99)
        answer = await alone.books.GetFaults(ledger_service_pb2.GetFaultsRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "refuse_code" in str(caught.value.details())
    assert answer.plan == ledger_pb2.FaultPlan(drop_page=1)


@pytest.mark.parametrize(("code", "status"), [(None, "UNAVAILABLE"), (8, "RESOURCE_EXHAUSTED")])
async def test_refusing_engine_answers_with_the_chosen_status(code: int | None, status: str) -> None:
    async with engine(protocol=VLLM) as alone:
        await alone.set_faults(refuse=True, **({} if code is None else {"refuse_code": code}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(alone.vllm.Generate(vllm_request(prompt(3))))
    assert caught.value.code().name == status


async def test_crash_strikes_just_before_its_token() -> None:
    killed = asyncio.Event()

    def kill() -> None:
        killed.set()
        raise RuntimeError("killed")

    async with engine(Faults(FaultPlan(crash_at_token=3), kill=kill), protocol=VLLM) as alone:
        call = alone.vllm.Generate(vllm_request(prompt(3)))
        seen, status = await tail(call)
    assert (killed.is_set(), seen, status) == (True, 3, grpc.StatusCode.INTERNAL)


async def test_hang_strikes_just_before_its_token_and_leaves_the_port_open() -> None:
    async with engine(protocol=VLLM) as alone:
        await alone.set_faults(hang_at_token=2)
        call = alone.vllm.Generate(vllm_request(prompt(3)))
        await call.read()
        await call.read()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call.read()
        assert (await alone.ledger()).generated_tokens >= 2


async def test_step_latency_slows_every_token() -> None:
    async with engine(protocol=VLLM) as alone:
        await alone.set_faults(step_latency=0.03)
        started_s = time.monotonic()
        await messages(alone.vllm.Generate(vllm_request(prompt(3))))
        assert time.monotonic() - started_s >= 0.03 * 8


async def test_engine_that_plays_dead_looks_idle_and_revives() -> None:
    async with engine(protocol=VLLM) as alone:
        health = health_pb2_grpc.HealthStub(alone.channel)
        await alone.set_faults(dead_engine=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await messages(alone.vllm.Generate(vllm_request(prompt(3))))
        loads = await alone.vllm.GetLoads(pb.GetLoadsRequest())
        answer = await alone.vllm.HealthCheck(pb.HealthCheckRequest())
        dead = (await health.Check(health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine"))).status
        await alone.set_faults()
        alive = (await health.Check(health_pb2.HealthCheckRequest())).status
        replies = await messages(alone.vllm.Generate(vllm_request(prompt(3))))
    assert (caught.value.code(), loads.loads[0].max_total_num_tokens) == (grpc.StatusCode.INTERNAL, 0)
    assert not answer.healthy
    assert (dead, alive) == (health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING)
    assert len(tokens_of(replies)[0]) == 8


async def test_cancel_of_a_running_request_empties_the_ledger() -> None:
    async with engine(protocol=VLLM) as alone:
        call = alone.vllm.Generate(vllm_request(prompt(20), max_tokens=3000))
        await call.read()
        call.cancel()
        assert await alone.idle() == (0, 0, 0, 0)


async def test_cancel_of_a_request_held_back_before_its_first_step_empties_the_ledger() -> None:
    async with engine(protocol=VLLM) as alone:
        await alone.set_faults(step_latency=30.0)
        call = alone.vllm.Generate(vllm_request(prompt(20)))
        reading = asyncio.ensure_future(messages(call))
        await until(lambda: alone.served.station.life.active == 1)
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await alone.idle() == (0, 0, 0, 0)
