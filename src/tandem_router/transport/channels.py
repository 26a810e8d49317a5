"""One channel to one worker process: its options, and where it points."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import grpc.aio

from tandem_router.errors import Reason, TandemError
from tandem_router.model.spec import ChannelOptions
from tandem_router.model.worker import Credentials
from tandem_router.transport.tls import SYSTEM, TlsMaterial

__all__ = ["Address", "Metadata", "call_metadata", "channel_options", "open_channel", "parse_address"]

Metadata = tuple[tuple[str, str], ...]

_KEEPALIVE_TIME_S = 300.0
"""A grpc server's default minimum between pings without data; more often earns GOAWAY too_many_pings during a long
prefill. An operator who has lowered it on the engine may state less."""
_KEEPALIVE_TIMEOUT_S = 20.0
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A non-streamed answer of 100,000 tokens with 20 logprobs each is about 20 MB."""
_MAX_METADATA_BYTES = 16 * 1024
_CONNECT_TIMEOUT_S = 5.0
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 1000
_NEVER_MS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker listens."""

    target: str
    """host:port as grpc takes it; IPv6 in brackets."""
    is_secure: bool


def parse_address(url: str) -> Address:
    """The address in a canonical worker URL (grpc:// or grpcs://); raises INVALID_WORKER_URL."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TandemError(Reason.INVALID_WORKER_URL, f"{url!r}: {error}", field="spec.url") from None
    if parts.scheme not in ("grpc", "grpcs") or not host or not port:
        raise TandemError(Reason.INVALID_WORKER_URL, f"{url!r} is not grpc(s)://host:port", field="spec.url")
    return Address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", parts.scheme == "grpcs")


def channel_options(stated: ChannelOptions) -> list[tuple[str, int | str]]:
    """grpc channel arguments for one worker."""
    max_message = stated.max_message_bytes or _MAX_MESSAGE_BYTES
    keepalive_time_s = stated.keepalive_time_s or _KEEPALIVE_TIME_S
    keepalive_timeout_s = stated.keepalive_timeout_s or _KEEPALIVE_TIMEOUT_S
    return [
        # Retries are decided by the core: grpc's own would send a single-use KV handle or a room twice.
        ("grpc.enable_retries", 0),
        # The process-wide pool would let two workers behind one address share a connection and its failures.
        ("grpc.use_local_subchannel_pool", 1),
        # Workers are dialled directly, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # Idle for half an hour is not lost: IDLE must mean that the connection broke.
        ("grpc.client_idle_timeout_ms", _NEVER_MS),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
        # In spite of its name the time that one try to connect may take.
        ("grpc.min_reconnect_backoff_ms", round((stated.connect_timeout_s or _CONNECT_TIMEOUT_S) * 1000)),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
        ("grpc.keepalive_time_ms", round(keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive_timeout_s * 1000)),
        ("grpc.max_send_message_length", max_message),
        ("grpc.max_receive_message_length", max_message),
        # Soft = hard: between the two, metadata is refused at random.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    ]


def open_channel(url: str, stated: ChannelOptions, tls: TlsMaterial = SYSTEM) -> grpc.aio.Channel:
    """An idle channel to the worker; connects when first asked to.

    tls: for grpcs; half of a pair raises EngineFailure(WORKER_TLS_FAILED).
    """
    address = parse_address(url)
    options = channel_options(stated)
    if address.is_secure:
        if stated.tls_server_name:
            options.append(("grpc.ssl_target_name_override", stated.tls_server_name))
        return grpc.aio.secure_channel(address.target, tls.credentials(url), options=options)
    return grpc.aio.insecure_channel(address.target, options=options)


def call_metadata(credentials: Credentials | None) -> Metadata:
    """The metadata of every call to a worker: its API key as a bearer token, where it has one."""
    if credentials is None or not credentials.api_key:
        return ()
    return (("authorization", f"Bearer {credentials.api_key}"),)
