"""The door's guard: what is known to kill or hang an engine never reaches one.

SGLang's scheduler dies of an empty prompt and MLX hangs on it; MLX's process dies of a token id outside the vocabulary,
in the prompt as in a bias (observed on SGLang 0.5.23 and MLX 0.32.4).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tandem_router.errors import Reason, TandemError

__all__ = ["allowed_new_tokens", "check_biased_tokens", "check_prompt"]


def check_prompt(token_ids: Sequence[int], *, vocab_size: int | None) -> int:
    """The highest id, which legs need not look for again; raises EMPTY_PROMPT or TOKEN_OUT_OF_VOCABULARY.

    vocab_size: None = not known, so only what no model has is refused.
    """
    if not token_ids:
        raise TandemError(Reason.EMPTY_PROMPT, "the prompt has no token", field="input")
    return _check_vocabulary(token_ids, vocab_size, "token_ids")


def check_biased_tokens(token_ids: Collection[int], *, vocab_size: int | None) -> None:
    """Raise TOKEN_OUT_OF_VOCABULARY for a token of `sampling.logit_bias` that the model does not have."""
    if token_ids:
        _check_vocabulary(token_ids, vocab_size, "sampling.logit_bias")


def _check_vocabulary(token_ids: Collection[int], vocab_size: int | None, field: str) -> int:
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
        bad = lowest if lowest < 0 else highest
        raise TandemError(
            Reason.TOKEN_OUT_OF_VOCABULARY,
            f"token id {bad} is outside the vocabulary 0..{'' if vocab_size is None else vocab_size - 1}",
            field=field,
            metadata={"token_id": str(bad)},
        )
    return highest


def allowed_new_tokens(prompt_tokens: int, max_tokens: int | None, *, context_length: int | None, default: int) -> int:
    """How many tokens a request may make; raises PROMPT_TOO_LONG when prompt and max_tokens do not fit the context.

    A request that names no max_tokens gets `default`, or what is left of the context where that is less.
    """
    if context_length is None:
        return default if max_tokens is None else max_tokens
    left = context_length - prompt_tokens
    if left < 1 or (max_tokens is not None and max_tokens > left):
        asked = "" if max_tokens is None else f" and max_tokens {max_tokens}"
        raise TandemError(
            Reason.PROMPT_TOO_LONG,
            f"a prompt of {prompt_tokens} tokens{asked} exceed the context length {context_length}",
            field="sampling.max_tokens" if left >= 1 else "input",
            metadata={"prompt_tokens": str(prompt_tokens), "context_length": str(context_length)},
        )
    return min(default, left) if max_tokens is None else max_tokens
