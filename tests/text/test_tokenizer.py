"""Encoding and decoding with a model's own files."""

from __future__ import annotations

import pytest
from archives import byte_level

from tandem_router.errors import Reason, TandemError
from tandem_router.text.archive import TokenizerFiles
from tandem_router.text.tokenizer import Tokenizer

SUBJECT = Tokenizer(TokenizerFiles(byte_level(), special_tokens={"bos_token": "<s>"}))
BOS, END = 0, 1


def test_decoding_an_encoded_text_gives_it_back() -> None:
    text = "naïve 日本語 👩‍👩‍👧‍👦 e\u0301"
    assert SUBJECT.decode(SUBJECT.encode(text), skip_special_tokens=True) == text


def test_models_leading_token_is_added() -> None:
    assert SUBJECT.encode("fox")[0] == BOS


def test_leading_token_that_the_text_brings_is_not_doubled() -> None:
    assert SUBJECT.encode("<s>fox") == SUBJECT.encode("fox")


def test_tokens_that_a_chat_template_did_not_write_are_not_added() -> None:
    assert SUBJECT.encode("fox", adds_special=False) == SUBJECT.encode("fox")[1:]


def test_special_tokens_in_the_text_are_recognised() -> None:
    assert SUBJECT.encode("fox<|end|>")[-1] == END


def test_special_tokens_are_skipped_on_demand() -> None:
    ids = SUBJECT.encode("fox<|end|>")
    assert (SUBJECT.decode(ids, skip_special_tokens=True), SUBJECT.decode(ids, skip_special_tokens=False)) == (
        "fox",
        "<s>fox<|end|>",
    )


def test_vocabulary_size_is_above_every_added_token() -> None:
    assert max(SUBJECT.encode("🦜")) == SUBJECT.vocab_size - 1


def test_unknown_ids_decode_to_nothing() -> None:
    assert SUBJECT.decode([10_000], skip_special_tokens=True) == ""


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(TandemError) as caught:
        SUBJECT.encode("a\ud800b")
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_stored_truncation_does_not_cut_prompts() -> None:
    from tokenizers import Tokenizer as Rust

    rust = Rust.from_str(byte_level())
    rust.enable_truncation(4)
    rust.enable_padding(length=64)
    assert Tokenizer(TokenizerFiles(rust.to_str())).encode("the fox " * 20) == SUBJECT.encode("the fox " * 20)


def test_file_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(TandemError) as caught:
        Tokenizer(TokenizerFiles('{"model": 1}'))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
