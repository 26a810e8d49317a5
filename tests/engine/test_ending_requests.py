"""Aborts, failures, leases and stops: whatever happens and whenever, an idle engine has nothing in hand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest
from engine_driving import GREEDY, IDLE, collect, decode_from, generate, in_hand, prefill_pages, prompt, request, ticks
from engine_model import ManualClock, RunEngine

from tandem_engine.engine import Engine
from tandem_engine.model import Model
from tandem_engine.ports import NoFaults
from tandem_engine.requests import EngineError, EngineErrorReason, Phase

LONG = dataclasses.replace(GREEDY, max_tokens=2000)


class Gate(NoFaults):
    """Holds every step until opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def before_step(self, step: int) -> None:
        await self.opened.wait()


async def test_abort_while_waiting_answers_abort(run_engine: RunEngine) -> None:
    async with run_engine(max_running=1, faults=Gate()) as engine:
        engine.submit(request("first", prompt(20), LONG))
        handle = engine.submit(request("second", prompt(20), LONG))
        await ticks()
        assert handle.abort()
        assert [item.finish for item in await collect(handle)] == ["abort"]


async def test_abort_while_computing_the_prompt_gives_the_pages_back(run_engine: RunEngine) -> None:
    async with run_engine(faults=Gate()) as engine:
        handle = engine.submit(request("a", prompt(200)))
        await ticks()
        assert engine.ledger().running == 1
        assert engine.abort("a")
        assert ([item.finish for item in await collect(handle)], in_hand(engine)) == (["abort"], IDLE)


async def test_abort_while_running_ends_every_choice(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("a", prompt(20), dataclasses.replace(LONG, n=3)))
        await anext(handle)
        handle.abort()
        finishes = {item.choice: item.finish for item in await collect(handle) if item.finish}
        assert (finishes, in_hand(engine)) == ({0: "abort", 1: "abort", 2: "abort"}, IDLE)


async def test_abort_of_an_ended_request_says_so(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("a", prompt(20)))
        await collect(handle)
        assert (engine.abort("a"), handle.abort(), engine.abort("never")) == (False, False, False)


async def test_abort_in_transfer_keeps_the_pages_until_the_writer_stops(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("d", prompt(64), phase=Phase.DECODE, room=9))
        landing = await handle.landing_pages()
        handle.abort()
        assert [item.finish for item in await collect(handle)] == ["abort"]
        assert in_hand(engine) == (0, 0, len(landing), 1)
        engine.write_page(handle.rank, landing[3], bytes(engine.page_bytes))
        handle.transfer_stopped()
        assert in_hand(engine) == IDLE


async def test_a_late_arrival_after_an_abort_changes_nothing(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("d", prompt(64), phase=Phase.DECODE, room=9))
        await handle.landing_pages()
        handle.abort()
        handle.kv_arrived(4)
        handle.transfer_stopped()
        handle.transfer_stopped()
        assert in_hand(engine) == IDLE


async def _neighbour_of_an_aborted_transfer(run_engine: RunEngine, *, corrupt: bool) -> list[float | None]:
    """Log probabilities of a request that needs pages of an aborted decode whose writer goes on writing."""
    sampling = dataclasses.replace(GREEDY, logprobs=0, max_tokens=40)
    async with run_engine(num_pages=12, corrupt_on_abort=corrupt) as engine:
        aborted = engine.submit(request("d", prompt(64), phase=Phase.DECODE, room=9))
        landing = await aborted.landing_pages()
        aborted.abort()
        neighbour = engine.submit(request("n", prompt(70, 1), sampling))
        first = [await anext(neighbour)] if corrupt else []  # else it cannot start before the writer stops
        for page in landing:
            engine.write_page(aborted.rank, page, np.full(engine.page_bytes // 4, 0.5, np.float32).tobytes())
        aborted.transfer_stopped()
        return [item.logprob for item in first + await collect(neighbour)]


async def test_corrupt_on_abort_lets_the_writer_spoil_a_neighbour(run_engine: RunEngine) -> None:
    spoilt = await _neighbour_of_an_aborted_transfer(run_engine, corrupt=True)
    assert spoilt != await _neighbour_of_an_aborted_transfer(run_engine, corrupt=False)


async def test_pages_reserved_after_an_abort_keep_the_writer_away_from_neighbours(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        clean = await generate(
            engine, request("n", prompt(70, 1), dataclasses.replace(GREEDY, logprobs=0, max_tokens=40))
        )
    kept = await _neighbour_of_an_aborted_transfer(run_engine, corrupt=False)
    assert kept == [item.logprob for item in clean]


async def test_abort_of_a_held_prefill_is_refused_and_release_frees_it(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("p", prompt(64), phase=Phase.PREFILL, room=9))
        held = await handle.held_pages()
        assert (engine.abort("p"), in_hand(engine)) == (False, (0, 0, 4, 1))
        assert (engine.release(held), engine.release(held), in_hand(engine)) == (True, False, IDLE)


async def test_a_lease_that_ends_gives_the_held_pages_back(run_engine: RunEngine, clock: ManualClock) -> None:
    async with run_engine(kv_lease_s=30.0) as engine:
        held = await engine.submit(request("p", prompt(64), phase=Phase.PREFILL, room=9)).held_pages()
        clock.now_s += 29.9
        assert in_hand(engine) == (0, 0, 4, 1)
        clock.now_s += 0.2
        assert (in_hand(engine), engine.release(held)) == (IDLE, False)


async def test_pages_of_an_ended_lease_cannot_be_read(run_engine: RunEngine, clock: ManualClock) -> None:
    async with run_engine() as engine:
        held = await engine.submit(request("p", prompt(64), phase=Phase.PREFILL)).held_pages()
        clock.now_s += 31.0
        with pytest.raises(EngineError) as refused:
            engine.read_page(held.rank, held.pages[0])
        assert refused.value.reason is EngineErrorReason.WRONG_STATE


async def test_a_failed_transfer_answers_error_and_frees_at_once(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        handle = engine.submit(request("d", prompt(64), phase=Phase.DECODE, room=9))
        await handle.landing_pages()
        handle.kv_failed("prefill is gone")
        assert [(item.finish, item.error) for item in await collect(handle)] == [("error", "prefill is gone")]
        assert in_hand(engine) == IDLE


async def test_landing_pages_of_an_aborted_wait_raise_aborted(run_engine: RunEngine) -> None:
    async with run_engine(num_pages=8, faults=Gate()) as engine:
        engine.submit(request("a", prompt(64), dataclasses.replace(GREEDY, max_tokens=64)))
        handle = engine.submit(request("d", prompt(64), phase=Phase.DECODE))
        waiting = asyncio.create_task(handle.landing_pages())
        await ticks()
        handle.abort("gone")
        with pytest.raises(EngineError) as refused:
            await waiting
        assert refused.value.reason is EngineErrorReason.ABORTED


async def test_a_waiting_request_is_admitted_when_pages_come_back(run_engine: RunEngine) -> None:
    async with run_engine(num_pages=8) as engine:
        held = await engine.submit(request("p", prompt(112), phase=Phase.PREFILL)).held_pages()
        handle = engine.submit(request("a", prompt(60, 1)))
        await ticks(50)
        assert engine.ledger().waiting == 1
        engine.release(held)
        assert len(await collect(handle)) == 24


async def test_stop_ends_an_engine_that_a_fault_has_hung(run_engine: RunEngine) -> None:
    async with run_engine(faults=Gate()) as engine:
        handle = engine.submit(request("a", prompt(20)))
        await ticks()
        engine.stop()
        assert [item.finish for item in await collect(handle)] == ["abort"]


async def test_stop_answers_abort_and_gives_everything_back(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        running = engine.submit(request("a", prompt(20), LONG))
        transfer = engine.submit(request("d", prompt(64), phase=Phase.DECODE, room=9))
        await engine.submit(request("p", prompt(64), phase=Phase.PREFILL)).held_pages()
        await transfer.landing_pages()
        engine.stop()
        ends = [(await collect(handle))[-1].finish for handle in (running, transfer)]
        assert (ends, in_hand(engine)) == (["abort", "abort"], IDLE)


async def test_a_stopped_engine_refuses_requests(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        engine.stop()
        with pytest.raises(EngineError) as refused:
            engine.submit(request("a", prompt(3)))
        assert refused.value.reason is EngineErrorReason.STOPPED


class Crash(NoFaults):
    def on_token(self, request_id: str, completion_tokens: int) -> None:
        if completion_tokens == 3:
            raise RuntimeError("crash at token 3")


async def test_a_step_loop_that_dies_answers_error_to_all_and_says_why(run_engine: RunEngine) -> None:
    async with run_engine(faults=Crash()) as engine:
        handles = [engine.submit(request(name, prompt(20), LONG)) for name in "ab"]
        ends = [(await collect(handle))[-1] for handle in handles]
        assert [item.finish for item in ends] == ["error", "error"]
        assert (str(engine.failure), in_hand(engine)) == ("crash at token 3", IDLE)


async def test_a_cancelled_run_gives_everything_back(model: Model, clock: ManualClock) -> None:
    engine = Engine(model, clock=clock)
    task = asyncio.create_task(engine.run())
    handle = engine.submit(request("a", prompt(20), LONG))
    await anext(handle)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ((await collect(handle))[-1].finish, in_hand(engine)) == ("abort", IDLE)


@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_of_requests_and_aborts_leaves_nothing(run_engine: RunEngine, seed: int) -> None:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    async with run_engine(num_pages=64, max_running=6, prefill_chunk=32, dp_size=2) as engine:

        async def one(index: int) -> None:
            phase = list(Phase)[int(rng.integers(3))]
            n, abort_after = int(rng.integers(1, 3)), int(rng.integers(0, 12))
            sampling = dataclasses.replace(GREEDY, n=n, max_tokens=int(rng.integers(1, 30)))
            asked = request(f"r{index}", prompt(int(rng.integers(1, 90)), index % 3), sampling, phase=phase, room=index)
            handle = engine.submit(asked)
            if abort_after < 3:
                await ticks(abort_after * 7)
                handle.abort()
            if phase is Phase.DECODE:
                try:
                    landing = await handle.landing_pages()
                except EngineError:
                    return
                for page in landing:
                    engine.write_page(handle.rank, page, bytes(engine.page_bytes))
                handle.kv_arrived(len(landing))
                handle.transfer_stopped()
            async for _ in handle:
                abort_after -= 1
                if abort_after == 0:
                    handle.abort()
            if phase is Phase.PREFILL:
                with contextlib.suppress(EngineError):  # aborted before it held anything
                    engine.release(await handle.held_pages())

        await asyncio.gather(*(one(index) for index in range(60)))
        ledger = engine.ledger()
        assert in_hand(engine) == IDLE
        assert ledger.free_pages + ledger.cached_pages == 128


async def test_freed_pages_are_overwritten_with_not_a_number(run_engine: RunEngine) -> None:
    async with run_engine(num_pages=16) as engine:
        await generate(engine, request("a", prompt(40)))
        engine.clear_cache()
        assert np.isnan(engine._ranks[0].cache.data).all()


async def test_reading_a_freed_page_is_refused(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        held = await engine.submit(request("p", prompt(64), phase=Phase.PREFILL)).held_pages()
        engine.release(held)
        with pytest.raises(EngineError):
            engine.read_page(0, held.pages[0])


async def test_decode_twice_from_the_same_pages_gives_the_same_tokens(run_engine: RunEngine) -> None:
    async with run_engine() as prefill, run_engine() as decode:
        pages = await prefill_pages(prefill, prompt(100), GREEDY, room=1)
        first = await decode_from(decode, prompt(100), GREEDY, pages, room=1)
        second = await decode_from(decode, prompt(100), GREEDY, pages, room=2)
    assert [item.token_id for item in first] == [item.token_id for item in second]
