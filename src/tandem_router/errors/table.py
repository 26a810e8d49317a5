"""What each reason means, and what its reader should do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_router.errors.codes import Code
from tandem_router.errors.reasons import Reason

__all__ = ["TABLE", "Row"]


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
    Reason.ADAPTER_NOT_FOUND: Row(
        Code.NOT_FOUND,
        False,
        "No worker that could take the request has the adapter loaded.",
        "Call ListAdapters for the names; an operator loads one with LoadAdapter.",
    ),
    Reason.ADAPTER_NOT_LOADABLE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine did not load it: no room, a name that is taken, or files that are missing or of another model.",
        "Read the engine's words; put the files at path there, unload another adapter or take a free name, and repeat.",
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
        Code.UNAVAILABLE,
        True,
        "The worker could not be reached; nothing was sent to it.",
        "Repeat the call; an operator checks that the worker's URL is right and that its engine serves there.",
    ),
    Reason.WORKER_LOST: Row(
        Code.UNAVAILABLE,
        True,
        "The connection to the worker broke while it was working on the request.",
        "Repeat the call; tokens already received stay valid only for a greedy or seeded request.",
    ),
    Reason.WORKER_REFUSED: Row(
        Code.UNAVAILABLE,
        True,
        "The worker refused the request because of its own load or state, or because of the api_key given for it.",
        "Repeat the call; an operator checks the worker's URL, its api_key and the engine's load.",
    ),
    Reason.WORKER_TLS_FAILED: Row(
        Code.UNAVAILABLE,
        True,
        "The TLS handshake with the worker failed: one side does not speak TLS, or does not trust the other.",
        "Check the URL's scheme, the worker's certificate and name, and the credentials given for it.",
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
    Reason.KV_EVENTS_LOST: Row(
        Code.DATA_LOSS,
        True,
        "The engine no longer has the KV events after the point to resume from.",
        "Drop what is known of the worker's cache and subscribe from the beginning.",
    ),
    Reason.TOKENIZER_UNAVAILABLE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "No tokenizer is known for the model, so text cannot be turned into tokens.",
        "Send token_ids and ask for output TOKENS, or have an operator state a tokenizer_path.",
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
    Reason.RUNTIME_CANNOT_CARRY_FIELD: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine's protocol has nothing for a parameter of the request, so it would be silently ignored.",
        "Leave the field named in the message out, or route to a worker of another engine.",
    ),
    Reason.RUNTIME_CANNOT_EMBED: Row(
        Code.FAILED_PRECONDITION,
        False,
        "No worker of the model serves embeddings, by its protocol or by how it was started.",
        "Use an embedding model, or register a worker that serves one.",
    ),
    Reason.RUNTIME_CANNOT_GENERATE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "Every worker of the model, or the one that is named, makes embeddings and no tokens.",
        "Use Embed, a model or a worker that generates, or register one.",
    ),
    Reason.RUNTIME_CANNOT_APPLY_ADAPTERS: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine's protocol cannot apply the adapters as asked.",
        "Use one adapter with scale 1, leave them out, or route to a worker of another engine.",
    ),
    Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine does not load, unload or list adapters, by its protocol or by how it was started.",
        "State its adapters when the engine is started, or use a worker of another engine.",
    ),
    Reason.RUNTIME_CANNOT_FLUSH_CACHE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine has no rpc to flush its cache.",
        "Restart the engine, or leave it out of the selection.",
    ),
    Reason.RUNTIME_CANNOT_PROFILE: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine has no rpc to profile itself, or was started without a profiler.",
        "Start the engine with its profiler, or leave it out of the selection.",
    ),
    Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS: Row(
        Code.FAILED_PRECONDITION,
        False,
        "The engine publishes no KV events, by its protocol or by how it was started.",
        "Start the engine with its KV event publisher; without it routing does not see its cache.",
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
