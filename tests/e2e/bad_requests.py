"""Requests that no router should carry out, as bytes on the wire, each with the status that it is promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tandem.v1 import (
    generate_pb2,
    job_service_pb2,
    message_pb2,
    pair_service_pb2,
    router_service_pb2,
    sampling_pb2,
    worker_rank_pb2,
    worker_service_pb2,
    worker_spec_pb2,
)

__all__ = ["MODEL", "VOCABULARY", "BadRequest", "bad_requests", "varint_field"]

MODEL = "demo"
VOCABULARY = 512
"""Of the demo model: token ids are below it."""
_GENERATE = "/tandem.v1.RouterService/Generate"
_WORKERS = "/tandem.v1.WorkerService/"
_INVALID = "INVALID_ARGUMENT"
_UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class BadRequest:
    """What is sent, and the answer that it must get."""

    path: str
    body: bytes
    code: str
    says: str
    """How the status message begins: the reason, and the field where there is one."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_for_operators(self) -> bool:
        return "RouterService" not in self.path

    @property
    def is_stream(self) -> bool:
        return self.path == _GENERATE


def varint_field(number: int, value: int) -> bytes:
    """A varint field on the wire; a negative value as the ten bytes that an int32 of it would be."""
    return _varint(number << 3) + _varint(value % 2**64)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field on the wire, whatever is in it."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def bad_requests() -> dict[str, BadRequest]:
    """All of them by name."""
    return {**_prompts(), **_sampling(), **_fields(), **_wire(), **_operators()}


def _ask(**fields: object) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(model=MODEL)
    if not {"text", "token_ids", "chat"} & fields.keys():
        request.text = "hello"
    request.MergeFrom(generate_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]  # fields of many types
    return request


def _bad(message: Message, says: str, code: str = _INVALID, tail: bytes = b"") -> BadRequest:
    return BadRequest(_GENERATE, message.SerializeToString() + tail, code, says)


def _prompts() -> dict[str, BadRequest]:
    ids, chat, words = message_pb2.TokenIds, message_pb2.ChatInput, message_pb2.ChatMessage
    five_mib = 5 << 20
    return {
        "no input": _bad(generate_pb2.GenerateRequest(model=MODEL), "INVALID_REQUEST: input: "),
        "empty text": _bad(_ask(text=""), "EMPTY_PROMPT: text: "),
        "no token ids": _bad(_ask(token_ids=ids()), "EMPTY_PROMPT: token_ids.ids: "),
        "chat without messages": _bad(_ask(chat=chat()), "EMPTY_PROMPT: chat.messages: "),
        "speaker of no known role": _bad(
            _ask(chat=chat(messages=[words(role=99, content="x")])),  # type: ignore[arg-type]
            "INVALID_REQUEST: chat.messages[0].role: ",
        ),
        "token id outside the vocabulary": _bad(
            _ask(token_ids=ids(ids=[7, VOCABULARY])), "TOKEN_OUT_OF_VOCABULARY: token_ids: "
        ),
        "token id above int32": _bad(_ask(token_ids=ids(ids=[2**32 - 1])), "TOKEN_OUT_OF_VOCABULARY: token_ids.ids: "),
        "text of 5 MiB": _bad(_ask(text="a" * five_mib), "PROMPT_TOO_LONG: text: "),
        "chat of 5 MiB": _bad(
            _ask(chat=chat(messages=[words(role=message_pb2.CHAT_ROLE_USER, content="a" * five_mib)])),
            "PROMPT_TOO_LONG: chat.messages: ",
        ),
        "token ids of 5 MiB": _bad(_ask(token_ids=ids(ids=[7] * (five_mib // 4))), "PROMPT_TOO_LONG: token_ids.ids: "),
        "more tokens than the context": _bad(_ask(token_ids=ids(ids=[7] * 5000)), "PROMPT_TOO_LONG: input: "),
    }


def _sampling() -> dict[str, BadRequest]:
    def bad(name: str, value: object) -> BadRequest:
        sampling = sampling_pb2.SamplingParams(**{name: value})  # type: ignore[arg-type]
        return _bad(_ask(sampling=sampling), f"INVALID_REQUEST: sampling.{name}")

    return {
        # A client whose language has signed numbers sends ten bytes, of which uint32 keeps the lower half: 2^32 - 7.
        "negative max_tokens": _bad(
            _ask(), "INVALID_REQUEST: sampling.max_tokens: ", tail=bytes_field(6, varint_field(11, -7))
        ),
        "max_tokens of 0": bad("max_tokens", 0),
        "n of 1000": bad("n", 1000),
        "top_p of 2": bad("top_p", 2.0),
        "top_p of 0": bad("top_p", 0.0),
        "temperature not a number": bad("temperature", math.nan),
        "temperature without end": bad("temperature", math.inf),
        "negative temperature": bad("temperature", -1.0),
        "min_p without end": bad("min_p", -math.inf),
        "repetition_penalty not a number": bad("repetition_penalty", math.nan),
        "bias not a number": bad("logit_bias", {7: math.nan}),
        "empty stop": bad("stop", [""]),
        "stop of 257 bytes": bad("stop", ["a" * 257]),
        "17 stops": bad("stop", ["a"] * 17),
        "stop token above int32": bad("stop_token_ids", [2**31]),
    }


def _fields() -> dict[str, BadRequest]:
    timeouts = generate_pb2.Timeouts
    worker = worker_rank_pb2.WorkerRank
    return {
        "unknown model": _bad(_ask(model="nobody"), "MODEL_NOT_FOUND: model: ", "NOT_FOUND"),
        "model name of 257 characters": _bad(_ask(model="m" * 257), "INVALID_REQUEST: model: "),
        "no model where two are served": _bad(generate_pb2.GenerateRequest(text="x"), "INVALID_REQUEST: model: "),
        "request id of 129 characters": _bad(_ask(request_id="r" * 129), "INVALID_REQUEST: request_id: "),
        "request id with a control character": _bad(_ask(request_id="a\x00b"), "INVALID_REQUEST: request_id: "),
        "request id with a line break": _bad(_ask(request_id="a\r\nb"), "INVALID_REQUEST: request_id: "),
        "request id that is not ASCII": _bad(_ask(request_id="né"), "INVALID_REQUEST: request_id: "),
        "bootstrap room of the client's": _bad(
            _ask(metadata={"bootstrap_room": "77"}), "CLIENT_SUPPLIED_ROOM: metadata[bootstrap_room]: "
        ),
        "17 metadata entries": _bad(_ask(metadata={str(n): "" for n in range(17)}), "INVALID_REQUEST: metadata: "),
        "negative total timeout": _bad(
            _ask(timeouts=timeouts(total=Duration(seconds=-1))), "INVALID_REQUEST: timeouts.total: "
        ),
        "first token timeout of 0": _bad(
            _ask(timeouts=timeouts(first_token=Duration())), "INVALID_REQUEST: timeouts.first_token: "
        ),
        "timeout beyond all years": _bad(
            _ask(timeouts=timeouts(queue=Duration(seconds=2**63 - 1, nanos=-(2**31)))),
            "INVALID_REQUEST: timeouts.queue: ",
        ),
        "output mode of no known value": _bad(_ask(output=99), "INVALID_REQUEST: output: "),
        "serving mode of no known value": _bad(_ask(serving_mode=99), "INVALID_REQUEST: serving_mode: "),
        "migration of no known value": _bad(
            _ask(migration=99), "FEATURE_NOT_IMPLEMENTED: migration: ", "UNIMPLEMENTED"
        ),
        "target that is no UUID": _bad(
            _ask(target_worker=worker(worker_id="\x07")), "INVALID_WORKER_ID: target_worker.worker_id: "
        ),
        "target that nobody knows": _bad(
            _ask(target_worker=worker(worker_id=_UNKNOWN_ID)),
            "WORKER_NOT_FOUND: target_worker.worker_id: ",
            "NOT_FOUND",
        ),
    }


def _wire() -> dict[str, BadRequest]:
    not_utf8 = b"a\xc3\x28"
    spoilt = {
        "request_id": bytes_field(1, not_utf8),
        "model": bytes_field(2, not_utf8),
        "text": bytes_field(3, not_utf8),
        "chat content": bytes_field(5, bytes_field(1, varint_field(1, 2) + bytes_field(2, not_utf8))),
        "stop": bytes_field(6, bytes_field(13, not_utf8)),
        "session_key": bytes_field(12, not_utf8),
        "target_worker": bytes_field(13, bytes_field(1, not_utf8)),
        "metadata key": bytes_field(21, bytes_field(1, not_utf8)),
    }
    ask = _ask().SerializeToString()
    found = {
        f"{name} that is not UTF-8": BadRequest(_GENERATE, ask + raw, _INVALID, "MALFORMED_MESSAGE: ")
        for name, raw in spoilt.items()
    }
    return found | {
        "message cut short": BadRequest(_GENERATE, ask[:-1], _INVALID, "MALFORMED_MESSAGE: "),
        "tag of nothing": BadRequest(_GENERATE, b"\xff", _INVALID, "MALFORMED_MESSAGE: "),
        "nested beyond all measure": BadRequest(_GENERATE, _nested(200), _INVALID, "MALFORMED_MESSAGE: "),
        # Both limits are the transport's, which knows no reasons.
        "message of 17 MiB": BadRequest(_GENERATE, b"\0" * (17 << 20), "RESOURCE_EXHAUSTED", ""),
        "20 KiB of metadata": BadRequest(_GENERATE, ask, "RESOURCE_EXHAUSTED", "", {"x-fat": "a" * (20 << 10)}),
    }


def _nested(depth: int) -> bytes:
    """Template arguments in template arguments: a Struct of Structs."""
    value = b""
    for _ in range(depth):
        value = bytes_field(5, bytes_field(1, bytes_field(2, value)))
    return bytes_field(5, bytes_field(4, bytes_field(1, bytes_field(2, value))))


def _operators() -> dict[str, BadRequest]:
    def bad(rpc: str, message: Message, says: str, code: str = _INVALID) -> BadRequest:
        path = rpc if rpc.startswith("/") else _WORKERS + rpc
        return BadRequest(path, message.SerializeToString(), code, says)

    update = worker_service_pb2.UpdateWorkerRequest(worker_id=_UNKNOWN_ID)
    update.update_mask.paths.append("spec.nothing")
    spec = worker_spec_pb2.WorkerSpec(url="gopher://h:70")
    return {
        "field mask of no path": bad("UpdateWorker", update, "INVALID_REQUEST: update_mask: "),
        "worker without endpoint": bad(
            "CreateWorker", worker_service_pb2.CreateWorkerRequest(), "INVALID_WORKER_URL: spec.url: "
        ),
        "worker behind gopher": bad(
            "CreateWorker", worker_service_pb2.CreateWorkerRequest(spec=spec), "INVALID_WORKER_URL: spec.url: "
        ),
        "worker id that is no UUID": bad(
            "GetWorker", worker_service_pb2.GetWorkerRequest(worker_id="x" * 5000), "INVALID_WORKER_ID: worker_id: "
        ),
        "drain within a negative time": bad(
            "DrainWorker",
            worker_service_pb2.DrainWorkerRequest(worker_id=_UNKNOWN_ID, timeout=Duration(seconds=-5)),
            "INVALID_REQUEST: timeout: ",
        ),
        "page token of another list": bad(
            "/tandem.v1.JobService/ListJobs",
            job_service_pb2.ListJobsRequest(page_token="bm90IGEgdG9rZW4"),
            "INVALID_REQUEST: page_token: ",
        ),
        "page of 1,001": bad(
            "/tandem.v1.PairService/ListPairs",
            pair_service_pb2.ListPairsRequest(page_size=1001),
            "INVALID_REQUEST: page_size: ",
        ),
        "plan of a request with top_p 2": bad(
            "/tandem.v1.PairService/PlanPair",
            pair_service_pb2.PlanPairRequest(request=_ask(sampling=sampling_pb2.SamplingParams(top_p=2))),
            "INVALID_REQUEST: request.sampling.top_p: ",
        ),
        "abort of nobody": bad(
            "/tandem.v1.RouterService/Abort",
            router_service_pb2.AbortRequest(request_id="nobody"),
            "REQUEST_NOT_FOUND: ",
            "NOT_FOUND",
        ),
        "detokenize outside the vocabulary": bad(
            "/tandem.v1.RouterService/Detokenize",
            router_service_pb2.DetokenizeRequest(model=MODEL, token_ids=[VOCABULARY]),
            "TOKEN_OUT_OF_VOCABULARY: token_ids: ",
        ),
    }
