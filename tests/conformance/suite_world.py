"""Running the conformance suite against scripted engines: targets, bounds, and engines that tell of their cache."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tandem_router.model.spec import RuntimeType, WorkerSpec, WorkerType
from tandem_router.testing.conformance import Choice, Limits, Report, Target, Verdict, check_engine, check_pair
from tandem_router.testing.grpc_engines import GrpcScript, Meeting, ScriptedGrpcEngine

__all__ = [
    "ENGINES",
    "PATIENT",
    "TOKEN_S",
    "at_rest",
    "engine_report",
    "pair_of",
    "pair_report",
    "target",
    "telling",
    "verdict",
]

ENGINES = (RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TRTLLM, RuntimeType.TOKENSPEED, RuntimeType.MLX)
PATIENT = Limits(call_s=20.0, stop_s=5.0, hang_s=1.0, lease_s=0.3)
"""For what must pass on a busy machine; what must fail is given less time."""
TOKEN_S = 0.002
"""A scripted engine without it writes thousands of tokens before anybody can cancel."""


def target(engine: ScriptedGrpcEngine) -> Target:
    return Target(WorkerSpec(url=engine.url))


@contextlib.asynccontextmanager
async def telling(engine: ScriptedGrpcEngine) -> AsyncIterator[None]:
    """Publish a block for each request, as an engine with a prefix cache does."""

    async def publish() -> None:
        told = 0
        while True:
            for _ in range(len(engine.generated) - told):
                told += 1
                engine.feed.store(told)
            await asyncio.sleep(0.005)

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        publishing.cancel()


async def engine_report(
    engine: ScriptedGrpcEngine, *only: str, limits: Limits = PATIENT, hazardous: bool = False
) -> Report:
    return await check_engine(target(engine), choice=Choice(only, hazardous=hazardous), limits=limits, seed=1)


@contextlib.asynccontextmanager
async def pair_of(
    runtime: RuntimeType, *, decode: dict[str, object] | None = None, **script: object
) -> AsyncIterator[tuple[ScriptedGrpcEngine, ScriptedGrpcEngine]]:
    """A prefill and a decode engine that can meet. decode: what its script has of its own."""
    meeting, both = Meeting(), {"token_s": TOKEN_S, **script}
    first = ScriptedGrpcEngine(GrpcScript(runtime, WorkerType.PREFILL, bootstrap_port=9, **both), meeting)  # type: ignore[arg-type]
    own = {**both, **(decode or {})}
    second = ScriptedGrpcEngine(GrpcScript(runtime, WorkerType.DECODE, **own), meeting)  # type: ignore[arg-type]
    async with first, second:
        yield first, second


async def pair_report(
    pair: tuple[ScriptedGrpcEngine, ScriptedGrpcEngine],
    *only: str,
    alone: ScriptedGrpcEngine | None = None,
    limits: Limits = PATIENT,
    hazardous: bool = False,
) -> Report:
    return await check_pair(
        target(pair[0]),
        target(pair[1]),
        alone=None if alone is None else target(alone),
        choice=Choice(only, hazardous=hazardous),
        limits=limits,
        seed=1,
    )


async def at_rest(*engines: ScriptedGrpcEngine) -> None:
    """Return when the engines have nothing left of anybody; fails after five seconds."""
    async with asyncio.timeout(5):
        while any(engine.running or engine.open_calls for engine in engines):  # noqa: ASYNC110 - engines have no event
            await asyncio.sleep(0.005)


def verdict(report: Report, check: str) -> Verdict:
    """The one of that name."""
    [found] = [one for one in report.verdicts if one.check == check]
    return found
