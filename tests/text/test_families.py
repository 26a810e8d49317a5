"""Streamed text equals the whole in every family of tokenizers, however the tokens are cut into steps."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import groupby, pairwise

import pytest
from families import BYTE_FALLBACK, BYTE_LEVEL, FAMILIES, WINDOWED, tokenizer_json
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Rust
from tokenizers.decoders import DecodeStream

from tandem_router.text.archive import TokenizerFiles
from tandem_router.text.detokenizer import Detokenizer
from tandem_router.text.stops import StopScanner
from tandem_router.text.tokenizer import Tokenizer

NASTY = {
    "family": "a 👩‍👩‍👧‍👦 family",
    "flags": "🇩🇪🇯🇵🏴\U000e0067\U000e0062\U000e007f",
    "skin tones": "👍🏽👩🏿‍🚀",
    "combining": "e\u0301o\u0308\u0323 Z\u0351\u0368a\u0334lgo",
    "jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "right to left": "שלום \u202eمرحبا\u202c (abc)",
    "around the surrogates": "\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
    "ext B": "𠀀𠮷𩸽 𠜎𠜱",
    "marks": "\ufeffa\ufeff\u200b\u200d\ufe0f\u2028\x00\x7f",
    "indentation": "def f():\n    if x:\n\t\t\treturn\r\n\n\n\n        pass\n",
    "spaces": "   three before,  two within, four after    ",
    "one space": " ",
    "empty": "",
    "written bytes": "<0x41><0xE6> <0xZZ> <0x+1>",
    "look-alikes": "▁ a▁b Ġ Ċ é ## ##a </w> 't do not . ? n't",
    "clean-up": "it 's not , is it ? don ' t ! I 'm we 've",
    "indic": "क्षि ನಮಸ್ಕಾರ ཨོཾ",
    "digits": "1234567 ٣ ½ Ⅷ",
}
MARKS = (
    "<s>|</s>|<|end|>|<|eot_id|>|<｜User｜>|<｜end▁of▁sentence｜>|<tool_call>|<end_of_turn>|[SEP]|<extra_id_3>|<|sep|>"
)
CUTS = st.lists(st.integers(0, 80), max_size=12)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from([*NASTY.values(), *MARKS.split("|"), " ", "\n", "fox"]), max_size=6).map("".join),
)
families = pytest.mark.parametrize("family", list(FAMILIES))


@functools.cache
def rust(family: str) -> Rust:
    return Rust.from_str(tokenizer_json(family))


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    return Tokenizer(TokenizerFiles(tokenizer_json(family)))


def pieces(family: str, ids: Sequence[int], skip: bool, cuts: Sequence[int] | None = None) -> list[str]:
    """What every step gives, and what is left at the end. None: token by token."""
    edges = range(len(ids) + 1) if cuts is None else sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    stream = tokenizer(family).stream(skip_special_tokens=skip)
    return [*(stream.push(ids[start:end]) for start, end in pairwise(edges)), stream.flush()]


def read_byte_by_byte(family: str, ids: Sequence[int], skip: bool) -> str:
    """Said plainly: a run of byte tokens is the characters in it, and U+FFFD for every byte that belongs to none."""
    special = {number for number, token in rust(family).get_added_tokens_decoder().items() if token.special and skip}
    tokens = [rust(family).id_to_token(number) for number in ids if number not in special]
    text = ""
    for is_run, run in groupby((token for token in tokens if token is not None), key=is_byte):
        if is_run:
            escaped = bytes(int(token[3:5], 16) for token in run).decode(errors="surrogateescape")
            text += re.sub("[\udc80-\udcff]", "\ufffd", escaped)
        else:
            text += "".join(run).replace("▁", " ")
    return text if family == "gemma" else text.removeprefix(" ")


def is_byte(token: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


@families
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "keep"])
@pytest.mark.parametrize("name", list(NASTY))
def test_every_cut_of_a_hard_text_gives_the_whole(family: str, name: str, skip: bool) -> None:
    ids = tokenizer(family).encode(NASTY[name])
    whole = rust(family).decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(family, ids, skip)) == whole
    for cut in range(len(ids)):
        assert "".join(pieces(family, ids, skip, [cut])) == whole


@families
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, skip=st.booleans(), cuts=CUTS)
def test_streamed_text_of_a_family_equals_the_whole(family: str, text: str, skip: bool, cuts: list[int]) -> None:
    ids = tokenizer(family).encode(text)
    assert "".join(pieces(family, ids, skip, cuts)) == rust(family).decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in BYTE_FALLBACK])
@settings(deadline=None, max_examples=100)
@given(data=st.data(), skip=st.booleans(), cuts=CUTS)
def test_streamed_text_equals_the_whole_for_any_tokens(
    family: str, data: st.DataObject, skip: bool, cuts: list[int]
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer(family).vocab_size + 2), max_size=60))
    assert "".join(pieces(family, ids, skip, cuts)) == rust(family).decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", BYTE_FALLBACK)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), skip=st.booleans(), cuts=CUTS)
def test_bytes_that_are_no_character_never_take_back_those_that_are(
    family: str, data: st.DataObject, skip: bool, cuts: list[int]
) -> None:
    subject = tokenizer(family)
    some_bytes = [rust(family).token_to_id(f"<0x{byte:02X}>") for byte in "日é🦜\n ".encode() + b"\xff\xe6\xa0\x41"]
    numbers = st.one_of(st.sampled_from(some_bytes), st.integers(0, subject.vocab_size + 2))
    ids = data.draw(st.lists(numbers, max_size=40))
    whole = read_byte_by_byte(family, ids, skip)
    assert "".join(pieces(family, ids, skip, cuts)) == whole
    assert subject.decode(ids, skip_special_tokens=skip) == whole


@families
@pytest.mark.parametrize("name", list(NASTY))
def test_text_that_is_cut_off_anywhere_is_the_same_streamed_or_whole(family: str, name: str) -> None:
    ids = tokenizer(family).encode(NASTY[name])
    for end in range(len(ids)):
        whole = tokenizer(family).decode(ids[:end], skip_special_tokens=False)
        assert "".join(pieces(family, ids[:end], skip=False)) == whole


@pytest.mark.parametrize("family", [*BYTE_FALLBACK, *BYTE_LEVEL])
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, cuts=CUTS)
def test_no_step_of_a_real_text_ends_in_half_a_character(family: str, text: str, cuts: list[int]) -> None:
    # `tokenizers` takes DeepSeek's added tokens for bytes where they are written in the byte-level alphabet.
    ids = tokenizer(family).encode("".join(letter for letter in text if letter not in "\ufffdéĠ"))
    assert "\ufffd" not in "".join(pieces(family, ids, False, cuts))


@pytest.mark.parametrize("family", BYTE_FALLBACK)
def test_newline_that_is_a_byte_is_shown_at_once(family: str) -> None:
    stream = tokenizer(family).stream(skip_special_tokens=True)
    assert stream.push([rust(family).get_vocab()["<0x0A>"]]) == "\n"


@families
@pytest.mark.parametrize("name", list(NASTY))
def test_hugging_faces_own_stream_says_the_same(family: str, name: str) -> None:
    theirs = DecodeStream(skip_special_tokens=False)
    ids = tokenizer(family).encode(NASTY[name].replace("\ufffd", ""))
    expected = "".join(theirs.step(rust(family), number) or "" for number in ids)
    assert "".join(pieces(family, ids, skip=False)) == expected


@families
@settings(deadline=None, max_examples=40)
@given(text=TEXTS, start=st.integers(0, 20), length=st.integers(1, 6))
def test_stop_string_cuts_a_text_where_the_whole_text_has_it(family: str, text: str, start: int, length: int) -> None:
    ids = tokenizer(family).encode(text)
    whole = rust(family).decode(ids, skip_special_tokens=True)
    stop = whole[start : start + length] or "never"
    scanner = StopScanner([stop], includes_stop=False)
    shown = "".join(scanner.push(piece, counts=True) for piece in pieces(family, ids, skip=True)) + scanner.flush()
    assert shown == whole.partition(stop)[0]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WINDOWED])
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, cut=st.integers(1, 40), skip=st.booleans())
def test_text_that_goes_on_with_a_prompt_is_what_it_adds_to_the_whole(
    family: str, text: str, cut: int, skip: bool
) -> None:
    subject = tokenizer(family)
    ids = subject.encode("the fox " + text)
    prompt = subject.decode(ids[:cut], skip_special_tokens=skip)
    whole = subject.decode(ids, skip_special_tokens=skip)
    stream = subject.stream(skip_special_tokens=skip, continues=True)
    # A prompt of special tokens alone is no text to go on with; one that ends in half a character is not a prompt.
    if prompt and whole.startswith(prompt) and not prompt.endswith("\ufffd"):
        assert prompt + stream.push(ids[cut:]) + stream.flush() == whole


@pytest.mark.parametrize("family", ["llama2", "mistral", "t5"])
def test_first_space_is_kept_only_where_a_text_goes_on(family: str) -> None:
    subject, space = tokenizer(family), rust(family).get_vocab()["▁"]
    shown = [subject.stream(skip_special_tokens=True, continues=goes_on).push([space]) for goes_on in (True, False)]
    assert shown == [" ", ""]


def test_only_decoders_that_need_their_neighbours_are_read_through_a_window() -> None:
    windowed = [
        family for family in FAMILIES if isinstance(tokenizer(family).stream(skip_special_tokens=True), Detokenizer)
    ]
    assert windowed == list(WINDOWED)


@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_ids_of_no_vocabulary_are_not_remembered(family: str) -> None:
    stream = tokenizer(family).stream(skip_special_tokens=True)
    before = len(stream._pieces)  # type: ignore[union-attr]
    stream.push(range(10_000, 12_000))
    assert len(stream._pieces) == before  # type: ignore[union-attr]
