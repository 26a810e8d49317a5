"""KV and logits have the same bits under any batching, chunking and page placement."""

from __future__ import annotations

import numpy as np
import pytest
from engine_stepping import Rows, plain_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem_engine.model import Model


def tokens(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, 512, count)]


def same_bits(left: object, right: object) -> bool:
    return np.asarray(left).tobytes() == np.asarray(right).tobytes()


def alone(model: Model, sequence: list[int]) -> Rows:
    rows = Rows(model, [sequence])
    rows.step([(0, len(sequence))])
    return rows


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 64, 100, 256, 512])
def test_kv_and_logits_do_not_depend_on_the_chunk_size(model: Model, chunk: int) -> None:
    sequence = tokens(1, 530)
    whole = Rows(model, [sequence])
    expected = whole.step([(0, 530)])
    pieces = Rows(model, [sequence], page_seed=9)
    while pieces.done[0] < 530:
        logits = pieces.step([(0, min(chunk, 530 - pieces.done[0]))])
    assert same_bits(pieces.kv(0), whole.kv(0))
    assert same_bits(logits, expected)


@pytest.mark.parametrize("batch", [2, 15, 16, 17, 63])
def test_a_decoded_row_does_not_depend_on_its_neighbours_or_their_order(model: Model, batch: int) -> None:
    sequences = [tokens(seed, 3 + 11 * (seed % 13)) for seed in range(batch)]
    expected = [alone(model, sequence).kv(0) for sequence in sequences]
    rows = Rows(model, sequences)
    for index, sequence in enumerate(sequences):
        rows.step([(index, len(sequence) - 3)]) if len(sequence) > 3 else None
    rng = np.random.default_rng(batch)
    for _ in range(3):
        rows.step([(int(index), 1) for index in rng.permutation(batch)])
    assert [same_bits(rows.kv(index), expected[index]) for index in range(batch)] == [True] * batch


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    schedule=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 15)), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kv_bits_are_equal_under_any_schedule(
    model: Model, lengths: list[int], schedule: list[tuple[int, int]], seed: int
) -> None:
    sequences = [tokens(seed + index, length) for index, length in enumerate(lengths)]
    rows = Rows(model, sequences, page_seed=seed)
    turn = 0
    while any(done < length for done, length in zip(rows.done, lengths, strict=True)):
        size, mask = schedule[turn % len(schedule)]
        turn += 1
        parts = [
            (index, min(size, length - rows.done[index]))
            for index, length in enumerate(lengths)
            if rows.done[index] < length and (mask >> index & 1 or turn % 5 == 0)
        ]
        if parts:
            rows.step(parts if turn % 2 else parts[::-1])
    assert all(same_bits(rows.kv(index), alone(model, sequence).kv(0)) for index, sequence in enumerate(sequences))


def test_logits_agree_with_a_plain_float64_llama(model: Model) -> None:
    sequence = tokens(5, 90)
    assert np.abs(Rows(model, [sequence]).step([(0, 90)])[0] - plain_logits(model, sequence)[-1]).max() < 2e-4


def test_not_a_number_in_one_sequence_stays_out_of_its_neighbours(model: Model) -> None:
    sequences = [tokens(seed, 40) for seed in range(3)]
    rows = Rows(model, sequences)
    rows.step([(index, 39) for index in range(3)])
    rows.pages[rows.tables[1][0]] = np.nan
    logits = rows.step([(index, 1) for index in range(3)])
    assert np.isfinite(logits).all(axis=-1).tolist() == [True, False, True]


@pytest.mark.parametrize("position", [0, 15, 16, 33])
def test_one_flipped_bit_of_a_page_changes_the_logits(model: Model, position: int) -> None:
    sequence = tokens(3, 40)
    rows = Rows(model, [sequence, sequence])
    rows.step([(0, 39), (1, 39)])
    bits = rows.pages[rows.tables[1][position // 16]].view(np.uint32)
    bits[1, 1, 0, position % 16, 5] ^= np.uint32(1 << 22)
    left, right = rows.step([(0, 1), (1, 1)])
    assert not same_bits(left, right)
