"""What every dialect checks or reads the same way before it writes a request."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest

__all__ = [
    "INT32_MAX",
    "constraint_field",
    "default_sampling",
    "effective",
    "engine_status_failure",
    "refuse_broken_leg",
    "refuse_empty_prompt",
]

INT32_MAX = 2**31 - 1


def refuse_empty_prompt(leg: LegRequest) -> None:
    """Raises EMPTY_PROMPT: SGLang's scheduler dies of an empty prompt and MLX hangs (real-engine table)."""
    if not leg.token_ids:
        raise TandemError(Reason.EMPTY_PROMPT, "the prompt has no token", field="token_ids")


def refuse_broken_leg(leg: LegRequest, why: str) -> TandemError:
    """The error for a leg that would kill the engine; to be raised, since only a fault of ours builds one."""
    return TandemError(Reason.INTERNAL_ERROR, f"leg {leg.leg_id} ({leg.kind} {leg.role}) was not sent: {why}")


def constraint_field(constraint: Constraint, fields: Mapping[ConstraintKind, str], engine: str) -> str:
    """The field of an engine's message that holds a constraint; raises RUNTIME_CANNOT_CONSTRAIN where it has none."""
    name = fields.get(constraint.kind)
    if name is None:
        sentence = f"{engine}'s protocol has no field for a constraint of kind {constraint.kind}"
        raise TandemError(Reason.RUNTIME_CANNOT_CONSTRAIN, sentence, field="constraint")
    return name


def default_sampling(text: str) -> Mapping[str, float]:
    """The numbers of a `default_sampling_params_json`; empty when it is empty or not a JSON object."""
    try:
        values = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
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
    Code.DEADLINE_EXCEEDED: Reason.TOTAL_TIMEOUT,
    Code.UNIMPLEMENTED: Reason.ENGINE_PROTOCOL_ERROR,
}
"""How engines map their own errors: 400 INVALID_ARGUMENT, 408 DEADLINE_EXCEEDED, 429 RESOURCE_EXHAUSTED,
503 UNAVAILABLE, else INTERNAL (smg, section 5.3). A code that is not here is ENGINE_ERROR."""


def engine_status_failure(code: Code, details: str) -> EngineFailure:
    """The failure for a status that an engine sent over a connection that stands."""
    reason = _STATUS_REASONS.get(code, Reason.ENGINE_ERROR)
    return EngineFailure(reason, f"the engine answered {code.name}: {details}", code=code)
