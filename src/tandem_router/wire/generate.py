"""GenerateRequest from the wire: the guard at the door. What is known to kill or hang an engine does not pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tandem.v1 import embed_pb2, message_pb2
from tandem.v1 import generate_pb2 as pb
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import WorkerId
from tandem_router.model.request import ChatMessage, GenerateRequest, Output, Sampling, ServingMode
from tandem_router.wire.adapter import adapters_of
from tandem_router.wire.checks import (
    duration,
    invalid,
    not_yet,
    number,
    present,
    refuse_room,
    text,
    text_map,
    worker_id,
)
from tandem_router.wire.constraint import constraint_of
from tandem_router.wire.sampling import sampling_of, timeouts_of

__all__ = ["generate_of", "messages_of", "request_id_of", "target_of", "text_of", "token_ids_of"]

MAX_TOP_LOGPROBS = 20
_INT32_MOST = 2**31 - 1

_Target = tuple[WorkerId | None, int | None]

_OUTPUTS: dict[int, Output] = {
    pb.OUTPUT_MODE_TOKENS: Output.TOKENS,
    pb.OUTPUT_MODE_TEXT: Output.TEXT,
    pb.OUTPUT_MODE_BOTH: Output.BOTH,
}
_SERVING: dict[int, ServingMode] = {
    pb.SERVING_MODE_DISAGGREGATED: ServingMode.DISAGGREGATED,
    pb.SERVING_MODE_AGGREGATED: ServingMode.AGGREGATED,
}
_ROLES: dict[int, str] = {
    message_pb2.CHAT_ROLE_SYSTEM: "system",
    message_pb2.CHAT_ROLE_USER: "user",
    message_pb2.CHAT_ROLE_ASSISTANT: "assistant",
}
"""As chat templates spell them."""


def request_id_of(value: str) -> str:
    """A client's request id, 1 to 128 printable ASCII characters; raises INVALID_REQUEST."""
    text("request_id", value, least=1, most=128)
    if not all("!" <= character <= "~" for character in value):
        raise invalid("request_id", "It must be printable ASCII without spaces.")
    return value


def generate_of(message: pb.GenerateRequest, *, request_id: str, max_prompt_bytes: int) -> GenerateRequest:
    """The checked request.

    request_id: as given, or minted where the message left it empty. max_prompt_bytes: of text, or 4 per token id. An
    empty model stays empty: the relay knows whether there is only one. Raises TandemError with the field's path:
    INVALID_REQUEST, EMPTY_PROMPT, PROMPT_TOO_LONG, TOKEN_OUT_OF_VOCABULARY, INVALID_WORKER_ID,
    CLIENT_SUPPLIED_ROOM, FEATURE_NOT_IMPLEMENTED.
    """
    _refuse_what_is_not_carried_out(message)
    kind = message.WhichOneof("input")
    if kind is None:
        raise invalid("input", "Set exactly one of text, token_ids and chat.")
    prompt = text_of(message.text, max_prompt_bytes) if kind == "text" else None
    token_ids = token_ids_of(message.token_ids, max_prompt_bytes) if kind == "token_ids" else None
    refuse_room("metadata", message.metadata)
    text_map("metadata", message.metadata, most=16, key_most=64, value_most=512)
    messages = messages_of(message.chat, max_prompt_bytes) if kind == "chat" else None
    top = message.logprobs.top
    target, target_rank = target_of(message, "target_worker")
    prefill, prefill_rank = target_of(message, "target_prefill_worker")
    return GenerateRequest(
        request_id=request_id,
        model=text("model", message.model, most=256),
        text=prompt,
        token_ids=token_ids,
        messages=messages,
        sampling=_sampling(message),
        output=_output(message, kind),
        timeouts=timeouts_of(message.timeouts),
        output_logprobs=message.logprobs.output,
        prompt_logprobs=message.logprobs.prompt,
        prompt_logprobs_start=_prompt_start(message),
        top_logprobs=number("logprobs.top", top, most=MAX_TOP_LOGPROBS),
        priority=number("priority", message.priority, least=-100, most=100),
        queue_updates_s=duration(message, "queue_updates", message.queue_updates, least_s=0.1),
        adapters=adapters_of(message.adapters),
        session_key=text("session_key", message.session_key, most=256, in_bytes=True) or None,
        target_worker_id=target,
        target_dp_rank=target_rank,
        target_prefill_id=prefill,
        target_prefill_rank=prefill_rank,
        serving_mode=_serving_mode(message, has_prefill=prefill is not None),
    )


def _refuse_what_is_not_carried_out(message: pb.GenerateRequest) -> None:
    """Refused, never dropped: an answer that ignores what was asked for is a wrong answer."""
    if message.session_key:
        raise not_yet("session_key", "Requests do not stick to workers yet.")
    cache = message.cache
    if cache.salt or (present(cache, "read") and not cache.read) or (present(cache, "write") and not cache.write):
        raise not_yet("cache", "The prefix cache is always read and written, and shared by all.")
    if message.resume_window.seconds or message.resume_window.nanos:
        raise not_yet("resume_window")
    if message.migration not in (pb.MIGRATION_MODE_UNSPECIFIED, pb.MIGRATION_MODE_OFF):
        raise not_yet("migration", "Only MIGRATION_MODE_OFF is carried out.")


def _sampling(message: pb.GenerateRequest) -> Sampling:
    sampling = sampling_of(message.sampling)
    if not present(message, "constraint"):
        return sampling
    return replace(sampling, constraint=constraint_of(message.constraint))


def _prompt_start(message: pb.GenerateRequest) -> int:
    start = message.logprobs.prompt_start
    if start and not message.logprobs.prompt:
        raise invalid("logprobs.prompt_start", "It says where logprobs.prompt begins, which is not set.")
    tokens = len(message.token_ids.ids)
    if tokens and start >= tokens:
        raise invalid("logprobs.prompt_start", f"The prompt has {tokens} tokens.")
    return start


def target_of(
    message: pb.GenerateRequest | embed_pb2.EmbedRequest, name: Literal["target_worker", "target_prefill_worker"]
) -> _Target:
    """The worker and rank that a field names, None for what it leaves open; raises INVALID_WORKER_ID."""
    if not present(message, name):
        return None, None
    rank = getattr(message, name)
    return worker_id(f"{name}.worker_id", rank.worker_id), rank.dp_rank if present(rank, "dp_rank") else None


def _serving_mode(message: pb.GenerateRequest, *, has_prefill: bool) -> ServingMode | None:
    if message.serving_mode == pb.SERVING_MODE_UNSPECIFIED:
        return None
    mode = _SERVING.get(message.serving_mode)
    if mode is None:
        raise invalid("serving_mode", "Set it to DISAGGREGATED or AGGREGATED, or leave it out.")
    if mode is ServingMode.AGGREGATED and has_prefill:
        raise invalid("serving_mode", "AGGREGATED has no prefill worker, but target_prefill_worker names one.")
    return mode


def text_of(value: str, max_prompt_bytes: int, path: str = "text") -> str:
    """A prompt's text; raises EMPTY_PROMPT, PROMPT_TOO_LONG."""
    size = len(value.encode())
    if not size:
        raise TandemError(Reason.EMPTY_PROMPT, "The text is empty.", field=path)
    if size > max_prompt_bytes:
        raise _too_long(path, size, max_prompt_bytes)
    return value


def messages_of(chat: message_pb2.ChatInput, max_prompt_bytes: int, path: str = "chat") -> tuple[ChatMessage, ...]:
    """A chat's messages; raises EMPTY_PROMPT, PROMPT_TOO_LONG, INVALID_REQUEST, FEATURE_NOT_IMPLEMENTED."""
    if chat.continue_final_message or (present(chat, "add_generation_prompt") and not chat.add_generation_prompt):
        raise not_yet(f"{path}.add_generation_prompt", "The prompt always ends where the assistant begins to speak.")
    if chat.template_arguments.fields:
        raise not_yet(f"{path}.template_arguments")
    if not chat.messages:
        raise TandemError(Reason.EMPTY_PROMPT, "The chat has no message.", field=f"{path}.messages")
    size = sum(len(message.content.encode()) for message in chat.messages)
    if size > max_prompt_bytes:
        raise _too_long(f"{path}.messages", size, max_prompt_bytes)
    messages = []
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise invalid(f"{path}.messages[{index}].role", "Set it to SYSTEM, USER or ASSISTANT.")
        if message.name:
            raise not_yet(f"{path}.messages[{index}].name")
        messages.append(ChatMessage(_ROLES[message.role], message.content))
    return tuple(messages)


def token_ids_of(message: message_pb2.TokenIds, max_prompt_bytes: int, path: str = "token_ids.ids") -> tuple[int, ...]:
    """A prompt's tokens; raises EMPTY_PROMPT, PROMPT_TOO_LONG, and TOKEN_OUT_OF_VOCABULARY for what no model has."""
    token_ids = tuple(message.ids)
    if not token_ids:
        raise TandemError(Reason.EMPTY_PROMPT, "There is no token id.", field=path)
    if len(token_ids) * 4 > max_prompt_bytes:
        raise _too_long(path, len(token_ids) * 4, max_prompt_bytes)
    highest = max(token_ids)
    if highest > _INT32_MOST:
        raise TandemError(
            Reason.TOKEN_OUT_OF_VOCABULARY,
            f"{highest} is no token of any model.",
            field=path,
            metadata={"token_id": str(highest)},
        )
    return token_ids


def _too_long(field: str, size: int, limit: int) -> TandemError:
    return TandemError(
        Reason.PROMPT_TOO_LONG,
        f"The prompt has {size} bytes, over the limit of {limit}.",
        field=field,
        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
    )


def _output(message: pb.GenerateRequest, kind: str) -> Output:
    if message.output == pb.OUTPUT_MODE_UNSPECIFIED:
        return Output.TOKENS if kind == "token_ids" else Output.TEXT
    if message.output not in _OUTPUTS:
        raise invalid("output", f"{message.output} is no value that this release knows.")
    return _OUTPUTS[message.output]
