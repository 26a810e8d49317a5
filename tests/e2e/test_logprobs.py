"""Log probabilities over a pair and alone are those of the engine asked directly, prompt and answer alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import grpc
import pytest
from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)
from tests.e2e.processes import RouterProcess, system
from tokenizers import Tokenizer

from tandem.v1 import generate_pb2, generate_result_pb2
from tandem_engine.demo import MODEL_DIR

pytestmark = pytest.mark.e2e

TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
PROMPT = list(TOKENIZER.encode("count from 20 to 30:", add_special_tokens=False).ids)
WAYS = ["tandem-demo", "alone"]
MAX_TOKENS, TOP = 12, 3

Row = tuple[int, float | None, tuple[tuple[int, float], ...]]
Running = tuple[RouterProcess, list[Row], list[Row]]


def rows(logprobs: list[generate_result_pb2.TokenLogprob]) -> list[Row]:
    return [
        (
            one.token_id,
            one.logprob if one.HasField("logprob") else None,
            tuple((top.token_id, top.logprob) for top in one.top),
        )
        for one in logprobs
    ]


def output_rows(proto: object) -> list[Row]:
    tops = [tuple(zip(top.token_ids, top.values, strict=True)) for top in proto.top_logprobs]  # type: ignore[attr-defined]
    return list(zip(proto.token_ids, proto.token_logprobs, tops, strict=True))  # type: ignore[attr-defined]


def input_rows(proto: object) -> list[Row]:
    values = [one.value if one.HasField("value") else None for one in proto.token_logprobs]  # type: ignore[attr-defined]
    return [(token, value, ()) for token, value in zip(proto.token_ids, values, strict=True)]  # type: ignore[attr-defined]


def ask_sglang(address: str) -> tuple[list[Row], list[Row]]:
    pb = sglang_scheduler_pb2
    request = pb.GenerateRequest(
        request_id="direct",
        tokenized=pb.TokenizedInput(input_ids=PROMPT),
        sampling_params=pb.SamplingParams(
            temperature=0, top_p=1, top_k=-1, repetition_penalty=1, n=1, max_new_tokens=MAX_TOKENS
        ),
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=TOP,
    )
    with grpc.insecure_channel(address) as channel:
        [response] = sglang_scheduler_pb2_grpc.SglangSchedulerStub(channel).Generate(request, timeout=30)
    return input_rows(response.complete.input_logprobs), output_rows(response.complete.output_logprobs)


def ask_vllm(address: str) -> tuple[list[Row], list[Row]]:
    pb = vllm_engine_pb2
    request = pb.GenerateRequest(
        request_id="direct",
        tokenized=pb.TokenizedInput(input_ids=PROMPT),
        sampling_params=pb.SamplingParams(
            temperature=0, top_p=1, repetition_penalty=1, n=1, max_tokens=MAX_TOKENS, logprobs=TOP, prompt_logprobs=TOP
        ),
    )
    with grpc.insecure_channel(address) as channel:
        [response] = vllm_engine_pb2_grpc.VllmEngineStub(channel).Generate(request, timeout=30)
    return input_rows(response.complete.input_logprobs), output_rows(response.complete.output_logprobs)


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with system(request.param, alone=True) as (router, _, _):
        alone = next(engine for engine in router.engines.values() if engine.mode == "aggregated")
        prompt, output = (ask_sglang if request.param == "sglang" else ask_vllm)(alone.address)
        assert (len(prompt), len(output)) == (len(PROMPT), MAX_TOKENS)
        yield router, prompt, output


def request_of(router: RouterProcess, model: str, **logprobs: int) -> generate_pb2.GenerateRequest:
    request = router.request(token_ids=PROMPT, model=model, temperature=0.0, max_tokens=MAX_TOKENS)
    request.logprobs.CopyFrom(generate_pb2.GenerateRequest(logprobs=logprobs).logprobs)
    return request


def chunks(router: RouterProcess, request: generate_pb2.GenerateRequest) -> list[generate_result_pb2.Chunk]:
    return [r.chunk for r in router.router.Generate(request, timeout=60) if r.WhichOneof("event") == "chunk"]


OUTPUTS = [generate_pb2.OUTPUT_MODE_TOKENS, generate_pb2.OUTPUT_MODE_TEXT, generate_pb2.OUTPUT_MODE_BOTH]


@pytest.mark.parametrize(("model", "output"), list(product(WAYS, OUTPUTS)))
def test_output_logprobs_are_the_engines_own(running: Running, model: str, output: int) -> None:
    router, _, expected = running
    request = request_of(router, model, output=True, top=TOP)
    request.output = output
    given = [one for chunk in chunks(router, request) for one in chunk.logprobs]
    assert rows(given) == expected


@pytest.mark.parametrize(("model", "start"), list(product(WAYS, [0, 1, len(PROMPT) - 1])))
def test_prompt_logprobs_are_the_engines_own_and_come_in_the_first_chunk(
    running: Running, model: str, start: int
) -> None:
    router, expected, _ = running
    first, *others = chunks(router, request_of(router, model, prompt=True, prompt_start=start))
    assert rows(list(first.prompt_logprobs)) == expected[start:]
    assert not any(chunk.prompt_logprobs or chunk.logprobs for chunk in (first, *others)[1:])


@pytest.mark.parametrize("model", WAYS)
def test_logprobs_of_prompt_and_answer_come_together(running: Running, model: str) -> None:
    router, prompt, output = running
    given = chunks(router, request_of(router, model, prompt=True, output=True, top=TOP))
    assert [row[:2] for row in rows(list(given[0].prompt_logprobs))] == [row[:2] for row in prompt]
    assert rows([one for chunk in given for one in chunk.logprobs]) == output


@pytest.mark.parametrize("model", WAYS)
def test_prompt_logprobs_of_several_choices_come_once_with_the_first(running: Running, model: str) -> None:
    router, prompt, _ = running
    request = request_of(router, model, prompt=True)
    request.sampling.n = 2
    given = chunks(router, request)
    having = [chunk for chunk in given if chunk.prompt_logprobs]
    assert [chunk.index for chunk in having] == [0]
    assert len(having[0].prompt_logprobs) == len(prompt)


@pytest.mark.parametrize("model", WAYS)
def test_a_stop_cuts_logprobs_where_it_cuts_tokens(running: Running, model: str) -> None:
    router, _, expected = running
    request = request_of(router, model, output=True, top=TOP)
    request.sampling.stop.append("22")
    given = chunks(router, request)
    count = sum(len(chunk.token_ids) for chunk in given)
    assert 0 < count < MAX_TOKENS
    assert rows([one for chunk in given for one in chunk.logprobs]) == expected[:count]


def test_nobody_holds_anything_in_the_end(running: Running) -> None:
    router, _, _ = running
    assert all(engine.is_idle() for engine in router.engines.values())
    assert router.live_pairs() == []


def test_prompt_logprobs_from_beyond_the_text_are_refused_by_path(running: Running) -> None:
    router, _, _ = running
    request = router.request(text="count from 20 to 30:", model="alone", temperature=0.0)
    request.logprobs.prompt = True
    request.logprobs.prompt_start = 1000
    answer = router.generate(request)
    assert answer.error is not None
    assert answer.error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "logprobs.prompt_start" in answer.error.details()
