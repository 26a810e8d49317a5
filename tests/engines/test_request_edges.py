"""Values at the edge of what an engine's request can say, and defaults that only the worker knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from legs import AGGREGATE, EMBED, LIMITED, every_dialect, mlx_complete, sampled

from tandem_router.engines.contract import Dialect
from tandem_router.engines.mlx import MlxDialect
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.tokenspeed import TokenspeedDialect
from tandem_router.engines.trtllm import TrtllmDialect
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.request import Sampling
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts


def params_of(dialect: Dialect, asked: Any, facts: WorkerFacts | None = None) -> Any:
    request: Any = dialect.generate_request(asked, facts)
    return getattr(request, "sampling_params", None) or request.sampling_config


@every_dialect
def test_workers_own_default_is_sent_where_nobody_stated_one_and_only_there(dialect: Dialect) -> None:
    facts = WorkerFacts(dialect.runtime_type, "m", default_sampling={"temperature": 0.5, "top_p": 0.25}, vocab_size=512)
    params = params_of(dialect, sampled(LIMITED, temperature=0.0), facts)
    assert (params.temperature, params.top_p) == (0.0, 0.25)


@pytest.mark.parametrize("dialect", [SglangDialect(), TokenspeedDialect()], ids=["sglang", "tokenspeed"])
@pytest.mark.parametrize(("asked", "sent"), [(0, -1), (-1, -1), (1, 1)])
def test_top_k_that_is_off_is_minus_one(dialect: Dialect, asked: int, sent: int) -> None:
    assert params_of(dialect, sampled(LIMITED, top_k=asked)).top_k == sent


@pytest.mark.parametrize("rank", [0, 1])
def test_sglang_is_told_the_rank_of_an_embedding(rank: int) -> None:
    embed = SglangDialect.embed
    request: Any = embed.request(replace(EMBED, dp_rank=rank), None)
    assert request.data_parallel_rank == rank


def test_mlx_is_never_asked_for_two_choices() -> None:
    with pytest.raises(TandemError) as caught:
        MlxDialect().generate_request(sampled(LIMITED, n=2), None)
    assert (caught.value.reason, caught.value.field) == (Reason.RUNTIME_CANNOT_CARRY_FIELD, "sampling.n")


@pytest.mark.parametrize("matched", [None, 0, 9])
def test_mlx_end_without_a_stop_token_is_told_from_token_0(matched: int | None) -> None:
    response: Any = mlx_complete([1], 1, "stop")
    if matched is not None:
        response.complete.matched_stop_token_id = matched
    end: Any = MlxDialect().decoder(AGGREGATE).decode(response)
    assert end.matched_stop == matched


@pytest.mark.parametrize(
    ("details", "reason"), [("Request Aborted", Reason.ENGINE_ABORTED), ("out of memory", Reason.ENGINE_ERROR)]
)
def test_tokenspeed_abort_is_told_by_its_words(details: str, reason: Reason) -> None:
    failure = TokenspeedDialect().status_failure(AGGREGATE, Code.INTERNAL, details)
    assert (failure.reason, failure.code) == (reason, Code.INTERNAL)


@pytest.mark.parametrize(("prompt", "left"), [(1, 9), (9, 1), (10, 1)])
def test_trtllm_is_told_what_is_left_of_the_context(prompt: int, left: int) -> None:
    facts = WorkerFacts(RuntimeType.TRTLLM, "m", context_length=10)
    leg = replace(AGGREGATE, token_ids=(1,) * prompt, sampling=Sampling())
    request: Any = TrtllmDialect().generate_request(leg, facts)
    assert request.max_tokens == left


def test_trtllm_of_unknown_context_has_to_be_told_how_many() -> None:
    with pytest.raises(TandemError) as caught:
        TrtllmDialect().generate_request(AGGREGATE, WorkerFacts(RuntimeType.TRTLLM, "m"))
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "sampling.max_tokens")
