"""The one configuration schema: the fields of `ServerSettings` and below, from defaults < file < environment < flags.

A field's key is its path, "health.check_interval_s"; its variable is TANDEM_HEALTH_CHECK_INTERVAL_S; in the TOML file
it is `check_interval_s` in the table `[health]`. `Resolved` keeps where every value came from.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tandem_router.core.default_sampling import parse_default_sampling
from tandem_router.model.settings import RuntimeSettings

__all__ = ["Resolved", "ServerSettings", "SettingsError", "TelemetrySettings", "keys", "resolve"]

ENV_PREFIX = "TANDEM_"
_MAY_BE_INF = {"may_be_inf": True}
"""Metadata of a field for which "inf" is a value."""


class SettingsError(ValueError):
    """A setting that is unknown or has no valid value; the text names its key and source."""


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What is told beyond Prometheus's text and the access log."""

    otlp_endpoint: str = ""
    """http://host:port or https://host:port of a collector, OTLP over gRPC: metrics every 15 s, and spans. Empty: none,
    and workers get the client's own traceparent. Needs the extra `otlp`."""
    sample_ratio: float = 1.0
    """Share of the traces kept, 0 to 1, where the client's traceparent does not say; with one, its flag decides."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Listeners and limits of the server, and the runtime's settings (whose keys have no prefix)."""

    listen: str = "127.0.0.1:50051"
    """host:port for clients: RouterService, health, reflection. Port 0 is any."""
    admin_listen: str = "127.0.0.1:50052"
    """host:port for operators: every other service, health, reflection, channelz."""
    health_listen: str = "127.0.0.1:50053"
    """host:port for probes: health and reflection, on threads of its own."""
    metrics_listen: str = "127.0.0.1:50054"
    """host:port of Prometheus's text, http://host:port/metrics, on a thread of its own."""
    admin_tls_certificate: str = ""
    """File, PEM. With the key and client_ca the admin listener asks for client certificates (mutual TLS)."""
    admin_tls_key: str = ""
    admin_client_ca: str = ""
    worker_tls_ca: str = ""
    """File, PEM: authorities that certificates of grpcs:// workers may be signed by, where a worker's credentials hold
    none. Empty: the system's. These three files are read anew for every connection to a worker, so a rotated
    certificate needs no restart; a connection that stands keeps what it was made with."""
    worker_tls_certificate: str = ""
    """File, PEM: client certificate chain for workers that ask for one (mutual TLS). Needs worker_tls_key."""
    worker_tls_key: str = ""
    """File, PEM: the client certificate's private key, not encrypted."""
    shutdown_grace_s: float = field(default=25.0, metadata=_MAY_BE_INF)
    """How long running requests may go on after the first SIGTERM or SIGINT; the second ends them at once. 0: not at
    all; inf: as long as they take. With the close it must be less than what the process gets before SIGKILL, which is
    30 s in Kubernetes unless terminationGracePeriodSeconds says otherwise."""
    health_stale_after_s: float = 2.0
    """A loop that has not beaten for this long is NOT_SERVING for Check; a Watch tells within a quarter of it more."""
    heartbeat_interval_s: float = 0.25
    thread_switch_interval_s: float = 0.001
    """How long a thread may keep the interpreter to itself while another waits for it (sys.setswitchinterval); 0 leaves
    Python's own 5 ms. A health answer needs several turns of it against a busy loop (measured: docs/benchmarks.md)."""
    debug_wedge_s: float = 0.0
    """For tests of health probes: when above 0, SIGUSR2 keeps the loop busy for so long. 0: SIGUSR2 is not handled."""
    slow_client_timeout_s: float = 30.0
    """A write that a client lets wait for longer ends its call with SLOW_CLIENT."""
    forward_metadata: str = "traceparent,tracestate,x-request-id"
    """Keys of a client's metadata that go on to workers, separated by commas; values are text. Never authorization and
    its like, and at most 4 KiB for one call. x-request-id is the request's id where the client sent none."""
    max_receive_bytes: int = 16 * 1024 * 1024
    max_metadata_bytes: int = 16 * 1024
    """Soft and hard limit alike: between the two grpcio refuses at random."""
    max_pending_requests: int = 20_000
    """Calls accepted by the transport and not yet by us; grpcio's defaults cancel bursts of 2,000 in silence."""
    telemetry: TelemetrySettings = TelemetrySettings()
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and the source of each by key: "default", "file PATH", "env NAME" or "flag"."""

    settings: ServerSettings
    sources: Mapping[str, str]

    def rows(self) -> tuple[tuple[str, object, str], ...]:
        """(key, value, source) of every setting, by key."""
        values = dict(_leaves(self.settings, ""))
        return tuple((key, values[key], self.sources[key]) for key in sorted(values))


def keys() -> tuple[str, ...]:
    """Every key there is."""
    return tuple(key for key, _ in _leaves(ServerSettings(), ""))


def resolve(
    *, flags: Mapping[str, str], environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Resolved:
    """The settings in effect; raises SettingsError.

    flags: text by key. environ: variables without our prefix, or with a name that is no key, are not ours. file: TOML;
    an unknown key in it is an error.
    """
    known = keys()
    values: dict[str, object] = {}
    sources = dict.fromkeys(known, "default")
    for key, value in _file_values(file):
        if key not in known:
            raise SettingsError(f"{key} in {file} is no setting")
        values[key], sources[key] = value, f"file {file}"
    for key in known:
        name = ENV_PREFIX + key.replace(".", "_").upper()
        if environ is not None and name in environ:
            values[key], sources[key] = environ[name], f"env {name}"
    for key, text in flags.items():
        if key not in known:
            raise SettingsError(f"{key} is no setting; `tandem serve --show-settings` lists them")
        values[key], sources[key] = text, "flag"
    settings = typing.cast(ServerSettings, _build(ServerSettings(), "", values, sources))
    try:
        parse_default_sampling(settings.runtime.default_sampling)
    except ValueError as error:
        raise SettingsError(f"default_sampling from {sources['default_sampling']}: {error}") from error
    return Resolved(settings, sources)


def _leaves(value: typing.Any, prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for part in dataclasses.fields(value):
        inner = getattr(value, part.name)
        key = prefix + part.name
        if dataclasses.is_dataclass(inner):
            found += _leaves(inner, "" if key == "runtime" else f"{key}.")
        else:
            found.append((key, inner))
    return found


def _build(default: typing.Any, prefix: str, values: Mapping[str, object], sources: Mapping[str, str]) -> typing.Any:
    changes: dict[str, object] = {}
    for part in dataclasses.fields(default):
        inner = getattr(default, part.name)
        key = prefix + part.name
        if dataclasses.is_dataclass(inner):
            changes[part.name] = _build(inner, "" if key == "runtime" else f"{key}.", values, sources)
        elif key in values:
            may_be_inf = bool(part.metadata.get("may_be_inf"))
            changes[part.name] = _convert(key, values[key], type(inner), sources[key], may_be_inf=may_be_inf)
    return dataclasses.replace(default, **changes)


def _convert(key: str, value: object, kind: type, source: str, *, may_be_inf: bool) -> object:
    """`value` (text, or a TOML value) as `kind`, one of str, bool, int, float.

    Numbers are finite, unless may_be_inf, and not negative.
    """
    wanted = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
    error = SettingsError(f"{key} from {source} must be {wanted} and is {value!r}")
    if kind is str or kind is bool:
        if isinstance(value, kind):
            return value
        if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise error
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or (kind is int and type(value) is float):
        raise error
    try:
        number: float = kind(value)
    except ValueError:
        raise error from None
    is_limited = math.isfinite(number) or (may_be_inf and number == math.inf)
    if not is_limited or number < 0:
        kinds = "finite or inf" if may_be_inf else "finite"
        raise SettingsError(f"{key} from {source} must be {kinds} and not negative and is {value!r}")
    return number


def _file_values(file: Path | None) -> list[tuple[str, object]]:
    if file is None:
        return []
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}") from error
    return _flat(tables, "")


def _flat(table: Mapping[str, object], prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found
