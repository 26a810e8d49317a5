"""WorkerSpec: what an operator states about a worker (seed-capabilities, section S; SMG's WorkerSpec).

Every scalar is optional because zero and "not said" differ; defaults live in `settings`, not here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_router.model.pairing import KvRole

__all__ = [
    "ChannelOptions",
    "ConnectionMode",
    "HealthOverrides",
    "ModelCard",
    "OverloadOverrides",
    "ResilienceOverrides",
    "RuntimeType",
    "WorkerSpec",
    "WorkerType",
]


class WorkerType(enum.StrEnum):
    """The phase or phases a worker is for."""

    REGULAR = "REGULAR"
    PREFILL = "PREFILL"
    DECODE = "DECODE"
    ENCODE = "ENCODE"


class ConnectionMode(enum.StrEnum):
    """How the router reaches a worker."""

    GRPC = "GRPC"
    HTTP = "HTTP"
    ZMQ = "ZMQ"


class RuntimeType(enum.StrEnum):
    """The engine protocol that a worker speaks."""

    SGLANG = "SGLANG"
    VLLM = "VLLM"
    TRTLLM = "TRTLLM"
    TOKENSPEED = "TOKENSPEED"
    MLX = "MLX"
    NATIVE = "NATIVE"
    EXTERNAL = "EXTERNAL"


_TOKENS = frozenset({"CHAT", "COMPLETIONS", "RESPONSES", "GENERATE"})
_VECTORS = frozenset({"EMBEDDINGS"})
_MANNERS = frozenset({"VISION", "TOOLS", "REASONING", "AUDIO"})
"""Capabilities that say how a model answers and not what with."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model that a worker serves."""

    id: str
    aliases: tuple[str, ...] = ()
    display_name: str | None = None
    context_length: int | None = None
    tokenizer_path: str | None = None
    chat_template: str | None = None
    capabilities: tuple[str, ...] = ()
    """Names of tandem.v1.ModelCapability without the prefix, for example "CHAT"; empty = as the engine says."""
    hf_model_type: str | None = None
    architectures: tuple[str, ...] = ()
    provider: str | None = None
    reasoning_parser: str | None = None
    tool_parser: str | None = None
    id2label: Mapping[int, str] = field(default_factory=dict)
    num_labels: int | None = None
    vocab_size: int | None = None
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    """Of requests that state none; by the names of `core.default_sampling`."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """JSON-like facts for people; the router does not read them."""

    @property
    def states_operations(self) -> bool:
        """Whether the capabilities say what the model can be asked for, tokens or vectors or neither."""
        return not _MANNERS.issuperset(self.capabilities)


@dataclass(frozen=True, slots=True)
class HealthOverrides:
    """Health checking of one worker; None = the router's default."""

    timeout_s: float | None = None
    check_interval_s: float | None = None
    success_threshold: int | None = None
    failure_threshold: int | None = None
    is_disabled: bool | None = None
    drain_settle_s: float | None = None


@dataclass(frozen=True, slots=True)
class ResilienceOverrides:
    """Retries and breaker of one worker; None = the router's default."""

    max_attempts: int | None = None
    initial_backoff_s: float | None = None
    max_backoff_s: float | None = None
    backoff_multiplier: float | None = None
    jitter: float | None = None
    is_retry_disabled: bool | None = None
    breaker_failure_threshold: int | None = None
    breaker_success_threshold: int | None = None
    breaker_open_s: float | None = None
    breaker_window_s: float | None = None
    is_breaker_disabled: bool | None = None


@dataclass(frozen=True, slots=True)
class OverloadOverrides:
    """When a worker counts as overloaded; None = the router's default."""

    waiting_requests: int | None = None
    token_usage: float | None = None
    max_in_flight: int | None = None
    """Open legs of ours on one rank."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """The connection to a worker; None = the router's default."""

    connect_timeout_s: float | None = None
    keepalive_time_s: float | None = None
    keepalive_timeout_s: float | None = None
    max_message_bytes: int | None = None
    tls_server_name: str | None = None
    """Name to check in the worker's certificate instead of the URL's host."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an operator states about a worker."""

    url: str
    models: tuple[ModelCard, ...] = ()
    """Empty = whatever the engine serves."""
    worker_type: WorkerType | None = None
    connection_mode: ConnectionMode | None = None
    runtime_type: RuntimeType | None = None
    """None = detect."""
    provider: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    """Default 50; higher is preferred."""
    cost: float | None = None
    """Default 1.0; relative."""
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    dp_base_url: str | None = None
    dp_rank: int | None = None
    dp_size: int | None = None
    kv_connector: str | None = None
    kv_role: KvRole | None = None
    kv_engine_id: str | None = None
    kv_block_size: int | None = None
    kv_cache_dtype: str | None = None
    pairing_protocol: str | None = None
    health: HealthOverrides = HealthOverrides()
    resilience: ResilienceOverrides = ResilienceOverrides()
    overload: OverloadOverrides = OverloadOverrides()
    channel: ChannelOptions = ChannelOptions()
    max_connection_attempts: int | None = None
    """Default 20, during registration."""
    load_monitor_interval_s: float | None = None

    def generates(self, found: bool) -> bool:
        """Whether tokens may be asked of the worker: as its cards state, of a card that says nothing as `found`."""
        return self._offers(_TOKENS, found)

    def embeds(self, found: bool) -> bool:
        """The same of vectors."""
        return self._offers(_VECTORS, found)

    def _offers(self, capabilities: frozenset[str], found: bool) -> bool:
        if not self.models:
            return found
        return any(
            not capabilities.isdisjoint(card.capabilities) if card.states_operations else found for card in self.models
        )
