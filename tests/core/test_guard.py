"""The door: what kills engines does not pass, and the refusal names the field."""

from __future__ import annotations

import pytest

from tandem_router.core.guard import allowed_new_tokens, check_biased_tokens, check_prompt
from tandem_router.errors import Reason, TandemError


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "reason"),
    [
        ((), 10, Reason.EMPTY_PROMPT),
        ((10,), 10, Reason.TOKEN_OUT_OF_VOCABULARY),
        ((3, -1), 10, Reason.TOKEN_OUT_OF_VOCABULARY),
        ((-1,), None, Reason.TOKEN_OUT_OF_VOCABULARY),
    ],
)
def test_prompts_that_kill_engines_are_refused(tokens: tuple[int, ...], vocab_size: int | None, reason: Reason) -> None:
    with pytest.raises(TandemError) as refused:
        check_prompt(tokens, vocab_size=vocab_size)
    assert refused.value.reason is reason
    assert refused.value.field is not None


@pytest.mark.parametrize(("tokens", "vocab_size"), [((0,), 1), ((3, 9, 4), 10), ((10_000, 1), None)])
def test_prompts_inside_the_vocabulary_pass_and_their_highest_id_is_told(
    tokens: tuple[int, ...], vocab_size: int | None
) -> None:
    assert check_prompt(tokens, vocab_size=vocab_size) == max(tokens)


@pytest.mark.parametrize(("biased", "vocab_size"), [({10: 1.0}, 10), ({3: 1.0, -1: 1.0}, 10), ({-1: 1.0}, None)])
def test_biases_of_tokens_that_do_not_exist_are_refused(biased: dict[int, float], vocab_size: int | None) -> None:
    with pytest.raises(TandemError) as refused:
        check_biased_tokens(biased, vocab_size=vocab_size)
    assert (refused.value.reason, refused.value.field) == (Reason.TOKEN_OUT_OF_VOCABULARY, "sampling.logit_bias")


@pytest.mark.parametrize(("biased", "vocab_size"), [({}, 10), ({9: 1.0}, 10), ({10_000: 1.0}, None)])
def test_biases_inside_the_vocabulary_pass(biased: dict[int, float], vocab_size: int | None) -> None:
    check_biased_tokens(biased, vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("prompt", "asked", "context", "allowed"),
    [(10, None, None, 256), (10, 5, None, 5), (10, None, 100, 90), (10, None, 1000, 256), (10, 90, 100, 90)],
)
def test_new_tokens_fit_the_context(prompt: int, asked: int | None, context: int | None, allowed: int) -> None:
    assert allowed_new_tokens(prompt, asked, context_length=context, default=256) == allowed


@pytest.mark.parametrize(("prompt", "asked"), [(100, None), (101, None), (10, 91)])
def test_what_does_not_fit_the_context_is_refused(prompt: int, asked: int | None) -> None:
    with pytest.raises(TandemError) as refused:
        allowed_new_tokens(prompt, asked, context_length=100, default=256)
    assert refused.value.reason is Reason.PROMPT_TOO_LONG
