"""WorkerSpec and WorkerCredentials from the wire, checked, and WorkerSpec back exactly as it was stated."""

from __future__ import annotations

from typing import TypeVar

from tandem.v1 import kv_pb2, worker_spec_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import KvRole
from tandem_router.model.spec import (
    ConnectionMode,
    OverloadOverrides,
    ResilienceOverrides,
    RuntimeType,
    WorkerSpec,
    WorkerType,
)
from tandem_router.model.worker import Credentials, CredentialsPatch
from tandem_router.wire import options, pem
from tandem_router.wire.checks import (
    at_most,
    duration,
    invalid,
    not_yet,
    number,
    present,
    refuse_unless_default,
    text,
    text_map,
)
from tandem_router.wire.model_card import card_of, card_pb
from tandem_router.wire.scalars import enum_name, optional_duration_pb

__all__ = [
    "credentials_of",
    "credentials_patch_of",
    "kv_role_pb",
    "refuse_what_is_not_carried_out",
    "spec_of",
    "spec_pb",
]

Value = TypeVar("Value")

_KV_ROLES: dict[int, KvRole] = {
    kv_pb2.KV_ROLE_PRODUCER: KvRole.PRODUCER,
    kv_pb2.KV_ROLE_CONSUMER: KvRole.CONSUMER,
    kv_pb2.KV_ROLE_BOTH: KvRole.BOTH,
}
_WORKER_TYPES: dict[int, WorkerType] = {
    worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{kind.value}"): kind for kind in WorkerType
}
_RUNTIMES: dict[int, RuntimeType] = {
    worker_spec_pb2.RuntimeType.Value(f"RUNTIME_TYPE_{kind.value}"): kind for kind in RuntimeType
}
_MODES: dict[int, ConnectionMode] = {
    worker_spec_pb2.CONNECTION_MODE_GRPC: ConnectionMode.GRPC,
    worker_spec_pb2.CONNECTION_MODE_HTTP: ConnectionMode.HTTP,
}
_UINT32_MOST = 2**32 - 1


def spec_of(message: worker_spec_pb2.WorkerSpec, path: str = "spec") -> WorkerSpec:
    """A checked spec; the URL is checked later, by the registry. Raises with the field's path: INVALID_REQUEST,
    FEATURE_NOT_IMPLEMENTED for workers that dial in and HTTP workers, INVALID_WORKER_URL for no endpoint."""
    if message.WhichOneof("endpoint") == "agent":
        raise not_yet(f"{path}.agent", "Workers cannot dial in yet; give a url.")
    if not message.url:
        raise TandemError(Reason.INVALID_WORKER_URL, "A worker needs a url.", field=f"{path}.url")
    mode = _enum(f"{path}.connection_mode", message.connection_mode, _MODES)
    if mode is ConnectionMode.HTTP or message.url.lower().startswith(("http://", "https://")):
        raise not_yet(f"{path}.connection_mode", "HTTP workers are not reached yet; use grpc:// or grpcs://.")
    _check_ranks(message, path)
    at_most(f"{path}.models", message.models, 256)
    models = tuple(card_of(card, f"{path}.models[{index}]") for index, card in enumerate(message.models))
    names = [name for card in models for name in (card.id, *card.aliases)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"{path}.models", f'The name "{twice[:64]}" is used twice.')
    return WorkerSpec(
        url=text(f"{path}.url", message.url, most=2048),
        models=models,
        worker_type=_enum(f"{path}.worker_type", message.worker_type, _WORKER_TYPES),
        connection_mode=mode,
        runtime_type=_enum(f"{path}.runtime_type", message.runtime_type, _RUNTIMES),
        provider=_name(message, f"{path}.provider"),
        labels=text_map(f"{path}.labels", message.labels, most=64, key_most=128, value_most=512),
        priority=_uint(message, f"{path}.priority", least=0, most=1000),
        cost=number(f"{path}.cost", message.cost, above=0) if present(message, "cost") else None,
        bootstrap_host=_name(message, f"{path}.bootstrap_host"),
        bootstrap_port=_uint(message, f"{path}.bootstrap_port", least=1, most=65535),
        dp_base_url=_name(message, f"{path}.dp_base_url"),
        dp_rank=_uint(message, f"{path}.dp_rank", least=0),
        dp_size=_uint(message, f"{path}.dp_size", least=1),
        kv_connector=_name(message, f"{path}.kv_connector"),
        kv_role=_enum(f"{path}.kv_role", message.kv_role, _KV_ROLES),
        kv_engine_id=_name(message, f"{path}.kv_engine_id"),
        kv_block_size=_uint(message, f"{path}.kv_block_size", least=1),
        kv_cache_dtype=_name(message, f"{path}.kv_cache_dtype"),
        pairing_protocol=_name(message, f"{path}.pairing_protocol"),
        health=options.health_of(message.health, f"{path}.health"),
        resilience=options.resilience_of(message.resilience, f"{path}.resilience"),
        overload=options.overload_of(message.overload, f"{path}.overload"),
        channel=options.channel_of(message.channel, f"{path}.channel"),
        max_connection_attempts=_uint(message, f"{path}.max_connection_attempts", least=1),
        load_monitor_interval_s=duration(
            message, f"{path}.load_monitor_interval", message.load_monitor_interval, least_s=0.1
        ),
    )


def refuse_what_is_not_carried_out(spec: WorkerSpec, path: str = "spec") -> None:
    """Raise FEATURE_NOT_IMPLEMENTED for what would be kept and shown and change nothing; its default is accepted.

    A line goes when the runtime reads its field.
    """
    refuse_unless_default(f"{path}.resilience", spec.resilience, ResilienceOverrides())
    refuse_unless_default(f"{path}.overload", spec.overload, OverloadOverrides())
    for index, card in enumerate(spec.models):
        for name in ("reasoning_parser", "tool_parser"):
            refuse_unless_default(f"{path}.models[{index}].{name}", getattr(card, name), None)


def spec_pb(spec: WorkerSpec) -> worker_spec_pb2.WorkerSpec:
    """The message of a spec; `spec_of(spec_pb(spec)) == spec`."""
    message = worker_spec_pb2.WorkerSpec(
        url=spec.url,
        models=[card_pb(card) for card in spec.models],
        worker_type=worker_spec_pb2.WorkerType.Value(enum_name("WORKER_TYPE", spec.worker_type)),
        connection_mode=worker_spec_pb2.ConnectionMode.Value(enum_name("CONNECTION_MODE", spec.connection_mode)),
        runtime_type=worker_spec_pb2.RuntimeType.Value(enum_name("RUNTIME_TYPE", spec.runtime_type)),
        provider=spec.provider,
        labels=spec.labels,
        priority=spec.priority,
        cost=spec.cost,
        bootstrap_port=spec.bootstrap_port,
        bootstrap_host=spec.bootstrap_host,
        dp_base_url=spec.dp_base_url,
        dp_rank=spec.dp_rank,
        dp_size=spec.dp_size,
        kv_connector=spec.kv_connector,
        kv_role=kv_role_pb(spec.kv_role),
        kv_engine_id=spec.kv_engine_id,
        kv_block_size=spec.kv_block_size,
        kv_cache_dtype=spec.kv_cache_dtype,
        pairing_protocol=spec.pairing_protocol,
        max_connection_attempts=spec.max_connection_attempts,
        load_monitor_interval=optional_duration_pb(spec.load_monitor_interval_s),
    )
    # Groups of overrides that say nothing stay absent, so that what was stated is what is shown.
    groups = {
        "health": options.health_pb(spec.health),
        "resilience": options.resilience_pb(spec.resilience),
        "overload": options.overload_pb(spec.overload),
        "channel": options.channel_pb(spec.channel),
    }
    for name, group in groups.items():
        if group.ByteSize():
            getattr(message, name).CopyFrom(group)
    return message


def kv_role_pb(role: KvRole | None) -> kv_pb2.KvRole.ValueType:
    """The wire's word for a role; UNSPECIFIED for None."""
    return kv_pb2.KvRole.Value(f"KV_ROLE_{role.name if role is not None else 'UNSPECIFIED'}")


def credentials_of(message: worker_spec_pb2.WorkerCredentials, path: str = "credentials") -> Credentials | None:
    """Secrets of a create; None where nothing is in them. Raises as a change does, and for half of a pair."""
    credentials = credentials_patch_of(message, path).onto(None)
    if credentials is not None:
        credentials.check(path)
    return credentials


def credentials_patch_of(message: worker_spec_pb2.WorkerCredentials, path: str = "credentials") -> CredentialsPatch:
    """A change of secrets: an absent field is kept, an empty one deleted.

    Raises INVALID_REQUEST with the field's path, never with what is in it. Whether a certificate and a key are there
    together shows once the change is laid over what is kept: `model.worker.Credentials.check`.
    """
    return CredentialsPatch(
        api_key=_api_key(message, f"{path}.api_key") if present(message, "api_key") else None,
        tls_ca_pem=pem.certificates(message, f"{path}.tls_ca_pem"),
        tls_certificate_pem=pem.certificates(message, f"{path}.tls_certificate_pem"),
        tls_private_key_pem=pem.private_key(message, f"{path}.tls_private_key_pem"),
    )


def _api_key(message: worker_spec_pb2.WorkerCredentials, path: str) -> str:
    """It travels as call metadata, where grpc fails every call to the worker over a character that HTTP/2 has not."""
    key = text(path, message.api_key, most=8192)
    if not all("!" <= character <= "~" for character in key):
        raise invalid(path, "It has a space, a line end or another character that is not printable ASCII.")
    return key


def _check_ranks(message: worker_spec_pb2.WorkerSpec, path: str) -> None:
    if not present(message, "dp_rank"):
        return
    if not present(message, "dp_size"):
        raise invalid(f"{path}.dp_rank", "It needs dp_size.")
    if message.dp_rank >= message.dp_size:
        raise invalid(f"{path}.dp_rank", f"It is {message.dp_rank} and must be below dp_size, {message.dp_size}.")


def _enum(path: str, value: int, kinds: dict[int, Value]) -> Value | None:
    if value == 0:
        return None
    if value not in kinds:
        raise invalid(path, f"{value} is no value that this release knows.")
    return kinds[value]


def _name(message: worker_spec_pb2.WorkerSpec, path: str) -> str | None:
    name = path.rpartition(".")[2]
    return text(path, str(getattr(message, name)), least=1, most=2048) if present(message, name) else None


def _uint(message: worker_spec_pb2.WorkerSpec, path: str, *, least: int, most: int = _UINT32_MOST) -> int | None:
    name = path.rpartition(".")[2]
    return number(path, int(getattr(message, name)), least=least, most=most) if present(message, name) else None
