"""The overrides inside a WorkerSpec (health, resilience, overload, channel), both ways, with their ranges."""

from __future__ import annotations

from tandem.v1 import worker_options_pb2 as pb
from tandem_router.model.spec import ChannelOptions, HealthOverrides, OverloadOverrides, ResilienceOverrides
from tandem_router.wire.checks import duration, not_yet, number, present, text
from tandem_router.wire.scalars import optional_duration_pb

__all__ = [
    "channel_of",
    "channel_pb",
    "health_of",
    "health_pb",
    "overload_of",
    "overload_pb",
    "resilience_of",
    "resilience_pb",
]

_COUNT_MOST = 1_000_000


_Counts = pb.HealthOverrides | pb.ResilienceOverrides | pb.OverloadOverrides


def _count(message: _Counts, path: str, most: int = _COUNT_MOST) -> int | None:
    name = path.rpartition(".")[2]
    return number(path, int(getattr(message, name)), least=1, most=most) if present(message, name) else None


def health_of(message: pb.HealthOverrides, path: str) -> HealthOverrides:
    """Checked overrides of health probing; raises INVALID_REQUEST with the field's path."""
    return HealthOverrides(
        timeout_s=duration(message, f"{path}.timeout", message.timeout, above_zero=True, most_s=300.0),
        check_interval_s=duration(message, f"{path}.check_interval", message.check_interval, least_s=0.1),
        success_threshold=_count(message, f"{path}.success_threshold"),
        failure_threshold=_count(message, f"{path}.failure_threshold"),
        is_disabled=message.disable_health_check if present(message, "disable_health_check") else None,
        drain_settle_s=duration(message, f"{path}.drain_settle", message.drain_settle),
    )


def health_pb(value: HealthOverrides) -> pb.HealthOverrides:
    """The message of these overrides."""
    return pb.HealthOverrides(
        timeout=optional_duration_pb(value.timeout_s),
        check_interval=optional_duration_pb(value.check_interval_s),
        success_threshold=value.success_threshold,
        failure_threshold=value.failure_threshold,
        disable_health_check=value.is_disabled,
        drain_settle=optional_duration_pb(value.drain_settle_s),
    )


def resilience_of(message: pb.ResilienceOverrides, path: str) -> ResilienceOverrides:
    """Checked overrides of retries and breaker; raises INVALID_REQUEST with the field's path."""
    has = {name for name in ("backoff_multiplier", "jitter") if present(message, name)}
    factor = message.backoff_multiplier
    return ResilienceOverrides(
        max_attempts=_count(message, f"{path}.max_attempts", most=10),
        initial_backoff_s=duration(message, f"{path}.initial_backoff", message.initial_backoff),
        max_backoff_s=duration(message, f"{path}.max_backoff", message.max_backoff),
        backoff_multiplier=(
            number(f"{path}.backoff_multiplier", factor, least=1, most=10) if "backoff_multiplier" in has else None
        ),
        jitter=number(f"{path}.jitter", message.jitter, least=0, most=1) if "jitter" in has else None,
        is_retry_disabled=message.disable_retry if present(message, "disable_retry") else None,
        breaker_failure_threshold=_count(message, f"{path}.breaker_failure_threshold"),
        breaker_success_threshold=_count(message, f"{path}.breaker_success_threshold"),
        breaker_open_s=duration(
            message, f"{path}.breaker_open_duration", message.breaker_open_duration, above_zero=True
        ),
        breaker_window_s=duration(message, f"{path}.breaker_window", message.breaker_window, above_zero=True),
        is_breaker_disabled=message.disable_breaker if present(message, "disable_breaker") else None,
    )


def resilience_pb(value: ResilienceOverrides) -> pb.ResilienceOverrides:
    """The message of these overrides."""
    return pb.ResilienceOverrides(
        max_attempts=value.max_attempts,
        initial_backoff=optional_duration_pb(value.initial_backoff_s),
        max_backoff=optional_duration_pb(value.max_backoff_s),
        backoff_multiplier=value.backoff_multiplier,
        jitter=value.jitter,
        disable_retry=value.is_retry_disabled,
        breaker_failure_threshold=value.breaker_failure_threshold,
        breaker_success_threshold=value.breaker_success_threshold,
        breaker_open_duration=optional_duration_pb(value.breaker_open_s),
        breaker_window=optional_duration_pb(value.breaker_window_s),
        disable_breaker=value.is_breaker_disabled,
    )


def overload_of(message: pb.OverloadOverrides, path: str) -> OverloadOverrides:
    """Checked limits of overload; raises INVALID_REQUEST with the field's path."""
    usage = message.token_usage
    return OverloadOverrides(
        waiting_requests=_count(message, f"{path}.waiting_requests"),
        token_usage=(
            number(f"{path}.token_usage", usage, above=0, most=1) if present(message, "token_usage") else None
        ),
        max_in_flight=_count(message, f"{path}.max_in_flight"),
    )


def overload_pb(value: OverloadOverrides) -> pb.OverloadOverrides:
    """The message of these limits."""
    return pb.OverloadOverrides(
        waiting_requests=value.waiting_requests, token_usage=value.token_usage, max_in_flight=value.max_in_flight
    )


def channel_of(message: pb.ChannelOptions, path: str) -> ChannelOptions:
    """Checked options; those of HTTP workers and more than one connection are not carried out yet."""
    for name in ("http_max_idle", "http_idle_timeout", "http_timeout"):
        if present(message, name):
            raise not_yet(f"{path}.{name}")
    if present(message, "connections") and message.connections != 1:
        raise not_yet(f"{path}.connections")
    size = message.max_message_bytes
    return ChannelOptions(
        connect_timeout_s=duration(message, f"{path}.connect_timeout", message.connect_timeout, above_zero=True),
        keepalive_time_s=duration(message, f"{path}.keepalive_time", message.keepalive_time, least_s=1.0),
        keepalive_timeout_s=duration(message, f"{path}.keepalive_timeout", message.keepalive_timeout, above_zero=True),
        max_message_bytes=(
            number(f"{path}.max_message_bytes", size, least=1, most=2**31 - 1)
            if present(message, "max_message_bytes")
            else None
        ),
        # Empty says what an absent one does: the URL's host.
        tls_server_name=text(f"{path}.tls_server_name", message.tls_server_name, most=253) or None,
    )


def channel_pb(value: ChannelOptions) -> pb.ChannelOptions:
    """The message of these options."""
    return pb.ChannelOptions(
        connect_timeout=optional_duration_pb(value.connect_timeout_s),
        keepalive_time=optional_duration_pb(value.keepalive_time_s),
        keepalive_timeout=optional_duration_pb(value.keepalive_timeout_s),
        max_message_bytes=value.max_message_bytes,
        tls_server_name=value.tls_server_name,
    )
