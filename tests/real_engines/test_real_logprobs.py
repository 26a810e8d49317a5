"""Log probabilities of real engines are those of the reference engine, to what float32 sums in another order differ."""

from __future__ import annotations

import grpc
import pytest
from tests.real_engines.house import ALONE, PAIR, REFERENCE, System
from tests.real_engines.prompts import PROMPTS, chunks_of

from tandem.v1 import generate_result_pb2, sampling_pb2

pytestmark = pytest.mark.e2e

NEAR = 1e-3
TOP = 3
NAMES = ["count", "emoji", "three blocks"]


def of_answer(chunks: list[generate_result_pb2.Chunk]) -> list[generate_result_pb2.TokenLogprob]:
    return [one for chunk in chunks for one in chunk.logprobs]


def are_close(given: list[generate_result_pb2.TokenLogprob], expected: list[generate_result_pb2.TokenLogprob]) -> None:
    assert [one.token_id for one in given] == [one.token_id for one in expected]
    assert [one.HasField("logprob") for one in given] == [one.HasField("logprob") for one in expected]
    differences = [abs(a.logprob - b.logprob) for a, b in zip(given, expected, strict=True)]
    assert max(differences) <= NEAR


@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_the_answer_are_close(system: System, name: str, model: str) -> None:
    asked = {"output": True, "top": TOP}
    expected = of_answer(chunks_of(system.router, PROMPTS[name], REFERENCE, **asked))
    given = of_answer(chunks_of(system.router, PROMPTS[name], model, **asked))
    are_close(given, expected)
    for one, other in zip(given, expected, strict=True):
        tops = [top.logprob for top in one.top]
        assert len(tops) == TOP
        assert tops == sorted(tops, reverse=True)
        assert tops == pytest.approx([top.logprob for top in other.top], abs=NEAR)


@pytest.mark.vllm
@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_the_prompt_are_close_and_come_in_the_first_chunk(
    vllm_system: System, name: str, model: str
) -> None:
    router, ids = vllm_system.router, PROMPTS[name]
    expected = chunks_of(router, ids, REFERENCE, prompt=True)
    given = chunks_of(router, ids, model, prompt=True)
    are_close(list(given[0].prompt_logprobs), list(expected[0].prompt_logprobs))
    assert len(given[0].prompt_logprobs) == len(ids)
    assert not any(chunk.prompt_logprobs for chunk in given[1:])


@pytest.mark.mlx
def test_mlx_is_not_asked_for_log_probabilities_of_the_prompt(mlx_system: System) -> None:
    router = mlx_system.router
    request = router.request(token_ids=PROMPTS["count"], model=ALONE, temperature=0.0, max_tokens=4)
    request.logprobs.CopyFrom(sampling_pb2.LogprobOptions(prompt=True))
    answer = router.generate(request)
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert answer.error.details().startswith("RUNTIME_CANNOT_RETURN_PROMPT_LOGPROBS")
