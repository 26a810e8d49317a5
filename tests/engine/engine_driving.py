"""Short words for driving an engine in tests."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from tandem_engine.engine import Engine
from tandem_engine.handle import RequestHandle
from tandem_engine.requests import Emission, EngineRequest, Phase
from tandem_engine.sampling import SamplingParams

IDLE = (0, 0, 0, 0)

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, seed=1234, max_tokens=24, ignore_eos=True)


def prompt(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng((seed, count)).integers(1, 512, count))


def request(name: str, tokens: tuple[int, ...], sampling: SamplingParams = GREEDY, **more: Any) -> EngineRequest:
    return EngineRequest(name, tokens, sampling, **more)


async def collect(handle: RequestHandle) -> list[Emission]:
    return [emission async for emission in handle]


async def generate(engine: Engine, asked: EngineRequest) -> list[Emission]:
    return await collect(engine.submit(asked))


def outputs(emissions: list[Emission]) -> dict[int, list[int | None]]:
    """Token ids per choice."""
    found: dict[int, list[int | None]] = {}
    for emission in emissions:
        if emission.token_id is not None:
            found.setdefault(emission.choice, []).append(emission.token_id)
    return found


def in_hand(engine: Engine) -> tuple[int, int, int, int]:
    """What an idle engine has none of: running, waiting, held pages, rooms."""
    ledger = engine.ledger()
    return ledger.running, ledger.waiting, ledger.held_pages, ledger.rooms


async def prefill_pages(engine: Engine, tokens: tuple[int, ...], sampling: SamplingParams, room: int) -> list[bytes]:
    """Run the prefill leg and read its held pages, then release them."""
    handle = engine.submit(request(f"p{room}", tokens, sampling, phase=Phase.PREFILL, room=room))
    await collect(handle)
    held = await handle.held_pages()
    pages = [engine.read_page(held.rank, page) for page in held.pages]
    assert engine.release(held)
    return pages


async def decode_from(
    engine: Engine, tokens: tuple[int, ...], sampling: SamplingParams, pages: list[bytes], room: int
) -> list[Emission]:
    """Run the decode leg with `pages` written into its landing pages."""
    handle = engine.submit(request(f"d{room}", tokens, sampling, phase=Phase.DECODE, room=room))
    landing = await handle.landing_pages()
    for page, data in zip(landing, pages, strict=False):
        engine.write_page(handle.rank, page, data)
    handle.kv_arrived(len(landing))
    return await collect(handle)


async def ticks(count: int = 20) -> None:
    """Let the loop turn without letting time pass."""
    for _ in range(count):
        await asyncio.sleep(0)
