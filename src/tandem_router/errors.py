"""The one table of reasons: what went wrong, as a word a program can switch on and a sentence a person can act on.

Every refusal that leaves Tandem is a row here. `wire/status.py` turns rows into gRPC status with `google.rpc.ErrorInfo`
and back; docs/errors.md is generated from it. The code of a row is chosen by what the caller should do next
(AIP-193): fix the request, change something first, slow down, try again, resync, or tell us.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DOMAIN", "TABLE", "Code", "Reason", "Row", "TandemError"]

DOMAIN = "tandem"
"""`ErrorInfo.domain` of every reason in this table."""


class Code(enum.IntEnum):
    """gRPC status codes by their wire number (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(enum.StrEnum):
    """`ErrorInfo.reason` values; stable once released."""

    INVALID_REQUEST = "INVALID_REQUEST"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    INVALID_WORKER_ID = "INVALID_WORKER_ID"
    INVALID_WORKER_URL = "INVALID_WORKER_URL"
    EMPTY_PROMPT = "EMPTY_PROMPT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    TOKEN_OUT_OF_VOCABULARY = "TOKEN_OUT_OF_VOCABULARY"
    CLIENT_SUPPLIED_ROOM = "CLIENT_SUPPLIED_ROOM"
    FEATURE_NOT_IMPLEMENTED = "FEATURE_NOT_IMPLEMENTED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    WORKER_NOT_FOUND = "WORKER_NOT_FOUND"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    PAIR_NOT_FOUND = "PAIR_NOT_FOUND"
    REQUEST_NOT_FOUND = "REQUEST_NOT_FOUND"
    WORKER_ALREADY_EXISTS = "WORKER_ALREADY_EXISTS"
    WORKER_CREATE_IN_PROGRESS = "WORKER_CREATE_IN_PROGRESS"
    REQUEST_ID_IN_USE = "REQUEST_ID_IN_USE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    GENERATION_MISMATCH = "GENERATION_MISMATCH"
    WORKER_BEING_DELETED = "WORKER_BEING_DELETED"
    JOB_QUEUE_FULL = "JOB_QUEUE_FULL"
    JOB_FINISHED = "JOB_FINISHED"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    SLOW_CLIENT = "SLOW_CLIENT"
    NO_READY_WORKER = "NO_READY_WORKER"
    NO_COMPATIBLE_PAIR = "NO_COMPATIBLE_PAIR"
    DRAINING = "DRAINING"
    WORKER_UNREACHABLE = "WORKER_UNREACHABLE"
    WORKER_LOST = "WORKER_LOST"
    WORKER_REFUSED = "WORKER_REFUSED"
    ENGINE_ERROR = "ENGINE_ERROR"
    ENGINE_PROTOCOL_ERROR = "ENGINE_PROTOCOL_ERROR"
    ENGINE_ABORTED = "ENGINE_ABORTED"
    KV_TRANSFER_FAILED = "KV_TRANSFER_FAILED"
    TOKENIZER_UNAVAILABLE = "TOKENIZER_UNAVAILABLE"
    RUNTIME_NOT_DETECTED = "RUNTIME_NOT_DETECTED"
    RUNTIME_CANNOT_SEED = "RUNTIME_CANNOT_SEED"
    RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS = "RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS"
    RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS = "RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS"
    RUNTIME_CANNOT_CONSTRAIN = "RUNTIME_CANNOT_CONSTRAIN"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    FIRST_TOKEN_TIMEOUT = "FIRST_TOKEN_TIMEOUT"
    INTER_TOKEN_TIMEOUT = "INTER_TOKEN_TIMEOUT"
    TOTAL_TIMEOUT = "TOTAL_TIMEOUT"
    REQUEST_CANCELLED = "REQUEST_CANCELLED"
    STREAM_TAKEN_OVER = "STREAM_TAKEN_OVER"
    REVISION_COMPACTED = "REVISION_COMPACTED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


@dataclass(frozen=True, slots=True)
class Row:
    """One reason: its code, whether the same call may succeed if simply repeated, and what it means to the caller."""

    code: Code
    retryable: bool
    meaning: str
    """One sentence: what happened."""
    action: str
    """One sentence in the imperative: what the caller should do."""


TABLE: Mapping[Reason, Row] = {
    Reason.INVALID_REQUEST: Row(
        Code.INVALID_ARGUMENT,
        False,
        "A field has a value outside its documented range.",
        "Correct the field named in the message and in BadRequest.field_violations.",
    ),
    Reason.MALFORMED_MESSAGE: Row(
        Code.INVALID_ARGUMENT,
        False,
        "The bytes are not a valid message of the rpc's request type, or a string is not UTF-8.",
        "Generate the client from this server's schema and send what it serialises.",
    ),
    Reason.INVALID_WORKER_ID: Row(
        Code.INVALID_ARGUMENT,
        False,
        "The id is not a UUID.",
        "Pass the UUID that CreateWorker or ListWorkers returned.",
    ),
    Reason.INVALID_WORKER_URL: Row(
        Code.INVALID_ARGUMENT,
        False,
        "The worker's URL has no supported scheme, host or port.",
        "Use grpc://host:port or grpcs://host:port.",
    ),
    Reason.EMPTY_PROMPT: Row(
        Code.INVALID_ARGUMENT,
        False,
        "The prompt has no token; engines hang or die on such a request.",
        "Send at least one token.",
    ),
    Reason.PROMPT_TOO_LONG: Row(
        Code.INVALID_ARGUMENT,
        False,
        "The prompt, or the prompt and max_tokens, exceed the model's context length.",
        "Shorten the prompt or lower max_tokens.",
    ),
    Reason.TOKEN_OUT_OF_VOCABULARY: Row(
        Code.INVALID_ARGUMENT,
        False,
        "A token id is not in the model's vocabulary; it kills some engines.",
        "Tokenize with the model's own tokenizer.",
    ),
    Reason.CLIENT_SUPPLIED_ROOM: Row(
        Code.INVALID_ARGUMENT,
        False,
        "Bootstrap rooms are minted by the router alone; a repeated room crashes engines.",
        "Leave the room out.",
    ),
    Reason.FEATURE_NOT_IMPLEMENTED: Row(
        Code.UNIMPLEMENTED,
        False,
        "This server does not carry out the rpc or field yet.",
        "Leave the field out, or use a release whose notes list it.",
    ),
    Reason.MODEL_NOT_FOUND: Row(
        Code.NOT_FOUND, False, "No registered worker serves a model of that name.", "Call ListModels for the names."
    ),
    Reason.WORKER_NOT_FOUND: Row(
        Code.NOT_FOUND, False, "No worker has that id.", "Call ListWorkers; a deleted worker's id is never used again."
    ),
    Reason.JOB_NOT_FOUND: Row(
        Code.NOT_FOUND, False, "No job has that id, or its record has expired.", "Call ListJobs."
    ),
    Reason.PAIR_NOT_FOUND: Row(
        Code.NOT_FOUND, False, "No live pair has that id.", "Call ListPairs; a finished pair is gone."
    ),
    Reason.REQUEST_NOT_FOUND: Row(
        Code.NOT_FOUND, False, "No live request of this caller has that id.", "Nothing: it has ended, or never began."
    ),
    Reason.WORKER_ALREADY_EXISTS: Row(
        Code.ALREADY_EXISTS, False, "A live worker has this URL.", "Use the worker_id in the error's metadata."
    ),
    Reason.WORKER_CREATE_IN_PROGRESS: Row(
        Code.ALREADY_EXISTS,
        False,
        "A registration of this URL is running.",
        "Watch the job named in the error's metadata.",
    ),
    Reason.REQUEST_ID_IN_USE: Row(
        Code.ALREADY_EXISTS,
        False,
        "A live request of this caller has the same request_id.",
        "Use a fresh request_id, or leave it out.",
    ),
    Reason.REQUEST_ID_REUSED: Row(
        Code.INVALID_ARGUMENT,
        False,
        "This request_id was used with a different request.",
        "Repeat the first request unchanged, or use a fresh request_id.",
    ),
    Reason.GENERATION_MISMATCH: Row(
        Code.ABORTED,
        False,
        "The resource changed since the generation that the call expects.",
        "Read the resource again and repeat the change.",
    ),
    Reason.WORKER_BEING_DELETED: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The worker is being deleted; nothing else can be wished of it.",
        "Cancel the job named in the error's metadata to keep the worker, or wait and create another.",
    ),
    Reason.JOB_QUEUE_FULL: Row(
        Code.RESOURCE_EXHAUSTED, True, "The job queue is full.", "Wait as RetryInfo says and repeat the call."
    ),
    Reason.JOB_FINISHED: Row(Code.FAILED_PRECONDITION, False, "The job has ended and cannot be cancelled.", "Nothing."),
    Reason.TOO_MANY_REQUESTS: Row(
        Code.RESOURCE_EXHAUSTED,
        True,
        "As many requests run as may, and the queue is full.",
        "Wait as RetryInfo says and repeat the call.",
    ),
    Reason.SLOW_CLIENT: Row(
        Code.RESOURCE_EXHAUSTED,
        False,
        "The client reads more slowly than its stream is written, and is too far behind.",
        "Read faster; take a watch up again from the last revision seen.",
    ),
    Reason.NO_READY_WORKER: Row(
        Code.UNAVAILABLE,
        True,
        "The model is known, but none of its workers can take a request now.",
        "Wait as RetryInfo says and repeat the call; an operator sees why with ListWorkers.",
    ),
    Reason.NO_COMPATIBLE_PAIR: Row(
        Code.UNAVAILABLE,
        True,
        "Ready prefill and decode workers exist, but no two of them fit together.",
        "An operator sees why with PlanPair.",
    ),
    Reason.DRAINING: Row(
        Code.UNAVAILABLE,
        True,
        "The server is shutting down and takes no new request.",
        "Repeat the call; another replica, or the restarted one, takes it.",
    ),
    Reason.WORKER_UNREACHABLE: Row(
        Code.UNAVAILABLE, True, "The worker could not be reached; nothing was sent to it.", "Repeat the call."
    ),
    Reason.WORKER_LOST: Row(
        Code.UNAVAILABLE,
        True,
        "The connection to the worker broke while it was working on the request.",
        "Repeat the call; tokens already received stay valid only for a greedy or seeded request.",
    ),
    Reason.WORKER_REFUSED: Row(
        Code.UNAVAILABLE, True, "The worker refused the request because of its own load or state.", "Repeat the call."
    ),
    Reason.ENGINE_ERROR: Row(
        Code.INTERNAL,
        True,
        "The engine failed while working on the request.",
        "Repeat the call; report the request id if it fails again.",
    ),
    Reason.ENGINE_PROTOCOL_ERROR: Row(
        Code.INTERNAL,
        False,
        "The engine answered with something its protocol does not allow.",
        "Report the request id and the engine's version.",
    ),
    Reason.ENGINE_ABORTED: Row(Code.ABORTED, True, "The engine ended the request on its own.", "Repeat the call."),
    Reason.KV_TRANSFER_FAILED: Row(
        Code.UNAVAILABLE, True, "The KV cache did not reach the decode worker.", "Repeat the call."
    ),
    Reason.TOKENIZER_UNAVAILABLE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "No tokenizer is known for the model, so text cannot be turned into tokens.",
        "Send token_ids and ask for output TOKENS, or register a worker that serves its tokenizer.",
    ),
    Reason.RUNTIME_NOT_DETECTED: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The address answers none of the engine protocols that Tandem speaks.",
        "Check the address and port, or state runtime_type.",
    ),
    Reason.RUNTIME_CANNOT_SEED: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine's protocol has no field for a seed.",
        "Leave the seed out, use temperature 0, or route to a worker that declares seeds.",
    ),
    Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine's protocol returns no context-phase parameters, so it cannot be paired.",
        "Register the worker as REGULAR.",
    ),
    Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The worker that computed the prompt returned no log probabilities of it.",
        "Leave logprobs.prompt out, or route to a worker that returns them.",
    ),
    Reason.RUNTIME_CANNOT_CONSTRAIN: Row(
        Code.FAILED_PRECONDITION,
        False,
        "No worker of the model can honour this kind of constraint, by its protocol or by how it was started.",
        "Use another kind of constraint, leave it out, or register a worker that can.",
    ),
    Reason.QUEUE_TIMEOUT: Row(
        Code.DEADLINE_EXCEEDED,
        False,
        "The request was not admitted within timeouts.queue.",
        "Allow more time, or try when the fleet is less busy.",
    ),
    Reason.FIRST_TOKEN_TIMEOUT: Row(
        Code.DEADLINE_EXCEEDED,
        False,
        "No token came within timeouts.first_token.",
        "Allow more time or shorten the prompt.",
    ),
    Reason.INTER_TOKEN_TIMEOUT: Row(
        Code.DEADLINE_EXCEEDED, False, "No further token came within timeouts.inter_token.", "Allow more time."
    ),
    Reason.TOTAL_TIMEOUT: Row(
        Code.DEADLINE_EXCEEDED,
        False,
        "The request outlived its deadline or timeouts.total.",
        "Allow more time or ask for fewer tokens.",
    ),
    Reason.REQUEST_CANCELLED: Row(
        Code.CANCELLED, False, "The request was cancelled by its caller or by Abort.", "Nothing."
    ),
    Reason.STREAM_TAKEN_OVER: Row(
        Code.ABORTED,
        False,
        "Another ResumeGenerate call reads this request's stream on.",
        "Nothing: the other call has it.",
    ),
    Reason.REVISION_COMPACTED: Row(
        Code.OUT_OF_RANGE,
        False,
        "The revision to resume from is older than the history kept.",
        "Start the watch again without a revision, from a fresh snapshot.",
    ),
    Reason.INTERNAL_ERROR: Row(
        Code.INTERNAL,
        False,
        "A fault of ours; the full story is in the server's log under the request id.",
        "Report the request id.",
    ),
}


class TandemError(Exception):
    """A refusal or failure with a reason of the table.

    `sentence` says what happened in this case, without the reason in front; `str(error)` puts the reason (and the
    field, if any) first because command-line clients print nothing else.
    """

    def __init__(
        self,
        reason: Reason,
        sentence: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Args:
        reason: a row of the table.
        sentence: one sentence for a person, with the numbers of this case.
        field: path of the request field at fault, e.g. "sampling.top_p"; None when no field is.
        metadata: values quoted in the sentence, for programs (`ErrorInfo.metadata`).
        retry_after_s: seconds after which a repeat is sensible (`RetryInfo`); None sends no hint.
        """
        super().__init__(reason, sentence)
        self.reason = reason
        self.sentence = sentence
        self.field = field
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> Code:
        """The gRPC code of the reason."""
        return TABLE[self.reason].code

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed on another attempt."""
        return TABLE[self.reason].retryable

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.reason}: {where}{self.sentence}"
