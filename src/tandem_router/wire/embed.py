"""Embed from and to the wire: the same guard at the door as Generate's, input by input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tandem.v1 import embed_pb2 as pb
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import Embedded, EmbedInput, EmbedRequest
from tandem_router.wire.adapter import adapters_of
from tandem_router.wire.checks import at_most, invalid, not_yet, number, present, refuse_room, text, text_map
from tandem_router.wire.generate import target_of, text_of, token_ids_of
from tandem_router.wire.result import attempt_pb
from tandem_router.wire.sampling import timeouts_of

__all__ = ["embed_of", "pack_embedded"]

MAX_INPUTS = 2048
_VALUES_PER_STEP = 16_384
"""Values put into the answer between two steps: half a millisecond or so."""
_ATTEMPTS_PER_STEP = 64


def embed_of(message: pb.EmbedRequest, *, request_id: str, max_prompt_bytes: int) -> EmbedRequest:
    """The checked request.

    request_id: as given, or minted. max_prompt_bytes: of all inputs together: of texts, and 4 per token id. Raises
    TandemError with the field's path, `inputs[i]` where an input is at fault: INVALID_REQUEST, EMPTY_PROMPT,
    PROMPT_TOO_LONG, TOKEN_OUT_OF_VOCABULARY, INVALID_WORKER_ID, CLIENT_SUPPLIED_ROOM, FEATURE_NOT_IMPLEMENTED.
    """
    if message.session_key:
        raise not_yet("session_key", "Requests do not stick to workers yet.")
    refuse_room("metadata", message.metadata)
    text_map("metadata", message.metadata, most=16, key_most=64, value_most=512)
    target, target_rank = target_of(message, "target_worker")
    dimensions = number("dimensions", message.dimensions, least=1) if present(message, "dimensions") else None
    return EmbedRequest(
        request_id=request_id,
        model=text("model", message.model, most=256),
        inputs=_inputs(message, max_prompt_bytes),
        dimensions=dimensions,
        normalize=message.normalize if present(message, "normalize") else True,
        adapters=adapters_of(message.adapters),
        priority=number("priority", message.priority, least=-100, most=100),
        target_worker_id=target,
        target_dp_rank=target_rank,
        timeouts=timeouts_of(message.timeouts),
    )


def pack_embedded(answer: Embedded, message: pb.EmbedResponse) -> Iterator[None]:
    """Put the answer into `message`, which is whole when the iterator has ended.

    In steps, for a large answer takes many milliseconds, and an event loop must be able to divide them.
    """
    message.usage.prompt_tokens = answer.usage.prompt_tokens
    message.served_model = answer.model
    packed = 0
    for index, values in enumerate(answer.vectors):
        message.embeddings.add(index=index, values=values)
        packed += len(values)
        if packed >= _VALUES_PER_STEP:
            packed = 0
            yield
    for attempt in answer.attempts:
        message.attempts.append(attempt_pb(attempt))
        if attempt.number % _ATTEMPTS_PER_STEP == 0:
            yield


def _inputs(message: pb.EmbedRequest, max_prompt_bytes: int) -> tuple[EmbedInput, ...]:
    if not message.inputs:
        raise invalid("inputs", "It has no entry and must have at least one.")
    at_most("inputs", message.inputs, MAX_INPUTS)
    inputs = tuple(_input(one, f"inputs[{index}]", max_prompt_bytes) for index, one in enumerate(message.inputs))
    size = _bytes_of(inputs)
    if size > max_prompt_bytes:
        raise TandemError(
            Reason.PROMPT_TOO_LONG,
            f"They have {size} bytes together, over the limit of {max_prompt_bytes}.",
            field="inputs",
            metadata={"size_bytes": str(size), "limit_bytes": str(max_prompt_bytes)},
        )
    return inputs


def _input(message: pb.EmbedInput, path: str, max_prompt_bytes: int) -> EmbedInput:
    kind = message.WhichOneof("input")
    if kind is None:
        raise invalid(path, "Set exactly one of text and token_ids.")
    if kind == "text":
        return text_of(message.text, max_prompt_bytes, f"{path}.text")
    return token_ids_of(message.token_ids, max_prompt_bytes, f"{path}.token_ids.ids")


def _bytes_of(inputs: Iterable[EmbedInput]) -> int:
    return sum(len(one.encode()) if isinstance(one, str) else 4 * len(one) for one in inputs)
