"""Two engines as one pair: a request runs through both as the router would run it, by the handshake they speak."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass, replace
from typing import Any

from tandem_router.handshake.build import handshake_for, why_none
from tandem_router.handshake.contract import Handshake, Link
from tandem_router.model.ids import WorkerId
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import Worker, WorkerFacts, WorkerStatus
from tandem_router.ports import EngineCall
from tandem_router.testing.conformance.asking import Answer, Limits, gather
from tandem_router.testing.conformance.prompts import Prompts
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.verdict import CheckFailed

__all__ = ["PairSubject", "worker_of"]

_FIRST_ROOM, _ROOMS_END = 1024, 2**31


def worker_of(subject: Subject) -> Worker:
    """The engine as a registry would hold it."""
    return Worker(
        id=WorkerId(str(uuid.uuid4())),
        spec=subject.target.spec,
        url=subject.url,
        status=WorkerStatus.READY,
        revision=1,
        generation=1,
        epoch=1,
        created_at_s=0.0,
        updated_at_s=0.0,
        facts=subject.facts,
    )


@dataclass(slots=True)
class PairSubject:
    """An `Asker` whose answers are computed by two engines."""

    prefill: Subject
    decode: Subject
    alone: Subject | None
    """An engine of the same model that takes whole requests, to compare with."""

    @property
    def facts(self) -> WorkerFacts:
        """Of the decode worker; of log probabilities of the prompt the prefill worker's word counts."""
        return replace(self.decode.facts, returns_prompt_logprobs=self.prefill.facts.returns_prompt_logprobs)

    @property
    def prompts(self) -> Prompts:
        """The decode worker's."""
        return self.decode.prompts

    @property
    def limits(self) -> Limits:
        """The decode worker's."""
        return self.decode.limits

    @property
    def handshake(self) -> Handshake:
        """How they meet; raises CheckFailed where they do not."""
        facts = self.prefill.facts
        found = handshake_for(facts.handshake, facts.kv_connector)
        if found is None:
            reason, why = why_none(facts)
            raise CheckFailed(f"{reason}: {self.prefill.url} {why}")
        return found

    async def ask(self, prompt: tuple[int, ...] | None = None, *, leg_id: str | None = None, **changes: Any) -> Answer:
        """See `Asker.ask`; leg_id is the decode leg's."""
        answer = Answer()
        common = self.decode.leg(prompt, leg_id=leg_id, **changes)
        link = self.link()
        if self.handshake.needs_room:
            # Both legs are written before either is read: they wait for each other.
            first, second = self.start_prefill(common, link), self.start_decode(common, link)
            prefilled = Answer()
            await _both(gather(first, prefilled), gather(second, answer), (first, second))
        else:
            prefilled = await gather(self.start_prefill(common, link))
            await gather(self.start_decode(common, self.returned(link, prefilled)), answer)
        answer.prompt_logprobs = prefilled.prompt_logprobs or answer.prompt_logprobs
        return answer

    def link(self) -> Link:
        """What ties the legs of one request, as far as it is known before prefill has answered."""
        handshake, size = self.handshake, max(1, self.prefill.facts.dp_size)
        room = random.SystemRandom().randrange(_FIRST_ROOM + size, _ROOMS_END)
        return Link(
            worker_of(self.prefill),
            room=room - room % size if handshake.needs_room else None,
            transfer_id=f"xfer-{uuid.uuid4()}" if handshake.needs_transfer_id else None,
        )

    def returned(self, link: Link, prefilled: Answer) -> Link:
        """The link with what prefill's end carried; raises CheckFailed where it owes something."""
        params = prefilled.end.transfer_params
        if self.handshake.returns_params and not params:
            raise CheckFailed("prefill ended without kv_transfer_params, so decode would compute the prompt again")
        return replace(link, returned=params)

    def start_prefill(self, common: LegRequest, link: Link) -> EngineCall:
        """Write the prefill leg."""
        return self.prefill.start(self._leg(self.prefill, self.handshake.prefill_leg(common, link)))

    def start_decode(self, common: LegRequest, link: Link) -> EngineCall:
        """Write the decode leg."""
        leg = self.handshake.decode_leg(common, link)
        return self.decode.start(replace(self._leg(self.decode, leg), leg_id=common.leg_id))

    def _leg(self, subject: Subject, leg: LegRequest) -> LegRequest:
        fresh_id = f"conformance-{uuid.uuid4()}"
        return replace(leg, kind=self.handshake.kind, leg_id=fresh_id, dp_rank=0 if subject.facts.dp_size > 1 else None)

    def let_go(self) -> None:
        """Cancel every call that was started."""
        for subject in (self.prefill, self.decode, self.alone):
            if subject is not None:
                subject.let_go()


async def _both(prefill: Any, decode: Any, calls: tuple[EngineCall, EngineCall]) -> None:
    """Both legs to their ends; where one fails both are cancelled, and the decode's failure is told first."""
    tasks = [asyncio.create_task(decode), asyncio.create_task(prefill)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and (failure := task.exception()) is not None:
                raise failure
    finally:
        for call in calls:
            call.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
