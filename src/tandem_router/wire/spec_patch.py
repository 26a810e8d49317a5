"""UpdateWorkerRequest to a patch: the mask's paths by the model's names, with checked values."""

from __future__ import annotations

from typing import Any

from tandem.v1 import worker_service_pb2, worker_spec_pb2
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.wire.checks import at_most, invalid, text
from tandem_router.wire.spec import refuse_what_is_not_carried_out, spec_of

__all__ = ["patch_of"]

_GROUPS = ("health", "resilience", "overload", "channel")
_MASK = "update_mask"
_ENDPOINT = ("url", "agent", "endpoint")
_NAMES = {
    "load_monitor_interval": "load_monitor_interval_s",
    "health.timeout": "timeout_s",
    "health.check_interval": "check_interval_s",
    "health.disable_health_check": "is_disabled",
    "health.drain_settle": "drain_settle_s",
    "resilience.initial_backoff": "initial_backoff_s",
    "resilience.max_backoff": "max_backoff_s",
    "resilience.disable_retry": "is_retry_disabled",
    "resilience.breaker_open_duration": "breaker_open_s",
    "resilience.breaker_window": "breaker_window_s",
    "resilience.disable_breaker": "is_breaker_disabled",
    "channel.connect_timeout": "connect_timeout_s",
    "channel.keepalive_time": "keepalive_time_s",
    "channel.keepalive_timeout": "keepalive_timeout_s",
}
"""Model names of paths whose last part has another name there."""


def patch_of(request: worker_service_pb2.UpdateWorkerRequest) -> SpecPatch:
    """The changes of the spec. Raises with the field's path: INVALID_REQUEST "update_mask" for a path that is none or
    that cannot change, FEATURE_NOT_IMPLEMENTED for one that nothing would come of, and what a create raises."""
    at_most("remove_labels", request.remove_labels, 64)
    for key in request.remove_labels:
        text("remove_labels", key, least=1, most=128)
    paths = list(dict.fromkeys(request.update_mask.paths))
    stated = worker_spec_pb2.WorkerSpec(url="grpc://unused:1")
    for path in paths:
        _copy(request.spec, stated, path)
    if "dp_rank" in paths and stated.HasField("dp_rank") and "dp_size" not in paths:
        stated.dp_size = 2**32 - 1  # the rule over both is checked where the other one is known
    spec = spec_of(stated)
    refuse_what_is_not_carried_out(spec)
    values: dict[tuple[str, ...], Any] = {}
    for path in paths:
        if path == "labels":
            continue
        group, _, name = path.rpartition(".")
        attribute = _NAMES.get(path, name)
        owner = getattr(spec, group) if group else spec
        values[(group, attribute) if group else (attribute,)] = getattr(owner, attribute)
    labels = dict(spec.labels) if "labels" in paths else {}
    return SpecPatch(values, labels, tuple(request.remove_labels))


def _copy(source: worker_spec_pb2.WorkerSpec, target: worker_spec_pb2.WorkerSpec, path: str) -> None:
    """Copy one field as it is stated, absence included."""
    group, dot, name = path.partition(".")
    if group in _ENDPOINT:
        raise invalid(_MASK, f'"{path[:128]}" cannot change; delete the worker and create another.')
    known = worker_spec_pb2.WorkerSpec.DESCRIPTOR.fields_by_name
    if group not in known or (dot and group not in _GROUPS):
        raise invalid(_MASK, f'"{path[:128]}" is no path of WorkerSpec.')
    if not dot:
        _copy_field(source, target, group)
        return
    inner = known[group].message_type
    if inner is None or name not in inner.fields_by_name:
        raise invalid(_MASK, f'"{path[:128]}" is no path of WorkerSpec.')
    if source.HasField(group):  # type: ignore[arg-type]  # a name that was looked up
        _copy_field(getattr(source, group), getattr(target, group), name)


def _copy_field(source: Any, target: Any, name: str) -> None:
    field = source.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        target.MergeFrom(type(source)(**{name: getattr(source, name)}))
    elif field.message_type is not None:
        if source.HasField(name):
            getattr(target, name).CopyFrom(getattr(source, name))
    elif not field.has_presence or source.HasField(name):
        setattr(target, name, getattr(source, name))
