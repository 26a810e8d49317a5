"""From engine items to the client's output: contiguous offsets, text, and how each choice ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem_router.errors import Reason, TandemError
from tandem_router.model.request import GenerateRequest, Output
from tandem_router.model.stream import ChoiceEnd, EngineEnd, EngineItem, OutputChunk
from tandem_router.ports import TextCodec, TextStream, TokenSink

__all__ = ["ChoiceOutputs"]


@dataclass(slots=True)
class _Choice:
    offset: int = 0
    text: TextStream | None = None
    end: ChoiceEnd | None = None


class ChoiceOutputs:
    """The output of one call. `put` is the hot path: once per token and choice."""

    def __init__(self, request: GenerateRequest, codec: TextCodec | None, sink: TokenSink) -> None:
        wants_text = request.output is not Output.TOKENS
        if wants_text and codec is None:
            raise TandemError(
                Reason.TOKENIZER_UNAVAILABLE,
                "the answer cannot be turned into text; ask for output TOKENS",
                field="output",
            )
        self._sink = sink
        self._sends_tokens = request.output is not Output.TEXT
        skip = request.sampling.skip_special_tokens is not False
        self._choices = [
            _Choice(text=codec.stream(skip_special_tokens=skip) if wants_text and codec is not None else None)
            for _ in range(request.sampling.n)
        ]
        # Choices over pairs come from one task each, and a stream takes one message at a time.
        self._turn = asyncio.Lock()
        self.cached_tokens = 0
        """The largest count of cached prompt tokens that an engine has named."""

    async def put(self, first_choice: int, item: EngineItem) -> None:
        """Deliver one item; `first_choice` is the call's index of the engine's choice 0."""
        index = first_choice + item.choice
        if index >= len(self._choices):
            raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, f"the engine sent choice {index}, which was not asked for")
        choice = self._choices[index]
        if choice.end is not None:
            raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, f"the engine went on after the end of choice {index}")
        tokens = item.token_ids
        text = ""
        if tokens:
            choice.offset += len(tokens)
            if choice.text is not None:
                text = choice.text.push(tokens)
        self.cached_tokens = max(self.cached_tokens, item.cached_tokens)
        if isinstance(item, EngineEnd):
            choice.end = ChoiceEnd(index, item.reason, item.matched_stop, choice.offset)
            if choice.text is not None:
                text += choice.text.flush()
        sent = tokens if self._sends_tokens else ()
        if sent or text:
            chunk = OutputChunk(index, choice.offset, sent, text, item.logprobs)
            async with self._turn:
                await self._sink.chunk(chunk)

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
