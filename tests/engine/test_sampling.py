"""Choosing tokens: penalties, filters, and randomness that depends on seed, choice and position alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tandem_engine.philox import philox4x32, uniform
from tandem_engine.sampling import SamplingParams, log_softmax, sample

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], dtype=np.float32)


def choose(position: int = 0, *, logits: Any = LOGITS, output: tuple[int, ...] = (), **params: Any) -> int:
    found = sample(logits, SamplingParams(**params), seed=11, choice=0, position=position, prompt=(0, 1), output=output)
    assert found is not None
    return found.token_id


def drawn(count: int = 400, **params: Any) -> set[int]:
    return {choose(position, **params) for position in range(count)}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: Any, key: Any, expected: Any) -> None:
    assert philox4x32(counter, key) == expected


def test_uniform_numbers_are_spread_over_the_unit_interval() -> None:
    numbers = [uniform(5, position) for position in range(4000)]
    counts, _ = np.histogram(numbers, bins=8, range=(0.0, 1.0))
    assert counts.sum() == 4000
    assert counts.min() > 420


def test_seed_and_position_each_change_the_number() -> None:
    assert len({uniform(1, 0), uniform(2, 0), uniform(1, 1), uniform(1 << 40, 0)}) == 4


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": 1}])
def test_greedy_takes_the_best(params: dict[str, Any]) -> None:
    assert drawn(20, **params) == {1}


def test_equal_logits_go_to_the_lower_token() -> None:
    assert choose(logits=np.zeros(4, np.float32), temperature=0.0) == 0


def test_sampling_follows_the_distribution() -> None:
    counts = np.bincount([choose(position) for position in range(6000)], minlength=5) / 6000
    expected = np.exp(log_softmax(LOGITS))
    assert np.abs(counts - expected).max() < 0.02


def test_top_k_keeps_the_k_best() -> None:
    assert drawn(top_k=2) == {1, 4}


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    # Probabilities in order: 0.46 (1), 0.28 (4), 0.17 (2), ...
    assert (drawn(top_p=0.4), drawn(top_p=0.5)) == ({1}, {1, 4})


def test_min_p_drops_tokens_far_below_the_best() -> None:
    assert drawn(min_p=0.5) == {1, 4}


def test_presence_penalty_falls_on_output_tokens_only() -> None:
    assert (
        choose(temperature=0.0, presence_penalty=1.0),
        choose(temperature=0.0, presence_penalty=1.0, output=(1,)),
    ) == (1, 4)


def test_frequency_penalty_grows_with_the_count() -> None:
    once = choose(temperature=0.0, frequency_penalty=0.4, output=(1,))
    assert (once, choose(temperature=0.0, frequency_penalty=0.4, output=(1, 1))) == (1, 4)


def test_repetition_penalty_counts_the_prompt() -> None:
    assert choose(temperature=0.0, repetition_penalty=1.5) == 4


def test_logit_bias_moves_the_choice_and_not_the_reported_logprob() -> None:
    params = SamplingParams(temperature=0.0, logit_bias=((3, 50.0),), logprobs=2)
    found = sample(LOGITS, params, seed=0, choice=0, position=0, prompt=(), output=())
    assert found is not None
    assert (found.token_id, [token for token, _ in found.top]) == (3, [1, 4])
    assert found.logprob == pytest.approx(float(log_softmax(LOGITS)[3]))


def test_forbidden_tokens_are_not_chosen() -> None:
    found = sample(LOGITS, SamplingParams(top_k=1), seed=0, choice=0, position=0, prompt=(), output=(), forbidden=(1,))
    assert found is not None
    assert found.token_id == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_choose_nothing(bad: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    assert sample(logits, SamplingParams(), seed=0, choice=0, position=0, prompt=(), output=()) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", float("inf")),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("n", 0),
        ("n", 65),
        ("logprobs", 65),
        ("stop", ("",)),
        ("logit_bias", ((512, 1.0),)),
        ("logit_bias", ((0, float("nan")),)),
    ],
)
def test_an_unusable_parameter_is_named(field: str, value: Any) -> None:
    assert field in (SamplingParams(**{field: value}).problem(512) or "")


def test_defaults_are_usable() -> None:
    assert SamplingParams().problem(512) is None
