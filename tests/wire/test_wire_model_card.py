"""Where a model's text comes from survives the wire, and a path that could surprise is refused."""

from __future__ import annotations

import pytest

from tandem.v1 import model_card_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.spec import ModelCard, WorkerSpec
from tandem_router.wire.model_card import card_of, card_pb
from tandem_router.wire.spec import refuse_what_is_not_carried_out


@pytest.mark.parametrize("path", [None, "/models/m", "/models/m/tokenizer.json", "/m/模型.zip", "/a..b/c"])
@pytest.mark.parametrize("template", [None, "{{ messages }}"])
def test_tokenizer_and_template_survive_the_wire_and_are_carried_out(path: str | None, template: str | None) -> None:
    card = ModelCard("m", tokenizer_path=path, chat_template=template)
    assert card_of(card_pb(card), "models[0]") == card
    refuse_what_is_not_carried_out(WorkerSpec("grpc://h:1", models=(card,)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokenizer_path", "models/m"),
        ("tokenizer_path", "~/m"),
        ("tokenizer_path", "meta/llama"),
        ("tokenizer_path", "/models/../etc"),
        ("tokenizer_path", "/models/.."),
        ("tokenizer_path", "/a\0b"),
        ("tokenizer_path", "/a\nb"),
        ("tokenizer_path", "https://host/m"),
        ("tokenizer_path", "/" + "a" * 4096),
        ("chat_template", "x" * (256 * 1024 + 1)),
    ],
    ids=["relative", "home", "hub", "up", "up at the end", "NUL", "newline", "URL", "long path", "long template"],
)
def test_odd_path_or_huge_template_is_refused_by_path(field: str, value: str) -> None:
    message = model_card_pb2.ModelCard(id="m", **{field: value})
    with pytest.raises(TandemError) as caught:
        card_of(message, "models[0]")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, f"models[0].{field}")
