"""How the next token is chosen: sampling parameters, penalties, and position-keyed random choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem_engine.philox import uniform

__all__ = ["MAX_CHOICES", "MAX_LOGPROBS", "Sampled", "SamplingParams", "log_softmax", "sample"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

MAX_CHOICES = 64
"""Most choices of one request; each takes a running slot."""
MAX_LOGPROBS = 64
"""Most alternatives reported per token; more would make emissions larger than the step that makes them."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Greedy when `temperature` <= 0 or `top_k` == 1. `top_k` <= 0 means all tokens. `seed` None: the engine draws one.
    `max_tokens` None means up to the context's end. `logprobs`: None = none; k = the chosen token's and the k best.
    `logit_bias` and penalties change the choice, never the reported log probabilities (those are of the raw
    distribution). `min_tokens` keeps every kind of stop, but not `max_tokens`, away from the first tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0.0 or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        """True when the choice is not made on the raw logits alone."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    def problem(self, vocab_size: int) -> str | None:
        """What makes these parameters unusable (names the field), or None."""
        checks = (
            (not math.isnan(self.temperature) and self.temperature < math.inf, "temperature must be a finite number"),
            (0.0 < self.top_p <= 1.0, f"top_p must be in (0, 1], got {self.top_p}"),
            (0.0 <= self.min_p <= 1.0, f"min_p must be in [0, 1], got {self.min_p}"),
            (
                0.0 < self.repetition_penalty < math.inf,
                f"repetition_penalty must be positive and finite, got {self.repetition_penalty}",
            ),
            (math.isfinite(self.frequency_penalty), "frequency_penalty must be finite"),
            (math.isfinite(self.presence_penalty), "presence_penalty must be finite"),
            (self.max_tokens is None or self.max_tokens >= 0, f"max_tokens must not be negative: {self.max_tokens}"),
            (self.min_tokens >= 0, f"min_tokens must not be negative, got {self.min_tokens}"),
            (1 <= self.n <= MAX_CHOICES, f"n must be in [1, {MAX_CHOICES}], got {self.n}"),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"logprobs must be in [0, {MAX_LOGPROBS}], got {self.logprobs}",
            ),
            (all(self.stop), "stop must not hold an empty string"),
            (
                all(0 <= token < vocab_size and math.isfinite(bias) for token, bias in self.logit_bias),
                f"logit_bias must name token ids below {vocab_size} and finite numbers",
            ),
        )
        return next((text for holds, text in checks if not holds), None)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token. `logprob` and `top` are of the raw distribution, and None / empty unless asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def log_softmax(logits: Floats) -> Doubles:
    """Log probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: Doubles = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def sample(
    logits: Floats,
    params: SamplingParams,
    *,
    seed: int,
    choice: int,
    position: int,
    prompt: Sequence[int],
    output: Sequence[int],
    forbidden: Sequence[int] = (),
) -> Sampled | None:
    """The token at absolute `position` of `choice`, or None when `logits` [vocab] hold a not-a-number.

    A pure function: whoever samples this position (prefill, decode, aggregated, or after a migration) gets the same
    token. Choice i draws with seed + i, as vLLM seeds the children of a request: choice i of one request equals choice
    0 of a request seeded so. Equal logits are settled by the lower token id. `forbidden` tokens cannot be chosen.
    """
    if not np.isfinite(logits).all():
        return None
    scores = logits
    if params.changes_logits or forbidden:
        scores = _adjusted(logits, params, prompt, output, forbidden)
    token = int(scores.argmax()) if params.is_greedy else _draw(scores, params, uniform(seed + choice, position))
    if params.logprobs is None:
        return Sampled(token)
    logprobs = log_softmax(logits)
    best = np.argsort(-logprobs, kind="stable")[: params.logprobs]
    return Sampled(token, float(logprobs[token]), tuple((int(index), float(logprobs[index])) for index in best))


def _adjusted(
    logits: Floats, params: SamplingParams, prompt: Sequence[int], output: Sequence[int], forbidden: Sequence[int]
) -> Floats:
    scores = logits.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*prompt, *output], dtype=np.intp))
        penalty = np.float32(params.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    if output and (params.frequency_penalty or params.presence_penalty):
        tokens, counts = np.unique(np.array(output, dtype=np.intp), return_counts=True)
        scores[tokens] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
    for token, bias in params.logit_bias:
        scores[token] += np.float32(bias)
    if forbidden:
        scores[list(forbidden)] = -np.inf
    return scores


def _draw(scores: Floats, params: SamplingParams, number: float) -> int:
    """Inverse of the cumulative distribution in token order, after temperature, top_k, top_p and min_p."""
    wide = scores.astype(np.float64) / params.temperature
    wide -= wide.max()
    weights = np.exp(wide)
    if params.top_k > 0 or params.top_p < 1.0:
        order = np.argsort(-wide, kind="stable")
        keep = len(order) if params.top_k <= 0 else min(params.top_k, len(order))
        if params.top_p < 1.0:
            cumulative = np.cumsum(weights[order[:keep]])
            # The token that reaches top_p belongs to the set.
            keep = int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1
        weights[order[keep:]] = 0.0
    if params.min_p > 0.0:
        weights[weights < params.min_p * weights.max()] = 0.0
    cumulative = np.cumsum(weights)
    found = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    # A number just below 1 can round up to the total; then the last token that has any weight is meant.
    return found if found < len(weights) else int(np.flatnonzero(weights)[-1])
