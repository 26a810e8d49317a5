"""Every limit and default of the runtime, in one frozen value; `settings.py` fills it from flags, environment, file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "HealthSettings",
    "JobSettings",
    "LoadSettings",
    "RetrySettings",
    "RoomSettings",
    "RuntimeSettings",
    "WatchSettings",
]


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How workers are probed; `WorkerSpec.health` overrides each per worker."""

    timeout_s: float = 5.0
    """Of one probe. A probe that times out counts; a refused connection counts at once."""
    check_interval_s: float = 5.0
    """SMG's default of 60 s notices a dead idle worker after three minutes."""
    success_threshold: int = 2
    """Successes in a row that make a NOT_READY worker READY."""
    failure_threshold: int = 3
    """Failures in a row that make a READY worker NOT_READY; one broken connection under a request does so at once."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The job queue."""

    max_running: int = 64
    """Jobs doing something; a job that waits between attempts holds no slot."""
    max_queued: int = 1024
    """More answer RESOURCE_EXHAUSTED at once."""
    history_ttl_s: float = 3600.0
    """How long an ended job, and a worker whose registration failed, stay readable."""
    connect_timeout_s: float = 5.0
    tokenizer_timeout_s: float = 30.0
    """For a worker to hand out its tokenizer, a few MB: one that is loading weights may be slow."""
    max_connection_attempts: int = 20
    """WorkerSpec.max_connection_attempts overrides; SMG's default."""
    connect_backoff_initial_s: float = 0.2
    connect_backoff_max_s: float = 10.0
    drain_timeout_s: float = 5.0
    """Of a delete without a timeout of its own, of a worker without health.drain_settle (SMG's default)."""


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Reading the load of engines when somebody asks for it."""

    interval_s: float = 1.0
    """Shortest time between two readings of one worker; `WorkerSpec.load_monitor_interval` overrides."""
    timeout_s: float = 1.0
    """Of one reading; a worker that does not answer by then shows no load."""
    max_at_once: int = 32
    """Readings under way at once."""


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """The one attempt loop of a client call."""

    max_attempts: int = 3
    initial_backoff_s: float = 0.01
    max_backoff_s: float = 0.5
    multiplier: float = 4.0
    jitter: float = 0.2
    """Share of a backoff that is random, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class RoomSettings:
    """The range of bootstrap rooms that this router mints."""

    slot: int = 0
    """0..63, different for each router of a fleet: engines key rooms by number alone."""
    quarantine_s: float = 600.0
    """A room is not minted again for at least this long, restarts included."""


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How much history watches have, and how far behind a reader may be."""

    log_capacity: int = 65_536
    """Revisions kept, of workers and of pairs each. Registering a worker takes about 30, a pair's life about 8."""
    max_lag: int = 16_384
    """A reader that is this many revisions behind is told to resume. Well below log_capacity, so that it can."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """All of it."""

    health: HealthSettings = HealthSettings()
    jobs: JobSettings = JobSettings()
    load: LoadSettings = LoadSettings()
    retry: RetrySettings = RetrySettings()
    rooms: RoomSettings = RoomSettings()
    watch: WatchSettings = WatchSettings()
    max_in_flight: int = 4096
    """Client requests that run at once; more wait in the queue."""
    max_queued: int = 1024
    """Client requests that wait, by priority and then by arrival; more answer RESOURCE_EXHAUSTED with RetryInfo.
    0: nothing waits."""
    max_stream_buffer_bytes: int = 1024 * 1024
    """Memory that one request's output may take while its client is behind, by an estimate from above (about 250 bytes
    a token without logprobs); a client that is further behind gets SLOW_CLIENT. Besides it there are the message that
    is being written and what gRPC buffers itself, 64 KiB and the client's window."""
    max_prompt_bytes: int = 4 * 1024 * 1024
    default_max_tokens: int = 256
    """Where a request names no max_tokens, so that engines' different defaults never reach a client."""
    default_sampling: str = ""
    """Sampling parameters of requests that state none, as JSON: {"temperature": 0.7}. Those of the model's card, then
    those that the worker publishes, go before them; known are temperature, top_p, top_k, min_p and the penalties."""
    transfer_grace_s: float = 30.0
    """How long a leg that must not be aborted in transfer may linger."""
    abort_timeout_s: float = 1.0
    """Of the Abort rpc to an engine."""
    kv_handle_lease_s: float = 30.0
    """How long a prefill worker holds blocks that nobody fetched (vLLM's NIXL default)."""
    default_bootstrap_port: int = 8998
    """SGLang's default, used where neither operator nor engine names a port."""
    disaggregate_min_tokens: int = 1
    """Prompts shorter than this run on one worker when one can."""
    allow_aggregated_fallback: bool = True
    """Whether a REGULAR worker may serve when no pair can."""
