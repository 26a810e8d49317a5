"""The suite passes against every scripted engine, and says of each the habits that are its own."""

from __future__ import annotations

import contextlib

import pytest
from tests.conformance.suite_world import (
    ENGINES,
    TOKEN_S,
    at_rest,
    engine_report,
    pair_of,
    pair_report,
    telling,
    verdict,
)

from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.testing.conformance import ENGINE_CHECKS, PAIR_CHECKS, Outcome
from tandem_router.testing.conformance.suite import Report
from tandem_router.testing.grpc_engines import GrpcScript, ScriptedGrpcEngine

_PREFIX_KILLERS = frozenset({RuntimeType.SGLANG, RuntimeType.TOKENSPEED})
_PER_CHUNK = frozenset({RuntimeType.VLLM})
_END_IDS = {RuntimeType.MLX: "none", RuntimeType.TRTLLM: "all"}


def failures(report: Report) -> list[str]:
    return [f"{one.check}: {one.finding}" for one in report.verdicts if one.outcome is Outcome.FAIL]


def test_names_are_unique_and_grouped() -> None:
    for checks in (ENGINE_CHECKS, PAIR_CHECKS):
        names = [check.name for check in checks]
        assert len(set(names)) == len(names)
        assert all(name.count("/") == 1 and name == name.lower() for name in names)


def test_hazards_come_last() -> None:
    for checks in (ENGINE_CHECKS, PAIR_CHECKS):
        flags = [check.is_hazardous for check in checks]
        assert flags == sorted(flags)


@pytest.mark.parametrize("runtime", ENGINES)
async def test_suite_passes_against_scripted(runtime: RuntimeType) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            ScriptedGrpcEngine(GrpcScript(runtime, token_s=TOKEN_S, answer_tokens=20))
        )
        with contextlib.suppress(LookupError):
            assert engine.feed is not None
            await stack.enter_async_context(telling(engine))
        report = await engine_report(engine)
        assert failures(report) == []
        assert len(report.verdicts) == len(ENGINE_CHECKS)
        assert verdict(report, "stream/chunk-counts").measured["counts"] == (
            "per chunk" if runtime in _PER_CHUNK else "running"
        )
        assert verdict(report, "stream/end-ids").measured["end_ids"] == _END_IDS.get(runtime, "last chunk")
        assert engine.deaths == []
        await at_rest(engine)


async def test_hazards_are_not_sent_without_being_asked_for() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG, token_s=TOKEN_S)) as engine:
        report = await engine_report(engine, "hazard/*")
        assert {one.outcome for one in report.verdicts} == {Outcome.SKIP}
        assert engine.generated == []


async def test_hazards_say_what_the_engine_did() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG, token_s=TOKEN_S)) as engine:
        report = await engine_report(engine, "hazard/*", hazardous=True)
        assert engine.deaths == ["an empty prompt"]
    assert verdict(report, "hazard/empty-prompt").measured["did"] == "died"
    assert verdict(report, "hazard/same-id-twice").finding.startswith("1 of 2 ended well, 1 hung")
    assert verdict(report, "hazard/prompt-over-the-limit").finding == "refused with INVALID_ARGUMENT"
    assert failures(report) == []


async def test_half_of_a_rendezvous_is_not_asked_alone() -> None:
    async with ScriptedGrpcEngine(GrpcScript(RuntimeType.SGLANG, WorkerType.PREFILL, bootstrap_port=9)) as engine:
        report = await engine_report(engine)
        assert engine.generated == []
        assert engine.deaths == []
    assert failures(report) == []
    assert "--decode" in verdict(report, "answer/greedy-repeats").finding


@pytest.mark.parametrize("runtime", [RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TOKENSPEED])
async def test_suite_passes_against_a_scripted_pair(runtime: RuntimeType) -> None:
    async with (
        pair_of(runtime, answer_tokens=20) as pair,
        ScriptedGrpcEngine(GrpcScript(runtime, token_s=TOKEN_S, answer_tokens=20)) as alone,
    ):
        report = await pair_report(pair, alone=alone)
        # Scripted engines answer without looking at any block, and the suite is not to be deceived by that.
        expected = ["pair/kv-moves"] if runtime is RuntimeType.VLLM else []
        assert [line.partition(":")[0] for line in failures(report)] == expected, failures(report)
        assert [engine.deaths for engine in pair] == [[], []]
        await at_rest(*pair, alone)
