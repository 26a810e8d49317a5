"""What the dialects read from an engine's own description."""

from __future__ import annotations

import math

import pytest
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, KvRole
from tandem_router.model.request import ConstraintKind
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import RankLoad, WorkerFacts

ENGINE_ID = "0b8e9a54-8a6d-4f0e-9d5f-0c8a3f1f7e11"
"""As vLLM draws one where the operator states none."""


def sglang_facts(**server_args: object) -> WorkerFacts:
    server_info = sglang.GetServerInfoResponse()
    server_info.server_args.update(server_args)
    model_info = sglang.GetModelInfoResponse(
        model_path="/models/tiny", served_model_name="tiny", vocab_size=512, is_generation=True
    )
    return SglangDialect().facts(model_info, server_info)


def vllm_facts(**server_info: object) -> WorkerFacts:
    model_info = vllm.GetModelInfoResponse(model_path="/models/tiny", served_model_name="tiny", max_context_length=64)
    return VllmDialect().facts(model_info, vllm.GetServerInfoResponse(**server_info))


def test_sglang_prefill_worker_is_read_whole() -> None:
    facts = sglang_facts(
        disaggregation_mode="prefill",
        disaggregation_bootstrap_port=9000,
        dp_size=2,
        page_size=16,
        kv_cache_dtype="auto",
        context_length=4096,
        max_running_requests=8,
        load_balance_method="follow_bootstrap_room",
        instance="i-1",
    )
    assert facts == WorkerFacts(
        runtime_type=RuntimeType.SGLANG,
        model_id="tiny",
        served_names=("tiny",),
        context_length=4096,
        vocab_size=512,
        max_running_requests=8,
        dp_size=2,
        handshake=HandshakeKind.RENDEZVOUS,
        kv_block_size=16,
        kv_dtype="auto",
        bootstrap=BootstrapEndpoint("", 9000),
        disaggregation_mode=WorkerType.PREFILL,
        load_balance_method="follow_bootstrap_room",
        constraints=(
            ConstraintKind.JSON_SCHEMA,
            ConstraintKind.REGEX,
            ConstraintKind.EBNF,
            ConstraintKind.STRUCTURAL_TAG,
        ),
        publishes_kv_events=True,
        flushes_cache=True,
        profiles=True,
        instance="i-1",
    )


def test_sglang_without_a_grammar_backend_takes_no_constraint() -> None:
    assert sglang_facts(grammar_backend="none").constraints == ()


def test_sglang_decode_worker_has_no_bootstrap_endpoint() -> None:
    assert sglang_facts(disaggregation_mode="decode", disaggregation_bootstrap_port=8998).bootstrap is None


def test_sglang_null_mode_is_no_leg() -> None:
    assert sglang_facts(disaggregation_mode="null").disaggregation_mode is None


def test_sglang_declares_seeds_by_its_own_key() -> None:
    assert sglang_facts(sampling_seed_in_custom_params=True).supports_seed


def test_sglang_supports_no_seed_by_itself() -> None:
    assert not sglang_facts().supports_seed


def test_odd_values_are_not_said() -> None:
    facts = sglang_facts(dp_size=None, page_size="sixteen", max_running_requests=None, served_model_name=7)
    assert (facts.dp_size, facts.kv_block_size, facts.max_running_requests) == (1, None, None)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan, 1e300, 0.5])
def test_one_odd_number_leaves_the_other_facts(odd: float) -> None:
    facts = sglang_facts(dp_size=odd, page_size=16)
    assert (facts.dp_size, facts.kv_block_size) == (1, 16)


def test_model_path_names_an_unnamed_model() -> None:
    facts = SglangDialect().facts(sglang.GetModelInfoResponse(model_path="/m"), sglang.GetServerInfoResponse())
    assert facts.model_id == "/m"


@pytest.mark.parametrize("name", ["serves_embeddings", "is_embedding"])
def test_sglang_that_says_so_embeds(name: str) -> None:
    assert (sglang_facts(**{name: True}).can_embed, sglang_facts(**{name: False}).can_embed) == (True, False)


@pytest.mark.parametrize("generates", [True, False])
def test_a_model_of_vllm_generates_or_embeds(generates: bool) -> None:
    facts = VllmDialect().facts(vllm.GetModelInfoResponse(is_generation=generates), vllm.GetServerInfoResponse())
    assert (facts.can_generate, facts.can_embed) == (generates, not generates)


@pytest.mark.parametrize(
    ("generates", "both", "embeds"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_an_engine_of_sglang_s_protocol_may_do_both(generates: bool, both: bool, embeds: bool) -> None:
    server_info = sglang.GetServerInfoResponse()
    server_info.server_args.update({"serves_embeddings": both, "is_embedding": not generates})
    facts = SglangDialect().facts(sglang.GetModelInfoResponse(is_generation=generates), server_info)
    assert (facts.can_generate, facts.can_embed) == (generates, embeds)


@pytest.mark.parametrize(
    ("args", "applies"),
    [
        ({}, False),
        ({"enable_lora": False}, False),
        ({"enable_lora": True}, True),
        ({"lora_paths": ["a=/a"]}, True),
        ({"lora_paths": {"a": "/a"}}, True),
        ({"lora_paths": []}, False),
        ({"lora_paths": {}}, False),
    ],
)
def test_sglang_applies_adapters_where_it_was_started_to(args: dict[str, object], applies: bool) -> None:
    assert sglang_facts(**args).applies_adapters is applies


def test_vllm_producer_is_a_prefill_worker() -> None:
    facts = vllm_facts(kv_role="kv_producer", kv_connector="NixlConnector", kv_engine_id=ENGINE_ID, block_size=16)
    assert (facts.kv_role, facts.disaggregation_mode, facts.kv_connector, facts.instance, facts.kv_block_size) == (
        KvRole.PRODUCER,
        WorkerType.PREFILL,
        "NixlConnector",
        ENGINE_ID,
        16,
    )


def test_vllm_engine_id_that_an_operator_chose_names_no_process() -> None:
    facts = vllm_facts(kv_connector="NixlConnector", kv_engine_id="prefill-0")
    assert (facts.kv_engine_id, facts.instance) == ("prefill-0", None)


def test_vllm_with_a_connector_hands_off() -> None:
    assert vllm_facts(kv_connector="NixlConnector").handshake is HandshakeKind.HANDOFF


def test_vllm_without_a_connector_cannot_be_paired() -> None:
    assert vllm_facts().handshake is None


def test_vllm_both_role_is_no_leg() -> None:
    assert vllm_facts(kv_role="kv_both").disaggregation_mode is None


def test_vllm_zeros_are_not_said() -> None:
    facts = vllm_facts()
    assert (facts.dp_size, facts.kv_block_size, facts.max_running_requests, facts.kv_connector) == (1, None, None, None)


def test_default_sampling_keeps_numbers_only() -> None:
    model_info = vllm.GetModelInfoResponse(default_sampling_params_json='{"temperature": 0.6, "stop": "x", "a": true}')
    assert VllmDialect().facts(model_info, vllm.GetServerInfoResponse()).default_sampling == {"temperature": 0.6}


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "1e400", "1e12", "1" + "0" * 400])
def test_default_that_no_request_could_carry_is_not_said(odd: str) -> None:
    text = f'{{"temperature": 0.6, "top_k": {odd}}}'
    model_info = vllm.GetModelInfoResponse(default_sampling_params_json=text)
    assert VllmDialect().facts(model_info, vllm.GetServerInfoResponse()).default_sampling == {"temperature": 0.6}


@pytest.mark.parametrize("broken", ["{", "[]", "7", "[" * 100_000], ids=["open", "list", "number", "deep"])
def test_broken_default_sampling_is_not_said(broken: str) -> None:
    model_info = vllm.GetModelInfoResponse(default_sampling_params_json=broken)
    assert VllmDialect().facts(model_info, vllm.GetServerInfoResponse()).default_sampling == {}


@pytest.mark.parametrize(
    ("ranks", "running"), [((0, 2, 3), [0]), ((1, 2), []), ((5,), [5]), ((2, 0, 1), [0, 1, 2]), ((0, 0), [0])]
)
def test_load_is_never_taken_for_another_ranks(ranks: tuple[int, ...], running: list[int]) -> None:
    response = vllm.GetLoadsResponse(loads=[vllm.SchedulerLoad(dp_rank=rank, num_running_reqs=rank) for rank in ranks])
    assert [load.running for load in VllmDialect().loads(response, 1.5)] == running


def test_loads_come_in_rank_order() -> None:
    response = sglang.GetLoadsResponse(
        loads=[
            sglang.SchedulerLoad(dp_rank=1, num_running_reqs=4),
            sglang.SchedulerLoad(dp_rank=0, num_waiting_reqs=2, num_used_tokens=30, max_total_num_tokens=100),
        ]
    )
    assert SglangDialect().loads(response, 1.5) == [RankLoad(0, 2, 30, 100, 1.5), RankLoad(4, 0, 0, 0, 1.5)]
