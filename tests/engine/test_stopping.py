"""Stop tokens, stop strings across token borders, and minimum length."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tandem_engine.sampling import SamplingParams
from tandem_engine.stopping import Stop, StopWatch

EOS = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, and one special end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


def run(tokenizer: Tokenizer, text: str, max_tokens: int = 100, **params: Any) -> tuple[int, Stop | None]:
    """How many bytes of `text` are taken, and what stopped them."""
    watch = StopWatch(SamplingParams(**params), (EOS,), max_tokens, tokenizer)
    for count, token in enumerate(tokenizer.encode(text).ids, 1):
        stop = watch.after(token)
        if stop:
            return count, stop
    return count, None


def test_end_of_sequence_stops(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "ab<end>cd") == (3, Stop("stop", EOS))


def test_ignore_eos_goes_on(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "ab<end>cd", ignore_eos=True) == (5, None)


def test_stop_tokens_stop_although_eos_is_ignored(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "ab<end>cd", ignore_eos=True, stop_token_ids=(EOS,)) == (3, Stop("stop", EOS))


def test_a_stop_string_is_found_across_tokens(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "one END two", stop=("END",)) == (7, Stop("stop", "END"))


def test_a_stop_string_of_split_characters_is_found_when_complete(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "ab🙂é終x", stop=("é終",)) == (11, Stop("stop", "é終"))


def test_the_first_match_wins(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "abcd", stop=("cd", "bc")) == (3, Stop("stop", "bc"))


def test_length_stops_at_the_limit(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "abcdef", max_tokens=4) == (4, Stop("length"))


def test_a_stop_on_the_last_token_is_a_stop(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "abc", max_tokens=2, stop=("b",)) == (2, Stop("stop", "b"))


def test_min_tokens_lets_earlier_stop_strings_pass(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "a.bc.d", min_tokens=3, stop=(".", "never this")) == (5, Stop("stop", "."))


def test_min_tokens_forbids_stop_tokens_until_then(tokenizer: Tokenizer) -> None:
    watch = StopWatch(SamplingParams(min_tokens=1), (EOS,), 100, None)
    before = watch.forbidden()
    watch.after(5)
    assert (before, watch.forbidden()) == ((EOS,), ())


def test_broken_utf8_does_not_end_the_world(tokenizer: Tokenizer) -> None:
    watch = StopWatch(SamplingParams(stop=("END",)), (EOS,), 100, tokenizer)
    broken = tokenizer.encode("🙂").ids[:2] * 9
    found = [watch.after(token) for token in (*broken, *tokenizer.encode("x END").ids)]
    assert found[-1] == Stop("stop", "END")
