"""Real engines and the reference engine say the same: alone, and as a pair that hands KV over."""

from __future__ import annotations

import pytest
from tests.real_engines.house import ALONE, PAIR, System
from tests.real_engines.prompts import MAX_TOKENS, PROMPTS, fair

from tandem.v1 import generate_result_pb2, kv_pb2

pytestmark = pytest.mark.e2e

GREEDY = {"temperature": 0.0, "max_tokens": MAX_TOKENS}


@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_tokens_are_those_of_the_reference_engine(system: System, name: str, model: str) -> None:
    router, ids = system.router, PROMPTS[name]
    expected = fair(router, ids)
    answer = router.generate(router.request(token_ids=ids, model=model, **GREEDY))
    assert answer.error is None, answer.error
    assert answer.tokens[0] == expected
    assert answer.finished is not None
    usage = answer.finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(expected))
    is_pair = system.name == "vllm" and model == PAIR
    handshake = kv_pb2.HANDSHAKE_KIND_HANDOFF if is_pair else kv_pb2.HANDSHAKE_KIND_AGGREGATE
    assert answer.finished.served_by.handshake == handshake


@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("name", ["count", "emoji", "three blocks"])
def test_every_choice_of_a_greedy_request_is_the_same(system: System, name: str, model: str) -> None:
    router, ids = system.router, PROMPTS[name]
    expected = fair(router, ids)
    answer = router.generate(router.request(token_ids=ids, model=model, **GREEDY, n=2))
    assert answer.error is None, answer.error
    assert answer.tokens == {0: expected, 1: expected}
    assert answer.finished is not None
    assert answer.finished.usage.completion_tokens == 2 * len(expected)
    assert answer.finished.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_max_tokens_ends_the_answer_there(system: System, model: str, max_tokens: int) -> None:
    router, ids = system.router, PROMPTS["alphabet"]
    expected = fair(router, ids)[:max_tokens]
    answer = router.generate(router.request(token_ids=ids, model=model, temperature=0.0, max_tokens=max_tokens))
    assert answer.error is None, answer.error
    assert answer.tokens[0] == expected
    assert answer.finished is not None
    assert answer.finished.choices[0].reason == generate_result_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("model", [ALONE, PAIR])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_ends_the_answer_also_where_the_models_own_end_does_not(
    system: System, model: str, ignore_eos: bool
) -> None:
    router, ids = system.router, PROMPTS["count"]
    expected = fair(router, ids)
    stop = expected[3]
    asked = {**GREEDY, "stop_token_ids": [stop], "ignore_eos": ignore_eos}
    answer = router.generate(router.request(token_ids=ids, model=model, **asked))
    assert answer.error is None, answer.error
    assert answer.tokens[0] == expected[: expected.index(stop) + 1]
    assert answer.finished is not None
    [end] = answer.finished.choices
    assert (end.reason, end.stop_token_id) == (generate_result_pb2.FINISH_REASON_STOP, stop)


@pytest.mark.parametrize("model", [ALONE, PAIR])
def test_with_ignore_eos_the_answer_goes_on_behind_the_models_own_end(system: System, model: str) -> None:
    router, ids = system.router, PROMPTS["count"]
    expected = fair(router, ids)
    assert len(expected) < MAX_TOKENS
    answer = router.generate(router.request(token_ids=ids, model=model, **GREEDY, ignore_eos=True))
    assert answer.error is None, answer.error
    assert len(answer.tokens[0]) == MAX_TOKENS
    assert answer.tokens[0][: len(expected)] == expected
