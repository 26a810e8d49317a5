"""One decoder for streams of `chunk | complete`, with an engine's habits as values.

Evened out here (tables: what real engines do on the wire):
- counts: vLLM's `completion_tokens` is that chunk's own, all others' a running total; items carry neither, and an
  end carries the number of tokens that were delivered.
- a streamed `complete` repeats the last chunk's ids (vLLM, SGLang, TokenSpeed), all ids (TensorRT-LLM), or none (MLX):
  what a chunk carried before is dropped, what no chunk carried is delivered with the end.
- a `complete` with reason "abort", "cancelled", "timeout" or "error" under status OK is a failure.
- n > 1: choices interleave by index, one `complete` each; a stream that ends before all of them is an error.
- a request that MLX aborts, or drops as it shuts down, ends with status OK and without a `complete`.
- stop_token_ids together with ignore_eos: SGLang runs on, others stop; where the engine runs on, the choice ends here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tandem_router.engines.logprobs import column_logprobs, input_logprobs
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, FinishReason, TokenLogprob

__all__ = ["Counts", "Reading", "StreamDecoder"]


class Counts(enum.Enum):
    """What `completion_tokens` counts."""

    RUNNING = "running"
    """All tokens of the choice so far."""
    PER_MESSAGE = "per message"
    """The tokens of this message alone."""


_GOOD_ENDS: Mapping[str, FinishReason] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    # vLLM's own detector of repeated output; the request asked for it, so it is a stop like any other.
    "repetition": FinishReason.STOP,
    "stop_word": FinishReason.STOP,
}
_ABORTED = ("abort", "cancelled", "timeout")


def _oneof_stop(complete: Any) -> int | str | None:
    which = complete.WhichOneof("matched_stop")
    return None if which is None else getattr(complete, which)


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a protocol's messages hold what every stream has, and what its engine does with it."""

    counts: Counts
    index: str = "index"
    """Field of the choice."""
    end_ids: str = "output_ids"
    """Field of a `complete` with its ids."""
    matched_stop: Callable[[Any], int | str | None] = _oneof_stop
    logprobs: Callable[[Any, int, int], tuple[TokenLogprob, ...]] = column_logprobs
    """Of a message's last so many tokens, with at most so many alternatives."""
    prompt_logprobs: Callable[[Any, int], tuple[TokenLogprob, ...]] = input_logprobs
    has_transfer_params: bool = False
    """`complete` has `kv_transfer_params_json`."""
    ends_local_stops: bool = False
    """The engine ignores stop_token_ids under ignore_eos, so they are applied here."""
    aborts_silently: bool = False
    """A stream that ends with OK and owes an end was aborted by the engine or its shutdown."""


class _Choice:
    """What has been delivered of one choice."""

    __slots__ = ("delivered", "has_ended", "last_ids")

    def __init__(self) -> None:
        self.delivered = 0
        self.last_ids: tuple[int, ...] = ()
        self.has_ended = False


class StreamDecoder:
    """`ItemDecoder` for a protocol whose responses are `oneof {chunk, complete}`."""

    __slots__ = (
        "_choices",
        "_ended_early",
        "_has_prompt_logprobs",
        "_index",
        "_leg",
        "_local_stops",
        "_min_tokens",
        "_open",
        "_reading",
    )

    def __init__(self, leg: LegRequest, reading: Reading, *, choices: int) -> None:
        """Args:
        choices: ends that the engine owes.
        """
        self._leg = leg
        self._reading = reading
        self._index = reading.index
        self._choices = [_Choice() for _ in range(choices)]
        self._open = choices
        self._ended_early = False
        self._has_prompt_logprobs = not leg.prompt_logprobs
        """They have come, or nobody wants them."""
        sampling = leg.sampling
        has_local = reading.ends_local_stops and sampling.ignore_eos
        self._local_stops = frozenset(sampling.stop_token_ids if has_local else ())
        self._min_tokens = sampling.min_tokens or 0

    @property
    def is_done(self) -> bool:
        """Whether every choice has had its end."""
        return self._open == 0

    @property
    def ended_early(self) -> bool:
        """Whether a choice was ended here although the engine goes on."""
        return self._ended_early

    def decode(self, response: Any) -> EngineItem | None:
        """The item in a response, or None when it says nothing new; raises EngineFailure on a bad end."""
        kind = response.WhichOneof("response")
        if kind == "chunk":
            return self._chunk(response.chunk)
        if kind == "complete":
            return self._complete(response.complete)
        raise _protocol_error("a response holds neither a chunk nor a complete")

    def end_of_stream(self) -> None:
        """The engine closed the stream with status OK; raises EngineFailure while ends are owed."""
        if not self._open:
            return
        owed = ", ".join(str(index) for index, choice in enumerate(self._choices) if not choice.has_ended)
        sentence = f"the stream ended without the end of choice {owed}"
        if self._reading.aborts_silently:
            raise EngineFailure(Reason.ENGINE_ABORTED, f"{sentence}: it was aborted", code=Code.OK)
        raise _protocol_error(sentence)

    def _chunk(self, chunk: Any) -> EngineItem | None:
        index: int = getattr(chunk, self._index)
        choice = self._choice(index)
        if choice.has_ended:
            if self._ended_early:
                return None
            raise _protocol_error(f"choice {index} got a chunk after its end")
        ids = tuple(chunk.token_ids)
        prompt = () if self._has_prompt_logprobs else self._prompt_logprobs(chunk, index)
        if not ids:
            return EngineChunk(index, (), prompt_logprobs=prompt) if prompt else None
        choice.delivered += len(ids)
        choice.last_ids = ids
        reading = self._reading
        if reading.counts is Counts.RUNNING and chunk.completion_tokens not in (0, choice.delivered):
            raise _protocol_error(f"choice {index} has {choice.delivered} tokens but counts {chunk.completion_tokens}")
        leg = self._leg
        logprobs = reading.logprobs(chunk, len(ids), leg.top_logprobs) if leg.output_logprobs else ()
        if self._local_stops and (kept := self._until_stop(ids, choice.delivered - len(ids))) is not None:
            choice.delivered -= len(ids) - len(kept)
            return self._end_here(chunk, choice, kept, logprobs, prompt)
        return EngineChunk(index, ids, chunk.prompt_tokens, chunk.cached_tokens, logprobs, prompt)

    def _prompt_logprobs(self, message: Any, index: int) -> tuple[TokenLogprob, ...]:
        """The prompt's, where they are in this message: once, with choice 0."""
        if self._has_prompt_logprobs or index:
            return ()
        found = self._reading.prompt_logprobs(message, self._leg.top_logprobs)
        self._has_prompt_logprobs = bool(found)
        return found

    def _end_here(
        self,
        chunk: Any,
        choice: _Choice,
        kept: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        prompt_logprobs: tuple[TokenLogprob, ...],
    ) -> EngineEnd:
        """End a choice at its first stop token, which stays part of the output as it does with every engine."""
        self._close(choice)
        self._ended_early = True
        return EngineEnd(
            choice=getattr(chunk, self._index),
            reason=FinishReason.STOP,
            token_ids=kept,
            prompt_tokens=chunk.prompt_tokens,
            completion_tokens=choice.delivered,
            cached_tokens=chunk.cached_tokens,
            matched_stop=kept[-1],
            logprobs=logprobs[: len(kept)],
            prompt_logprobs=prompt_logprobs,
        )

    def _until_stop(self, ids: tuple[int, ...], before: int) -> tuple[int, ...] | None:
        """Up to the first of the stop tokens that are applied here, from `min_tokens` on; None without one.

        before: tokens of the choice that came earlier.
        """
        for count, token in enumerate(ids, start=1):
            if token in self._local_stops and before + count >= self._min_tokens:
                return ids[:count]
        return None

    def _complete(self, complete: Any) -> EngineItem | None:
        index: int = getattr(complete, self._index)
        choice = self._choice(index)
        if choice.has_ended:
            if self._ended_early:
                return None
            raise _protocol_error(f"choice {index} ended twice")
        reason = _GOOD_ENDS.get(complete.finish_reason)
        if reason is None:
            raise self._bad_end(complete.finish_reason)
        reading, leg = self._reading, self._leg
        ids = self._undelivered(index, choice, complete)
        matched = reading.matched_stop(complete)
        logprobs = reading.logprobs(complete, len(ids), leg.top_logprobs) if leg.output_logprobs and ids else ()
        if self._local_stops and (kept := self._until_stop(ids, choice.delivered)) is not None:
            ids, matched, reason = kept, kept[-1], FinishReason.STOP
        choice.delivered += len(ids)
        self._close(choice)
        params = None
        if reading.has_transfer_params and complete.HasField("kv_transfer_params_json"):
            params = complete.kv_transfer_params_json
        return EngineEnd(
            choice=index,
            reason=reason,
            token_ids=ids,
            prompt_tokens=complete.prompt_tokens,
            completion_tokens=choice.delivered,
            cached_tokens=complete.cached_tokens,
            matched_stop=matched,
            transfer_params=params,
            logprobs=logprobs[: len(ids)],
            prompt_logprobs=self._prompt_logprobs(complete, index),
        )

    def _undelivered(self, index: int, choice: _Choice, complete: Any) -> tuple[int, ...]:
        """The tokens of a `complete` that no chunk carried."""
        ids = tuple(getattr(complete, self._reading.end_ids))
        if not choice.delivered:
            missing = len(ids)
        elif self._reading.counts is Counts.RUNNING and complete.completion_tokens:
            missing = complete.completion_tokens - choice.delivered
        else:
            # Nothing counts the whole choice: then ids are legal only as a repetition.
            missing = 0
        if missing == 0:
            tail = ids[-len(choice.last_ids) :]
            if ids and (len(ids) not in (len(choice.last_ids), choice.delivered) or tail != choice.last_ids):
                raise _protocol_error(f"the end of choice {index} carries ids that are not its chunks'")
            return ()
        if missing < 0 or missing > len(ids):
            raise _protocol_error(
                f"the end of choice {index} counts {complete.completion_tokens} tokens, "
                f"{choice.delivered} came in chunks and {len(ids)} with the end"
            )
        return ids[len(ids) - missing :]

    def _bad_end(self, finish_reason: str) -> EngineFailure:
        if finish_reason in _ABORTED:
            sentence = f'the engine ended the request with "{finish_reason}"'
            return EngineFailure(Reason.ENGINE_ABORTED, sentence, code=Code.ABORTED)
        if finish_reason == "error":
            if self._leg.handoff is not None and self._leg.role is LegRole.DECODE:
                # An unreachable prefill ends so, under status OK (vLLM over NIXL: after 5 s; Mooncake: at once).
                return EngineFailure(
                    Reason.KV_TRANSFER_FAILED, 'the decode engine ended with "error" instead of pulling', code=Code.OK
                )
            return EngineFailure(Reason.ENGINE_ERROR, 'the engine ended the request with "error"', code=Code.OK)
        return _protocol_error(f"finish_reason {finish_reason!r} is unknown")

    def _choice(self, index: int) -> _Choice:
        if index >= len(self._choices):
            raise _protocol_error(f"choice {index} was not asked for (n = {len(self._choices)})")
        return self._choices[index]

    def _close(self, choice: _Choice) -> None:
        choice.has_ended = True
        self._open -= 1


def _protocol_error(sentence: str) -> EngineFailure:
    return EngineFailure(Reason.ENGINE_PROTOCOL_ERROR, sentence, code=Code.INTERNAL)
