"""Seeds against the whole runtime. A failure names its seed; `make simulate` or the module itself repeats it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tandem_router.testing.scenario import MishapKind, draw_scenario
from tandem_router.testing.sim_loop import Order
from tandem_router.testing.simulation import simulate

SEEDS = 200
BATCH = 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_call_ends_right_and_nothing_is_left(first: int) -> None:
    for seed in range(first, first + BATCH):
        print(f"seed {seed}")
        simulate(seed)


def test_seeds_bring_what_befalls_ranks_adapters_and_held_blocks() -> None:
    kinds = {mishap.kind for seed in range(SEEDS) for mishap in draw_scenario(seed).mishaps}
    assert kinds == set(MishapKind)
    asked = [client.request for seed in range(SEEDS) for client in draw_scenario(seed).clients]
    assert {len(request.adapters) for request in asked} == {0, 1, 2}
    scripts = [machine.script for seed in range(SEEDS) for machine in draw_scenario(seed).machines]
    assert {script.max_choices for script in scripts} == {None, 1, 2}
    assert {script.max_greedy_choices for script in scripts} == {None, 1}


def test_the_order_of_asyncio_itself_is_good_too() -> None:
    for seed in range(BATCH):
        print(f"seed {seed}")
        simulate(seed, Order.FIFO)


def test_a_seed_gives_the_same_trace_twice_in_one_process() -> None:
    assert simulate(7).digest == simulate(7).digest


def test_different_seeds_give_different_traces() -> None:
    assert len({simulate(seed).digest for seed in range(5)}) == 5


def test_digests_do_not_depend_on_the_hash_seed() -> None:
    outputs = [_digests(hash_seed) for hash_seed in ("0", "12345")]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 21


def _digests(hash_seed: str) -> str:
    command = [sys.executable, "-m", "tandem_router.testing.simulation", "--seeds", "0:20", "--digests"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
