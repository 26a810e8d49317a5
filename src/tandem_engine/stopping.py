"""When a choice ends: end-of-sequence and stop tokens, stop strings, length."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tandem_engine.sampling import SamplingParams

__all__ = ["Stop", "StopWatch"]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a choice ends: "stop" with what matched, or "length"."""

    finish: str
    matched: int | str | None = None


class StopWatch:
    """One choice's stop conditions. Sees each token once, in order."""

    def __init__(
        self, params: SamplingParams, eos_token_ids: tuple[int, ...], max_tokens: int, tokenizer: Tokenizer | None
    ) -> None:
        """`max_tokens` is the effective limit. `tokenizer` is needed only when `params.stop` is not empty."""
        self._stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else set(eos_token_ids))
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self._strings = params.stop
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True) if params.stop else None
        # A stop string can begin this many characters before the newest text.
        self._overlap = max((len(text) for text in params.stop), default=1) - 1
        self._tail = ""
        self._seen = 0

    def forbidden(self) -> tuple[int, ...]:
        """Tokens that must not be chosen next, since they would end the choice before `min_tokens`."""
        return tuple(self._stop_ids) if self._seen < self._min_tokens else ()

    def after(self, token_id: int) -> Stop | None:
        """Whether `token_id`, just emitted, ends the choice."""
        self._seen += 1
        matched = self._match_text(token_id) if self._stream is not None else None
        if self._seen >= self._min_tokens:
            if token_id in self._stop_ids:
                return Stop("stop", token_id)
            if matched is not None:
                return Stop("stop", matched)
        return Stop("length") if self._seen >= self._max_tokens else None

    def _match_text(self, token_id: int) -> str | None:
        assert self._stream is not None
        assert self._tokenizer is not None
        # None until a multi-byte character is complete.
        text = self._stream.step(self._tokenizer, token_id)
        if not text:
            return None
        window = self._tail + text
        old = len(self._tail)
        self._tail = window[-self._overlap :] if self._overlap else ""
        # Only matches that end in the new text; the earliest ends the choice, whichever string it is.
        found = [
            (start, candidate)
            for candidate in self._strings
            if (start := window.find(candidate, max(0, old - len(candidate) + 1))) >= 0
        ]
        return min(found)[1] if found else None
