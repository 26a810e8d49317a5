"""`tandem embed`: what it asks, and what it prints where."""

from __future__ import annotations

import json

import pytest
from tests.cli.fakes import FakeRouter, run

from tandem.v1 import embed_pb2, generate_pb2, generate_result_pb2
from tandem_router.errors import Reason, TandemError

ANSWER = embed_pb2.EmbedResponse(
    embeddings=[embed_pb2.Embedding(index=0, values=[0.1, -1]), embed_pb2.Embedding(index=1, values=[1 / 3, 0])],
    served_model="tiny",
    attempts=[generate_result_pb2.Attempt(number=number) for number in (1, 2, 3)],
)
ANSWER.usage.prompt_tokens = 7


@pytest.fixture
def router(fake: FakeRouter) -> FakeRouter:
    fake.says(RouterService_Embed=lambda request: ANSWER)
    return fake


def test_a_line_of_numbers_per_text_and_the_cost_on_stderr(router: FakeRouter) -> None:
    assert run("embed", "tiny", "a", "b", "--router", router.address) == (
        0,
        "0.100000001 -1\n0.333333343 0\n",
        "model tiny | 2 vectors of 2 values | 7 tokens | 1 try lost\n",
    )


def test_json_is_the_whole_answer_and_nothing_else(router: FakeRouter) -> None:
    code, out, err = run("embed", "tiny", "a", "b", "-o", "json", "--router", router.address)
    assert (code, err) == (0, "")
    assert json.loads(out)["embeddings"][0] == {"values": [0.1, -1.0]}


def test_what_is_not_said_is_left_to_the_router(router: FakeRouter) -> None:
    run("embed", "", "a", "--router", router.address)
    run("embed", "m", "a", "--dimensions", "4", "--no-normalize", "--adapter", "poet", "--router", router.address)
    assert router.requests("RouterService/Embed") == [
        embed_pb2.EmbedRequest(inputs=[embed_pb2.EmbedInput(text="a")]),
        embed_pb2.EmbedRequest(
            model="m",
            inputs=[embed_pb2.EmbedInput(text="a")],
            dimensions=4,
            normalize=False,
            adapters=[generate_pb2.AdapterRef(name="poet")],
        ),
    ]


def test_an_input_at_fault_is_named_on_stderr(fake: FakeRouter) -> None:
    fake.says(RouterService_Embed=lambda request: TandemError(Reason.EMPTY_PROMPT, "no token", field="inputs[1].text"))
    code, out, err = run("embed", "tiny", "a", "", "--router", fake.address)
    assert (code, out) == (1, "")
    assert err.startswith("EMPTY_PROMPT: inputs[1].text: no token")


def test_a_text_must_be_given(fake: FakeRouter) -> None:
    assert run("embed", "tiny", "--router", fake.address)[0] == 2
