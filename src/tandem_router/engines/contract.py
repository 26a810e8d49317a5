"""What a dialect is: pure translation between Tandem's words and one engine protocol's messages.

A dialect makes no call and keeps no connection; `transport` moves its messages. Everything that an engine does its own
way on the wire (running or per-chunk counts, repeated ids, a failure under status OK, a missing seed) ends here, so
that the relay sees one kind of stream. What kills or hangs a real engine is refused here as the last guard before the
wire; the first guard stands at the door of the router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

from tandem_router.engines.guards import operation_failure
from tandem_router.errors import Code
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch
from tandem_router.model.operations import Operated, Operation
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.stream import EngineItem
from tandem_router.model.worker import RankLoad, WorkerFacts

__all__ = ["Dialect", "EmbedRpc", "ItemDecoder", "KvEventsRpc", "Methods", "OperationRpc", "Rpc", "Traits"]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One rpc of an engine protocol."""

    path: str
    """`/package.Service/Method`."""
    response: type[Message]


@dataclass(frozen=True, slots=True)
class Methods:
    """The rpcs that a protocol has; None = the protocol has no such rpc."""

    generate: Rpc
    abort: Rpc
    health: Rpc
    model_info: Rpc
    server_info: Rpc
    loads: Rpc | None
    tokenizer: Rpc | None


@dataclass(frozen=True, slots=True)
class EmbedRpc:
    """How a protocol serves a vector."""

    rpc: Rpc
    request: Callable[[EmbedLeg, WorkerFacts | None], Message]
    """Raises TandemError: EMPTY_PROMPT, TOKEN_OUT_OF_VOCABULARY, RUNTIME_CANNOT_APPLY_ADAPTERS."""
    vector: Callable[[Any], Vector]
    """Raises EngineFailure(ENGINE_PROTOCOL_ERROR) on an answer without a vector."""


@dataclass(frozen=True, slots=True)
class OperationRpc:
    """How a protocol carries out one kind of operation."""

    rpc: Rpc
    request: Callable[[Any], Message]
    """From the operation's value (the key's type in `Dialect.operations`).

    Raises TandemError(RUNTIME_CANNOT_CARRY_FIELD) for a parameter that the engine would not heed.
    """
    read: Callable[[Any], Operated]
    """Raises EngineFailure where the answer says that it failed under status OK."""
    failure: Callable[[EngineFailure], EngineFailure] = operation_failure
    """What a status means, from what transports make of it; not asked of a broken connection or of UNIMPLEMENTED."""


@dataclass(frozen=True, slots=True)
class KvEventsRpc:
    """How a protocol publishes KV events: a server stream without end."""

    rpc: Rpc
    request: Callable[[int], Message]
    """From the sequence number to resume at; 0 = from the present state."""
    batch: Callable[[Any], KvBatch | None]
    """None where the message carries a load alone."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What can be said of a protocol before any worker has been asked."""

    handshakes: tuple[HandshakeKind, ...]
    """Ways of serving a request that its messages can carry."""
    abort_in_transfer: AbortInTransfer
    needs_cancel_after_abort: bool
    """The Abort rpc stops the work but never ends the stream; the call must be cancelled too."""
    zero_loads_may_be_dead: bool
    """A dead engine behind a living process answers GetLoads with zeros: believe zeros only from a healthy one."""
    max_choices: int | None = None
    """Choices that one Generate can ask for; None = any number. The router asks once per choice where 1 is the most."""


class ItemDecoder(Protocol):
    """Turns one call's responses into items. One instance per call."""

    @property
    def is_done(self) -> bool:
        """Whether every choice has had its end."""

    @property
    def ended_early(self) -> bool:
        """Whether a choice was ended here although the engine goes on; the call must then be cancelled, not drained."""

    def decode(self, response: Any) -> EngineItem | None:
        """The item in a response, or None when the response says nothing new; raises EngineFailure on a bad end."""

    def end_of_stream(self) -> None:
        """The engine closed the stream with status OK; raises EngineFailure while ends are owed."""


class Dialect(Protocol):
    """One engine protocol. Stateless: one instance serves every worker of that protocol."""

    @property
    def runtime_type(self) -> RuntimeType:
        """The name that operators give this protocol."""

    @property
    def service(self) -> str:
        """Full name of the gRPC service."""

    @property
    def methods(self) -> Methods:
        """Its rpcs."""

    @property
    def traits(self) -> Traits:
        """Its capabilities."""

    @property
    def embed(self) -> EmbedRpc | None:
        """How it serves vectors; None = its protocol does not (RUNTIME_CANNOT_EMBED)."""

    @property
    def operations(self) -> Mapping[type[Operation], OperationRpc]:
        """What operators can have it do; a kind that is not in it is refused with `model.operations.CANNOT`."""

    @property
    def kv_events(self) -> KvEventsRpc | None:
        """How it publishes KV events; None = its protocol does not (RUNTIME_CANNOT_PUBLISH_KV_EVENTS)."""

    def generate_request(self, leg: LegRequest, facts: WorkerFacts | None) -> Message:
        """The Generate request of a leg.

        facts: what the worker said of itself; None = nothing yet, so nothing optional is assumed of it.
        Raises TandemError: EMPTY_PROMPT, TOKEN_OUT_OF_VOCABULARY, INVALID_REQUEST (a value that the wire cannot carry),
        ADAPTER_NOT_FOUND, RUNTIME_CANNOT_SEED, _CONSTRAIN, _APPLY_ADAPTERS, _CARRY_FIELD, _RETURN_PROMPT_LOGPROBS or
        _RETURN_CONTEXT_PARAMS, INTERNAL_ERROR (a leg that would kill the engine: the router never builds one).
        """

    def decoder(self, leg: LegRequest) -> ItemDecoder:
        """A fresh decoder for the leg's responses."""

    def status_failure(self, leg: LegRequest, code: Code, details: str) -> EngineFailure:
        """What a status that the engine itself sent as the end of Generate means."""

    def abort_request(self, leg_id: str) -> Message:
        """The Abort request of a leg."""

    def health_request(self) -> Message:
        """The HealthCheck request."""

    def check_health(self, response: Any) -> None:
        """Return if the answer means serving; raises EngineFailure."""

    def model_info_request(self) -> Message:
        """The GetModelInfo request."""

    def server_info_request(self) -> Message:
        """The GetServerInfo request."""

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        """What the two answers say of the worker; tolerant: a missing or odd value is not said."""

    def process_age_s(self, server_info: Any) -> float | None:
        """Seconds since the process started, or None where the engine does not say."""

    def loads_request(self) -> Message:
        """The GetLoads request for all ranks; only where `methods.loads` is set."""

    def loads(self, response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
        """One sample per rank, in rank order.

        sampled_at_s: monotonic clock of the router.
        """

    def tokenizer_request(self) -> Message:
        """The GetTokenizer request; only where `methods.tokenizer` is set."""
