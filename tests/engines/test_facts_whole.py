"""All that an engine says, read whole: every fact of a worker whose engine fills in every field that is read."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tandem_router.engines.contract import Dialect
from tandem_router.engines.registry import dialect_of
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, KvRole
from tandem_router.model.request import ConstraintKind
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import WorkerFacts

DRAWN = "0b7c4c1e-7d9e-4a7e-9c39-0d6b8a5b8f10"
TAKEN = set(ConstraintKind) - {ConstraintKind.GBNF}
MODEL = {
    "model_path": "/models/tiny",
    "served_model_name": "tiny",
    "max_context_length": 4096,
    "vocab_size": 512,
    "eos_token_ids": [0, 7, 9],
}
DEFAULTS = {"default_sampling_params_json": '{"temperature": 0.6}'}
SAID: dict[RuntimeType, tuple[dict[str, Any], dict[str, Any]]] = {
    RuntimeType.VLLM: (
        MODEL | DEFAULTS | {"is_generation": True},
        {
            "uptime_seconds": 12.5,
            "kv_connector": "NixlConnector",
            "kv_role": "kv_consumer",
            "kv_engine_id": DRAWN,
            "data_parallel_size": 4,
            "kv_cache_dtype": "fp8",
            "block_size": 16,
            "pairing_protocol": "p1",
            "max_num_seqs": 64,
        },
    ),
    RuntimeType.MLX: (MODEL, {"uptime_seconds": 12.5}),
    RuntimeType.TRTLLM: (
        {
            "model_id": "tiny",
            "max_seq_len": 4096,
            "max_batch_size": 64,
            "vocab_size": 512,
            "supported_features": ["lora"],
        },
        {"version": "1.2.0"},
    ),
    RuntimeType.TOKENSPEED: (MODEL | DEFAULTS, {"uptime_seconds": 12.5, "tokenspeed_version": "0.3"}),
}
ARGS = {
    "disaggregation_mode": "prefill",
    "disaggregation_transfer_backend": "mooncake",
    "disaggregation_bootstrap_port": 9001,
    "max_num_seqs": 64,
    "dp_size": 2,
    "page_size": 16,
    "kv_cache_dtype": "fp8",
    "pairing_protocol": "p1",
    "enable_output_logprobs": True,
}
COMMON: dict[str, Any] = {
    "context_length": 4096,
    "vocab_size": 512,
    "eos_token_ids": (0, 7, 9),
    "served_names": ("tiny",),
}
PAIRED: dict[str, Any] = {
    "max_running_requests": 64,
    "kv_block_size": 16,
    "kv_dtype": "fp8",
    "pairing_protocol": "p1",
    "supports_seed": True,
    "publishes_kv_events": True,
    "flushes_cache": True,
    "profiles": True,
    "default_sampling": {"temperature": 0.6},
}
READ: dict[RuntimeType, dict[str, Any]] = {
    RuntimeType.VLLM: COMMON
    | PAIRED
    | {
        "dp_size": 4,
        "handshake": HandshakeKind.HANDOFF,
        "kv_connector": "NixlConnector",
        "kv_role": KvRole.CONSUMER,
        "kv_engine_id": DRAWN,
        "disaggregation_mode": WorkerType.DECODE,
        "max_greedy_choices": 1,
        "instance": DRAWN,
    },
    RuntimeType.MLX: COMMON | {"max_choices": 1, "returns_prompt_logprobs": False},
    RuntimeType.TRTLLM: {
        "context_length": 4096,
        "max_running_requests": 64,
        "supports_seed": True,
        "applies_adapters": True,
        "publishes_kv_events": True,
        "returns_prompt_logprobs": False,
        "version": "1.2.0",
    },
    RuntimeType.TOKENSPEED: COMMON
    | PAIRED
    | {
        "dp_size": 2,
        "handshake": HandshakeKind.RENDEZVOUS,
        "kv_connector": "mooncake",
        "bootstrap": BootstrapEndpoint("", 9001),
        "disaggregation_mode": WorkerType.PREFILL,
        "load_balance_method": "follow_bootstrap_room",
        "returns_logprobs": True,
        "returns_prompt_logprobs": False,
        "instance": "1970-01-01T00:00:07Z",
        "version": "0.3",
    },
}
TAKES = {
    RuntimeType.VLLM: TAKEN,
    RuntimeType.MLX: set[ConstraintKind](),
    RuntimeType.TRTLLM: set[ConstraintKind](),
    RuntimeType.TOKENSPEED: TAKEN - {ConstraintKind.CHOICE},
}


def answers(runtime: RuntimeType) -> tuple[Dialect, Any, Any]:
    dialect = dialect_of(runtime)
    assert dialect is not None
    model, server = SAID[runtime]
    model_info: Any = dialect.methods.model_info.response(**model)
    server_info: Any = dialect.methods.server_info.response(**server)
    if runtime is RuntimeType.TOKENSPEED:
        server_info.server_args.CopyFrom(ParseDict(ARGS, Struct()))
        server_info.start_time.CopyFrom(Timestamp(seconds=7))
    return dialect, model_info, server_info


@pytest.mark.parametrize("runtime", SAID)
def test_every_fact_is_read(runtime: RuntimeType) -> None:
    dialect, model_info, server_info = answers(runtime)
    found = dialect.facts(model_info, server_info)
    assert set(found.constraints) == TAKES[runtime]
    assert found == WorkerFacts(runtime, "tiny", constraints=found.constraints, **READ[runtime])


@pytest.mark.parametrize("runtime", SAID)
def test_age_of_the_process_is_told_where_the_engine_tells_it(runtime: RuntimeType) -> None:
    dialect, _, server_info = answers(runtime)
    assert dialect.process_age_s(server_info) == (None if runtime is RuntimeType.TRTLLM else 12.5)
    assert dialect.process_age_s(type(server_info)()) is None


@pytest.mark.parametrize("runtime", SAID)
def test_model_without_a_served_name_is_named_by_its_path_and_has_no_alias(runtime: RuntimeType) -> None:
    dialect, model_info, server_info = answers(runtime)
    if runtime is RuntimeType.TRTLLM:
        model_info.model_id = ""
    else:
        model_info.served_model_name = ""
    found = dialect.facts(model_info, server_info)
    assert (found.model_id, found.served_names) == ("unknown" if runtime is RuntimeType.TRTLLM else "/models/tiny", ())


@pytest.mark.parametrize("runtime", [RuntimeType.SGLANG, RuntimeType.VLLM, RuntimeType.TOKENSPEED])
def test_loads_of_all_ranks_are_asked_for_in_their_core_section(runtime: RuntimeType) -> None:
    dialect = dialect_of(runtime)
    assert dialect is not None
    request: Any = dialect.loads_request()
    assert (list(request.include), request.HasField("dp_rank")) == (["core"], False)
