"""The observer in whole simulated lives: it forgets everything, never fails, and changes nothing that happens."""

from __future__ import annotations

import pytest
from tests.telemetry.observing import Bench, bench

from tandem_router.core.relay_events import RequestAccepted, RequestRefused
from tandem_router.testing import simulation
from tandem_router.testing.harness import SimRuntime

SEEDS = range(12)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The runtime of every simulation in the test tells this bench too."""
    seen = bench()
    build = simulation.build_runtime

    def attach(*arguments: object) -> SimRuntime:
        runtime = build(*arguments)  # type: ignore[arg-type]
        runtime.trace.listeners.append(seen.observer.observe)
        runtime.relay.env.traces = seen.observer
        return runtime

    monkeypatch.setattr(simulation, "build_runtime", attach)
    return seen


def test_telemetry_remembers_nothing_of_a_life_that_is_over(observed: Bench) -> None:
    for seed in SEEDS:
        print(f"seed {seed}")
        simulation.simulate(seed)
        assert observed.observer.live == 0


def test_no_event_of_a_life_is_more_than_telemetry_can_take(observed: Bench) -> None:
    for seed in SEEDS:
        print(f"seed {seed}")
        simulation.simulate(seed)
    assert observed.observer.faults == 0


def test_every_call_of_a_life_is_counted_once(observed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[object] = []
    take = observed.observer.observe

    def note(event: object) -> None:
        came.extend([event] if isinstance(event, RequestAccepted | RequestRefused) else [])
        take(event)

    monkeypatch.setattr(observed.observer, "observe", note)
    for seed in SEEDS:
        print(f"seed {seed}")
        simulation.simulate(seed)
    assert sum(observed.points("tandem.requests").values()) == len(came)


def test_telemetry_changes_nothing_that_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [simulation.simulate(seed).digest for seed in range(4)]
    seen = bench()
    build = simulation.build_runtime

    def attach(*arguments: object) -> SimRuntime:
        runtime = build(*arguments)  # type: ignore[arg-type]
        runtime.trace.listeners.append(seen.observer.observe)
        return runtime

    monkeypatch.setattr(simulation, "build_runtime", attach)
    assert [simulation.simulate(seed).digest for seed in range(4)] == alone
