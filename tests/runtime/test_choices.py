"""What a client is shown of a choice: stops decided here, offsets, text, log probabilities, and ends evened out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.model.request import GenerateRequest, Output, Sampling
from tandem_router.model.stream import (
    ChoiceEnd,
    EngineChunk,
    EngineEnd,
    EngineItem,
    Finished,
    FinishReason,
    OutputChunk,
    QueueStatus,
    TokenLogprob,
)
from tandem_router.runtime.choices import ChoiceOutputs

END = EngineEnd(0, FinishReason.LENGTH)


class Letters:
    """A codec whose token is a character's number."""

    vocab_size = 128

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def flush(self) -> str:
        return ""

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> Letters:
        return Letters()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.push(token_ids)

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        return tuple(map(ord, text))

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        return "".join(content for _, content in messages)


class Shown:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: list[OutputChunk] = []

    async def queued(self, status: QueueStatus) -> None:
        raise AssertionError("nothing is queued here")

    async def chunk(self, chunk: OutputChunk) -> None:
        self.chunks.append(chunk)

    async def finish(self, finished: Finished) -> None:
        raise AssertionError("a choice does not finish a call")

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> str:
        return "".join(chr(token) for chunk in self.chunks for token in chunk.token_ids)


def letters(text: str, **fields: Any) -> EngineChunk:
    return EngineChunk(0, tuple(map(ord, text)), **fields)


def show(items: list[EngineItem], output: Output = Output.BOTH, **sampling: Any) -> tuple[Shown, ChoiceOutputs]:
    sink = Shown()
    request = GenerateRequest("r", "m", text="x", output=output, sampling=Sampling(**sampling))
    outputs = ChoiceOutputs(request, Letters(), sink)

    async def put() -> None:
        for item in items:
            await outputs.put(0, item)

    asyncio.run(put())
    return sink, outputs


CUTS = [["one END two"], ["one ", "END", " two"], ["one E", "ND two"], list("one END two"), ["one EN", "D tw", "o"]]


@pytest.mark.parametrize("pieces", CUTS, ids=str)
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_tokens_and_text_alike_however_the_engine_cuts_them(
    pieces: list[str], include: bool
) -> None:
    sink, outputs = show([*map(letters, pieces), END], stop=("END",), include_stop=include)
    assert (sink.tokens, sink.text) == ("one END", "one END" if include else "one ")
    assert outputs.ends() == (ChoiceEnd(0, FinishReason.STOP, "END", 7),)
    assert (outputs.completion_tokens, sink.chunks[-1].next_offset) == (7, 7)


def test_a_beginning_that_no_stop_completes_is_shown_at_the_end() -> None:
    sink, outputs = show([letters("one EN"), END], stop=("END",))
    assert (sink.text, outputs.ends()[0].reason) == ("one EN", FinishReason.LENGTH)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_is_among_the_tokens_and_in_the_text_only_where_asked(include: bool) -> None:
    sink, outputs = show([letters("ab!c")], stop_token_ids=(ord("!"),), include_stop=include)
    assert (sink.tokens, sink.text) == ("ab!", "ab!" if include else "ab")
    assert outputs.ends() == (ChoiceEnd(0, FinishReason.STOP, ord("!"), 3),)


def test_a_stop_token_gives_out_what_a_stop_string_had_held_back() -> None:
    sink, _ = show([letters("ab E!")], stop=("END",), stop_token_ids=(ord("!"),))
    assert sink.text == "ab E"


@pytest.mark.parametrize(("least", "text"), [(0, "a"), (2, "a"), (3, "a.b"), (4, "a.b")])
def test_stops_count_from_min_tokens_on(least: int, text: str) -> None:
    sink, _ = show([letters("a.b.c.")], stop=(".",), min_tokens=least)
    assert sink.text == text


def test_output_tokens_sends_no_text_and_stops_all_the_same() -> None:
    sink, outputs = show([letters("aENDb")], output=Output.TOKENS, stop=("END",))
    assert (sink.tokens, sink.text, outputs.ends()[0].matched_stop) == ("aEND", "", "END")


def test_output_text_sends_no_tokens_and_counts_them() -> None:
    sink, outputs = show([letters("aENDb")], output=Output.TEXT, stop=("END",))
    assert (sink.tokens, sink.text, outputs.completion_tokens) == ("", "a", 4)


def test_an_engine_that_goes_on_after_the_stop_is_told_to_end_once_all_choices_have() -> None:
    _, outputs = show([letters("aENDb")], stop=("END",), n=2)
    assert (outputs.has_enough(0, 1), outputs.has_enough(0, 2)) == (True, False)
    asyncio.run(outputs.put(1, letters("b!")))
    asyncio.run(outputs.put(1, END))
    assert outputs.has_enough(0, 2)


def test_an_engine_that_has_ended_by_itself_is_not_told_to() -> None:
    _, outputs = show([letters("ab"), END])
    assert not outputs.has_enough(0, 1)


def test_an_end_of_sequence_that_an_engine_names_is_no_matched_stop() -> None:
    _, outputs = show([EngineEnd(0, FinishReason.STOP, (97,), matched_stop=2)], stop_token_ids=(5,))
    assert outputs.ends()[0].matched_stop is None


@pytest.mark.parametrize("output", list(Output))
def test_log_probabilities_are_sent_for_the_tokens_that_count_and_no_others(output: Output) -> None:
    logprobs = tuple(TokenLogprob(ord(letter), -1.0) for letter in "aENDb")
    sink, _ = show([letters("aENDb", logprobs=logprobs)], output=output, stop=("END",))
    assert [one for chunk in sink.chunks for one in chunk.logprobs] == list(logprobs[:4])


def prompt_request(start: int) -> GenerateRequest:
    return GenerateRequest("r", "m", text="x", prompt_logprobs=True, prompt_logprobs_start=start)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_prompt_log_probabilities_come_with_the_first_chunk_from_the_position_asked_for(start: int) -> None:
    rows = (TokenLogprob(1, None), TokenLogprob(2, -0.5))
    sink = Shown()
    outputs = ChoiceOutputs(prompt_request(start), Letters(), sink)
    asyncio.run(outputs.put(0, letters("a", prompt_logprobs=rows)))
    asyncio.run(outputs.put(0, letters("b")))
    assert [chunk.prompt_logprobs for chunk in sink.chunks] == [rows[start:], ()]


def test_an_engine_without_prompt_log_probabilities_is_refused_by_name() -> None:
    outputs = ChoiceOutputs(prompt_request(0), Letters(), Shown())
    with pytest.raises(TandemError) as caught:
        asyncio.run(outputs.put(0, letters("a")))
    assert caught.value.reason is Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"output": Output.TEXT}, "output"), ({"sampling": Sampling(stop=("END",))}, "sampling.stop")],
)
def test_what_needs_a_tokenizer_is_refused_where_none_is_loaded(changes: dict[str, Any], field: str) -> None:
    request = GenerateRequest("r", "m", **{"token_ids": (1,), "output": Output.TOKENS, **changes})
    with pytest.raises(TandemError) as caught:
        ChoiceOutputs(request, None, Shown())
    assert (caught.value.reason, caught.value.field) == (Reason.TOKENIZER_UNAVAILABLE, field)
