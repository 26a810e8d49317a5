"""How one reference engine is started: one process, one protocol, one mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tandem_engine.credentials import TlsFiles
from tandem_engine.faults import FaultPlan
from tandem_engine.settings import EngineSettings

__all__ = ["DEMO_MODEL", "EngineOptions", "Mode", "Protocol", "Task"]

DEMO_MODEL = "demo"
"""The name, instead of a path, of the model in this package."""

NO_FAULTS = FaultPlan()

MAX_PORT = 65535

_WILDCARDS = ("", "0.0.0.0", "::")


class Protocol(Enum):
    """Whose wire protocol and habits the engine has."""

    SGLANG = "sglang"
    VLLM = "vllm"


class Mode(Enum):
    """What part of a request the engine is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


class Task(Enum):
    """What an engine is started for. Real ones are one or the other; BOTH is this engine's own, and its default."""

    GENERATE = "generate"
    EMBED = "embed"
    BOTH = "both"

    @property
    def generates(self) -> bool:
        return self is not Task.EMBED

    @property
    def embeds(self) -> bool:
        return self is not Task.GENERATE


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Everything an engine process is told. Times are seconds; page counts are per data-parallel rank; port 0 is any.

    `name` is the engine's own name (vLLM's kv_engine_id); None makes one up per process. `advertise_host` is where
    decode engines find this prefill engine; None means the host of `listen`. `parent_pid`: the engine ends when that
    process does. `grace_s` bounds how long running requests may go on after SIGTERM. `max_adapters` 0 switches LoRA
    off. The newest `kv_event_history` KV events of a rank can be resumed from; a subscriber with more than
    `kv_event_queue` unread ones is told DATA_LOSS. `api_key` None lets everybody in. Raises ValueError for a value that
    cannot be.
    """

    protocol: Protocol = Protocol.SGLANG
    mode: Mode = Mode.AGGREGATED
    listen: str = "127.0.0.1:0"
    bootstrap_port: int = 0
    advertise_host: str | None = None
    model: str = DEMO_MODEL
    served_model_name: str | None = None
    name: str | None = None
    kv_lease_s: float = 30.0
    bootstrap_timeout_s: float = 30.0
    max_running: int = 64
    num_pages: int = 1024
    dp_size: int = 1
    prefill_chunk: int = 256
    max_model_len: int | None = None
    grace_s: float = 10.0
    parent_pid: int | None = None
    faults: FaultPlan = NO_FAULTS
    task: Task = Task.BOTH
    max_adapters: int = 8
    kv_events: bool = True
    kv_event_history: int = 8192
    kv_event_queue: int = 10_000
    profile_dir: str | None = None
    tls: TlsFiles | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _, colon, port = self.listen.rpartition(":")
        # Of a larger port gRPC takes the last 16 bits.
        if not colon or not (port.isascii() and port.isdigit() and int(port) <= MAX_PORT):
            raise ValueError(f"listen must be host:port with a port in [0, {MAX_PORT}], got {self.listen!r}")
        if not 0 <= self.bootstrap_port <= MAX_PORT:
            raise ValueError(f"bootstrap_port must be in [0, {MAX_PORT}], got {self.bootstrap_port}")
        if self.parent_pid is not None and self.parent_pid < 1:
            raise ValueError(f"parent_pid must be at least 1, got {self.parent_pid}")
        if self.bootstrap_timeout_s <= 0 or self.grace_s < 0:
            raise ValueError("bootstrap_timeout_s must be positive and grace_s not negative")
        if self.max_adapters < 0:
            raise ValueError(f"max_adapters must not be negative, got {self.max_adapters}")
        if self.kv_event_history < 0 or self.kv_event_queue < 1:
            raise ValueError("kv_event_history must not be negative and kv_event_queue at least 1")
        _ = self.settings
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ValueError("api_key must be of printable ASCII characters")
        if self.api_key == "":
            raise ValueError("api_key must not be empty")

    @property
    def settings(self) -> EngineSettings:
        """The engine's sizes. Raises ValueError for one that is out of range."""
        return EngineSettings(
            num_pages=self.num_pages,
            max_running=self.max_running,
            prefill_chunk=self.prefill_chunk,
            max_model_len=self.max_model_len,
            dp_size=self.dp_size,
            kv_lease_s=self.kv_lease_s,
            kv_event_history=self.kv_event_history,
        )

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def kv_host(self) -> str:
        """The host that goes into transfer parameters."""
        if self.advertise_host is not None:
            return self.advertise_host
        return "127.0.0.1" if self.host in _WILDCARDS else self.host

    @property
    def model_folder(self) -> Path:
        if self.model == DEMO_MODEL:
            return Path(__file__).parent / "demo" / "model"
        return Path(self.model)

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.served_model_name or ("tandem-demo" if self.model == DEMO_MODEL else self.model_folder.name)
