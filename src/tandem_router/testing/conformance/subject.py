"""One engine under test: dialled as the router dials it, with what it said of itself and how it was recognised."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from tandem_router.errors import TandemError
from tandem_router.model.detection import Asked
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Credentials, RankLoad, WorkerFacts
from tandem_router.ports import EngineCall, EngineClient
from tandem_router.runtime.facts import effective_facts
from tandem_router.testing.conformance.asking import Answer, Limits, gather, sampling_of
from tandem_router.testing.conformance.prompts import Prompts
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped
from tandem_router.text.archive import open_archive
from tandem_router.text.tokenizer import Tokenizer
from tandem_router.transport.channels import call_metadata
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.grpc_engine import GrpcEngine

__all__ = ["Subject", "Target", "connected"]

_BOOTSTRAP_PORT = 8998
"""SGLang's default, as the router assumes it."""
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine is and how to get in."""

    spec: WorkerSpec
    credentials: Credentials | None = None
    timeout_s: float = 15.0
    """To connect, to be recognised and to say its facts."""


@dataclass(slots=True)
class Subject:
    """An engine, connected. Owns every call that it starts."""

    target: Target
    client: GrpcEngine
    facts: WorkerFacts
    """With what the target states laid over what the engine said."""
    trace: tuple[Asked, ...]
    limits: Limits
    prompts: Prompts
    tokenizer: Tokenizer | None
    tokenizer_failure: str = ""
    """Why there is none, where the engine handed out something."""
    _calls: list[EngineCall] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As it was given."""
        return self.target.spec.url

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call to it."""
        return call_metadata(self.target.credentials)

    @property
    def serves_alone(self) -> bool:
        """Whether it takes a request without a second leg: half of a rendezvous dies of one (SGLang)."""
        return self.facts.disaggregation_mode is None or self.facts.handshake is not HandshakeKind.RENDEZVOUS

    def leg(self, prompt: tuple[int, ...] | None = None, *, leg_id: str | None = None, **changes: Any) -> LegRequest:
        """A request, as `Asker.ask` describes it."""
        sampling, of_leg = sampling_of(changes)
        base = LegRequest(
            leg_id=leg_id or f"conformance-{uuid.uuid4()}",
            kind=HandshakeKind.AGGREGATE,
            role=LegRole.DECODE,
            token_ids=self.prompts.usual if prompt is None else prompt,
            sampling=sampling,
            dp_rank=0 if self.facts.dp_size > 1 else None,
        )
        return replace(base, **of_leg)

    def start(self, leg: LegRequest, *, timeout_s: float | None = None) -> EngineCall:
        """Write a request; the call is cancelled at the latest when the check ends."""
        call = self.client.generate(leg, timeout_s=timeout_s or self.limits.call_s)
        self._calls.append(call)
        return call

    async def ask(self, prompt: tuple[int, ...] | None = None, *, leg_id: str | None = None, **changes: Any) -> Answer:
        """See `Asker.ask`."""
        return await gather(self.start(self.leg(prompt, leg_id=leg_id, **changes)))

    def long_leg(self, prompt: tuple[int, ...] | None = None, *, leg_id: str | None = None) -> LegRequest:
        """A request that runs until it is stopped."""
        base = self.leg(prompt, leg_id=leg_id, ignore_eos=True)
        room = (self.facts.context_length or 1024) - len(base.token_ids) - 1
        return replace(base, sampling=replace(base.sampling, max_tokens=max(16, min(room, 4000))))

    async def loads(self) -> list[RankLoad]:
        """Per rank; raises CheckSkipped where the protocol has none."""
        found = await self.client.loads(timeout_s=self.limits.call_s)
        if found is None:
            raise CheckSkipped("the protocol tells no loads")
        return list(found)

    async def until_idle(self, within_s: float | None = None) -> float:
        """Seconds until no rank runs or holds anything for a request; raises CheckFailed, CheckSkipped."""
        loop = asyncio.get_running_loop()
        began_s, limit_s = loop.time(), within_s or self.limits.stop_s
        while True:
            loads = await self.loads()
            if not any(load.running or load.waiting for load in loads):
                return loop.time() - began_s
            if loop.time() - began_s > limit_s:
                running = ", ".join(f"{load.running}+{load.waiting}" for load in loads)
                raise CheckFailed(f"after {limit_s:g} s the ranks still have {running} (running+waiting) requests")
            await asyncio.sleep(_LOOK_S)

    async def is_alive(self) -> str | None:
        """None, or why its health says no; bounded."""
        try:
            async with asyncio.timeout(self.limits.hang_s):
                await self.client.probe(timeout_s=self.limits.hang_s)
        except (EngineFailure, TimeoutError) as failure:
            return str(failure) or "no answer to HealthCheck"
        return None

    def let_go(self) -> None:
        """Cancel every call that was started."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.cancel()


@contextlib.asynccontextmanager
async def connected(target: Target, limits: Limits, seed: int) -> AsyncIterator[Subject]:
    """Dial an engine and read its facts; raises EngineFailure (the sentence has the detection's trace), TandemError."""
    trace: list[Asked] = []
    client = await GrpcDialer().dial(target.spec, target.credentials, timeout_s=target.timeout_s, on_asked=trace.append)
    try:
        found = await client.describe(timeout_s=target.timeout_s)
        stated = effective_facts(target.spec, target.spec.url, found, default_bootstrap_port=_BOOTSTRAP_PORT)
        tokenizer, failure = await _tokenizer(client, limits)
        encode = None if tokenizer is None else tokenizer.encode
        prompts = Prompts(seed, found.vocab_size, found.eos_token_ids, encode)
        subject = Subject(target, client, stated.facts, tuple(trace), limits, prompts, tokenizer, failure)
        try:
            yield subject
        finally:
            subject.let_go()
    finally:
        await client.close()


async def _tokenizer(client: EngineClient, limits: Limits) -> tuple[Tokenizer | None, str]:
    try:
        archive = await client.fetch_tokenizer(timeout_s=limits.call_s)
        if archive is None:
            return None, ""
        return await asyncio.to_thread(lambda: Tokenizer(open_archive(archive))), ""
    except (EngineFailure, TandemError) as error:
        return None, str(error)
