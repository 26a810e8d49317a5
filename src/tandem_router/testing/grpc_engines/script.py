"""What a scripted gRPC engine is, how fast it answers, and what is wrong with it: one frozen value."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import grpc

from tandem_router.model.spec import RuntimeType, WorkerType

__all__ = ["Archive", "Failing", "GrpcScript", "Listening", "Tls"]


class Listening(enum.Enum):
    """What happens to a connection."""

    SERVING = "serving"
    REFUSING = "refusing"
    """Nothing listens at the port."""
    SILENT = "silent"
    """Connections are accepted, and no byte is ever said on them."""


class Archive(enum.Enum):
    """What GetTokenizer hands out."""

    GOOD = "good"
    NONE = "none"
    """NOT_FOUND: the engine was started without a tokenizer."""
    GARBAGE = "garbage"
    """Bytes that are no zip."""
    BOMB = "bomb"
    """A small zip that inflates to more than any tokenizer has."""
    WRONG_DIGEST = "wrong digest"


@dataclass(frozen=True, slots=True)
class Tls:
    """Serve over TLS; with client_ca_pem a client must show a certificate of that authority."""

    certificate_pem: bytes
    key_pem: bytes
    client_ca_pem: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failing:
    """How Generate fails."""

    code: grpc.StatusCode | None = grpc.StatusCode.INTERNAL
    """None: under status OK, by a `complete` with `finish_reason`."""
    details: str = "scripted failure"
    after_tokens: int = 0
    """Of the first choice; 0 = before anything is said."""
    finish_reason: str = "error"
    times: int | None = None
    """How many requests fail so, counted over all scripts of the engine; None = all."""


@dataclass(frozen=True, slots=True)
class GrpcScript:
    """One engine. `ScriptedGrpcEngine.script` may be replaced while it runs; the next call sees the new one."""

    runtime: RuntimeType
    mode: WorkerType = WorkerType.REGULAR
    model: str = "tiny"
    vocab_size: int = 259
    """As many as the good archive's tokenizer has: three special tokens and the bytes."""
    context_length: int = 4096
    dp_size: int = 1
    block_size: int = 16
    kv_dtype: str = "auto"
    kv_connector: str | None = None
    """None: what the engine has when it is half of a pair; "" = none at all."""
    engine_id: str | None = None
    """Stays through restarts as a configured one does; None: another one in each life."""
    pairing_protocol: str = ""
    load_balance_method: str = ""
    bootstrap_port: int | None = None
    """What the engine says of it; None = it says nothing."""
    max_running: int = 16
    adapters: tuple[str, ...] = ()
    """Loaded from the beginning, where the protocol has adapters."""
    host: str = "127.0.0.1"

    answer_tokens: int | None = None
    """After so many tokens the model ends by itself; None: never."""
    chunk_tokens: int = 1
    prefill_s: float = 0.0
    token_s: float = 0.0
    transfer_s: float = 0.0
    """Between both legs having met and the prefill's end."""
    bootstrap_timeout_s: float = 30.0
    """How long a leg waits for the other one."""

    listening: Listening = Listening.SERVING
    hangs: frozenset[str] = frozenset()
    """Names of rpcs that take the request and never answer."""
    unimplemented: frozenset[str] = frozenset()
    """Names of rpcs that an older or differently started engine does not have."""
    failing: Failing | None = None
    silent_after_tokens: int | None = None
    """Streams say nothing more after so many tokens; 0: nothing at all, though the KV of a pair still moves."""
    stays_open: bool = False
    """Every message of a stream comes, its status never."""
    never_ends_after_abort: bool = False
    """Abort stops the work and the stream stays open, whatever this protocol does otherwise."""
    is_dead: bool = False
    """The engine is dead behind a living process: not healthy, zeros for loads, Generate fails."""
    archive: Archive = Archive.GOOD
    publishes_kv_events: bool = True
    kv_batches_kept: int = 1000
    """For subscribers that resume; 0: any start but "now" is OUT_OF_RANGE."""
    api_key: str = ""
    """Calls without `authorization: Bearer <api_key>` are UNAUTHENTICATED; empty: anybody may call."""
    tls: Tls | None = None
