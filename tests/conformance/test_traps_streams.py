"""Conformance traps of streams and health (smg 13.1: 8-10, 13-15), through the whole router over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc
import pytest
from tests.conformance.router_world import QUICK, PairWorld, pair, router, until

from tandem.v1 import worker_pb2
from tandem_router.core.kv_cursor import Apply, Clear, Directive, KvCursor, Subscribe
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvRemoved, KvStored
from tandem_router.model.settings import HealthSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec
from tandem_router.ports import EngineClient, KvEventCall
from tandem_router.testing.grpc_engines import GrpcScript, Meeting, ScriptedGrpcEngine
from tandem_router.transport.dialer import GrpcDialer

RENDEZVOUS_ENGINES = [RuntimeType.SGLANG, RuntimeType.TOKENSPEED]
PAIRED_ENGINES = [*RENDEZVOUS_ENGINES, RuntimeType.VLLM]
ENGINES = [*PAIRED_ENGINES, RuntimeType.TRTLLM, RuntimeType.MLX]
READY = worker_pb2.WORKER_STATUS_READY


@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_08_prefill_streams_are_drained_or_cancelled(runtime: RuntimeType) -> None:
    async with pair(runtime) as at:
        answers = await asyncio.gather(*(at.world.generate(at.world.request(5, 6 + i)) for i in range(20)))
        assert {answer.code for answer in answers} == {grpc.StatusCode.OK}
        await at.world.until_idle([at.prefill, at.decode])
        assert len(at.prefill.seen("Generate")) == 20


async def test_trap_08_prefill_stream_that_never_ends_is_cancelled_after_the_answer() -> None:
    async with pair(RuntimeType.SGLANG) as at:
        # The transfer has taken place, and the stream says nothing of it.
        at.prefill.turn(silent_after_tokens=0)
        answer = await at.world.generate(at.world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        await at.world.until_idle([at.prefill, at.decode])
        (seen,) = at.prefill.seen("Generate")
        assert seen.was_cancelled


@pytest.mark.parametrize("runtime", PAIRED_ENGINES)
async def test_trap_08_stream_without_a_status_is_cut_off_once_every_token_is_there(runtime: RuntimeType) -> None:
    async with pair(runtime, stays_open=True) as at:
        answer = await at.world.generate(at.world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        await at.world.until_idle([at.prefill, at.decode])
        assert at.decode.seen("Generate")[0].was_cancelled


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_09_both_legs_are_written_without_waiting_for_headers(runtime: RuntimeType) -> None:
    # A grpc.aio servicer sends its headers with its first message, which comes after both legs have met.
    async with pair(runtime, transfer_s=0.2) as at:
        answer = await at.world.generate(at.world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message
        (first,), (second,) = at.prefill.seen("Generate"), at.decode.seen("Generate")
        assert abs(first.began_s - second.began_s) < 0.1


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_10_decode_is_told_by_the_transfers_failure_not_by_an_abort(runtime: RuntimeType) -> None:
    async with pair(runtime, transfer_s=3600.0) as at:
        call = at.world.router.Generate(at.world.request(5, 6))
        await until(_both_began(at), within_s=10, what="both legs are with their engines")
        call.cancel()
        await at.world.until_idle([at.prefill, at.decode])
        (seen,) = at.decode.seen("Generate")
        assert (at.decode.aborted, seen.was_cancelled) == ([], False)


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_10_decode_that_hears_nothing_is_aborted_after_the_grace_and_not_before(
    runtime: RuntimeType,
) -> None:
    async with pair(runtime, meeting=Meeting(is_mute=True), transfer_s=3600.0) as at:
        call = at.world.router.Generate(at.world.request(5, 6))
        await until(_both_began(at), within_s=10, what="both legs are with their engines")
        loop = asyncio.get_running_loop()
        call.cancel()
        cancelled_s = loop.time()
        await asyncio.sleep(QUICK.transfer_grace_s / 2)
        assert (at.decode.aborted, at.decode.open_calls) == ([], 1)
        await at.world.until_idle([at.prefill, at.decode])
        (seen,) = at.decode.seen("Generate")
        assert seen.ended_s is not None
        assert QUICK.transfer_grace_s - 0.05 <= seen.ended_s - cancelled_s < QUICK.transfer_grace_s + 5
        await until(_aborted_once(at.decode), within_s=5, what=f"the decode leg was aborted: {at.decode.aborted}")


@pytest.mark.parametrize("runtime", RENDEZVOUS_ENGINES)
async def test_trap_10_decode_is_aborted_at_its_first_item(runtime: RuntimeType) -> None:
    settings = replace(QUICK, transfer_grace_s=30.0)
    async with pair(runtime, settings, meeting=Meeting(is_mute=True), transfer_s=3600.0, token_s=0.02) as at:
        call = at.world.router.Generate(at.world.request(5, 6, max_tokens=1000))
        await until(_both_began(at), within_s=10, what="both legs are with their engines")
        call.cancel()
        await asyncio.sleep(0.2)
        assert (at.decode.aborted, at.decode.open_calls) == ([], 1)
        # The pages are all there now, whoever may have left.
        at.meeting.deliver(at.meeting.rooms_seen[0])
        await at.world.until_idle([at.prefill, at.decode])
        await until(_aborted_once(at.decode), within_s=5, what=f"the decode leg was aborted: {at.decode.aborted}")


async def test_trap_13_kv_event_resume_out_of_range_and_data_loss_clear() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.VLLM, kv_batches_kept=0)) as engine:
        follower = _Follower(await _dial(engine))
        try:
            await follower.until_subscribed(engine)
            engine.feed.store(11, 12)
            engine.feed.tell_load()
            engine.feed.store(13)
            await follower.until_knows({11, 12, 13})
            # A batch that got lost on the way is asked for, and this engine keeps none: OUT_OF_RANGE.
            engine.feed.skip()
            engine.feed.remove(12)
            await follower.until_knows(set())
            await follower.until_subscribed(engine)
            engine.feed.store(21)
            await follower.until_knows({21})
            engine.feed.lose()
            await follower.until_knows(set())
            await follower.until_subscribed(engine)
            starts = [seen.message.start_sequence_number for seen in engine.seen("SubscribeKvEvents")]
            assert starts == [0, 3, 0, 0]
        finally:
            await follower.close()


async def test_trap_13_kv_events_are_resumed_where_the_engine_keeps_them() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG)) as engine:
        follower = _Follower(await _dial(engine))
        try:
            await follower.until_subscribed(engine)
            engine.feed.store(11)
            await follower.until_knows({11})
            follower.break_off()
            engine.feed.store(12)
            await follower.until_knows({11, 12})
            starts = [seen.message.start_sequence_number for seen in engine.seen("SubscribeKvEvents")]
            assert starts == [0, 2]
            assert Clear() not in follower.obeyed
        finally:
            await follower.close()


@pytest.mark.parametrize("runtime", ENGINES)
async def test_trap_14_unimplemented_loads_are_not_unhealthy(runtime: RuntimeType) -> None:
    script = GrpcScript(runtime, unimplemented=frozenset({"GetLoads"}))
    async with ScriptedGrpcEngine(script) as engine, router() as world:
        worker_id = await world.add(engine)
        for _ in range(3):
            worker = await world.worker(worker_id, include_load=True)
            assert worker.status == READY
            assert not [rank for rank in worker.ranks if rank.HasField("load")]
            await asyncio.sleep(QUICK.health.check_interval_s / 2)
        answer = await world.generate(world.request(5, 6))
        assert answer.code is grpc.StatusCode.OK, answer.message


async def test_trap_15_health_check_timeout_under_long_prefill_is_not_death() -> None:
    health = HealthSettings(timeout_s=0.3, check_interval_s=0.1, success_threshold=1, failure_threshold=2)
    script = GrpcScript(RuntimeType.SGLANG, token_s=0.05)
    async with ScriptedGrpcEngine(script) as engine, router(replace(QUICK, health=health)) as world:
        worker_id = await world.add(engine)
        statuses: list[int] = []

        async def look() -> None:
            while True:
                statuses.append((await world.worker(worker_id)).status)
                await asyncio.sleep(0.05)

        looking = asyncio.create_task(look())
        engine.turn(hangs=frozenset({"HealthCheck"}))
        answer = await world.generate(world.request(5, 6, max_tokens=36))
        looking.cancel()
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert len(engine.seen("HealthCheck")) >= 4
        assert set(statuses) == {READY}
        # The same silence without a sign of life is death.
        await world.until_status(worker_id, worker_pb2.WORKER_STATUS_NOT_READY)


def _both_began(at: PairWorld) -> Callable[[], Awaitable[bool]]:
    async def claim() -> bool:
        return bool(at.prefill.generated and at.decode.generated)

    return claim


def _aborted_once(engine: ScriptedGrpcEngine) -> Callable[[], Awaitable[bool]]:
    async def claim() -> bool:
        return engine.aborted == [engine.generated[0].request_id]

    return claim


async def _dial(engine: ScriptedGrpcEngine) -> EngineClient:
    dialled = await GrpcDialer().dial(WorkerSpec(engine.url), None, timeout_s=10.0)
    return getattr(dialled, "client", dialled)


class _Follower:
    """A KV index that obeys the cursor over a real subscription."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._cursor = KvCursor()
        self.known: set[int] = set()
        self.obeyed: list[Directive] = []
        self._call: KvEventCall | None = None
        self._pending = self._cursor.begin()
        self._task = asyncio.create_task(self._run())

    def break_off(self) -> None:
        assert self._call is not None
        self._call.cancel()

    async def until_knows(self, blocks: set[int]) -> None:
        async def knows() -> bool:
            return self.known == blocks

        await until(knows, within_s=10, what=f"{blocks} are known, not {self.known}; obeyed {self.obeyed}")

    async def until_subscribed(self, engine: ScriptedGrpcEngine) -> None:
        async def is_subscribed() -> bool:
            return engine.feed.subscribers == 1

        await until(is_subscribed, within_s=10, what="the engine has a subscriber")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()
        await self._client.close()

    async def _run(self) -> None:
        while True:
            for directive in self._pending:
                self._obey(directive)
            assert self._call is not None
            try:
                batch = await self._call.receive()
            except EngineFailure as failure:
                is_loss = failure.reason is Reason.KV_EVENTS_LOST
                self._pending = self._cursor.lost() if is_loss else self._cursor.broken()
            else:
                self._pending = self._cursor.broken() if batch is None else self._cursor.batch(batch)

    def _obey(self, directive: Directive) -> None:
        self.obeyed.append(directive)
        if isinstance(directive, Clear):
            self.known.clear()
        elif isinstance(directive, Subscribe):
            if self._call is not None:
                self._call.cancel()
            self._call = self._client.kv_events(resume_at=directive.resume_at)
        elif isinstance(directive, Apply):
            for event in directive.batch.events:
                if isinstance(event, KvStored):
                    self.known |= {block.block_hash for block in event.blocks}
                elif isinstance(event, KvRemoved):
                    self.known -= set(event.block_hashes)
