"""Two workers are a pair only if everything that their KV cache depends on agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import worker

from tandem_router.errors import Reason
from tandem_router.model.pairing import HandshakeKind, KvRole
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.policies.compatibility import incompatibility

P, D = WorkerType.PREFILL, WorkerType.DECODE


def test_equal_workers_fit() -> None:
    assert incompatibility(worker(1, P), worker(2, D)) is None


@pytest.mark.parametrize(
    ("prefill", "decode", "named"),
    [
        ({"model_id": "other"}, {}, "different models"),
        ({"handshake": HandshakeKind.HANDOFF}, {}, "different handshakes"),
        ({"kv_connector": "nixl"}, {}, "kv_connector"),
        ({"kv_block_size": 32}, {}, "kv_block_size"),
        ({}, {"kv_dtype": "float16"}, "kv_dtype"),
        ({"kv_role": KvRole.CONSUMER}, {}, "does not produce"),
        ({}, {"kv_role": KvRole.PRODUCER}, "does not consume"),
        ({"bootstrap": None}, {}, "bootstrap"),
        ({"pairing_protocol": "a"}, {"pairing_protocol": "b"}, "pairing_protocol"),
        ({"dp_size": 2, "load_balance_method": "round_robin"}, {}, "follow_bootstrap_room"),
    ],
)
def test_what_differs_is_named(prefill: dict[str, Any], decode: dict[str, Any], named: str) -> None:
    clash = incompatibility(worker(1, P, **prefill), worker(2, D, **decode))
    assert clash is not None
    assert clash.reason is Reason.NO_COMPATIBLE_PAIR
    assert named in clash.sentence


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ({"kv_dtype": None}, {}),
        ({"kv_role": KvRole.PRODUCER}, {"kv_role": KvRole.CONSUMER}),
        ({"pairing_protocol": "a", "kv_dtype": "x"}, {"pairing_protocol": "a", "kv_dtype": "y"}),
        ({"dp_size": 2, "load_balance_method": "follow_bootstrap_room"}, {}),
    ],
)
def test_what_is_unknown_or_vouched_for_fits(prefill: dict[str, Any], decode: dict[str, Any]) -> None:
    assert incompatibility(worker(1, P, **prefill), worker(2, D, **decode)) is None


def test_trtllm_is_refused_for_what_its_protocol_does_not_return() -> None:
    trtllm: dict[str, Any] = {"handshake": None, "kv_connector": None, "runtime_type": RuntimeType.TRTLLM}
    clash = incompatibility(worker(1, P, **trtllm), worker(2, D, **trtllm))
    assert clash is not None
    assert clash.reason is Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS
    assert "context-phase parameters" in clash.sentence


@pytest.mark.parametrize("runtime_type", [RuntimeType.MLX, RuntimeType.VLLM, RuntimeType.EXTERNAL])
def test_an_engine_that_speaks_no_handshake_is_refused_with_a_sentence_that_is_true_of_it(
    runtime_type: RuntimeType,
) -> None:
    mute = worker(2, D, handshake=None, kv_connector=None, runtime_type=runtime_type)
    for clash in (incompatibility(worker(1, P), mute), incompatibility(replace(mute, id=worker(1, P).id), mute)):
        assert clash is not None
        assert clash.reason is Reason.NO_COMPATIBLE_PAIR
        assert "speaks no handshake" in clash.sentence
        assert "REGULAR" in clash.sentence
        assert "context" not in clash.sentence


MOONCAKE: dict[str, Any] = {
    "handshake": HandshakeKind.HANDOFF,
    "kv_connector": "MooncakeConnector",
    "kv_engine_id": "engine",
    "runtime_type": RuntimeType.VLLM,
}


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"kv_engine_id": None}, ("engine id is not known", "state kv_engine_id")),
        ({"bootstrap": None}, ("bootstrap endpoint is not known", "state bootstrap_host and bootstrap_port")),
    ],
    ids=["engine id", "bootstrap"],
)
def test_a_mooncake_prefill_that_decode_could_not_find_is_a_refusal_that_says_what_to_state(
    lacking: dict[str, Any], told: tuple[str, ...]
) -> None:
    clash = incompatibility(worker(1, P, **{**MOONCAKE, **lacking}), worker(2, D, **MOONCAKE))
    assert clash is not None
    assert clash.reason is Reason.NO_COMPATIBLE_PAIR
    assert all(part in clash.sentence for part in told)


def test_a_mooncake_decode_needs_neither_engine_id_nor_bootstrap() -> None:
    decode = worker(2, D, **{**MOONCAKE, "kv_engine_id": None, "bootstrap": None})
    assert incompatibility(worker(1, P, dp_size=4, **MOONCAKE), decode) is None


@pytest.mark.parametrize("method", [None, "round_robin", "total_tokens"])
def test_several_ranks_need_the_room_to_place_requests_unless_the_protocol_pins_the_rank(method: str | None) -> None:
    ranks: dict[str, Any] = {"dp_size": 4, "load_balance_method": method}
    sglang = incompatibility(worker(1, P, **ranks), worker(2, D))
    assert sglang is not None
    assert "follow_bootstrap_room" in sglang.sentence
    pins: dict[str, Any] = {"runtime_type": RuntimeType.TOKENSPEED}
    assert incompatibility(worker(1, P, **ranks, **pins), worker(2, D, **pins)) is None
