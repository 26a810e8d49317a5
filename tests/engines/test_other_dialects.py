"""What is peculiar to TensorRT-LLM, TokenSpeed and MLX."""

from __future__ import annotations

from dataclasses import replace

import pytest
from legs import (
    AGGREGATE,
    HANDOFF_DECODE,
    LIMITED,
    RENDEZVOUS_DECODE,
    RENDEZVOUS_PREFILL,
    sampled,
    tokenspeed_chunk,
    tokenspeed_complete,
    trtllm_complete,
)
from smg_grpc_proto.generated import mlx_engine_pb2 as mlx
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as tokenspeed
from smg_grpc_proto.generated import trtllm_service_pb2 as trtllm

from tandem_router.engines.mlx import MlxDialect
from tandem_router.engines.tokenspeed import TokenspeedDialect
from tandem_router.engines.trtllm import TrtllmDialect
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.stream import EngineEnd, FinishReason
from tandem_router.model.worker import WorkerFacts

TRTLLM, TOKENSPEED, MLX = TrtllmDialect(), TokenspeedDialect(), MlxDialect()
TINY = WorkerFacts(RuntimeType.MLX, "m", vocab_size=512, context_length=128)


def refusal(dialect: TrtllmDialect | TokenspeedDialect | MlxDialect, leg: LegRequest) -> TandemError:
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(leg, None)
    return caught.value


def test_pinned_trtllm_proto_returns_no_context_phase_params() -> None:
    fields = trtllm.GenerateComplete.DESCRIPTOR.fields
    found = [field.name for field in fields if "context_phase" in field.name or "disagg" in field.name]
    found += [field.name for field in fields if field.message_type is trtllm.ContextPhaseParams.DESCRIPTOR]
    assert not found, (
        f"GenerateComplete now has {found}: TensorRT-LLM can hand its KV cache over. Write the context_phase "
        "handshake, set disaggregated_params in engines/trtllm.py, let its facts name the handshake, and take "
        "RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS and this test away (DESIGN, section 4)."
    )


@pytest.mark.parametrize("leg", [RENDEZVOUS_DECODE, HANDOFF_DECODE], ids=["rendezvous", "handoff"])
def test_trtllm_refuses_pairs_with_the_reason_that_says_why(leg: LegRequest) -> None:
    assert refusal(TRTLLM, leg).reason is Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS


def test_trtllm_worker_cannot_be_one_of_a_pair() -> None:
    assert TRTLLM.facts(trtllm.GetModelInfoResponse(), trtllm.GetServerInfoResponse()).handshake is None


def test_trtllm_vocabulary_without_added_tokens_is_no_fact() -> None:
    model_info = trtllm.GetModelInfoResponse(model_id="/m", vocab_size=128000, max_seq_len=4096)
    facts = TRTLLM.facts(model_info, trtllm.GetServerInfoResponse(version="1.2"))
    assert (facts.vocab_size, facts.context_length, facts.version) == (None, 4096, "1.2")


def test_trtllm_is_never_told_to_make_no_tokens() -> None:
    assert refusal(TRTLLM, AGGREGATE).field == "sampling.max_tokens"
    assert TRTLLM.generate_request(AGGREGATE, TINY).max_tokens == 125


@pytest.mark.parametrize("status", ["", "Executor is unhealthy"])
def test_trtllm_health_is_its_status_text(status: str) -> None:
    with pytest.raises(Exception, match="not healthy"):
        TRTLLM.check_health(trtllm.HealthCheckResponse(status=status))


@pytest.mark.parametrize("name", ["legal", "0", "-1", "1.0", "²", str(2**63), "9" * 30])
def test_trtllm_adapter_that_is_no_task_id_is_refused(name: str) -> None:
    error = refusal(TRTLLM, replace(LIMITED, adapters=(AdapterUse(name),)))
    assert (error.reason, error.field) == (Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, "adapters[0].name")


def test_trtllm_adapter_is_its_task_id() -> None:
    request = TRTLLM.generate_request(replace(LIMITED, adapters=(AdapterUse(str(2**63 - 1)),)), None)
    assert request.lora_config.task_id == 2**63 - 1


def test_trtllm_stop_word_is_a_stop() -> None:
    item = TRTLLM.decoder(AGGREGATE).decode(trtllm_complete([1, 2], "stop_word"))
    assert isinstance(item, EngineEnd)
    assert item.reason is FinishReason.STOP


def test_trtllm_features_are_believed_where_it_lists_any() -> None:
    def facts(*features: str) -> WorkerFacts:
        return TRTLLM.facts(trtllm.GetModelInfoResponse(supported_features=features), trtllm.GetServerInfoResponse())

    assert [bool(one.constraints) for one in (facts(), facts("lora"), facts("guided_decoding"))] == [True, False, True]
    assert [one.applies_adapters for one in (facts(), facts("lora"))] == [False, True]


def test_tokenspeed_legs_meet_at_the_same_room() -> None:
    infos = [
        TOKENSPEED.generate_request(leg, None).kv_bootstrap_info for leg in (RENDEZVOUS_PREFILL, RENDEZVOUS_DECODE)
    ]
    assert infos[0] == infos[1]
    assert infos[0].bootstrap_room == 2**31 - 1


def test_tokenspeed_leaves_unstated_scalars_to_the_engine() -> None:
    params = TOKENSPEED.generate_request(AGGREGATE, None).sampling_params
    scalars = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "sampling_seed")
    assert not any(params.HasField(name) for name in scalars)


def test_tokenspeed_ids_are_never_trimmed() -> None:
    assert TOKENSPEED.generate_request(AGGREGATE, None).sampling_params.no_stop_trim


def test_tokenspeed_empty_first_chunk_says_nothing() -> None:
    decoder = TOKENSPEED.decoder(AGGREGATE)
    assert decoder.decode(tokenspeed_chunk([], 0)) is None
    assert decoder.decode(tokenspeed_complete([1], 1)) is not None


def test_tokenspeed_without_logprobs_is_not_asked_for_them() -> None:
    facts = TOKENSPEED.facts(tokenspeed.GetModelInfoResponse(), tokenspeed.GetServerInfoResponse())
    with pytest.raises(TandemError) as caught:
        TOKENSPEED.generate_request(replace(AGGREGATE, output_logprobs=True), facts)
    assert (caught.value.reason, caught.value.field) == (Reason.RUNTIME_CANNOT_CARRY_FIELD, "logprobs.output")


@pytest.mark.parametrize(
    ("leg", "code", "details", "reason"),
    [
        (AGGREGATE, Code.INTERNAL, "aborted", Reason.ENGINE_ABORTED),
        (AGGREGATE, Code.INTERNAL, "out of memory", Reason.ENGINE_ERROR),
        (RENDEZVOUS_DECODE, Code.INTERNAL, "Aborted: bootstrap of room 7 timed out", Reason.KV_TRANSFER_FAILED),
    ],
)
def test_tokenspeed_abort_is_told_from_an_error(leg: LegRequest, code: Code, details: str, reason: Reason) -> None:
    assert TOKENSPEED.status_failure(leg, code, details).reason is reason


def test_tokenspeed_prefill_worker_is_read() -> None:
    server_info = tokenspeed.GetServerInfoResponse(tokenspeed_version="0.3")
    server_info.start_time.FromSeconds(1_700_000_000)
    server_info.server_args.update(
        {
            "model": "/models/tiny",
            "dp_size": 2,
            "max_num_seqs": 64,
            "page_size": 64,
            "disaggregation_mode": "prefill",
            "disaggregation_bootstrap_port": 8998,
            "disaggregation_transfer_backend": "mooncake",
            "enable_output_logprobs": True,
        }
    )
    facts = TOKENSPEED.facts(tokenspeed.GetModelInfoResponse(max_context_length=4096), server_info)
    assert (facts.model_id, facts.dp_size, facts.max_running_requests, facts.kv_block_size) == (
        "/models/tiny",
        2,
        64,
        64,
    )
    assert (facts.handshake, facts.bootstrap, facts.disaggregation_mode, facts.kv_connector) == (
        HandshakeKind.RENDEZVOUS,
        BootstrapEndpoint("", 8998),
        WorkerType.PREFILL,
        "mooncake",
    )
    assert (facts.returns_logprobs, facts.load_balance_method) == (True, "follow_bootstrap_room")
    assert (facts.instance, facts.version) == ("2023-11-14T22:13:20Z", "0.3")


@pytest.mark.parametrize("mode", [WorkerType.PREFILL, WorkerType.DECODE])
def test_worker_of_a_pair_never_gets_a_request_alone(mode: WorkerType) -> None:
    with pytest.raises(TandemError) as caught:
        TOKENSPEED.generate_request(AGGREGATE, replace(TINY, disaggregation_mode=mode))
    assert caught.value.reason is Reason.INTERNAL_ERROR


@pytest.mark.parametrize(("asked", "sent"), [(None, 0), (-1, 0), (0, 0), (40, 40), (511, 511), (512, 0), (10**6, 0)])
def test_mlx_top_k_that_would_stop_its_thread_is_off(asked: int | None, sent: int) -> None:
    request = MLX.generate_request(sampled(AGGREGATE, top_k=asked), TINY)
    assert request.sampling_params.top_k == sent


def test_mlx_seed_without_effect_is_refused() -> None:
    assert refusal(MLX, sampled(AGGREGATE, seed=7)).reason is Reason.RUNTIME_CANNOT_SEED


def test_mlx_logprobs_of_the_token_alone_need_one_alternative() -> None:
    request = MLX.generate_request(replace(AGGREGATE, output_logprobs=True, top_logprobs=0), None)
    assert request.sampling_params.logprobs == 1


def test_mlx_neutral_repetition_penalty_is_not_computed() -> None:
    request = MLX.generate_request(sampled(AGGREGATE, repetition_penalty=1.0), None)
    assert request.sampling_params.repetition_penalty == 0.0


def test_mlx_worker_is_read() -> None:
    model_info = mlx.GetModelInfoResponse(
        model_path="/models/tiny",
        served_model_name="/models/tiny",
        max_context_length=4096,
        vocab_size=512,
        eos_token_ids=[2],
        is_generation=True,
    )
    server_info = mlx.GetServerInfoResponse(server_type="mlx-grpc", uptime_seconds=1.5)
    assert MLX.facts(model_info, server_info) == WorkerFacts(
        runtime_type=RuntimeType.MLX,
        model_id="/models/tiny",
        served_names=("/models/tiny",),
        context_length=4096,
        vocab_size=512,
        eos_token_ids=(2,),
        max_choices=1,
        returns_prompt_logprobs=False,
    )
    assert MLX.process_age_s(server_info) == 1.5
