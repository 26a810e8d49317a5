from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import WorkerType
from tandem_router.model.stream import EngineChunk, EngineEnd
from tandem_router.ports import EngineCall, EngineClient
from tandem_router.testing.scripted_fleet import Machine, ScriptedFleet
from tandem_router.testing.scripted_model import EOS, answer, pages_of
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_loop import SimLoop

PROMPT = tuple(range(10, 31))
GREEDY = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
ROOM = 4711
SEED = 7
ROOMY = EngineScript(kind=HandshakeKind.RENDEZVOUS)
HANDY = EngineScript(kind=HandshakeKind.HANDOFF)
PREFILL = WorkerType.PREFILL
DECODE = WorkerType.DECODE


def expected() -> tuple[int, ...]:
    return answer(PROMPT, pages_of(PROMPT), GREEDY, 0).token_ids


def leg(role: LegRole, kind: HandshakeKind, leg_id: str | None = None, handoff: object = None) -> LegRequest:
    made = LegRequest(leg_id or role.lower(), kind, role, PROMPT, GREEDY)
    return replace(made, handoff=handoff)  # type: ignore[arg-type]


class Stage:
    """A prefill and a decode machine with their clients."""

    def __init__(self, fleet: ScriptedFleet, prefill: Machine, decode: Machine) -> None:
        self.fleet, self.prefill, self.decode = fleet, prefill, decode

    async def client(self, machine: Machine) -> EngineClient:
        return await self.fleet.dial(machine.spec, None, timeout_s=1)

    async def meet(self, room: int = ROOM) -> tuple[EngineCall, EngineCall]:
        meeting = Rendezvous(self.prefill.bootstrap.host, self.prefill.bootstrap.port, room)
        first = (await self.client(self.prefill)).generate(
            leg(LegRole.PREFILL, HandshakeKind.RENDEZVOUS, f"p{room}", meeting), timeout_s=None
        )
        second = (await self.client(self.decode)).generate(
            leg(LegRole.DECODE, HandshakeKind.RENDEZVOUS, f"d{room}", meeting), timeout_s=None
        )
        return first, second

    async def prefill_handle(self) -> TransferParams:
        call = (await self.client(self.prefill)).generate(leg(LegRole.PREFILL, HandshakeKind.HANDOFF), timeout_s=None)
        end = await call.receive()
        assert isinstance(end, EngineEnd)
        assert end.transfer_params is not None
        return TransferParams(end.transfer_params)

    async def decode_with(self, handle: TransferParams, leg_id: str = "decode") -> EngineCall:
        client = await self.client(self.decode)
        return client.generate(leg(LegRole.DECODE, HandshakeKind.HANDOFF, leg_id, handle), timeout_s=None)

    async def quiet(self) -> dict[str, dict[str, int]]:
        await asyncio.sleep(0.1)
        return self.fleet.held()


def play(script: EngineScript, scene: Callable[[Stage], Awaitable[None]], seed: int = SEED) -> None:
    loop = SimLoop(seed)

    async def main() -> None:
        fleet = ScriptedFleet(loop, seed)
        stage = Stage(
            fleet,
            fleet.add("prefill", replace(script, worker_type=PREFILL)),
            fleet.add("decode", replace(script, worker_type=DECODE)),
        )
        try:
            await scene(stage)
        finally:
            await fleet.close()

    loop.run(main())


async def tokens_of(call: EngineCall) -> tuple[int, ...]:
    out: list[int] = []
    while (item := await call.receive()) is not None:
        out.extend(item.token_ids)
    return tuple(out)


@pytest.mark.parametrize("seed", range(10))
def test_a_rendezvous_gives_the_tokens_of_the_prompt(seed: int) -> None:
    async def scene(stage: Stage) -> None:
        _, decode = await stage.meet()
        assert await tokens_of(decode) == expected()
        assert await stage.quiet() == {}
        assert stage.prefill.ledger.pages_sent == stage.decode.ledger.pages_received == len(PROMPT) // 4
        assert stage.fleet.violations() == []

    play(ROOMY, scene, seed)


@pytest.mark.parametrize("seed", range(10))
def test_a_handoff_gives_the_tokens_of_the_prompt(seed: int) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.decode_with(await stage.prefill_handle())
        assert await tokens_of(call) == expected()
        assert await stage.quiet() == {}
        assert stage.decode.ledger.recomputed_pages == 0

    play(HANDY, scene, seed)


@pytest.mark.parametrize("knob", ["lost_page", "flipped_page"])
@pytest.mark.parametrize("index", [0, 4])
def test_a_page_that_is_lost_or_flipped_shows_in_the_tokens(knob: str, index: int) -> None:
    async def scene(stage: Stage) -> None:
        setattr(stage.prefill.faults, knob, index)
        _, decode = await stage.meet()
        assert await tokens_of(decode) != expected()

    play(ROOMY, scene)


def test_a_killed_prefill_fails_decode_and_breaks_its_own_call() -> None:
    async def scene(stage: Stage) -> None:
        prefill, decode = await stage.meet()
        await asyncio.sleep(0.008)
        stage.prefill.kill()
        with pytest.raises(EngineFailure) as own:
            await prefill.receive()
        assert own.value.connection_lost
        with pytest.raises(EngineFailure, match="gone"):
            await decode.receive()
        assert await stage.quiet() == {}

    play(ROOMY, scene)


def test_a_decode_without_prefill_hangs_until_its_bootstrap_timeout() -> None:
    async def scene(stage: Stage) -> None:
        meeting = Rendezvous(stage.prefill.bootstrap.host, stage.prefill.bootstrap.port, ROOM)
        client = await stage.client(stage.decode)
        call = client.generate(leg(LegRole.DECODE, HandshakeKind.RENDEZVOUS, "d", meeting), timeout_s=None)
        before = asyncio.get_running_loop().time()
        with pytest.raises(EngineFailure, match="no prefill"):
            await call.receive()
        assert asyncio.get_running_loop().time() - before == pytest.approx(60, abs=0.1)

    play(ROOMY, scene)


def test_an_abort_in_transfer_is_recorded_as_corruption() -> None:
    async def scene(stage: Stage) -> None:
        _, decode = await stage.meet()
        while stage.decode.ledger.pages_received < 2:  # noqa: ASYNC110 - watches from outside
            await asyncio.sleep(0.0005)
        decode.cancel()
        assert await stage.quiet() == {}
        assert any("on their way" in found for found in stage.fleet.violations())

    play(ROOMY, scene)


def test_an_abort_before_the_transfer_and_after_it_is_clean() -> None:
    async def scene(stage: Stage) -> None:
        _, decode = await stage.meet()
        assert isinstance(await decode.receive(), EngineChunk)
        decode.cancel()
        assert await stage.quiet() == {}
        assert stage.fleet.violations() == []

    play(ROOMY, scene)


def test_a_room_used_twice_at_once_is_a_violation() -> None:
    async def scene(stage: Stage) -> None:
        await stage.meet(ROOM)
        meeting = Rendezvous(stage.prefill.bootstrap.host, stage.prefill.bootstrap.port, ROOM)
        client = await stage.client(stage.prefill)
        client.generate(leg(LegRole.PREFILL, HandshakeKind.RENDEZVOUS, "other", meeting), timeout_s=None)
        await asyncio.sleep(0.002)
        assert any("duplicate room" in found for found in stage.fleet.violations())

    play(ROOMY, scene)


def test_a_sglang_abort_leaves_the_stream_open_until_the_cancel() -> None:
    async def scene(stage: Stage) -> None:
        _, decode = await stage.meet()
        await decode.receive()
        await (await stage.client(stage.decode)).abort(f"d{ROOM}", timeout_s=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await tokens_of(decode)
        assert stage.fleet.held() == {"decode": {"streams": 1}}
        decode.cancel()
        assert await stage.quiet() == {}

    play(ROOMY, scene)


def test_a_vllm_abort_ends_the_stream_under_ok() -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.decode_with(await stage.prefill_handle())
        await call.receive()
        await (await stage.client(stage.decode)).abort("decode", timeout_s=1)
        with pytest.raises(EngineFailure) as found:
            await tokens_of(call)
        assert (found.value.reason, found.value.code) == (Reason.ENGINE_ABORTED, Code.OK)

    play(HANDY, scene)


def test_an_unused_handle_is_held_until_its_lease_is_over() -> None:
    async def scene(stage: Stage) -> None:
        await stage.prefill_handle()
        await asyncio.sleep(29)
        assert stage.fleet.held() == {"prefill": {"held_pages": 5, "handles": 1}}
        await asyncio.sleep(2)
        assert stage.fleet.held() == {}
        assert stage.prefill.ledger.handles_expired == 1

    play(HANDY, scene)


def test_a_handle_cancelled_at_a_live_decode_is_given_back() -> None:
    async def scene(stage: Stage) -> None:
        (await stage.decode_with(await stage.prefill_handle())).cancel()
        assert await stage.quiet() == {}
        assert stage.prefill.ledger.handles_released == 1
        assert stage.fleet.violations() == []

    play(HANDY, scene)


def test_a_handle_used_twice_is_refused_and_recorded() -> None:
    async def scene(stage: Stage) -> None:
        handle = await stage.prefill_handle()
        assert await tokens_of(await stage.decode_with(handle)) == expected()
        with pytest.raises(EngineFailure, match="no such blocks"):
            await tokens_of(await stage.decode_with(handle, "again"))
        assert any("used twice" in found for found in stage.fleet.violations())

    play(HANDY, scene)


def test_parameters_without_block_ids_kill_the_engine() -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.decode_with(TransferParams('{"do_remote_prefill": true}'))
        with pytest.raises(EngineFailure):
            await call.receive()
        assert stage.decode.engine is not None
        assert stage.decode.engine.is_dead

    play(HANDY, scene)


def test_a_request_without_a_room_kills_a_rendezvous_worker() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.decode)
        call = client.generate(leg(LegRole.DECODE, HandshakeKind.AGGREGATE), timeout_s=None)
        with pytest.raises(EngineFailure) as found:
            await call.receive()
        assert found.value.connection_lost

    play(ROOMY, scene)


def test_a_restarted_process_is_another_instance_with_an_empty_ledger() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.decode)
        before = await client.describe(timeout_s=1)
        stage.decode.kill()
        stage.decode.start()
        await asyncio.sleep(0.01)
        after = await client.describe(timeout_s=1)
        assert (before.instance, after.instance) == ("decode#1", "decode#2")

    play(ROOMY, scene)


def test_a_call_to_a_dead_address_proves_that_nothing_was_sent() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.decode)
        stage.decode.kill()
        await asyncio.sleep(0.01)
        call = client.generate(leg(LegRole.DECODE, HandshakeKind.HANDOFF), timeout_s=None)
        with pytest.raises(EngineFailure) as found:
            await call.receive()
        assert not found.value.was_sent

    play(HANDY, scene)


def test_a_hung_engine_answers_nothing_until_it_goes_on() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.decode)
        stage.decode.faults.is_hung = True
        with pytest.raises(EngineFailure) as found:
            await client.probe(timeout_s=2)
        assert found.value.code is Code.DEADLINE_EXCEEDED
        stage.decode.faults.is_hung = False
        await client.probe(timeout_s=2)

    play(HANDY, scene)


def test_a_zombie_fails_probes_and_requests_and_reports_zero_load() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.prefill)
        stage.prefill.faults.is_zombie = True
        with pytest.raises(EngineFailure, match="healthy=false"):
            await client.probe(timeout_s=1)
        with pytest.raises(EngineFailure, match="EngineDeadError"):
            await client.generate(leg(LegRole.PREFILL, HandshakeKind.HANDOFF), timeout_s=None).receive()
        loads = await client.loads(timeout_s=1)
        assert loads is not None
        assert loads[0].running == 0

    play(HANDY, scene)


def test_the_grpc_timeout_ends_both_ends_of_a_call() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.client(stage.decode)
        stage.decode.faults.is_hung = True
        call = client.generate(leg(LegRole.DECODE, HandshakeKind.HANDOFF), timeout_s=3)
        with pytest.raises(EngineFailure) as found:
            await call.receive()
        assert found.value.code is Code.DEADLINE_EXCEEDED
        assert await stage.quiet() == {}

    play(HANDY, scene)


def test_an_answer_stops_at_the_end_of_sequence_or_a_stop_token() -> None:
    free = Sampling(temperature=0, max_tokens=2000)
    reached = answer(PROMPT, pages_of(PROMPT), free, 0)
    assert (reached.token_ids[-1], reached.matched_stop) == (EOS, EOS)
    third = reached.token_ids[2]
    stopped = answer(PROMPT, pages_of(PROMPT), replace(free, stop_token_ids=(third,)), 0)
    assert stopped.token_ids == reached.token_ids[:3]
