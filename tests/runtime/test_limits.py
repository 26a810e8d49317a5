"""The limits of a call, each just inside and just outside its edge; what workers are told of them; slow clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from tests.runtime.call_world import ALONE, ask, call, limited, pair_of, play, took_s

from tandem_router.errors import Reason
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest, RequestContext, Sampling, Timeouts
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.stream import EngineItem
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_client import ScriptedCall, ScriptedClient
from tandem_router.testing.sim_client import PRINCIPAL, ClientRecord, SimSink

JUST = 1e-6
"""Far below anything that an engine of these tests does, far above what floats lose."""
FLEETS = {
    "alone": ALONE,
    "rendezvous": pair_of(HandshakeKind.RENDEZVOUS),
    "handoff": pair_of(HandshakeKind.HANDOFF),
}


def moments(fleet: str) -> tuple[float, list[float], float]:
    """Of an unlimited call, after its start: first token, every chunk, end."""
    seen: list[float] = []

    class Watched(SimSink):
        async def chunk(self, chunk: object) -> None:
            seen.append(asyncio.get_running_loop().time())
            await super().chunk(chunk)  # type: ignore[arg-type]

    async def scene(runtime: SimRuntime) -> tuple[float, list[float], float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        record = ClientRecord(ClientPlan(ask(), 0.0))
        await runtime.relay.start(ask(), RequestContext(principal=PRINCIPAL), Watched(record, loop)).result()
        after_s = [at_s - began_s for at_s in seen]
        return after_s[0], after_s, loop.time() - began_s

    return play(scene, FLEETS[fleet])


def outcome(fleet: str, timeouts: Timeouts, **plan: object) -> tuple[object, object]:
    async def scene(runtime: SimRuntime) -> tuple[object, object]:
        record = await call(runtime, ask(timeouts=timeouts), **plan)
        return record.error.reason if record.error else None, took_s(record)

    return play(scene, FLEETS[fleet])


@pytest.mark.parametrize("fleet", FLEETS)
def test_first_token_timeout_strikes_at_its_limit_and_never_before(fleet: str) -> None:
    first_s, _, end_s = moments(fleet)
    assert outcome(fleet, limited(first_token_s=first_s + JUST)) == (None, pytest.approx(end_s))
    late = (Reason.FIRST_TOKEN_TIMEOUT, pytest.approx(first_s - JUST, abs=1e-9))
    assert outcome(fleet, limited(first_token_s=first_s - JUST)) == late


@pytest.mark.parametrize("fleet", FLEETS)
def test_inter_token_timeout_strikes_at_its_limit_and_never_before(fleet: str) -> None:
    _, chunks_s, end_s = moments(fleet)
    gap_s = max(later - earlier for earlier, later in pairwise(chunks_s))
    assert outcome(fleet, limited(inter_token_s=gap_s + JUST)) == (None, pytest.approx(end_s))
    reason, ended_s = outcome(fleet, limited(inter_token_s=gap_s - JUST))
    assert reason is Reason.INTER_TOKEN_TIMEOUT
    assert any(ended_s == pytest.approx(at_s + gap_s - JUST, abs=1e-9) for at_s in chunks_s)


@pytest.mark.parametrize("fleet", FLEETS)
def test_total_timeout_strikes_at_its_limit_and_never_before(fleet: str) -> None:
    *_, end_s = moments(fleet)
    assert outcome(fleet, limited(total_s=end_s + JUST)) == (None, pytest.approx(end_s))
    assert outcome(fleet, limited(total_s=end_s - JUST)) == (
        Reason.TOTAL_TIMEOUT, pytest.approx(end_s - JUST, abs=1e-9),
    )  # fmt: skip


@pytest.mark.parametrize("fleet", FLEETS)
def test_caller_s_deadline_strikes_at_its_limit_and_never_before(fleet: str) -> None:
    *_, end_s = moments(fleet)
    assert outcome(fleet, Timeouts(), deadline_after_s=end_s + JUST) == (None, pytest.approx(end_s))
    assert outcome(fleet, Timeouts(), deadline_after_s=end_s - JUST) == (
        Reason.TOTAL_TIMEOUT, pytest.approx(end_s - JUST, abs=1e-9),
    )  # fmt: skip


def test_the_earliest_of_deadline_and_total_wins() -> None:
    assert outcome("alone", limited(total_s=0.02), deadline_after_s=0.01)[1] == pytest.approx(0.01)
    assert outcome("alone", limited(total_s=0.01), deadline_after_s=0.02)[1] == pytest.approx(0.01)


def test_the_shortest_inter_token_limit_does_not_keep_the_loop_busy_before_the_first_token() -> None:
    async def scene(runtime: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        runtime.machines.machines["alone"].faults.is_hung = True
        before = loop.steps  # type: ignore[attr-defined]
        record = await call(runtime, ask(timeouts=limited(inter_token_s=1e-9, total_s=1.0)))
        assert record.error is not None
        assert record.error.reason is Reason.TOTAL_TIMEOUT
        assert loop.steps - before < 3000  # type: ignore[attr-defined]
        runtime.machines.machines["alone"].faults.is_hung = False

    play(scene)


def test_inter_token_timeout_sees_one_silent_choice_beside_one_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    received: Counter[ScriptedCall] = Counter()
    silent_since_s: list[float] = []
    real = ScriptedCall.receive

    async def receive(call: ScriptedCall) -> EngineItem | None:
        received[call] += 1
        if received[call] == 5 and not silent_since_s:  # only decode legs get so far, and only one of them stays there
            silent_since_s.append(asyncio.get_running_loop().time())
            await asyncio.Event().wait()
        return await real(call)

    async def scene(runtime: SimRuntime) -> None:
        monkeypatch.setattr(ScriptedCall, "receive", receive)
        sampling = Sampling(temperature=0.9, seed=1, n=2, max_tokens=400, ignore_eos=True)
        record = await call(runtime, ask(sampling=sampling, timeouts=limited(inter_token_s=0.2)))
        assert record.error is not None
        assert record.error.reason is Reason.INTER_TOKEN_TIMEOUT
        assert record.ended_s == pytest.approx(silent_since_s[0] + 0.2, abs=0.001)
        assert sorted(len(tokens) > 30 for tokens in record.tokens.values()) == [False, True]

    play(scene, pair_of(HandshakeKind.RENDEZVOUS))


def test_a_client_that_reads_slowly_is_not_taken_for_a_silent_engine() -> None:
    assert outcome("alone", limited(inter_token_s=0.05), stall_at_chunk=2, stall_s=1.0)[0] is None


class Heard:
    """What workers are sent, and with how much time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.legs: list[LegRequest] = []
        self.timeouts: dict[LegRole, float | None] = {}
        self.at_s: dict[LegRole, float] = {}
        real = ScriptedClient.generate

        def generate(client: ScriptedClient, leg: LegRequest, *, timeout_s: float | None) -> ScriptedCall:
            self.legs.append(leg)
            self.timeouts[leg.role] = timeout_s
            self.at_s[leg.role] = asyncio.get_running_loop().time()
            return real(client, leg, timeout_s=timeout_s)

        monkeypatch.setattr(ScriptedClient, "generate", generate)


@pytest.mark.parametrize("limit", ["deadline", "total"])
@pytest.mark.parametrize("fleet", FLEETS)
def test_each_leg_gets_what_is_left_of_the_deadline_and_the_grace_where_it_may_linger(
    monkeypatch: pytest.MonkeyPatch, fleet: str, limit: str
) -> None:
    heard = Heard(monkeypatch)
    grace_s = RuntimeSettings().transfer_grace_s if fleet == "rendezvous" else 0.0

    async def scene(runtime: SimRuntime) -> None:
        began_s = asyncio.get_running_loop().time()
        timeouts = limited(total_s=7.0) if limit == "total" else Timeouts()
        record = await call(runtime, ask(timeouts=timeouts), deadline_after_s=7.0 if limit == "deadline" else 60.0)
        assert record.error is None
        for role, timeout_s in heard.timeouts.items():
            assert timeout_s == pytest.approx(7.0 - (heard.at_s[role] - began_s) + grace_s, abs=1e-9)
        assert len(heard.timeouts) == len(FLEETS[fleet])

    play(scene, FLEETS[fleet])


def test_a_call_without_limits_sends_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch)

    async def scene(runtime: SimRuntime) -> None:
        await call(runtime, ask())
        assert list(heard.timeouts.values()) == [None]

    play(scene)


def test_every_leg_carries_what_is_forwarded_of_the_call_s_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch)
    forwarded = (("x-request-id", "r"), ("tracestate", "a=1"))

    async def scene(runtime: SimRuntime) -> None:
        record = ClientRecord(ClientPlan(ask(), 0.0))
        context = RequestContext(principal=PRINCIPAL, forwarded=forwarded)
        await runtime.relay.start(ask(), context, SimSink(record, asyncio.get_running_loop())).result()
        assert [leg.metadata for leg in heard.legs] == [forwarded, forwarded]

    play(scene, FLEETS["handoff"])


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_client_whose_buffer_is_full_is_slow_and_its_legs_end(fleet: str) -> None:
    settings = replace(RuntimeSettings(), max_stream_buffer_bytes=4096)

    async def scene(runtime: SimRuntime) -> None:
        long = ask(sampling=Sampling(temperature=0.0, max_tokens=500, ignore_eos=True))
        record = await call(runtime, long, stall_at_chunk=2, stall_s=30.0)
        assert record.error is not None
        assert record.error.reason is Reason.SLOW_CLIENT
        assert took_s(record) < 1.0

    play(scene, FLEETS[fleet], settings)


def test_a_client_that_falls_behind_within_its_buffer_loses_nothing() -> None:
    async def scene(runtime: SimRuntime) -> None:
        long = ask(sampling=Sampling(temperature=0.0, max_tokens=500, ignore_eos=True))
        record = await call(runtime, long, stall_at_chunk=2, stall_s=30.0)
        assert record.error is None
        assert len(record.tokens[0]) == 500

    play(scene)


def test_abort_says_how_many_tokens_there_were_also_those_that_a_stalled_client_has_not_read() -> None:
    async def scene(runtime: SimRuntime) -> None:
        long = ask(sampling=Sampling(temperature=0.0, max_tokens=500, ignore_eos=True))
        calling = asyncio.create_task(call(runtime, long, stall_at_chunk=3, stall_s=30.0))
        await asyncio.sleep(1.0)
        generated = runtime.machines.machines["alone"].ledger.requests
        aborted = runtime.relay.abort(PRINCIPAL, "r")
        assert aborted is not None
        assert generated == 1
        assert 150 < aborted.completion_tokens < 250  # 5 ms a token, for a second
        assert runtime.relay.abort(PRINCIPAL, "r") is None
        await calling

    play(scene)
