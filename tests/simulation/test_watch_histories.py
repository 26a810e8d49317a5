"""A thousand histories of watches, judged by a checker with a model of its own; and three broken ones, found out."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.simulation.watch_world import Fault, play

SEEDS = 1_000
BATCH = 250
PLANTED = 40


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_reader_misses_repeats_or_goes_back(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + BATCH):
        print(f"seed {seed}")
        outcome = play(seed)
        assert outcome.problems == [], f"seed {seed}: {outcome.problems}"
        counts.update(outcome.counts)
    print(f"seeds {first} to {first + BATCH - 1}: {dict(counts)}")
    # A batch in which one of these never happened has not tested it.
    kinds = ("left", "slow", "compacted", "SNAPSHOT", "SYNCED", "ADDED", "UPDATED", "REMOVED", "PROGRESS")
    assert [kind for kind in kinds if counts[kind] < 10] == []


@pytest.mark.parametrize("fault", list(Fault))
def test_a_broken_watch_is_found_out(fault: Fault) -> None:
    planted = 0
    for seed in range(PLANTED):
        print(f"seed {seed}")
        outcome = play(seed, fault)
        planted += outcome.is_planted
        assert bool(outcome.problems) == outcome.is_planted, f"seed {seed}: {outcome}"
    print(f"{fault}: planted in {planted} of {PLANTED} histories")
    assert planted > PLANTED // 2
