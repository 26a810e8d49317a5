"""Embed over a real connection: what the relay is asked, what the client gets, and what its leaving does."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.services.fakes import W1, House
from tests.services.test_services_guard import refused

from tandem.v1 import embed_pb2, generate_pb2, message_pb2, router_service_pb2_grpc
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import Embedded

INPUTS = [embed_pb2.EmbedInput(text="hi"), embed_pb2.EmbedInput(token_ids=message_pb2.TokenIds(ids=[7, 8]))]


def stub(house: House) -> Any:
    return router_service_pb2_grpc.RouterServiceStub(house.public)


def ask(**fields: Any) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(**{"inputs": INPUTS, **fields})


async def never() -> Embedded:
    await asyncio.Event().wait()
    raise AssertionError


async def test_vectors_come_by_index_with_usage_model_and_every_try(house: House) -> None:
    answer = await stub(house).Embed(ask())
    assert [(one.index, list(one.values)) for one in answer.embeddings] == [
        (0, pytest.approx([0.6, 0.8])),
        (1, [1.0, 0.0]),
    ]
    assert (answer.request_id, answer.usage.prompt_tokens, answer.served_model) == ("id-1", 5, "tiny")
    assert [attempt.number for attempt in answer.attempts] == [1, 2]


async def test_the_relay_is_asked_for_what_the_client_wrote(house: House) -> None:
    metadata = (("authorization", "Bearer x"), ("traceparent", "00-abc"))
    request = ask(
        request_id="mine",
        model="tiny-alias",
        dimensions=1,
        normalize=False,
        priority=4,
        adapters=[generate_pb2.AdapterRef(name="poet")],
        target_worker={"worker_id": W1},
        timeouts={"total": {"seconds": 9}},
    )
    await stub(house).Embed(request, metadata=metadata, timeout=60)
    asked, caller = house.relay.embedded[0]
    assert (asked.request_id, asked.model, asked.inputs) == ("mine", "tiny-alias", ("hi", (7, 8)))
    assert (asked.dimensions, asked.normalize, asked.priority, asked.target_worker_id) == (1, False, 4, W1)
    assert ([use.name for use in asked.adapters], asked.timeouts.total_s) == (["poet"], 9.0)
    assert (caller.principal, caller.traceparent, caller.forwarded) == (
        "anonymous",
        "00-abc",
        (("x-request-id", "mine"),),
    )
    assert caller.deadline_s is not None
    assert 1050 < caller.deadline_s <= 1061  # grpc-timeout is rounded up on the wire


async def test_a_refusal_of_the_relay_has_its_status_and_names_the_request(house: House) -> None:
    house.relay.refusal = TandemError(Reason.TOO_MANY_REQUESTS, "full", retry_after_s=0.5)
    call = stub(house).Embed(ask())
    code, error, _ = await refused(call)
    assert (code, error and error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.5)
    assert dict(await call.trailing_metadata())["tandem-request-id"] == "id-1"


async def test_a_failed_input_ends_the_call_with_its_reason(house: House) -> None:
    async def fails() -> Embedded:
        raise TandemError(Reason.EMPTY_PROMPT, "no token", field="inputs[1]")

    house.relay.vectors = fails
    code, error, message = await refused(stub(house).Embed(ask()))
    assert (code, error and error.reason, error and error.field) == (
        grpc.StatusCode.INVALID_ARGUMENT, Reason.EMPTY_PROMPT, "inputs[1]",
    )  # fmt: skip
    assert message.startswith("EMPTY_PROMPT: inputs[1]: ")
    assert house.relay.embed_calls[0].cancelled.is_set()


REFUSED: list[tuple[dict[str, Any], Reason, str]] = [
    ({"inputs": []}, Reason.INVALID_REQUEST, "inputs"),
    ({"request_id": "a b"}, Reason.INVALID_REQUEST, "request_id"),
    ({"inputs": [*INPUTS, embed_pb2.EmbedInput()]}, Reason.INVALID_REQUEST, "inputs[2]"),
]


@pytest.mark.parametrize(("fields", "reason", "path"), REFUSED, ids=["none", "id", "empty"])
async def test_the_door_refuses_before_the_relay_is_asked(
    house: House, fields: dict[str, Any], reason: Reason, path: str
) -> None:
    _, error, _ = await refused(stub(house).Embed(ask(**fields)))
    assert error is not None
    assert (error.reason, error.field, house.relay.embedded) == (reason, path, [])


async def test_an_empty_model_is_refused_unless_exactly_one_is_served_by_anybody(house: House) -> None:
    house.registry.workers.clear()
    _, error, _ = await refused(stub(house).Embed(ask()))
    assert error is not None
    assert (error.reason, error.field) == (Reason.INVALID_REQUEST, "model")


@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_a_client_that_leaves_ends_its_embed_call(house: House, way: str) -> None:
    house.relay.vectors = never
    call = stub(house).Embed(ask(), timeout=0.3 if way == "deadline" else None)
    async with asyncio.timeout(5):
        while not house.relay.embed_calls:  # noqa: ASYNC110 - the server takes the call on its own time
            await asyncio.sleep(0)
        if way == "cancel":
            call.cancel()
        await house.relay.embed_calls[0].cancelled.wait()
    call.cancel()
