"""What every dialect checks or reads the same way before it writes a request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableSequence, Sequence
from typing import TypeVar

from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest
from tandem_router.model.worker import WorkerFacts

__all__ = [
    "INT32_MAX",
    "UINT64_MAX",
    "cannot_carry",
    "check_biased_tokens",
    "check_healthy",
    "check_seed",
    "constraint_field",
    "default_sampling",
    "effective",
    "engine_status_failure",
    "operation_failure",
    "refuse_adapters",
    "refuse_broken_leg",
    "refuse_prompt_logprobs",
    "refuse_rank",
    "sole_adapter",
    "write_prompt",
]

_Field = TypeVar("_Field")
INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


def write_prompt(
    field: MutableSequence[int], token_ids: Sequence[int], facts: WorkerFacts | None, highest: int | None = None
) -> None:
    """Put a prompt into the empty `field` of a message; raises EMPTY_PROMPT or TOKEN_OUT_OF_VOCABULARY.

    highest: of the ids, where somebody has looked for it (`LegRequest.highest_token_id`).

    SGLang's scheduler dies of an empty prompt and MLX hangs on it; MLX's process dies of an id outside the vocabulary
    (seen with SGLang 0.5.23 and MLX 0.32.4).
    """
    if not token_ids:
        raise TandemError(Reason.EMPTY_PROMPT, "the prompt has no token", field="token_ids")
    size = None if facts is None else facts.vocab_size
    # A pass over the prompt costs half of what writing it does: the door's is used, the field looks for negative ids.
    if size is not None:
        highest = max(token_ids) if highest is None else highest
        if highest >= size:
            raise _out_of_vocabulary(highest, size, "token_ids")
    try:
        field.extend(token_ids)  # half the time of the message's constructor, which copies twice
    except ValueError:
        bad = min(token_ids) if min(token_ids) < 0 else max(token_ids)
        raise _out_of_vocabulary(bad, size, "token_ids") from None


def check_biased_tokens(leg: LegRequest, facts: WorkerFacts | None) -> None:
    """Raises TOKEN_OUT_OF_VOCABULARY for a biased token that is in none: engines index their logits with it."""
    bias = leg.sampling.logit_bias
    if not bias:
        return
    size = None if facts is None else facts.vocab_size
    lowest, highest = min(bias), max(bias)
    if lowest < 0 or (size is not None and highest >= size):
        raise _out_of_vocabulary(lowest if lowest < 0 else highest, size, "sampling.logit_bias")


def _out_of_vocabulary(token_id: int, size: int | None, field: str) -> TandemError:
    return TandemError(
        Reason.TOKEN_OUT_OF_VOCABULARY,
        f"token id {token_id} is outside the vocabulary 0..{'' if size is None else size - 1}",
        field=field,
        metadata={"token_id": str(token_id)},
    )


def check_seed(seed: int, least: int, most: int, engine: str) -> None:
    """Raises INVALID_REQUEST for a seed that the wire would change."""
    if not least <= seed <= most:
        sentence = f"{engine}'s wire carries seeds from {least} to {most}, not {seed}"
        raise TandemError(Reason.INVALID_REQUEST, sentence, field="sampling.seed")


def cannot_carry(field: str, engine: str) -> TandemError:
    """The error for a parameter that the engine would not see, or would not heed; to be raised.

    field: path in the request's words, e.g. "sampling.min_tokens".
    """
    return TandemError(Reason.RUNTIME_CANNOT_CARRY_FIELD, f"{engine} has nothing for {field}", field=field)


def refuse_prompt_logprobs(leg: LegRequest, engine: str) -> None:
    """Raises RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS where they are wanted."""
    if leg.prompt_logprobs:
        sentence = f"{engine} returns no log probabilities of the prompt"
        raise TandemError(Reason.RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS, sentence, field="logprobs.prompt")


def refuse_rank(leg: LegRequest, engine: str) -> None:
    """Raises for a pin to a rank that the wire has no field for; rank 0 is what such an engine has."""
    if leg.dp_rank:
        raise refuse_broken_leg(leg, f"{engine}'s protocol cannot pin a request to rank {leg.dp_rank}")


def refuse_adapters(adapters: Sequence[AdapterUse], engine: str) -> None:
    """Raises RUNTIME_CANNOT_APPLY_ADAPTERS where any is wanted."""
    if adapters:
        sentence = f"{engine} has no field for the adapter {adapters[0].name!r}"
        raise TandemError(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, sentence, field="adapters")


def sole_adapter(adapters: Sequence[AdapterUse], engine: str) -> AdapterUse | None:
    """The one adapter that is wanted, or None; raises RUNTIME_CANNOT_APPLY_ADAPTERS for several and for a scale."""
    if not adapters:
        return None
    if len(adapters) > 1:
        sentence = f"{engine} applies one adapter to a request, not {len(adapters)}"
        raise TandemError(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, sentence, field="adapters")
    [adapter] = adapters
    if adapter.scale != 1.0:
        sentence = f"{engine} has no field for the scale {adapter.scale:g}"
        raise TandemError(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, sentence, field="adapters[0].scale")
    return adapter


def check_healthy(is_healthy: bool, message: str) -> None:
    """Raises EngineFailure(ENGINE_ERROR): a dead engine may leave its process up and answer OK with healthy=false."""
    if not is_healthy:
        raise EngineFailure(Reason.ENGINE_ERROR, f"the engine is not healthy: {message}", code=Code.UNAVAILABLE)


def refuse_broken_leg(leg: LegRequest, why: str) -> TandemError:
    """The error for a leg that would kill the engine; to be raised, since only a fault of ours builds one."""
    return TandemError(Reason.INTERNAL_ERROR, f"leg {leg.leg_id} ({leg.kind} {leg.role}) was not sent: {why}")


def constraint_field(constraint: Constraint, fields: Mapping[ConstraintKind, _Field], engine: str) -> _Field:
    """What an engine's message holds a constraint by; raises RUNTIME_CANNOT_CONSTRAIN where it has nothing."""
    name = fields.get(constraint.kind)
    if name is None:
        sentence = f"{engine}'s protocol has no field for a constraint of kind {constraint.kind}"
        raise TandemError(Reason.RUNTIME_CANNOT_CONSTRAIN, sentence, field="constraint")
    return name


def default_sampling(text: str) -> Mapping[str, float]:
    """The numbers of a `default_sampling_params_json`; empty when it is empty or not a JSON object.

    Python's JSON knows NaN, infinities and integers of any size; what fits into no field of a request is not said.
    """
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and -INT32_MAX <= value <= INT32_MAX
    }


def effective(stated: float | None, defaults: Mapping[str, float], name: str, fallback: float) -> float:
    """The request's value, else the worker's own default, else what the engine documents as neutral."""
    if stated is not None:
        return stated
    return defaults.get(name, fallback)


_STATUS_REASONS: Mapping[Code, Reason] = {
    Code.CANCELLED: Reason.ENGINE_ABORTED,
    Code.INVALID_ARGUMENT: Reason.INVALID_REQUEST,
    Code.OUT_OF_RANGE: Reason.INVALID_REQUEST,
    Code.RESOURCE_EXHAUSTED: Reason.WORKER_REFUSED,
    Code.FAILED_PRECONDITION: Reason.WORKER_REFUSED,
    Code.PERMISSION_DENIED: Reason.WORKER_REFUSED,
    Code.UNAUTHENTICATED: Reason.WORKER_REFUSED,
    Code.UNAVAILABLE: Reason.WORKER_REFUSED,
    Code.ABORTED: Reason.ENGINE_ABORTED,
    Code.UNIMPLEMENTED: Reason.ENGINE_PROTOCOL_ERROR,
}
"""How engines map their own errors: 400 INVALID_ARGUMENT, 408 DEADLINE_EXCEEDED, 429 RESOURCE_EXHAUSTED,
503 UNAVAILABLE, else INTERNAL (smg, section 5.3). A code that is not here is ENGINE_ERROR: DEADLINE_EXCEEDED too, for
it is a limit of the engine's own; that of the request's deadline is told by whoever set it."""


_CONSTRAINT_FAILED = "could not continue the request under its constraint"
"""How servicers (smg-grpc-servicer 0.14.1) word FAILED_PRECONDITION for a grammar that the engine cannot follow: every
worker would fail so, each after a prefill, and none of them is at fault."""


_OF_THE_ROUTER = re.compile(
    r"(\S+: \w+ answered [A-Z_]+: )?"  # how transports tell of a unary rpc, Embed
    r"(request\.)?((routed_)?dp_rank|data_parallel_rank|kv_transfer_params|bootstrap_(host|port|room))"
)
"""How engines begin to refuse what no client states (vLLM 0.32: "data_parallel_rank 1 is out of range [0, 1).");
another worker or rank may well take the request. What a client wrote comes later in a sentence, if at all: nobody can
take a rank out by having an engine repeat such words."""


def engine_status_failure(code: Code, details: str) -> EngineFailure:
    """The failure for a status that an engine sent over a connection that stands."""
    reason = _STATUS_REASONS.get(code, Reason.ENGINE_ERROR)
    if reason is Reason.INVALID_REQUEST and _OF_THE_ROUTER.match(details):
        reason = Reason.ENGINE_ERROR
    if code is Code.FAILED_PRECONDITION and _CONSTRAINT_FAILED in details:
        reason = Reason.INVALID_REQUEST
    return EngineFailure(reason, f"the engine answered {code.name}: {details}", code=code)


def operation_failure(failure: EngineFailure) -> EngineFailure:
    """The failure of an operation: what it asks for is the operator's own, so a bad argument is theirs to correct."""
    if failure.code in (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE):
        return EngineFailure(Reason.INVALID_REQUEST, failure.sentence, code=failure.code)
    return failure
