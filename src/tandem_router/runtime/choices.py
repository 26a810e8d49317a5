"""From engine items to the client's output: contiguous offsets, text, and how each choice ended.

What stops a choice is decided here, token by token and character by character, so that the answer is the same whichever
engine and handshake gave it, streamed or not: an engine gets the stops as well, but looks for them in its own way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem_router.errors import Reason, TandemError
from tandem_router.model.request import GenerateRequest, Output, Sampling
from tandem_router.model.stream import ChoiceEnd, EngineEnd, EngineItem, FinishReason, OutputChunk, TokenLogprob
from tandem_router.ports import TextCodec, TextStream, TokenSink
from tandem_router.text.stops import StopScanner

__all__ = ["ChoiceOutputs"]


@dataclass(slots=True)
class _Choice:
    offset: int = 0
    text: TextStream | None = None
    stops: StopScanner | None = None
    end: ChoiceEnd | None = None
    is_cut: bool = False
    """It was ended here; the engine may still go on."""


class ChoiceOutputs:
    """The output of one call. `put` is the hot path: once per token and choice."""

    def __init__(self, request: GenerateRequest, codec: TextCodec | None, sink: TokenSink) -> None:
        """Raises TOKENIZER_UNAVAILABLE where text is wanted, or to be looked for, and `codec` is None.

        A request for tokens alone needs no codec, unless it has stop strings: not every engine knows those.
        """
        self._sends_text = request.output is not Output.TOKENS
        if self._sends_text and codec is None:
            raise TandemError(
                Reason.TOKENIZER_UNAVAILABLE,
                "the answer cannot be turned into text; ask for output TOKENS",
                field="output",
            )
        if request.sampling.stop and codec is None:
            raise TandemError(
                Reason.TOKENIZER_UNAVAILABLE,
                "stop strings cannot be looked for in tokens; use stop_token_ids",
                field="sampling.stop",
            )
        self._sink = sink
        self._sends_tokens = request.output is not Output.TEXT
        sampling = request.sampling
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._min_tokens = sampling.min_tokens or 0
        self._includes_stop = sampling.include_stop
        # An answer in a chat is a text of its own; anything else goes on with the prompt.
        self._continues = request.messages is None
        self._choices = [self._choice(sampling, codec) for _ in range(sampling.n)]
        self._prompt_logprobs_start = request.prompt_logprobs_start if request.prompt_logprobs else None
        # Choices over pairs come from one task each, and a stream takes one message at a time.
        self._turn = asyncio.Lock()
        self.has_cut = False
        """Whether a choice has been ended here."""
        self.cached_tokens = 0
        """The largest count of cached prompt tokens that an engine has named."""

    def _choice(self, sampling: Sampling, codec: TextCodec | None) -> _Choice:
        if codec is None or not (self._sends_text or sampling.stop):
            return _Choice()
        stream = codec.stream(skip_special_tokens=sampling.skip_special_tokens is not False, continues=self._continues)
        if not sampling.stop:
            return _Choice(text=stream)
        return _Choice(text=stream, stops=StopScanner(sampling.stop, includes_stop=sampling.include_stop))

    async def put(self, first_choice: int, item: EngineItem) -> None:
        """Deliver one item; `first_choice` is the call's index of the engine's choice 0."""
        index = first_choice + item.choice
        if index >= len(self._choices):
            raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, f"the engine sent choice {index}, which was not asked for")
        choice = self._choices[index]
        if choice.is_cut:
            return
        if choice.end is not None:
            raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, f"the engine went on after the end of choice {index}")
        tokens, logprobs, text = item.token_ids, item.logprobs, ""
        prompt_logprobs = self._prompt_logprobs(item) if index == 0 and self._prompt_logprobs_start is not None else ()
        if tokens:
            if choice.stops is not None or self._stop_ids:
                taken, text = self._take(index, choice, tokens)
                tokens, logprobs = tokens[:taken], logprobs[:taken]
            else:
                choice.offset += len(tokens)
                if choice.text is not None:
                    text = choice.text.push(tokens)
        self.cached_tokens = max(self.cached_tokens, item.cached_tokens)
        if isinstance(item, EngineEnd) and choice.end is None:
            text += self._end(index, choice, item)
        sent = tokens if self._sends_tokens else ()
        shown = text if self._sends_text else ""
        if sent or shown or logprobs or prompt_logprobs:
            chunk = OutputChunk(index, choice.offset, sent, shown, logprobs, prompt_logprobs)
            async with self._turn:
                await self._sink.chunk(chunk)

    def has_enough(self, first_choice: int, count: int) -> bool:
        """Whether these choices have all ended, one of them before the engine said so."""
        choices = self._choices[first_choice : first_choice + count]
        return all(choice.end is not None for choice in choices) and any(choice.is_cut for choice in choices)

    def _take(self, index: int, choice: _Choice, tokens: tuple[int, ...]) -> tuple[int, str]:
        """Tokens up to the one that stops the choice, and their text. One by one, so that merged items change nothing.

        A stop token stays among the tokens, where engines leave it too; in the text it shows only with include_stop.
        """
        text = ""
        for taken, token in enumerate(tokens, start=1):
            choice.offset += 1
            counts = choice.offset >= self._min_tokens
            is_stop = counts and token in self._stop_ids
            if not is_stop or self._includes_stop:
                text += self._text(choice, choice.text.push((token,)) if choice.text is not None else "", counts=counts)
            if choice.stops is not None and choice.stops.found is not None:
                self._cut(index, choice, choice.stops.found)
                return taken, text
            if is_stop:
                text += self._flush(choice)
                self._cut(index, choice, token)
                return taken, text
        return len(tokens), text

    @staticmethod
    def _text(choice: _Choice, text: str, *, counts: bool) -> str:
        return text if choice.stops is None else choice.stops.push(text, counts=counts)

    def _flush(self, choice: _Choice) -> str:
        if choice.text is None:
            return ""
        counts = choice.offset >= self._min_tokens
        text = self._text(choice, choice.text.flush(), counts=counts)
        return text if choice.stops is None else text + choice.stops.flush()

    def _cut(self, index: int, choice: _Choice, matched: int | str) -> None:
        choice.is_cut = self.has_cut = True
        choice.end = ChoiceEnd(index, FinishReason.STOP, matched, choice.offset)

    def _end(self, index: int, choice: _Choice, item: EngineEnd) -> str:
        """The engine's own end; its text is what had been held back."""
        text = self._flush(choice)
        reason, matched = item.reason, item.matched_stop
        if choice.stops is not None and choice.stops.found is not None:
            # An unfinished character, taken as U+FFFD at the end, completed it.
            reason, matched = FinishReason.STOP, choice.stops.found
        elif isinstance(matched, int) and matched not in self._stop_ids:
            matched = None  # the model's own end: some engines name it, some do not
        choice.end = ChoiceEnd(index, reason, matched, choice.offset)
        return text

    def _prompt_logprobs(self, item: EngineItem) -> tuple[TokenLogprob, ...]:
        """Those asked for, once: from the first item of choice 0. Raises where its leg has returned none."""
        start, self._prompt_logprobs_start = self._prompt_logprobs_start, None
        if not item.prompt_logprobs:
            raise TandemError(
                Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS,
                "the engine computed the prompt and returned no log probabilities of it",
                field="logprobs.prompt",
            )
        return item.prompt_logprobs[start:]

    @property
    def completion_tokens(self) -> int:
        """Tokens delivered over all choices: our own count, whatever engines say."""
        return sum(choice.offset for choice in self._choices)

    def ends(self) -> tuple[ChoiceEnd, ...]:
        """How each choice ended; raises ENGINE_PROTOCOL_ERROR when one has not."""
        ends = [choice.end for choice in self._choices]
        missing = [index for index, end in enumerate(ends) if end is None]
        if missing:
            raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, f"the engine never ended choices {missing}")
        return tuple(end for end in ends if end is not None)
