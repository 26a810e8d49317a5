"""The health machine: every phase with every input, and the thresholds."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.health import TABLE, Health, HealthInput, HealthPhase, health_settings, step
from tandem_router.model.settings import HealthSettings
from tandem_router.model.spec import HealthOverrides

P, I = HealthPhase, HealthInput  # noqa: E741
SETTINGS = HealthSettings(success_threshold=2, failure_threshold=3)

AFTER_ONE = {
    (P.SERVING, I.PROBE_OK): P.SERVING,
    (P.SERVING, I.PROBE_FAILED): P.SUSPECT,
    (P.SERVING, I.CONNECTION_LOST): P.LOST,
    (P.SUSPECT, I.PROBE_OK): P.SERVING,
    (P.SUSPECT, I.PROBE_FAILED): P.SUSPECT,
    (P.SUSPECT, I.CONNECTION_LOST): P.LOST,
    (P.DOWN, I.PROBE_OK): P.RECOVERING,
    (P.DOWN, I.PROBE_FAILED): P.DOWN,
    (P.DOWN, I.CONNECTION_LOST): P.LOST,
    (P.LOST, I.PROBE_OK): P.RECOVERING,
    (P.LOST, I.PROBE_FAILED): P.LOST,
    (P.LOST, I.CONNECTION_LOST): P.LOST,
    (P.RECOVERING, I.PROBE_OK): P.SERVING,
    (P.RECOVERING, I.PROBE_FAILED): P.DOWN,
    (P.RECOVERING, I.CONNECTION_LOST): P.LOST,
}


def test_the_table_is_total() -> None:
    assert set(TABLE) == set(product(HealthPhase, HealthInput))


@pytest.mark.parametrize(("phase", "seen"), list(product(HealthPhase, HealthInput)))
def test_every_phase_takes_every_input(phase: HealthPhase, seen: HealthInput) -> None:
    count = 1 if phase in (P.SUSPECT, P.RECOVERING) else 0
    assert step(Health(1, phase, count), seen, 1, SETTINGS).phase is AFTER_ONE[phase, seen]


@pytest.mark.parametrize(("phase", "seen"), list(product(HealthPhase, HealthInput)))
def test_an_input_of_another_epoch_changes_nothing(phase: HealthPhase, seen: HealthInput) -> None:
    health = Health(2, phase, 0)
    assert step(health, seen, 1, SETTINGS) is health
    assert step(health, seen, 3, SETTINGS) is health


@given(st.integers(1, 6), st.integers(1, 6))
def test_readiness_ends_at_exactly_the_failure_threshold_and_returns_at_the_success_threshold(
    failures: int, successes: int
) -> None:
    settings = HealthSettings(failure_threshold=failures, success_threshold=successes)
    health = Health(1)
    for number in range(1, failures + 1):
        health = step(health, I.PROBE_FAILED, 1, settings)
        assert health.phase.is_ready is (number < failures)
    for number in range(1, successes + 1):
        health = step(health, I.PROBE_OK, 1, settings)
        assert health.phase.is_ready is (number == successes)


def test_results_in_a_row_start_over_after_the_other_result() -> None:
    health = Health(1)
    for seen in (I.PROBE_FAILED, I.PROBE_FAILED, I.PROBE_OK, I.PROBE_FAILED, I.PROBE_FAILED):
        health = step(health, seen, 1, SETTINGS)
    assert health.phase is P.SUSPECT


@given(st.lists(st.sampled_from(HealthInput), max_size=30))
def test_a_broken_connection_is_remembered_until_the_worker_serves_again(inputs: list[HealthInput]) -> None:
    health, lost = Health(1), False
    for seen in inputs:
        before, health = health, step(health, seen, 1, SETTINGS)
        lost = lost or seen is I.CONNECTION_LOST
        assert health.was_lost is lost
        if health.phase is P.SERVING and before.phase is P.RECOVERING:
            health, lost = Health(1), False  # what the runtime does: the next life begins


def test_what_the_spec_states_overrides_the_routers_settings_one_by_one() -> None:
    assert health_settings(HealthSettings(), HealthOverrides(timeout_s=1.0, failure_threshold=1)) == HealthSettings(
        timeout_s=1.0, failure_threshold=1
    )
