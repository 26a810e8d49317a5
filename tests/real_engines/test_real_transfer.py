"""KV really moves between two vLLMs: in their counters, in what wrong KV does, and with legs that leave meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import grpc
import pytest
from tests.e2e.processes import eventually
from tests.real_engines.direct import begin_decode, decode, prefill, transferred
from tests.real_engines.house import PAIR, System
from tests.real_engines.prompts import MAX_TOKENS, PROMPTS, encode, fair, fresh

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

BLOCK = 128
MB_OF_BLOCK = BLOCK * 3 * 2 * 64 * 4 / 2**20
"""Tokens, layers, keys and values, one KV head of 64, float32."""
LEAVING, SEED = 60, 1
LEASE_S = 30.0
"""For which a vLLM prefill worker keeps what nobody fetches (kv_lease_duration), renewed while a decode waits."""


def test_a_prompt_is_moved_whole_and_once(vllm_system: System) -> None:
    engine = vllm_system.engines["vllm-decode"]
    time.sleep(2.5)  # the log tells of transfers once a second
    number, moved_mb = transferred(engine)
    ids = fresh(1001, 3 * BLOCK)
    expected = fair(vllm_system.router, ids)
    answer = vllm_system.router.generate(
        vllm_system.router.request(token_ids=ids, model=PAIR, temperature=0.0, max_tokens=MAX_TOKENS)
    )
    assert answer.error is None, answer.error
    assert answer.tokens[0] == expected
    eventually(lambda: transferred(engine)[0] > number, within_s=10, what="decode counts the transfer")
    assert transferred(engine)[0] == number + 1
    assert transferred(engine)[1] - moved_mb == pytest.approx(3 * MB_OF_BLOCK, abs=0.002)
    assert "External prefix cache hit rate" in engine.log.read_text(errors="replace")


def test_a_prompt_that_prefill_has_seen_is_cached_there_and_says_so(vllm_system: System) -> None:
    ids = fresh(1002, 3 * BLOCK + 10)
    request = vllm_system.router.request(token_ids=ids, model=PAIR, temperature=0.0, max_tokens=4)
    first, second = (vllm_system.router.generate(request) for _ in range(2))
    assert first.finished is not None
    assert second.finished is not None
    assert first.finished.usage.cached_prompt_tokens < BLOCK
    assert second.finished.usage.cached_prompt_tokens == 3 * BLOCK
    assert first.tokens == second.tokens


def test_the_kv_of_another_prompt_changes_the_answer(vllm_system: System) -> None:
    """The negative control of every equality here: decode computes from what it is handed, not from the prompt."""
    source, target = vllm_system.engines["vllm-prefill"], vllm_system.engines["vllm-decode"]
    asked, other = PROMPTS["repeat"], encode("repeat “green” :")
    expected = fair(vllm_system.router, asked)
    own, foreign = prefill(source, asked), prefill(source, other)
    assert decode(target, asked, foreign) != expected
    assert decode(target, asked, own) == expected[:16]


def test_decode_legs_that_leave_in_the_handoff_harm_nobody(vllm_system: System) -> None:
    """Evidence for abort_in_transfer SAFE: a late write into blocks that are another's by now would change its answer.

    The decode worker has 64 blocks, of which 4 neighbours and 3 leavers hold most, so blocks change hands at once.
    """
    source, target = vllm_system.engines["vllm-prefill"], vllm_system.engines["vllm-decode"]
    router, chance = vllm_system.router, random.Random(SEED)
    prompts = [fresh(2000 + number, 4 * BLOCK + 50) for number in range(6)]
    expected = [fair(router, ids) for ids in prompts]
    is_over = threading.Event()
    wrong: list[object] = []
    served = Counter[str]()

    def neighbour(own: random.Random) -> None:
        while not is_over.is_set():
            which = own.randrange(len(prompts))
            request = router.request(token_ids=prompts[which], model=PAIR, temperature=0.0, max_tokens=MAX_TOKENS)
            answer = router.generate(request, timeout_s=90)
            served["neighbours"] += 1
            if answer.error is not None or answer.tokens[0] != expected[which]:
                wrong.append((which, answer.tokens, answer.error))

    def leave(own: random.Random, number: int) -> None:
        ids = fresh(3000 + number, 4 * BLOCK + 50)
        call = begin_decode(target, ids, prefill(source, ids))
        timer = threading.Timer(own.uniform(0.0, 0.15), call.cancel)
        timer.start()
        try:
            messages = sum(1 for _ in call)
            served["left too late"] += messages > 0
        except grpc.RpcError as error:
            served[f"left, {error.code().name}"] += 1
        timer.cancel()

    def leavers(own: random.Random, numbers: range) -> None:
        for number in numbers:
            leave(own, number)

    threads = [threading.Thread(target=neighbour, args=(random.Random(chance.random()),)) for _ in range(4)]
    leaving = [
        threading.Thread(target=leavers, args=(random.Random(chance.random()), range(LEAVING)[part::3]))
        for part in range(3)
    ]
    for thread in (*threads, *leaving):
        thread.start()
    for thread in leaving:
        thread.join()
    is_over.set()
    for thread in threads:
        thread.join()
    print(f"seed {SEED}: {dict(served)}, wrong answers: {len(wrong)}")
    assert wrong == []
    assert served["left, CANCELLED"] >= LEAVING // 2
    assert served["neighbours"] > 0
    for engine in (source, target):
        took_s = eventually(
            lambda engine=engine: engine.loads() == (0, 0, 0),  # type: ignore[misc]
            within_s=LEASE_S + 10,
            what=f"{engine.command.name} has its blocks back",
        )
        print(f"{engine.command.name} had its blocks back after {took_s:.1f} s")
    expired = source.log.read_text(errors="replace").count("Releasing expired KV blocks")
    print(f"prefill's leases that ran out, in all: {expired}; transfers in all: {transferred(target)}")
