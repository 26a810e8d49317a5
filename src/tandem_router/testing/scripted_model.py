"""The arithmetic of a scripted engine: an answer that is a pure function of prompt and sampling, by way of KV pages.

A page's content is a hash over its tokens and the page before it, as a block of a real KV cache depends on all tokens
up to its end. A token is a hash over all pages, the unpaged tail, the sampling key and the tokens so far. A decode that
got a wrong page, or misses one, therefore says something else, which is how a test sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tandem_router.model.adapters import AdapterUse
from tandem_router.model.request import Sampling
from tandem_router.model.stream import FinishReason

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "EOS",
    "MISSING_PAGE",
    "PAGE_TOKENS",
    "VOCABULARY",
    "Answer",
    "answer",
    "pages_of",
    "sampling_key",
]

PAGE_TOKENS = 4
"""Tokens per page; small, so that short prompts have several."""
VOCABULARY = 1000
EOS = 2
DEFAULT_MAX_TOKENS = 16
"""Where the request states none."""
MISSING_PAGE = b"\x00" * 8
"""What a decode finds in a page that was never written."""
_EOS_ONE_IN = 40


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole output of one choice."""

    token_ids: tuple[int, ...]
    reason: FinishReason
    matched_stop: int | None = None


def pages_of(token_ids: Sequence[int], adapters: Sequence[AdapterUse] = ()) -> list[bytes]:
    """The KV pages of the prompt's full pages, as these adapters compute them."""
    pages: list[bytes] = []
    before = _said(adapters)
    for start in range(0, len(token_ids) - len(token_ids) % PAGE_TOKENS, PAGE_TOKENS):
        page = ",".join(str(token) for token in token_ids[start : start + PAGE_TOKENS]).encode()
        before = hashlib.blake2b(before + page, digest_size=8).digest()
        pages.append(before)
    return pages


def sampling_key(sampling: Sampling, choice: int) -> str:
    """What the random numbers depend on: nothing when greedy, else the seed and the choice.

    An unseeded request is drawn with seed 0: a simulated answer must be one that a test can know.
    """
    if sampling.temperature == 0:
        return "greedy"
    return f"{sampling.temperature} {sampling.top_p} {sampling.top_k} {(sampling.seed or 0) + choice}"


def answer(
    token_ids: Sequence[int],
    pages: Sequence[bytes],
    sampling: Sampling,
    choice: int,
    adapters: Sequence[AdapterUse] = (),
) -> Answer:
    """The output of one choice, given the pages as they lie in memory and the adapters of whoever generates."""
    tail = token_ids[len(token_ids) - len(token_ids) % PAGE_TOKENS :]
    state = hashlib.blake2b(b"".join(pages) + _said(adapters), digest_size=8)
    state.update(repr((tuple(tail), len(token_ids), sampling_key(sampling, choice))).encode())
    limit = DEFAULT_MAX_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    minimum = sampling.min_tokens or 0
    out: list[int] = []
    while len(out) < limit:
        drawn = int.from_bytes(state.digest(), "big")
        token = EOS if drawn % _EOS_ONE_IN == 0 and not sampling.ignore_eos else 3 + drawn // 64 % (VOCABULARY - 3)
        state.update(token.to_bytes(4, "big"))
        out.append(token)
        if len(out) >= minimum and (token == EOS or token in sampling.stop_token_ids):
            return Answer(tuple(out), FinishReason.STOP, token)
    return Answer(tuple(out), FinishReason.LENGTH)


def _said(adapters: Sequence[AdapterUse]) -> bytes:
    return ";".join(f"{adapter.name}*{adapter.scale:g}" for adapter in adapters).encode()
