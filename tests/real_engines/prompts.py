"""Prompts of many kinds, and what the reference engine makes of them."""

from __future__ import annotations

from typing import Any

from tests.e2e.processes import RouterProcess
from tests.real_engines.house import REFERENCE
from tokenizers import Tokenizer

from tandem.v1 import generate_result_pb2, sampling_pb2
from tandem_engine.demo import MODEL_DIR
from tandem_engine.demo.corpus import long_prompt

__all__ = ["LONG", "MARGIN", "MAX_TOKENS", "PROMPTS", "chunks_of", "encode", "fair", "fresh"]

TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
MAX_TOKENS = 32
MARGIN = 1e-3
"""Between the likeliest token and the next. Engines add float32 in different orders, so closer calls are nobody's."""


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


LONG = encode(long_prompt(2_000, 1_900, "blue river 42 hello", encode).prompt)
PROMPTS: dict[str, list[int]] = {
    "one token": encode("c")[:1],
    "count": encode("count from 3 to 9:"),
    "count over ten": encode("count from 95 to 105:"),
    "alphabet": encode("alphabet from a to z:"),
    "alphabet within": encode("alphabet from f to m:"),
    "sum": encode("12 + 30 ="),
    "repeat": encode("repeat “hello” :"),
    "repeat words": encode("repeat “one two three” :"),
    "emoji": encode("repeat “🙂🚀” :"),
    "other scripts": encode("repeat “你好 мир” :"),
    "less than a block": LONG[-127:],
    "exactly a block": LONG[-128:],
    "a block and one": LONG[-129:],
    "three blocks": LONG[-384:],
    "two thousand": LONG,
}
"""A KV block of vLLM on a CPU is 128 tokens."""


def chunks_of(router: RouterProcess, ids: list[int], model: str, **logprobs: Any) -> list[generate_result_pb2.Chunk]:
    """A greedy answer with log probabilities, chunk by chunk. logprobs: fields of LogprobOptions."""
    request = router.request(token_ids=ids, model=model, temperature=0.0, max_tokens=MAX_TOKENS)
    request.logprobs.CopyFrom(sampling_pb2.LogprobOptions(**logprobs))
    return [r.chunk for r in router.router.Generate(request, timeout=90) if r.WhichOneof("event") == "chunk"]


def fair(router: RouterProcess, ids: list[int]) -> list[int]:
    """The reference engine's greedy tokens; fails where a token was a close call, as then nothing could be compared."""
    rows = [one for chunk in chunks_of(router, ids, REFERENCE, output=True, top=2) for one in chunk.logprobs]
    margins = [one.top[0].logprob - one.top[1].logprob for one in rows]
    assert min(margins) > MARGIN, f"token {margins.index(min(margins))} is a close call: {min(margins)}"
    return [one.token_id for one in rows]


def fresh(seed: int, length: int) -> list[int]:
    """A prompt of so many tokens that no engine has seen, ending in a question that its beginning answers."""
    return encode(long_prompt(length, length // 2, "the quick brown fox", encode, seed=seed).prompt)
