"""A client that leaves while KV pages are on their way corrupts nobody, on an engine whose abort would."""

from __future__ import annotations

import grpc
import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, eventually, system
from tokenizers import Tokenizer

from tandem.v1 import generate_pb2, pair_pb2
from tandem_engine.demo import MODEL_DIR
from tandem_engine.demo.corpus import long_prompt

pytestmark = pytest.mark.e2e

TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
PER_PAGE = {"nanos": 10_000_000}
"""2,000 tokens are 125 pages: more than a second in transfer."""

BAD_PAGE = 20
"""So spoilt that whoever reads it says something else; it is written 0.2 s after the first."""
PER_STEP = {"nanos": 60_000_000}
"""Slow enough for the writer to get there while a neighbour is still reading."""
FEW_PAGES = "160"
"""Of which such a prompt needs 127: whoever comes next gets the pages of the one that left."""


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def prompt(seed: int) -> list[int]:
    return encode(long_prompt(2_000, 1_000, "the quick brown fox", encode, seed=seed).prompt)


def leave_in_transfer(router: RouterProcess, decode: EngineProcess, request: generate_pb2.GenerateRequest) -> None:
    """Begin a request and cancel it once some of its pages have arrived."""
    before = decode.ledger().pages_received
    call = router.router.Generate(request)
    eventually(lambda: decode.ledger().pages_received > before, within_s=10, what="the first page arrived")
    call.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.CANCELLED


def test_neighbours_of_a_cancelled_transfer_get_the_right_answer() -> None:
    with system("sglang", prefill=2, engine_flags=("--num-pages", FEW_PAGES)) as (router, [slow, quick], [decode]):
        ids = {engine.address: worker_id for worker_id, engine in router.engines.items()}

        def request(seed: int, prefill: EngineProcess) -> generate_pb2.GenerateRequest:
            asked = router.request(token_ids=prompt(seed), temperature=0.0, max_tokens=24)
            asked.target_prefill_worker.worker_id = ids[prefill.address]
            return asked

        right = router.generate(request(1, quick))
        assert right.error is None
        # The writer cannot be called back, as with memory that is written remotely.
        slow.set_faults(transfer_latency_per_page=PER_PAGE, corrupt_on_abort=True, flip_page=BAD_PAGE)
        decode.set_faults(corrupt_on_abort=True, step_latency=PER_STEP)
        leave_in_transfer(router, decode, request(2, slow))
        eventually(
            lambda: pair_pb2.PAIR_STATE_ABORTING in [pair.state for pair in router.live_pairs()],
            within_s=1,
            what="the cancelled pair lingers",
        )
        neighbour = router.generate(request(1, quick))
        assert neighbour.tokens == right.tokens
        eventually(lambda: all(engine.is_idle() for engine in (slow, quick, decode)), within_s=35, what="all are idle")
        assert router.live_pairs() == []
