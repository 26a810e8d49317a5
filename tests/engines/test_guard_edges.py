"""The last guards before the wire, each at its edge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from legs import LIMITED, RENDEZVOUS_DECODE, every_dialect, sampled

from tandem_router.engines.contract import Dialect
from tandem_router.engines.guards import check_seed, default_sampling, engine_status_failure
from tandem_router.engines.registry import dialect_of
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.pairing import Rendezvous
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts


def built(dialect: Dialect, leg: Any, facts: WorkerFacts | None) -> Any:
    try:
        return dialect.generate_request(leg, facts)
    except TandemError as error:
        return error.reason, error.field


@every_dialect
@pytest.mark.parametrize("size", [None, 8], ids=["unknown", "small"])
def test_negative_biased_token_never_reaches_an_engine(dialect: Dialect, size: int | None) -> None:
    facts = WorkerFacts(dialect.runtime_type, "m", vocab_size=size)
    told = built(dialect, sampled(LIMITED, logit_bias={-1: 1.0, 3: 1.0}), facts)
    assert told == (Reason.TOKEN_OUT_OF_VOCABULARY, "sampling.logit_bias")


@every_dialect
def test_first_and_last_token_of_the_vocabulary_may_be_biased(dialect: Dialect) -> None:
    facts = WorkerFacts(dialect.runtime_type, "m", vocab_size=8)
    told = built(dialect, sampled(LIMITED, logit_bias={0: 1.0, 7: 1.0}), facts)
    if not isinstance(told, tuple):
        params = getattr(told, "sampling_params", None) or told.sampling_config
        assert {int(token): bias for token, bias in params.logit_bias.items()} == {0: 1.0, 7: 1.0}
    else:
        assert told == (Reason.RUNTIME_CANNOT_CARRY_FIELD, "sampling.logit_bias")


@pytest.mark.parametrize(("seed", "fits"), [(-4, False), (-3, True), (3, True), (4, False)])
def test_seed_fits_up_to_the_edges_of_the_wire(seed: int, fits: bool) -> None:
    if fits:
        check_seed(seed, -3, 3, "it")
        return
    with pytest.raises(TandemError, match=f"not {seed}"):
        check_seed(seed, -3, 3, "it")


@pytest.mark.parametrize(
    ("runtime", "seed"),
    [
        (RuntimeType.VLLM, 2**31 - 1),
        (RuntimeType.TRTLLM, 2**64 - 1),
        (RuntimeType.TOKENSPEED, 2**64 - 1),
        (RuntimeType.VLLM, 0),
        (RuntimeType.TRTLLM, 0),
        (RuntimeType.TOKENSPEED, 0),
    ],
)
def test_least_and_greatest_seed_arrive(runtime: RuntimeType, seed: int) -> None:
    dialect = dialect_of(runtime)
    assert dialect is not None
    request: Any = dialect.generate_request(sampled(LIMITED, seed=seed), None)
    params = getattr(request, "sampling_params", None) or request.sampling_config
    [name] = [name for name in ("seed", "sampling_seed") if name in params.DESCRIPTOR.fields_by_name]
    assert (params.HasField(name), getattr(params, name)) == (True, seed)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("data_parallel_rank 1 is out of range [0, 1).", Reason.ENGINE_ERROR),
        ("dp_rank must be in [0, 1)", Reason.ENGINE_ERROR),
        ("routed_dp_rank=3 out of range", Reason.ENGINE_ERROR),
        ("kv_transfer_params_json must be a JSON object", Reason.ENGINE_ERROR),
        ("bootstrap_room is required", Reason.ENGINE_ERROR),
        ("grpc://h:1: Embed answered INVALID_ARGUMENT: data_parallel_rank 1 is out of range", Reason.ENGINE_ERROR),
        ("grpc://h:1: Embed answered INVALID_ARGUMENT: no such key: dp_rank", Reason.INVALID_REQUEST),
        ("regex 'dp_rank (' does not compile", Reason.INVALID_REQUEST),
        ("top_p must be in (0, 1], got 2", Reason.INVALID_REQUEST),
    ],
)
@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE])
def test_a_client_is_not_blamed_for_what_the_router_chose(code: Code, words: str, reason: Reason) -> None:
    assert engine_status_failure(code, words).reason is reason


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.UNAVAILABLE])
def test_words_of_a_constraint_under_another_status_mean_nothing(code: Code) -> None:
    words = "the engine could not continue the request under its constraint: {"
    assert engine_status_failure(code, words).reason is not Reason.INVALID_REQUEST
    assert engine_status_failure(Code.FAILED_PRECONDITION, words).reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("", {}),
        ("[1]", {}),
        ("{", {}),
        ('{"temperature": true, "top_p": "1", "top_k": null, "min_p": NaN}', {}),
        ('{"a": 1e999, "b": -Infinity, "c": 2147483648, "d": 2147483647, "e": -2147483648}', {"d": 2147483647.0}),
        ('{"temperature": 0, "top_k": 20}', {"temperature": 0.0, "top_k": 20.0}),
    ],
)
def test_default_that_fits_no_field_is_not_said(text: str, known: dict[str, float]) -> None:
    assert default_sampling(text) == known


ROOMY = pytest.mark.parametrize("runtime", [RuntimeType.SGLANG, RuntimeType.TOKENSPEED])


def met(runtime: RuntimeType, meeting: Rendezvous) -> Any:
    dialect = dialect_of(runtime)
    assert dialect is not None
    leg = replace(RENDEZVOUS_DECODE, handoff=meeting)
    told = built(dialect, leg, None)
    return told if isinstance(told, tuple) else getattr(told, "disaggregated_params", None) or told.kv_bootstrap_info


@ROOMY
@pytest.mark.parametrize(
    ("host", "sent"),
    [("fd00::1", "[fd00::1]"), ("[fd00::1]", "[fd00::1]"), ("10.0.0.1", "10.0.0.1"), ("p0.example", "p0.example")],
)
def test_trap_3_ipv6_bootstrap_host_is_sent_in_brackets_once(runtime: RuntimeType, host: str, sent: str) -> None:
    found = met(runtime, Rendezvous(host, 65535, 1))
    assert (found.bootstrap_host, found.bootstrap_port, found.bootstrap_room) == (sent, 65535, 1)


@ROOMY
@pytest.mark.parametrize(
    ("host", "port", "room"), [("h", 0, 5), ("h", -1, 5), ("h", 65536, 5), ("", 1, 5), ("h", 1, 0), ("h", 1, 2**31)]
)
def test_meeting_at_no_place_is_never_sent(runtime: RuntimeType, host: str, port: int, room: int) -> None:
    assert met(runtime, Rendezvous(host, port, room)) == (Reason.INTERNAL_ERROR, None)


@ROOMY
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.INTERNAL, Reason.KV_TRANSFER_FAILED),
        (Code.ABORTED, Reason.KV_TRANSFER_FAILED),
        (Code.UNAVAILABLE, Reason.KV_TRANSFER_FAILED),
        (Code.UNKNOWN, Reason.KV_TRANSFER_FAILED),
        (Code.INVALID_ARGUMENT, Reason.INVALID_REQUEST),
        (Code.RESOURCE_EXHAUSTED, Reason.WORKER_REFUSED),
    ],
)
def test_request_or_queue_that_is_refused_is_no_failed_transfer_whatever_its_words(
    runtime: RuntimeType, code: Code, reason: Reason
) -> None:
    dialect = dialect_of(runtime)
    assert dialect is not None
    failure = dialect.status_failure(RENDEZVOUS_DECODE, code, "bootstrap of the KV transfer failed")
    assert (failure.reason, failure.code) == (reason, code)
