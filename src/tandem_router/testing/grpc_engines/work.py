"""A request as every protocol's scripted engine understands it, and the steps in which it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.testing.grpc_engines.archives import EOS_TOKEN_ID, FIRST_LETTER

__all__ = ["LETTERS", "Step", "Work", "answer", "logprob"]

LETTERS = 26


@dataclass(frozen=True, slots=True)
class Work:
    """One Generate request."""

    request_id: str
    prompt: tuple[int, ...]
    is_streaming: bool
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stops: frozenset[int] = frozenset()
    """Tokens that end a choice, as this engine honours them."""
    ignores_eos: bool = False
    is_prefill: bool = False
    """It ends by itself after one token, whatever was asked."""


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of a choice, or its end."""

    index: int
    ids: tuple[int, ...]
    """Of this step; at the end those of the step before."""
    all_ids: tuple[int, ...]
    """Of the choice so far."""
    reason: str | None = None
    """None: the choice goes on."""
    matched: int | None = None
    """The token that ended it."""
    is_first: bool = False
    """The first step of its choice."""


def answer(prompt: tuple[int, ...], choice: int, position: int) -> int:
    """The token at a position of the greedy answer: small letters in a row, begun by the prompt and the choice.

    The same in every protocol and on every leg, so a disaggregated answer equals an aggregated one.
    """
    return FIRST_LETTER + (sum(prompt) + choice + position) % LETTERS


def logprob(token_id: int) -> float:
    """What a scripted engine says of a token; EOS_TOKEN_ID is the likeliest."""
    return -((token_id - EOS_TOKEN_ID) % LETTERS) / 8
