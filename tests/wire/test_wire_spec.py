"""WorkerSpec survives the wire, and each of its ranges accepts its ends and refuses what is beyond them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tandem.v1 import worker_spec_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import KvRole
from tandem_router.model.spec import (
    ChannelOptions,
    ConnectionMode,
    HealthOverrides,
    ModelCard,
    OverloadOverrides,
    ResilienceOverrides,
    RuntimeType,
    WorkerSpec,
    WorkerType,
)
from tandem_router.wire.spec import credentials_of, refuse_what_is_not_carried_out, spec_of, spec_pb

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
counts = st.none() | st.integers(1, 1000)
seconds = st.none() | st.integers(100, 300_000).map(lambda ms: ms / 1000)
flags = st.none() | st.booleans()
shares = st.none() | st.floats(0.01, 1)

cards = st.builds(
    ModelCard,
    id=names,
    display_name=st.none() | names,
    context_length=counts,
    capabilities=st.sampled_from([(), ("CHAT", "GENERATE")]),
    architectures=st.just(("LlamaForCausalLM",)),
    id2label=st.dictionaries(st.integers(0, 9), names, max_size=2),
    num_labels=st.none() | st.integers(0, 5),
    vocab_size=counts,
    default_sampling=st.sampled_from([{}, {"temperature": 0.5, "top_k": 20.0}, {"top_p": 0.5, "temperature": 0.0}]),
    metadata=st.dictionaries(names, names | st.booleans() | st.none(), max_size=2),
)
specs = st.builds(
    WorkerSpec,
    url=names.map(lambda host: f"grpc://{host}:1"),
    models=st.lists(cards, max_size=2, unique_by=lambda card: card.id).map(tuple),
    worker_type=st.none() | st.sampled_from(WorkerType),
    connection_mode=st.sampled_from([None, ConnectionMode.GRPC]),
    runtime_type=st.none() | st.sampled_from(RuntimeType),
    provider=st.none() | names,
    labels=st.dictionaries(names, names, max_size=3),
    priority=st.none() | st.integers(0, 1000),
    cost=st.none() | st.floats(0.001, 1e6),
    bootstrap_host=st.none() | names,
    bootstrap_port=st.none() | st.integers(1, 65535),
    dp_base_url=st.none() | names,
    dp_rank=st.none() | st.integers(0, 3),
    dp_size=st.integers(4, 8),
    kv_connector=st.none() | names,
    kv_role=st.none() | st.sampled_from(KvRole),
    kv_engine_id=st.none() | names,
    kv_block_size=counts,
    kv_cache_dtype=st.none() | names,
    pairing_protocol=st.none() | names,
    health=st.builds(HealthOverrides, seconds, seconds, counts, counts, flags, seconds),
    resilience=st.builds(
        ResilienceOverrides, st.none() | st.integers(1, 10), seconds, seconds, st.none() | st.floats(1, 10), shares,
        flags, counts, counts, seconds, seconds, flags,
    ),
    overload=st.builds(OverloadOverrides, counts, shares, counts),
    channel=st.builds(ChannelOptions, seconds, seconds.map(lambda s: s and round(s + 1, 3)), seconds, counts),
    max_connection_attempts=counts,
    load_monitor_interval_s=seconds,
)  # fmt: skip


@given(specs)
def test_spec_comes_back_from_the_wire_unchanged(spec: WorkerSpec) -> None:
    wire = worker_spec_pb2.WorkerSpec.FromString(spec_pb(spec).SerializeToString())
    assert spec_of(wire) == spec


def test_every_field_of_the_message_is_read_or_refused() -> None:
    empty = spec_pb(WorkerSpec(url="grpc://h:1"))
    for field in worker_spec_pb2.WorkerSpec.DESCRIPTOR.fields:
        assert field.name in {"url", "agent"} or hasattr(WorkerSpec, field.name) or hasattr(
            WorkerSpec, f"{field.name}_s"
        ), field.name  # fmt: skip
    assert json_format.MessageToDict(empty) == {"url": "grpc://h:1"}


def spec_from(**fields: Any) -> WorkerSpec:
    message = worker_spec_pb2.WorkerSpec(url="grpc://h:1")
    json_format.ParseDict(fields, message)
    return spec_of(message)


ACCEPTED: list[dict[str, Any]] = [
    {"priority": 0},
    {"priority": 1000},
    {"cost": 0.5},
    {"bootstrap_port": 65535},
    {"dp_rank": 1, "dp_size": 2},
    {"labels": {"k" * 128: "v" * 512}},
    {"health": {"timeout": "300s", "check_interval": "0.1s", "drain_settle": "0s"}},
    {"resilience": {"max_attempts": 10, "jitter": 0, "backoff_multiplier": 1}},
    {"overload": {"token_usage": 1}},
    {"channel": {"connections": 1}},
    {"load_monitor_interval": "0.1s"},
    {"models": [{"id": "a", "aliases": ["b"]}, {"id": "c"}]},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_value_at_the_end_of_its_range_is_accepted(fields: dict[str, Any]) -> None:
    assert spec_from(**fields).url == "grpc://h:1"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"priority": 1001}, "spec.priority"),
    ({"cost": 0}, "spec.cost"),
    ({"cost": "NaN"}, "spec.cost"),
    ({"cost": "Infinity"}, "spec.cost"),
    ({"bootstrap_port": 0}, "spec.bootstrap_port"),
    ({"bootstrap_port": 65536}, "spec.bootstrap_port"),
    ({"bootstrap_host": ""}, "spec.bootstrap_host"),
    ({"dp_rank": 0}, "spec.dp_rank"),
    ({"dp_rank": 2, "dp_size": 2}, "spec.dp_rank"),
    ({"dp_size": 0}, "spec.dp_size"),
    ({"kv_block_size": 0}, "spec.kv_block_size"),
    ({"max_connection_attempts": 0}, "spec.max_connection_attempts"),
    ({"load_monitor_interval": "0.099s"}, "spec.load_monitor_interval"),
    ({"labels": {"": "v"}}, "spec.labels key"),
    ({"labels": {"k": "v" * 513}}, "spec.labels[k]"),
    ({"labels": {f"k{i}": "" for i in range(65)}}, "spec.labels"),
    ({"health": {"timeout": "0s"}}, "spec.health.timeout"),
    ({"health": {"timeout": "301s"}}, "spec.health.timeout"),
    ({"health": {"success_threshold": 0}}, "spec.health.success_threshold"),
    ({"resilience": {"max_attempts": 0}}, "spec.resilience.max_attempts"),
    ({"resilience": {"max_attempts": 11}}, "spec.resilience.max_attempts"),
    ({"resilience": {"jitter": 1.5}}, "spec.resilience.jitter"),
    ({"resilience": {"backoff_multiplier": 0.5}}, "spec.resilience.backoff_multiplier"),
    ({"overload": {"token_usage": 0}}, "spec.overload.token_usage"),
    ({"channel": {"max_message_bytes": "4294967296"}}, "spec.channel.max_message_bytes"),
    ({"worker_type": 99}, "spec.worker_type"),
    ({"models": [{"id": ""}]}, "spec.models[0].id"),
    ({"models": [{"id": "a"}, {"id": "b", "aliases": ["a"]}]}, "spec.models"),
    ({"models": [{"id": "a", "context_length": 0}]}, "spec.models[0].context_length"),
]


@pytest.mark.parametrize(("fields", "path"), REFUSED, ids=str)
def test_value_beyond_its_range_is_refused_by_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(TandemError) as caught:
        spec_from(**fields)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, path)


NOT_YET: list[tuple[dict[str, Any], str]] = [
    ({"agent": {"agent_id": "a"}}, "spec.agent"),
    ({"url": "http://h:1"}, "spec.connection_mode"),
    ({"connection_mode": "CONNECTION_MODE_HTTP"}, "spec.connection_mode"),
    ({"channel": {"connections": 2}}, "spec.channel.connections"),
    ({"channel": {"http_timeout": "1s"}}, "spec.channel.http_timeout"),
]


@pytest.mark.parametrize(("fields", "path"), NOT_YET, ids=str)
def test_what_is_not_carried_out_is_refused_by_path(fields: dict[str, Any], path: str) -> None:
    message = worker_spec_pb2.WorkerSpec()
    json_format.ParseDict(fields if "agent" in fields else {"url": "grpc://h:1"} | fields, message)
    with pytest.raises(TandemError) as caught:
        spec_of(message)
    assert (caught.value.reason, caught.value.field) == (Reason.FEATURE_NOT_IMPLEMENTED, path)


def test_spec_without_endpoint_is_refused() -> None:
    with pytest.raises(TandemError) as caught:
        spec_of(worker_spec_pb2.WorkerSpec())
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_WORKER_URL, "spec.url")


def test_empty_credentials_are_none() -> None:
    assert credentials_of(worker_spec_pb2.WorkerCredentials()) is None


def test_api_key_is_kept_and_never_printed() -> None:
    credentials = credentials_of(worker_spec_pb2.WorkerCredentials(api_key="s3cret"))
    assert credentials is not None
    assert (credentials.api_key, "s3cret" in repr(credentials)) == ("s3cret", False)


def test_stated_tls_name_survives_and_an_empty_one_states_nothing() -> None:
    stated = WorkerSpec(url="grpcs://h:1", channel=ChannelOptions(tls_server_name="worker.test"))
    assert spec_of(spec_pb(stated)) == stated
    empty = worker_spec_pb2.WorkerSpec(url="grpcs://h:1", channel={"tls_server_name": ""})
    assert spec_of(empty).channel == ChannelOptions()


BAD_DEFAULTS: list[tuple[dict[str, object], str]] = [
    ({"temperature": -1}, "spec.models[0].default_sampling.temperature"),
    ({"seed": 7}, "spec.models[0].default_sampling.seed"),
    ({"stop": ["x"]}, "spec.models[0].default_sampling.stop"),
]


@pytest.mark.parametrize(("defaults", "path"), BAD_DEFAULTS, ids=str)
def test_a_models_default_that_is_none_is_refused_by_path(defaults: dict[str, object], path: str) -> None:
    message = json_format.ParseDict(
        {"url": "grpc://h:1", "models": [{"id": "m", "default_sampling": defaults}]}, worker_spec_pb2.WorkerSpec()
    )
    with pytest.raises(TandemError) as caught:
        spec_of(message)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, path)


IDLE: list[tuple[WorkerSpec, str]] = [
    (WorkerSpec("grpc://h:1", resilience=ResilienceOverrides(max_attempts=1)), "spec.resilience"),
    (WorkerSpec("grpc://h:1", overload=OverloadOverrides(token_usage=0.5)), "spec.overload"),
    (WorkerSpec("grpc://h:1", models=(ModelCard("m", tool_parser="x"),)), "spec.models[0].tool_parser"),
]


@pytest.mark.parametrize(("spec", "path"), IDLE, ids=[path for _, path in IDLE])
def test_field_that_nobody_reads_yet_is_refused_by_path(spec: WorkerSpec, path: str) -> None:
    with pytest.raises(TandemError) as caught:
        refuse_what_is_not_carried_out(spec)
    assert (caught.value.reason, caught.value.field) == (Reason.FEATURE_NOT_IMPLEMENTED, path)


@pytest.mark.parametrize("spec", [WorkerSpec("grpc://h:1"), WorkerSpec("grpc://h:1", priority=80, cost=2.0)])
def test_default_of_a_field_that_nobody_reads_yet_is_accepted(spec: WorkerSpec) -> None:
    refuse_what_is_not_carried_out(spec)
