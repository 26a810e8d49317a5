"""A chat's prompt was written by its template and its answer is a text of its own; a completion goes on with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tandem_router.model.request import ChatMessage, GenerateRequest, Output
from tandem_router.runtime.choices import ChoiceOutputs
from tandem_router.runtime.prompt import tokenize

CHAT = {"messages": (ChatMessage("user", "hi"),)}
COMPLETION = {"text": "Once upon a"}
TOKENS = {"token_ids": (1, 2)}


class Asked:
    """ports.TextCodec that notes how it is asked."""

    vocab_size = 9

    def __init__(self) -> None:
        self.adds_special: bool | None = None
        self.continues: bool | None = None

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        self.adds_special = adds_special
        return (1,)

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        return "rendered"

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> Any:
        self.continues = continues


def request(prompt: dict[str, Any]) -> GenerateRequest:
    return GenerateRequest("r", "m", output=Output.TEXT, **prompt)


@pytest.mark.parametrize(("prompt", "adds"), [(CHAT, False), (COMPLETION, True)], ids=["chat", "completion"])
async def test_models_own_tokens_are_added_to_a_text_and_not_to_a_chat(prompt: dict[str, Any], adds: bool) -> None:
    codec = Asked()
    await tokenize(request(prompt), "m", codec)  # type: ignore[arg-type]
    assert codec.adds_special is adds


@pytest.mark.parametrize(
    ("prompt", "goes_on"), [(CHAT, False), (COMPLETION, True), (TOKENS, True)], ids=["chat", "completion", "tokens"]
)
def test_answer_goes_on_with_a_text_but_not_with_a_chat(prompt: dict[str, Any], goes_on: bool) -> None:
    codec = Asked()
    ChoiceOutputs(request(prompt), codec, None)  # type: ignore[arg-type]
    assert codec.continues is goes_on
