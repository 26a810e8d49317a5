"""A vLLM pair over Mooncake: the router names the transfer, and decode finds prefill by its engine id."""

from __future__ import annotations

import pytest
from tests.e2e.processes import eventually
from tests.real_engines.direct import transferred
from tests.real_engines.house import PAIR, System
from tests.real_engines.prompts import MAX_TOKENS, PROMPTS, fair

from tandem.v1 import kv_pb2

pytestmark = [pytest.mark.e2e, pytest.mark.mooncake]

GREEDY = {"temperature": 0.0, "max_tokens": MAX_TOKENS}


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_half_of_a_mooncake_pair_is_found_out_and_fits(mooncake_system: System, mode: str) -> None:
    worker = mooncake_system.worker(f"vllm-mooncake-{mode}")
    assert (worker.facts.kv_connector_name, worker.facts.kv_engine_id) == ("MooncakeConnector", f"mooncake-{mode}")
    [pairable] = [condition for condition in worker.conditions if condition.type == "PAIRABLE"]
    assert pairable.message.startswith("fits")


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_tokens_over_mooncake_are_those_of_the_reference_engine(mooncake_system: System, name: str) -> None:
    router, ids = mooncake_system.router, PROMPTS[name]
    answer = router.generate(router.request(token_ids=ids, model=PAIR, **GREEDY))
    assert answer.error is None, answer.error
    assert answer.tokens[0] == fair(router, ids)
    assert answer.finished is not None
    assert answer.finished.served_by.handshake == kv_pb2.HANDSHAKE_KIND_HANDOFF
    assert answer.finished.served_by.connector == kv_pb2.KV_CONNECTOR_MOONCAKE


def test_every_choice_has_a_transfer_of_its_own(mooncake_system: System) -> None:
    router, ids = mooncake_system.router, PROMPTS["count"]
    expected = fair(router, ids)
    answer = router.generate(router.request(token_ids=ids, model=PAIR, **GREEDY, n=2))
    assert answer.error is None, answer.error
    assert answer.tokens == {0: expected, 1: expected}


def test_what_was_moved_shows_in_the_engines_own_counters_and_nothing_is_left(mooncake_system: System) -> None:
    engine = mooncake_system.engines["vllm-mooncake-prefill"]
    eventually(lambda: transferred(engine)[0] > 0, within_s=10, what="prefill, which writes, counts transfers")
    eventually(mooncake_system.is_idle, within_s=5, what="nothing runs")
