"""A worker: one engine process, what was stated about it, what was found, and the slots it offers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, RankKey, WorkerId
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, KvRole
from tandem_router.model.request import ConstraintKind
from tandem_router.model.spec import ModelCard, RuntimeType, WorkerSpec, WorkerType

__all__ = [
    "Condition",
    "Credentials",
    "CredentialsPatch",
    "Drain",
    "Rank",
    "RankLoad",
    "Worker",
    "WorkerFacts",
    "WorkerStatus",
]


class WorkerStatus(enum.StrEnum):
    """Derived from conditions, never set by the last writer. Only READY is routable."""

    PENDING = "PENDING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    GONE = "GONE"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What proves us to the worker; write-only at the API and never printed."""

    api_key: str | None = None

    def __repr__(self) -> str:
        return "Credentials(<redacted>)"


@dataclass(frozen=True, slots=True, repr=False)
class CredentialsPatch:
    """A change of stored credentials, field by field: None keeps, an empty value deletes."""

    api_key: str | None = None

    @property
    def has_any(self) -> bool | None:
        """Whether credentials are left after it, or None where that is as before."""
        return None if self.api_key is None else bool(self.api_key)

    def onto(self, stored: Credentials | None) -> Credentials | None:
        """The credentials that result."""
        if self.api_key is None:
            return stored
        return Credentials(self.api_key) if self.api_key else None

    def over(self, earlier: CredentialsPatch | None) -> CredentialsPatch:
        """This change made after an earlier one."""
        return self if earlier is None or self.api_key is not None else earlier

    def __repr__(self) -> str:
        return "CredentialsPatch(<redacted>)"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the engine said of itself; None or empty where it said nothing. What the operator states wins over these."""

    runtime_type: RuntimeType
    model_id: str
    served_names: tuple[str, ...] = ()
    context_length: int | None = None
    """Longest prompt plus output, in tokens."""
    vocab_size: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    max_running_requests: int | None = None
    dp_size: int = 1
    handshake: HandshakeKind | None = None
    """How a pair of workers of this protocol meets; None = it cannot be one of a pair."""
    kv_connector: str | None = None
    kv_role: KvRole | None = None
    kv_engine_id: str | None = None
    kv_block_size: int | None = None
    """Tokens per KV block."""
    kv_dtype: str | None = None
    pairing_protocol: str | None = None
    bootstrap: BootstrapEndpoint | None = None
    """Where decode workers knock; only for prefill workers of a rendezvous connector."""
    disaggregation_mode: WorkerType | None = None
    """The leg that the engine was started for, where it says so."""
    load_balance_method: str | None = None
    """SGLang: pairs with dp_size > 1 need "follow_bootstrap_room"."""
    supports_seed: bool = False
    """Whether a seed reaches the sampler over this protocol."""
    position_keyed_sampling: bool = False
    """Random numbers depend on (seed, choice, position) alone, so another worker can continue a stream exactly."""
    batch_invariant: bool = False
    """A token's bits do not depend on what else is in the batch."""
    constraints: tuple[ConstraintKind, ...] = ()
    """Forms that it can hold an answer to."""
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    instance: str | None = None
    """Start time or engine id: changes when the process is another one."""
    version: str | None = None


@dataclass(frozen=True, slots=True)
class RankLoad:
    """One sample of what an engine says about one of its ranks."""

    running: int
    waiting: int
    used_tokens: int
    max_tokens: int
    sampled_at_s: float
    """Monotonic clock of the router."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One schedulable slot of a worker."""

    dp_rank: int
    is_healthy: bool = True
    load: RankLoad | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One independent claim about a worker, with the time it last changed."""

    type: str
    """CONNECTED, DISCOVERED, SERVING, PAIRABLE, DRAINING."""
    is_true: bool
    reason: str
    """UPPER_SNAKE, from the error table where it is an error."""
    message: str
    changed_at_s: float
    """Wall clock, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A wish that a worker gets no new request, and how far it has come. Wall clock, seconds since the epoch."""

    started_at_s: float
    deadline_at_s: float | None = None
    """When the requests that are left are aborted; None = as long as they take."""
    reason: str = ""
    """The operator's words."""
    drained_at_s: float | None = None
    """When its last request had ended; None while some run."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One engine process as the registry holds it."""

    id: WorkerId
    spec: WorkerSpec
    url: str
    """Canonical form of spec.url; two spellings of one address are one worker."""
    status: WorkerStatus
    revision: int
    """Store-wide; rises on any change."""
    generation: int
    """Rises on a change of spec or intent only; 1 at creation."""
    epoch: int
    """0 until first connected, then rises with every life of the process."""
    created_at_s: float
    updated_at_s: float
    facts: WorkerFacts | None = None
    ranks: tuple[Rank, ...] = ()
    conditions: tuple[Condition, ...] = ()
    current_job: JobId | None = None
    failure: Failure | None = None
    has_credentials: bool = False
    drain: Drain | None = None
    """The operator's wish; it stays until it is taken back."""
    removal: Drain | None = None
    """The drain of a delete that is being carried out."""

    @property
    def leaving(self) -> Drain | None:
        """Why the worker gets no new request: the delete's drain, else the operator's; None when it is wanted."""
        return self.removal or self.drain

    @property
    def worker_type(self) -> WorkerType:
        """The stated type, else what the engine said, else REGULAR."""
        if self.spec.worker_type is not None:
            return self.spec.worker_type
        if self.facts is not None and self.facts.disaggregation_mode is not None:
            return self.facts.disaggregation_mode
        return WorkerType.REGULAR

    @property
    def priority(self) -> int:
        """Workers of a higher one are taken first; 50 where none is stated."""
        return 50 if self.spec.priority is None else self.spec.priority

    @property
    def cost(self) -> float:
        """What a request here weighs against one elsewhere; 1 where none is stated."""
        return 1.0 if self.spec.cost is None else self.spec.cost

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """The stated models, else one card of what the engine serves; empty while neither is known."""
        if self.spec.models:
            return self.spec.models
        if self.facts is None:
            return ()
        aliases = tuple(name for name in self.facts.served_names if name != self.facts.model_id)
        return (ModelCard(id=self.facts.model_id, aliases=aliases, context_length=self.facts.context_length),)

    def serves(self, model: str) -> bool:
        """Whether `model` is an id or alias of one of the worker's models."""
        return any(model == card.id or model in card.aliases for card in self.models)

    def rank_key(self, dp_rank: int) -> RankKey:
        """The key that legs on this rank are counted under in this epoch."""
        return RankKey(self.id, self.epoch, dp_rank)
