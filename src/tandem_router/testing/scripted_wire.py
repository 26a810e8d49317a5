"""What travels on a connection to a scripted engine, and what is recorded of one process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import Operation
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.stream import EngineItem

__all__ = [
    "CancelCall",
    "EngineLedger",
    "EngineScript",
    "Faults",
    "Item",
    "OpenCall",
    "Reply",
    "StreamEnd",
    "UnaryCall",
]


@dataclass(frozen=True, slots=True)
class OpenCall:
    """Router to engine: a generate request."""

    call_id: int
    leg: LegRequest
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Router to engine: RST_STREAM of a generate call."""

    call_id: int


@dataclass(frozen=True, slots=True)
class UnaryCall:
    """Router to engine: a small rpc ("abort", "probe", "describe", "loads", "tokenizer", "operate")."""

    call_id: int
    method: str
    argument: str | Operation = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Engine to router: one message of a stream."""

    call_id: int
    item: EngineItem


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Engine to router: the end of a stream, good (None) or bad."""

    call_id: int
    failure: EngineFailure | None


@dataclass(frozen=True, slots=True)
class Reply:
    """Engine to router: the answer to a unary call."""

    call_id: int
    value: object
    failure: EngineFailure | None = None


@dataclass(slots=True)
class Faults:
    """What is wrong with an engine now; a test turns these knobs while it runs."""

    is_hung: bool = False
    """Takes requests and probes and answers nothing; goes on where it stood when turned off."""
    is_refusing: bool = False
    """Answers generate with RESOURCE_EXHAUSTED, as an engine whose queue is full."""
    is_zombie: bool = False
    """The process lives, its engine is dead: probe says so, generate fails, loads still say zero (vLLM)."""
    error_after_tokens: int | None = None
    """Fail each stream after that many tokens."""
    failing_rank: int | None = None
    """Fail each request of that rank, where there are several; the process and the other ranks are well."""
    is_error_under_ok: bool = False
    """End failed streams with a `complete` of reason "error" under status OK instead of an error status."""
    is_transfer_failing: bool = False
    """Break off each KV transfer half-way."""
    lost_page: int | None = None
    """Index of a page that is never written into decode's memory."""
    flipped_page: int | None = None
    """Index of a page that arrives with a wrong bit."""


@dataclass(frozen=True, slots=True)
class EngineScript:
    """What an engine is, and how fast. Times are virtual seconds; each wait is drawn within +-20 %."""

    kind: HandshakeKind = HandshakeKind.AGGREGATE
    worker_type: WorkerType = WorkerType.REGULAR
    runtime: RuntimeType | None = None
    """Whose habits it has on the wire; None = SGLang's for RENDEZVOUS, vLLM's otherwise."""
    connector: str | None = None
    """KV connector that it names; None = "mooncake" for SGLang, "NixlConnector" otherwise."""
    model: str = "scripted"
    max_running: int = 16
    """Requests that compute at once; more wait."""
    dp_size: int = 1
    max_choices: int | None = None
    """Most choices that one call may ask for; more would kill it (MLX takes one)."""
    max_greedy_choices: int | None = None
    """The same where the temperature is 0 (vLLM takes one)."""
    adapters: tuple[str, ...] | None = None
    """Loaded when a process starts; None = it knows no adapters."""
    prefill_token_s: float = 0.0002
    step_s: float = 0.005
    """Per generated token."""
    page_s: float = 0.002
    """To send one KV page."""
    settle_s: float = 0.001
    """From decode's receipt until a rendezvous' prefill answers: it polls its transfers, decode meanwhile emits."""
    rpc_s: float = 0.0005
    """To answer a unary call."""
    bootstrap_timeout_s: float = 60.0
    """How long a leg of a rendezvous waits for the other (SGLang: 300); longer than the router's grace on purpose."""
    peer_loss_s: float = 0.3
    """Until decode notices that the process it was fetching from is gone."""
    unreachable_prefill_s: float = 5.0
    """Until a handoff's decode gives up on a prefill that does not answer (measured on vLLM 0.32 with NIXL)."""
    handle_lease_s: float = 30.0
    """How long blocks are held for a decode that does not come (vLLM's NIXL default; Mooncake: 480)."""
    transfer_timeout_s: float = 540.0
    """How long a Mooncake decode waits for its transfer, and keeps its blocks although it was cancelled."""

    @property
    def is_mooncake(self) -> bool:
        """Whether it has the habits of vLLM's MooncakeConnector: the router names the transfer, nothing is returned."""
        return self.kind is HandshakeKind.HANDOFF and self.connector == "MooncakeConnector"

    @property
    def returns_nothing(self) -> bool:
        """Whether its prefill returns no kv_transfer_params: its workers meet in a store, which holds nothing here."""
        return self.connector in ("MooncakeStoreConnector", "LMCacheConnectorV1")

    @property
    def is_sglang(self) -> bool:
        """Whether it has SGLang's habits: Abort goes by prefix and does not end the stream."""
        if self.runtime is not None:
            return self.runtime is RuntimeType.SGLANG
        return self.kind is HandshakeKind.RENDEZVOUS


@dataclass(slots=True)
class EngineLedger:
    """What one process holds and has done. The first block is zero when the process is idle."""

    live: int = 0
    """Requests inside the engine, in any phase."""
    streams: int = 0
    """Calls that neither side has ended; an SGLang abort alone leaves one."""
    running: int = 0
    waiting: int = 0
    held_pages: int = 0
    """Pages of live requests and of handles."""
    rooms: int = 0
    handles: int = 0

    requests: int = 0
    pages_sent: int = 0
    pages_received: int = 0
    recomputed_pages: int = 0
    """Prompt pages that a DECODE worker computed itself."""
    handles_expired: int = 0
    handles_released: int = 0
    violations: list[str] = field(default_factory=list)
    """What a real engine does not survive, or what only a faulty router does."""

    def held(self) -> dict[str, int]:
        """What is not zero and should be when idle."""
        now = Counter(
            live=self.live,
            streams=self.streams,
            running=self.running,
            waiting=self.waiting,
            held_pages=self.held_pages,
            rooms=self.rooms,
            handles=self.handles,
        )
        return {name: count for name, count in now.items() if count}
