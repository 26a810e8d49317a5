"""What a dialect fills in and what it keeps off the wire (numbers: smg, 13.1, conformance traps)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from legs import (
    AGGREGATE,
    FULL,
    HANDOFF_DECODE,
    HANDOFF_PREFILL,
    LIMITED,
    PARAMS,
    RENDEZVOUS_DECODE,
    RENDEZVOUS_PREFILL,
    ROOM,
    SEEDED,
    every_dialect,
    sampled,
)

from tandem_router.engines.contract import Dialect
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import AbortInTransfer, Rendezvous
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import WorkerFacts

SGLANG, VLLM = SglangDialect(), VllmDialect()


def refusal(dialect: Dialect, leg: LegRequest) -> Reason:
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(leg, None)
    return caught.value.reason


@every_dialect
@pytest.mark.parametrize("size", [None, 8], ids=["unknown", "small"])
@pytest.mark.parametrize("token", [-1, 2**32])
def test_token_of_no_vocabulary_never_reaches_an_engine(dialect: Dialect, token: int, size: int | None) -> None:
    facts = WorkerFacts(dialect.runtime_type, "m", vocab_size=size)
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(replace(LIMITED, token_ids=(1, token, 2)), facts)
    assert (caught.value.reason, caught.value.metadata) == (
        Reason.TOKEN_OUT_OF_VOCABULARY,
        {"token_id": str(token)},
    )


@pytest.mark.parametrize(("told", "refused"), [(511, None), (512, 512), (None, 700)])
def test_the_highest_id_is_not_looked_for_again_where_the_leg_tells_it(told: int | None, refused: int | None) -> None:
    facts = WorkerFacts(VLLM.runtime_type, "m", vocab_size=512)
    leg = replace(LIMITED, token_ids=(1, 700, 2), highest_token_id=told)
    if refused is None:
        assert VLLM.generate_request(leg, facts).tokenized.input_ids[1] == 700
        return
    with pytest.raises(TandemError) as caught:
        VLLM.generate_request(leg, facts)
    assert caught.value.metadata == {"token_id": str(refused)}


def test_trap_1_sglang_scalars_are_never_left_zero() -> None:
    params = SGLANG.generate_request(AGGREGATE, None).sampling_params
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty, params.n) == (1, 1, -1, 1, 1)


def test_trap_5_vllm_prefill_clears_what_could_end_it_early() -> None:
    params = VLLM.generate_request(replace(HANDOFF_PREFILL, sampling=FULL), None).sampling_params
    assert (
        list(params.stop),
        list(params.stop_token_ids),
        params.ignore_eos,
        params.max_tokens,
        params.min_tokens,
    ) == (
        [],
        [],
        True,
        1,
        0,
    )


def test_trap_6_vllm_prefill_makes_one_choice_whatever_n_is() -> None:
    assert VLLM.generate_request(sampled(HANDOFF_PREFILL, n=4), None).sampling_params.n == 1


def test_trap_11_room_above_int32_is_refused() -> None:
    leg = replace(RENDEZVOUS_DECODE, handoff=replace(ROOM, room=2**31))
    assert refusal(SGLANG, leg) is Reason.INTERNAL_ERROR


def test_trap_10_sglang_aborts_are_deferred_in_transfer() -> None:
    assert SGLANG.traits.abort_in_transfer is AbortInTransfer.DEFER


@pytest.mark.parametrize(("wanted", "asked"), [(0, 0), (1, 2), (19, 20), (20, 20)])
def test_vllm_is_asked_for_one_alternative_more_up_to_its_limit(wanted: int, asked: int) -> None:
    leg = replace(AGGREGATE, output_logprobs=True, prompt_logprobs=True, top_logprobs=wanted)
    params = VLLM.generate_request(leg, None).sampling_params
    assert (params.logprobs, params.prompt_logprobs) == (asked, asked)


def test_both_legs_of_a_rendezvous_get_the_same_room() -> None:
    legs = [SGLANG.generate_request(leg, None).disaggregated_params for leg in (RENDEZVOUS_PREFILL, RENDEZVOUS_DECODE)]
    assert legs[0] == legs[1]


def test_sglang_pair_leg_without_a_room_is_never_built() -> None:
    assert refusal(SGLANG, replace(RENDEZVOUS_DECODE, handoff=None)) is Reason.INTERNAL_ERROR


def test_sglang_pair_leg_without_a_bootstrap_host_is_never_built() -> None:
    assert refusal(SGLANG, replace(RENDEZVOUS_DECODE, handoff=Rendezvous("", 8998, 5000))) is Reason.INTERNAL_ERROR


def test_sglang_aggregated_leg_has_no_disaggregated_params() -> None:
    assert not SGLANG.generate_request(AGGREGATE, None).HasField("disaggregated_params")


def test_vllm_decode_gets_prefills_params_verbatim() -> None:
    assert VLLM.generate_request(HANDOFF_DECODE, None).kv_transfer_params_json == PARAMS


def test_vllm_prefill_asks_for_params() -> None:
    text = VLLM.generate_request(HANDOFF_PREFILL, None).kv_transfer_params_json
    assert json.loads(text) == {"do_remote_decode": True, "do_remote_prefill": False}


def test_handshake_of_the_other_engine_is_never_built() -> None:
    assert (refusal(SGLANG, HANDOFF_DECODE), refusal(VLLM, RENDEZVOUS_DECODE)) == (
        Reason.INTERNAL_ERROR,
        Reason.INTERNAL_ERROR,
    )


def test_sglang_refuses_a_seed_that_the_worker_does_not_declare() -> None:
    assert refusal(SGLANG, sampled(AGGREGATE, seed=1)) is Reason.RUNTIME_CANNOT_SEED


def test_sglang_needs_no_seed_at_temperature_zero() -> None:
    request = SGLANG.generate_request(sampled(AGGREGATE, seed=1, temperature=0.0), None)
    assert not request.sampling_params.HasField("custom_params")


def test_sglang_seed_travels_in_custom_params_where_declared() -> None:
    request = SGLANG.generate_request(sampled(AGGREGATE, seed=2**53), SEEDED)
    assert request.sampling_params.custom_params["sampling_seed"] == 2**53


@pytest.mark.parametrize(("dialect", "seed"), [(SGLANG, 2**53 + 1), (VLLM, 2**31)])
def test_seed_that_the_wire_would_change_is_refused(dialect: Dialect, seed: int) -> None:
    with pytest.raises(TandemError) as caught:
        dialect.generate_request(sampled(AGGREGATE, seed=seed), SEEDED)
    assert caught.value.field == "sampling.seed"


def test_vllm_temperature_zero_is_sent_with_presence() -> None:
    assert VLLM.generate_request(sampled(AGGREGATE, temperature=0.0), None).sampling_params.HasField("temperature")
