"""Text from windows of tokens equals decoding the whole; and never splits a character."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
from archives import byte_fallback, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_router.text.archive import TokenizerFiles
from tandem_router.text.detokenizer import Detokenizer
from tandem_router.text.tokenizer import Tokenizer

HARD = "👩‍👩‍👧‍👦🇩🇪é̈ö日本語中文क्षिﷺ “🦜”« \u200d\ufe0f\t\n<|end|>the fox"
TEXTS = st.one_of(st.text(max_size=40), st.text(alphabet=HARD, max_size=40))


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(TokenizerFiles({"byte_level": byte_level, "byte_fallback": byte_fallback}[kind]()))


KINDS = pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])


def window(subject: Tokenizer, skip: bool = True) -> Detokenizer:
    return Detokenizer(lambda ids: subject.decode(ids, skip_special_tokens=skip))


def pieces(subject: Tokenizer, ids: Sequence[int], skip: bool = True, step: int = 1) -> list[str]:
    stream = window(subject, skip)
    found = [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    return [*found, stream.flush()]


@KINDS
@settings(deadline=None, max_examples=150)
@given(text=TEXTS, skip=st.booleans(), step=st.integers(1, 5))
def test_streamed_text_equals_the_whole(kind: str, text: str, skip: bool, step: int) -> None:
    subject = tokenizer(kind)
    ids = subject.encode(text)
    assert "".join(pieces(subject, ids, skip, step)) == subject.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, tokenizer("byte_level").vocab_size - 1), max_size=120), skip=st.booleans())
def test_streamed_text_equals_the_whole_for_any_byte_level_tokens(ids: list[int], skip: bool) -> None:
    subject = tokenizer("byte_level")
    assert "".join(pieces(subject, ids, skip)) == subject.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_broken_bytes_never_stop_the_stream(data: st.DataObject) -> None:
    subject = tokenizer("byte_fallback")
    bad = subject.encode("\u00ff")[1:]  # two byte tokens
    ids = [*data.draw(st.lists(st.sampled_from([*bad, 4, 20]), max_size=80)), *subject.encode("the fox")]
    assert "".join(pieces(subject, ids)).endswith("the fox")


@KINDS
@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_no_piece_of_a_real_text_holds_half_a_character(kind: str, text: str) -> None:
    subject = tokenizer(kind)
    ids = subject.encode(text.replace("\ufffd", ""))
    assert "\ufffd" not in "".join(pieces(subject, ids)[:-1])


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦", "日本", "é", "🦜"])
def test_character_of_many_tokens_comes_whole(text: str) -> None:
    subject = tokenizer("byte_level")
    assert all(char in text for piece in pieces(subject, subject.encode(text)) for char in piece)


def test_unfinished_character_is_flushed_as_a_replacement() -> None:
    subject = tokenizer("byte_level")
    ids = subject.encode("𓀀")  # four bytes that no merge joins
    assert pieces(subject, ids[:-1])[-1] == "\ufffd"


def test_flush_gives_its_text_once() -> None:
    stream = window(tokenizer("byte_level"))
    stream.push(tokenizer("byte_level").encode("𓀀")[:-1])
    stream.flush()
    assert stream.flush() == ""


@KINDS
def test_cost_per_token_does_not_grow_with_the_text(kind: str) -> None:
    subject = tokenizer(kind)
    stream = window(subject)
    lengths: list[int] = []
    decode = stream._decode
    stream._decode = lambda window: lengths.append(len(window)) or decode(window)  # type: ignore[func-returns-value]
    stream.push(subject.encode("the fox 日本語 " * 300))
    assert max(lengths) <= 32


def test_endless_garbage_keeps_the_window_short() -> None:
    subject = tokenizer("byte_level")
    [garbage] = subject.encode("\u00ff")[1:2]
    stream = window(subject)
    stream.push([garbage] * 2000)
    assert len(stream._window) <= 40
