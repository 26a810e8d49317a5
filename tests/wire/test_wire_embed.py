"""Each rule of an EmbedRequest accepts what it should and refuses, by path, what it should not; and the answer."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from tandem.v1 import embed_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.embedding import Embedded, EmbedRequest
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId, WorkerId
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import Timeouts
from tandem_router.model.stream import Attempt, ServedBy, Usage
from tandem_router.wire.embed import embed_of, pack_embedded

WORKER = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
HI = {"text": "hi"}


def parse(**fields: Any) -> EmbedRequest:
    message = embed_pb2.EmbedRequest()
    json_format.ParseDict({"inputs": [HI], **fields}, message)
    return embed_of(message, request_id="r", max_prompt_bytes=64)


ACCEPTED: list[dict[str, Any]] = [
    {"inputs": [{"text": "x" * 64}]},
    {"inputs": [{"text": "é" * 16}, {"token_ids": {"ids": list(range(8))}}]},
    {"inputs": [{"token_ids": {"ids": [2**31 - 1]}}]},
    {"dimensions": 1},
    {"normalize": False},
    {"priority": -100},
    {"timeouts": {"total": "0.001s", "inter_token": "1s"}},
    {"metadata": {"team": "x"}},
    {"target_worker": {"worker_id": WORKER.upper(), "dp_rank": 0}},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_value_of_an_embed_request_within_its_range_is_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).request_id == "r"


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    ({"inputs": []}, Reason.INVALID_REQUEST, "inputs"),
    ({"inputs": [HI, {}]}, Reason.INVALID_REQUEST, "inputs[1]"),
    ({"inputs": [HI, {"text": ""}]}, Reason.EMPTY_PROMPT, "inputs[1].text"),
    ({"inputs": [{"token_ids": {}}]}, Reason.EMPTY_PROMPT, "inputs[0].token_ids.ids"),
    ({"inputs": [HI, {"text": "x" * 65}]}, Reason.PROMPT_TOO_LONG, "inputs[1].text"),
    ({"inputs": [{"text": "x" * 64}, HI]}, Reason.PROMPT_TOO_LONG, "inputs"),
    ({"inputs": [{"text": "é" * 16}, {"token_ids": {"ids": [5] * 9}}]}, Reason.PROMPT_TOO_LONG, "inputs"),
    ({"inputs": [{"token_ids": {"ids": [2**31]}}]}, Reason.TOKEN_OUT_OF_VOCABULARY, "inputs[0].token_ids.ids"),
    ({"dimensions": 0}, Reason.INVALID_REQUEST, "dimensions"),
    ({"priority": 101}, Reason.INVALID_REQUEST, "priority"),
    ({"timeouts": {"queue": "0s"}}, Reason.INVALID_REQUEST, "timeouts.queue"),
    ({"adapters": [{"name": "a"}, {"name": "a"}]}, Reason.INVALID_REQUEST, "adapters[1].name"),
    ({"adapters": [{"name": str(n)} for n in range(9)]}, Reason.INVALID_REQUEST, "adapters"),
    ({"target_worker": {"worker_id": "x"}}, Reason.INVALID_WORKER_ID, "target_worker.worker_id"),
    ({"metadata": {"bootstrap-room": "7"}}, Reason.CLIENT_SUPPLIED_ROOM, "metadata[bootstrap-room]"),
    ({"metadata": {"k": "x" * 513}}, Reason.INVALID_REQUEST, "metadata[k]"),
    ({"model": "x" * 257}, Reason.INVALID_REQUEST, "model"),
    ({"session_key": "s"}, Reason.FEATURE_NOT_IMPLEMENTED, "session_key"),
]


@pytest.mark.parametrize(("fields", "reason", "path"), REFUSED, ids=lambda value: str(value)[:60])
def test_value_of_an_embed_request_outside_its_range_is_refused_by_path(
    fields: dict[str, Any], reason: Reason, path: str
) -> None:
    with pytest.raises(TandemError) as caught:
        parse(**fields)
    assert (caught.value.reason, caught.value.field) == (reason, path)


def test_there_may_be_2048_inputs_and_not_one_more() -> None:
    most = embed_pb2.EmbedRequest(inputs=[embed_pb2.EmbedInput(text="x")] * 2048)
    assert len(embed_of(most, request_id="r", max_prompt_bytes=2048).inputs) == 2048
    most.inputs.add(text="x")
    with pytest.raises(TandemError) as caught:
        embed_of(most, request_id="r", max_prompt_bytes=4096)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "inputs")


def test_every_field_of_an_embed_request_arrives() -> None:
    assert parse(
        model="m",
        inputs=[HI, {"token_ids": {"ids": [7, 8]}}],
        dimensions=4,
        normalize=False,
        adapters=[{"name": "poet", "scale": 0.5}],
        priority=3,
        target_worker={"worker_id": WORKER, "dp_rank": 1},
        timeouts={"queue": "1s", "first_token": "2s", "total": "3s"},
    ) == EmbedRequest(
        request_id="r",
        model="m",
        inputs=("hi", (7, 8)),
        dimensions=4,
        normalize=False,
        adapters=(AdapterUse("poet", 0.5),),
        priority=3,
        target_worker_id=WorkerId(WORKER),
        target_dp_rank=1,
        timeouts=Timeouts(queue_s=1.0, first_token_s=2.0, total_s=3.0),
    )


def test_what_is_left_out_is_a_whole_vector_of_length_one() -> None:
    assert (parse().dimensions, parse().normalize) == (None, True)


SERVED = ServedBy(PairId("p"), HandshakeKind.AGGREGATE, WorkerId(WORKER), 0)


def answer(inputs: int, length: int) -> Embedded:
    vectors = tuple(tuple(float(index) for _ in range(length)) for index in range(inputs))
    lost = Failure(Reason.WORKER_LOST, "gone")
    tries = [Attempt(1, SERVED, lost), *(Attempt(number, SERVED) for number in range(2, inputs + 2))]
    return Embedded("m", vectors, Usage(9, 0, 0), tuple(tries))


def test_the_answer_has_a_vector_per_input_by_index_and_every_try() -> None:
    message = embed_pb2.EmbedResponse()
    assert list(pack_embedded(answer(3, 4), message)) == []
    assert [(one.index, list(one.values)) for one in message.embeddings] == [(n, [float(n)] * 4) for n in range(3)]
    assert (message.usage.prompt_tokens, message.usage.completion_tokens, message.served_model) == (9, 0, "m")
    assert [(one.number, one.failure.reason) for one in message.attempts] == [
        (1, "WORKER_LOST"),
        (2, ""),
        (3, ""),
        (4, ""),
    ]


def test_a_large_answer_is_packed_in_steps() -> None:
    message = embed_pb2.EmbedResponse()
    sizes = [len(message.embeddings) for _ in pack_embedded(answer(64, 4096), message)]
    assert sizes[:3] == [4, 8, 12]
    assert len(message.embeddings) == 64
    assert len(message.attempts) == 65
