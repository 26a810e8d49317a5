"""Two workers are a pair only if everything that their KV cache depends on agrees."""

from __future__ import annotations

from typing import Any

import pytest
from tests.policies.fleet import worker

from tandem_router.errors import Reason
from tandem_router.model.pairing import HandshakeKind, KvRole
from tandem_router.model.spec import WorkerType
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


def test_a_protocol_without_a_handshake_is_refused_with_its_own_reason() -> None:
    clash = incompatibility(worker(1, P, handshake=None), worker(2, D, handshake=None))
    assert clash is not None
    assert clash.reason is Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS
