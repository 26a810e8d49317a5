"""An engine that does not know of a stop goes on; the router ends the choice at its place, and soon its work."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_scenes import HANDY, REQUEST, ROOMY, SEEDS, pair_of, play

from tandem_router.model.request import Sampling
from tandem_router.model.stream import FinishReason
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.ports import TextCodec
from tandem_router.testing.harness import SimRuntime
from tandem_router.testing.scenario import ClientPlan
from tandem_router.testing.scripted_model import VOCABULARY, answer, pages_of
from tandem_router.testing.scripted_wire import EngineScript
from tandem_router.testing.sim_client import ClientRecord, run_client

ALONE = EngineScript()
MACHINES = {"rendezvous": pair_of(ROOMY), "handoff": pair_of(HANDY), "alone": {"alone": ALONE}}
LONG = Sampling(temperature=0.9, seed=3, max_tokens=4000, ignore_eos=True)
STOPPED_AT = 12
WHOLE_S = 4000 * ALONE.step_s


class Numbers:
    """Every token is its number in brackets; scripted engines know no text, so no stop string."""

    vocab_size = VOCABULARY

    def get(self, model: str) -> TextCodec | None:
        return self

    def source(self, model: str) -> TokenizerSource | None:
        return TokenizerSource()

    async def digest(self, archive: bytes) -> str:
        return hashlib.sha256(archive).hexdigest()

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        raise AssertionError("nobody has a tokenizer")

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        raise AssertionError("prompts are tokens")

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        raise AssertionError("prompts are tokens")

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.push(token_ids)

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> Numbers:
        return self

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(f"<{token_id}>" for token_id in token_ids)

    def flush(self) -> str:
        return ""


def tokens_of(sampling: Sampling, choice: int) -> tuple[int, ...]:
    prompt = REQUEST.token_ids or ()
    return answer(prompt, pages_of(prompt), sampling, choice).token_ids


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("n", [1, 3])
def test_a_stop_that_only_the_router_sees_ends_every_choice_well_and_at_once(machines: str, n: int, seed: int) -> None:
    sampling = replace(LONG, n=n)
    expected = [tokens_of(replace(sampling, max_tokens=60), choice)[:STOPPED_AT] for choice in range(n)]
    # Over the border of two tokens, so that no token by itself is the stop.
    stops = tuple(f"{tokens[-2]}><{tokens[-1]}" for tokens in expected)

    async def scene(runtime: SimRuntime) -> None:
        runtime.relay.env.codecs = Numbers()
        record = ClientRecord(ClientPlan(replace(REQUEST, sampling=replace(sampling, stop=stops)), 0.0))
        await run_client(runtime.relay, record)
        assert record.error is None
        assert record.finished is not None
        assert [tuple(record.tokens[choice]) for choice in range(n)] == expected
        for end, stop in zip(record.finished.choices, stops, strict=True):
            assert (end.reason, end.matched_stop, end.completion_tokens) == (FinishReason.STOP, stop, STOPPED_AT)
        assert record.started_s is not None
        assert record.ended_s is not None
        assert record.ended_s - record.started_s < WHOLE_S / 10
        await asyncio.sleep(1.0)
        assert runtime.relay.statistics().live_attempts == 0

    play(seed, MACHINES[machines], scene)
