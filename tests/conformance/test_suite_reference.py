"""The suite passes against the reference engine in both protocols, alone and as a pair: real processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.processes import EngineProcess, eventually

from tandem_router.model.spec import WorkerSpec
from tandem_router.testing.conformance import Choice, Limits, Outcome, Report, Target, check_engine, check_pair

pytestmark = pytest.mark.e2e
LEASE_S = 2.0
"""Of prefills; what a cancelled pair leaves is theirs until then, by default half a minute."""


def failures(report: Report) -> list[str]:
    return [f"{one.check}: {one.finding}" for one in report.verdicts if one.outcome is Outcome.FAIL]


def target(engine: EngineProcess) -> Target:
    return Target(WorkerSpec(url=f"grpc://{engine.address}"))


@contextlib.contextmanager
def engines(protocol: str, *modes: str) -> Iterator[list[EngineProcess]]:
    with contextlib.ExitStack() as stack:
        started = []
        for mode in modes:
            started.append(EngineProcess(protocol, mode, "--kv-lease", f"{LEASE_S:g}s"))
            stack.callback(started[-1].stop)
        yield started


@pytest.mark.parametrize("protocol", ["sglang", "vllm"])
async def test_reference_engine_conforms(protocol: str) -> None:
    with engines(protocol, "aggregated") as [engine]:
        report = await check_engine(target(engine))
        assert failures(report) == []
        assert report.count(Outcome.PASS) >= 35
        eventually(engine.is_idle, within_s=5, what="nothing is left on the engine")


@pytest.mark.parametrize("protocol", ["sglang", "vllm"])
async def test_pair_of_reference_engines_conforms(protocol: str) -> None:
    with engines(protocol, "prefill", "decode", "aggregated") as [prefill, decode, alone]:
        report = await check_pair(target(prefill), target(decode), alone=target(alone), limits=Limits(lease_s=0.5))
        assert failures(report) == []
        found = {one.check: one for one in report.verdicts}
        if protocol == "vllm":
            assert found["pair/kv-moves"].finding.startswith("another prompt's")
            assert "let go" in found["pair/unused-handle"].finding
        eventually(lambda: prefill.is_idle() and decode.is_idle(), within_s=5, what="nothing is left on the engines")


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"drop_page": 0}, "pair/answers"),
        ({"flip_page": 0}, "pair/equals-alone"),
        ({"fail_transfer": True}, "pair/answers"),
    ],
    ids=["page-dropped", "page-flipped", "transfer-failed"],
)
async def test_damaged_transfer_fails_the_pair(faults: dict[str, Any], check: str) -> None:
    with engines("vllm", "prefill", "decode") as [prefill, decode]:
        for engine in (prefill, decode):
            engine.set_faults(**faults)
        choice = Choice(only=("pair/compatible", check))
        report = await check_pair(
            target(prefill), target(decode), choice=choice, limits=Limits(call_s=5.0, give_back_s=1.0)
        )
    assert [one.check for one in report.verdicts if one.outcome is Outcome.FAIL] == [check], report.verdicts
