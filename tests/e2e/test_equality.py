"""A pair answers exactly what a single worker answers, and every page that it needs is moved once and matters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, system
from tokenizers import Tokenizer

from tandem.v1 import kv_pb2
from tandem_engine.demo import MODEL_DIR
from tandem_engine.demo.corpus import long_prompt

pytestmark = pytest.mark.e2e

PAGE = 16
TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
QUOTE_AT = 1_900
MODEL = "tandem-demo"
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 1.0, "seed": 7}
HANDSHAKE = {"sglang": kv_pb2.HANDSHAKE_KIND_RENDEZVOUS, "vllm": kv_pb2.HANDSHAKE_KIND_HANDOFF}

Running = tuple[RouterProcess, EngineProcess, EngineProcess, str]


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


LONG = encode(long_prompt(2_000, QUOTE_AT, "blue river 42 hello", encode).prompt)


def prompt(length: int) -> list[int]:
    """A prompt of exactly that many tokens."""
    if length == len(LONG):
        return LONG
    counting = encode("count from 3 to 9:") + encode(" 3 4 5 6 7 8 9") * 3
    return counting[:length]


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with system(request.param, alone=True) as (router, [prefill], [decode]):
        yield router, prefill, decode, request.param


def books(engine: EngineProcess) -> tuple[int, int, int]:
    ledger = engine.ledger()
    return ledger.pages_sent, ledger.pages_received, ledger.recomputed_blocks


@pytest.mark.parametrize(
    ("length", "sampling", "n"), list(product([1, 15, 16, 17, 2_000], [GREEDY, SEEDED], [1, 2])), ids=str
)
def test_pair_equals_single_worker(running: Running, length: int, sampling: dict[str, float], n: int) -> None:
    router, prefill, decode, protocol = running
    ids = prompt(length)
    assert len(ids) == length
    asked = {**sampling, "n": n, "max_tokens": 24}
    alone = router.generate(router.request(token_ids=ids, model="alone", **asked))
    before_prefill, before_decode = books(prefill), books(decode)
    pair = router.generate(router.request(token_ids=ids, model=MODEL, **asked))
    assert alone.error is None
    assert pair.error is None
    assert alone.finished is not None
    assert pair.finished is not None
    assert alone.finished.served_by.handshake == kv_pb2.HANDSHAKE_KIND_AGGREGATE
    assert pair.finished.served_by.handshake == HANDSHAKE[protocol]
    assert pair.tokens == alone.tokens
    assert pair.texts == alone.texts
    assert sorted(pair.tokens) == list(range(n))
    sent = books(prefill)[0] - before_prefill[0]
    received = books(decode)[1] - before_decode[1]
    recomputed = books(decode)[2] - before_decode[2]
    assert (sent, received, recomputed) == (n * (length // PAGE), n * (length // PAGE), 0)


@pytest.mark.parametrize("page", [0, QUOTE_AT // PAGE])
def test_a_flipped_page_changes_the_answer_or_fails_it(running: Running, page: int) -> None:
    router, prefill, _, _ = running
    request = router.request(token_ids=LONG, model=MODEL, **GREEDY, max_tokens=24)
    right = router.generate(request)
    prefill.set_faults(flip_page=page)
    try:
        wrong = router.generate(request)
    finally:
        prefill.set_faults()
    assert right.error is None
    assert wrong.error is not None or wrong.tokens != right.tokens


@pytest.mark.parametrize("page", [0, QUOTE_AT // PAGE])
def test_a_dropped_page_fails_the_request_by_name(running: Running, page: int) -> None:
    router, prefill, _, _ = running
    request = router.request(token_ids=LONG, model=MODEL, **GREEDY, max_tokens=24)
    prefill.set_faults(drop_page=page)
    try:
        answer = router.generate(request)
    finally:
        prefill.set_faults()
    assert answer.error is not None
    assert answer.error.details().startswith("KV_TRANSFER_FAILED")
    assert router.generate(request).error is None


def test_engines_and_router_owe_nothing_in_the_end(running: Running) -> None:
    router, prefill, decode, _ = running
    assert prefill.is_idle()
    assert decode.is_idle()
    assert router.live_pairs() == []
