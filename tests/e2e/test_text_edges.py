"""Text at its edges, over a pair and alone: whole characters, special tokens, stop strings, and limits.

The expectation is independent: the tokens that came, decoded at once by Hugging Face `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import grpc
import pytest
from tests.e2e.processes import Answer, RouterProcess, system
from tokenizers import Tokenizer

from tandem.v1 import generate_pb2, generate_result_pb2
from tandem_engine.demo import MODEL_DIR

pytestmark = pytest.mark.e2e

TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
PAIR, ALONE = "tandem-demo", "alone"
WAYS = [PAIR, ALONE]
GREEDY = {"temperature": 0.0, "max_tokens": 64}
CORPUS = [
    "hello",
    "🙂🚀",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "你好 мир",
    "日本語の文",
    "é ñ ô",
    "नमस्ते",
    "שָׁלוֹם",
    "a\n\nb\tc",
]
"""Emoji with joiners, CJK, combining marks, other scripts and control characters. The model need not copy them right:
what it makes of them must be decoded right."""


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def router(request: pytest.FixtureRequest) -> Iterator[RouterProcess]:
    with system(request.param, alone=True) as (router, _, _):
        yield router


def decode(tokens: list[int], *, skip: bool = True) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=skip))


def ask(router: RouterProcess, text: str, model: str, **sampling: Any) -> Answer:
    answer = router.generate(router.request(text=text, model=model, **sampling))
    assert answer.error is None, answer.error
    assert answer.finished is not None
    return answer


@pytest.mark.parametrize(("quote", "model", "skip"), list(product(CORPUS, WAYS, [True, False])), ids=ascii)
def test_text_is_the_full_decode_of_the_tokens(router: RouterProcess, quote: str, model: str, skip: bool) -> None:
    answer = ask(router, f"repeat “{quote}” :", model, **GREEDY, skip_special_tokens=skip)
    assert answer.text == decode(answer.tokens[0], skip=skip)


@pytest.mark.parametrize("quote", ["🙂🚀", "你好 мир", "hello"])
@pytest.mark.parametrize("model", WAYS)
def test_the_model_copies_what_it_was_trained_to_copy(router: RouterProcess, quote: str, model: str) -> None:
    assert ask(router, f"repeat “{quote}” :", model, **GREEDY).text == quote


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_with_broken_bytes_and_special_tokens_among_them_are_decoded_as_a_whole(
    router: RouterProcess, seed: int, skip: bool
) -> None:
    hot = {"temperature": 8.0, "seed": seed, "max_tokens": 96, "ignore_eos": True, "skip_special_tokens": skip}
    pair, alone = (ask(router, "count from 3 to 9:", model, **hot) for model in WAYS)
    assert pair.tokens == alone.tokens
    assert pair.text == alone.text == decode(pair.tokens[0], skip=skip)


@pytest.mark.parametrize("model", WAYS)
def test_special_tokens_are_left_out_of_the_text_unless_they_are_asked_for(router: RouterProcess, model: str) -> None:
    kept = ask(router, "repeat “hello” :", model, **GREEDY, skip_special_tokens=False)
    assert kept.text == "hello<|end|>"
    assert ask(router, "repeat “hello” :", model, **GREEDY).text == "hello"


def chunks(router: RouterProcess, request: generate_pb2.GenerateRequest) -> list[generate_result_pb2.Chunk]:
    responses = list(router.router.Generate(request, timeout=60))
    assert responses[-1].WhichOneof("event") == "finished"
    return [response.chunk for response in responses[:-1]]


@pytest.mark.parametrize("model", WAYS)
def test_no_piece_of_text_ends_within_a_character(router: RouterProcess, model: str) -> None:
    request = router.request(text="repeat “🙂🚀” :", model=model, **GREEDY)
    pieces = [piece for chunk in chunks(router, request) for piece in chunk.text]
    assert "".join(pieces) == "🙂🚀"
    assert all(set(piece) <= set("🙂🚀") for piece in pieces)


@pytest.mark.parametrize("model", WAYS)
@pytest.mark.parametrize("stop", [[], ["END"]], ids=str)
def test_output_tokens_text_and_both_say_the_same(router: RouterProcess, model: str, stop: list[str]) -> None:
    request = router.request(text="repeat “one END two” :", model=model, **GREEDY, stop=stop)
    both = chunks(router, request)
    request.output = generate_pb2.OUTPUT_MODE_TOKENS
    tokens = chunks(router, request)
    request.output = generate_pb2.OUTPUT_MODE_TEXT
    text = chunks(router, request)
    assert [token for chunk in tokens for token in chunk.token_ids] == [t for c in both for t in c.token_ids]
    assert "".join(p for chunk in text for p in chunk.text) == "".join(p for chunk in both for p in chunk.text)
    assert not any(chunk.text for chunk in tokens)
    assert not any(chunk.token_ids for chunk in text)
    assert text[-1].next_text_offset == both[-1].next_text_offset


STOPS = [
    ["END"],
    ["e END t"],
    ["D"],
    [" two"],
    ["tw", "END"],
    ["one END two!", "ne E"],
    ["not there"],
    ["o"],
]


def cut(tokens: list[int], stops: list[str]) -> tuple[list[int], str, str | None]:
    """What the answer must be: the shortest run of tokens whose text has a stop string, and the text before it."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
        if ends:
            end, _, stop = min(ends)
            return tokens[:count], text[: end - len(stop)], stop
    return tokens, decode(tokens), None


@pytest.mark.parametrize(("stops", "model", "include"), list(product(STOPS, WAYS, [False, True])), ids=str)
def test_a_stop_string_over_token_borders_ends_the_answer_at_its_place(
    router: RouterProcess, stops: list[str], model: str, include: bool
) -> None:
    prompt = "repeat “one END two” :"
    whole = ask(router, prompt, model, **GREEDY).tokens[0]
    tokens, text, stop = cut(whole, stops)
    answer = ask(router, prompt, model, **GREEDY, stop=stops, include_stop=include)
    assert answer.finished is not None
    [end] = answer.finished.choices
    assert answer.tokens[0] == tokens
    assert answer.text == (text + stop if include and stop else text)
    assert end.reason == generate_result_pb2.FINISH_REASON_STOP
    assert end.stop_text == (stop or "")
    assert end.completion_tokens == answer.finished.usage.completion_tokens == len(tokens)


@pytest.mark.parametrize("model", WAYS)
def test_every_choice_stops_for_itself(router: RouterProcess, model: str) -> None:
    hot = {"temperature": 1.5, "seed": 11, "max_tokens": 40, "n": 3, "ignore_eos": True}
    free = ask(router, "alphabet from a to z:", model, **hot)
    stopped = ask(router, "alphabet from a to z:", model, **hot, stop=[" e", "ing"])
    for choice in range(3):
        tokens, text, _ = cut(free.tokens[choice], [" e", "ing"])
        assert (stopped.tokens[choice], stopped.texts[choice]) == (tokens, text)


@pytest.mark.parametrize("model", WAYS)
def test_a_stop_token_ends_the_answer_and_is_named(router: RouterProcess, model: str) -> None:
    whole = ask(router, "count from 3 to 9:", model, **GREEDY).tokens[0]
    answer = ask(router, "count from 3 to 9:", model, **GREEDY, stop_token_ids=[whole[3]])
    assert answer.finished is not None
    at = whole.index(whole[3]) + 1
    assert answer.tokens[0] == whole[:at]
    assert answer.text == decode(whole[: at - 1])
    assert answer.finished.choices[0].stop_token_id == whole[3]


@pytest.mark.parametrize("model", WAYS)
def test_min_tokens_keeps_every_stop_away_and_max_tokens_ends_the_answer(router: RouterProcess, model: str) -> None:
    asked = {"temperature": 0.0, "stop": ["h"], "min_tokens": 12, "max_tokens": 12}
    answer = ask(router, "repeat “hello” :", model, **asked)
    assert answer.finished is not None
    assert len(answer.tokens[0]) == 12
    assert answer.text.startswith("hello")


CONSTRAINTS = [{"regex": "[0-9]+"}, {"json_schema": "{}"}, {"gbnf": "root ::= a"}]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("model", WAYS)
def test_a_constraint_that_no_worker_honours_is_refused_and_never_dropped(
    router: RouterProcess, model: str, constraint: dict[str, str]
) -> None:
    request = router.request(text="count from 3 to 9:", model=model, **GREEDY)
    request.constraint.CopyFrom(generate_pb2.GenerateRequest(constraint=constraint).constraint)
    answer = router.generate(request)
    assert answer.error is not None
    assert answer.tokens == {}
    refused_by_router = answer.error.code() == grpc.StatusCode.FAILED_PRECONDITION
    refused_by_engine = answer.error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused_by_router or refused_by_engine
    assert "RUNTIME_CANNOT_CONSTRAIN" in answer.error.details() or "is not supported" in answer.error.details()
