"""A worker: one engine process, what was stated about it, what was found, and the slots it offers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter
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
    "FactMismatch",
    "Outage",
    "Rank",
    "RankLoad",
    "Worker",
    "WorkerFacts",
    "WorkerStatus",
]


_Secret = TypeVar("_Secret", str, bytes)


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
    tls_ca_pem: bytes | None = None
    """Authorities that the worker's certificate may be signed by; None = the router's own or the system's."""
    tls_certificate_pem: bytes | None = None
    """Client certificate chain for mutual TLS, with its key; None = the router's own or none."""
    tls_private_key_pem: bytes | None = None

    @property
    def has_tls(self) -> bool:
        """Whether something in it is for TLS."""
        return any((self.tls_ca_pem, self.tls_certificate_pem, self.tls_private_key_pem))

    def check(self, path: str = "credentials") -> None:
        """Raise INVALID_REQUEST for a client certificate without its key, and for a key without its certificate."""
        names = ("tls_certificate_pem", "tls_private_key_pem")
        present = [name for name in names if getattr(self, name)]
        if len(present) == 1:
            missing = names[1 - names.index(present[0])]
            raise TandemError(Reason.INVALID_REQUEST, f"{present[0]} needs it.", field=f"{path}.{missing}")

    def __repr__(self) -> str:
        return "Credentials(<redacted>)"


@dataclass(frozen=True, slots=True, repr=False)
class CredentialsPatch:
    """A change of stored credentials, field by field: None keeps, an empty value deletes."""

    api_key: str | None = None
    tls_ca_pem: bytes | None = None
    tls_certificate_pem: bytes | None = None
    tls_private_key_pem: bytes | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self == CredentialsPatch()

    def onto(self, stored: Credentials | None) -> Credentials | None:
        """The credentials that result; None where nothing is left in them."""
        kept = stored or Credentials()
        result = Credentials(
            api_key=_patched(self.api_key, kept.api_key),
            tls_ca_pem=_patched(self.tls_ca_pem, kept.tls_ca_pem),
            tls_certificate_pem=_patched(self.tls_certificate_pem, kept.tls_certificate_pem),
            tls_private_key_pem=_patched(self.tls_private_key_pem, kept.tls_private_key_pem),
        )
        return None if result == Credentials() else result

    def over(self, earlier: CredentialsPatch | None) -> CredentialsPatch:
        """This change made after an earlier one."""
        if earlier is None:
            return self
        names = ("api_key", "tls_ca_pem", "tls_certificate_pem", "tls_private_key_pem")
        return replace(earlier, **{name: mine for name in names if (mine := getattr(self, name)) is not None})

    def __repr__(self) -> str:
        return "CredentialsPatch(<redacted>)"


def _patched(change: _Secret | None, kept: _Secret | None) -> _Secret | None:
    return kept if change is None else change or None


@dataclass(frozen=True, slots=True)
class FactMismatch:
    """Something stated that the worker contradicts."""

    field: str
    """Of WorkerSpec."""
    stated: str
    found: str


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
    max_choices: int | None = None
    """Choices that one request can ask for; None = any number."""
    max_greedy_choices: int | None = None
    """The same where the temperature is 0: vLLM refuses n > 1 there. None = as many as max_choices."""
    can_generate: bool = True
    """It makes tokens: an engine started for an embedding model does not."""
    can_embed: bool = False
    applies_adapters: bool = False
    """A request may name an adapter. Which ones, `adapters` says."""
    adapters: tuple[LoadedAdapter, ...] = ()
    """Loaded when the facts were read, or by an operation of ours since."""
    lists_adapters: bool = True
    """The protocol has the rpc; without it only the engine knows whether it has an adapter."""
    publishes_kv_events: bool = False
    """The protocol has the rpc; whether the engine was started with a publisher shows when it is asked."""
    reports_loads: bool = False
    """The protocol has the rpc."""
    hands_out_tokenizer: bool = False
    """The same."""
    flushes_cache: bool = False
    profiles: bool = False
    returns_logprobs: bool = True
    returns_prompt_logprobs: bool = True
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    mismatches: tuple[FactMismatch, ...] = ()
    """Where these are what was stated and not what was found."""
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
class Outage:
    """Why a rank gets no request (`core.rank_health`). Wall clock, seconds since the epoch."""

    failure: Failure
    """The last of its legs in a row that failed while its siblings' did not."""
    began_at_s: float
    trial_at_s: float
    """When requests come to it again."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One schedulable slot of a worker."""

    dp_rank: int
    load: RankLoad | None = None
    outage: Outage | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether it is not out."""
        return self.outage is None


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
