"""Is a worker fit for new requests: consecutive probe results and broken connections, per worker and epoch.

    SERVING --failed--> SUSPECT --failed x threshold--> DOWN
       ^                   |                             | ok
       |<-------ok---------'                             v
       |<---ok x threshold-------------------------- RECOVERING --failed--> DOWN
    any --connection broke--> LOST --ok--> RECOVERING

One broken connection under a request or a probe is certain news and needs no threshold; probes that time out may be a
busy engine and do. Coming back from LOST means another life of the process: the runtime dials again, the epoch rises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from tandem_router.model.settings import HealthSettings
from tandem_router.model.spec import HealthOverrides

__all__ = ["TABLE", "Health", "HealthInput", "HealthPhase", "Move", "health_settings", "step"]


class HealthPhase(enum.StrEnum):
    """Where a worker's health is."""

    SERVING = "SERVING"
    SUSPECT = "SUSPECT"
    """Some probes failed, fewer than the threshold; still READY."""
    DOWN = "DOWN"
    LOST = "LOST"
    RECOVERING = "RECOVERING"
    """Some probes were good again, fewer than the threshold; not yet READY."""

    @property
    def is_ready(self) -> bool:
        """Whether a worker in this phase may get requests."""
        return self in (HealthPhase.SERVING, HealthPhase.SUSPECT)


class HealthInput(enum.StrEnum):
    """What was seen."""

    PROBE_OK = "PROBE_OK"
    PROBE_FAILED = "PROBE_FAILED"
    CONNECTION_LOST = "CONNECTION_LOST"


class Counting(enum.StrEnum):
    """What a move does to the count of equal results in a row."""

    CLEAR = "CLEAR"
    FAILURES = "FAILURES"
    SUCCESSES = "SUCCESSES"


@dataclass(frozen=True, slots=True)
class Move:
    """The phase after an input: `below` until the count reaches its threshold, `reached` then."""

    counting: Counting
    below: HealthPhase
    reached: HealthPhase


def _go(phase: HealthPhase) -> Move:
    return Move(Counting.CLEAR, phase, phase)


_P, _I = HealthPhase, HealthInput
_FAIL = Move(Counting.FAILURES, _P.SUSPECT, _P.DOWN)
_HEAL = Move(Counting.SUCCESSES, _P.RECOVERING, _P.SERVING)

TABLE: Mapping[tuple[HealthPhase, HealthInput], Move] = {
    (_P.SERVING, _I.PROBE_OK): _go(_P.SERVING),
    (_P.SERVING, _I.PROBE_FAILED): _FAIL,
    (_P.SERVING, _I.CONNECTION_LOST): _go(_P.LOST),
    (_P.SUSPECT, _I.PROBE_OK): _go(_P.SERVING),
    (_P.SUSPECT, _I.PROBE_FAILED): _FAIL,
    (_P.SUSPECT, _I.CONNECTION_LOST): _go(_P.LOST),
    (_P.DOWN, _I.PROBE_OK): _HEAL,
    (_P.DOWN, _I.PROBE_FAILED): _go(_P.DOWN),
    (_P.DOWN, _I.CONNECTION_LOST): _go(_P.LOST),
    (_P.LOST, _I.PROBE_OK): _HEAL,
    (_P.LOST, _I.PROBE_FAILED): _go(_P.LOST),
    (_P.LOST, _I.CONNECTION_LOST): _go(_P.LOST),
    (_P.RECOVERING, _I.PROBE_OK): _HEAL,
    (_P.RECOVERING, _I.PROBE_FAILED): _go(_P.DOWN),
    (_P.RECOVERING, _I.CONNECTION_LOST): _go(_P.LOST),
}
"""Total: every phase takes every input."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of one life of one worker. Inputs about another epoch must not be given to it."""

    epoch: int
    phase: HealthPhase = HealthPhase.SERVING
    count: int = 0
    """Equal results in a row that count towards the next threshold."""
    was_lost: bool = False
    """The connection broke since the worker last was SERVING: it comes back as another life."""


def step(health: Health, seen: HealthInput, epoch: int, settings: HealthSettings) -> Health:
    """The health after an input about `epoch`; unchanged when that epoch is not the present one (a late result)."""
    if epoch != health.epoch:
        return health
    move = TABLE[health.phase, seen]
    was_lost = health.was_lost or seen is HealthInput.CONNECTION_LOST
    if move.counting is Counting.CLEAR:
        return Health(epoch, move.below, 0, was_lost and move.below is not HealthPhase.SERVING)
    count = health.count + 1  # every change of phase has cleared it
    threshold = settings.failure_threshold if move.counting is Counting.FAILURES else settings.success_threshold
    if count < threshold:
        return Health(epoch, move.below, count, was_lost)
    return Health(epoch, move.reached, 0, was_lost)


def health_settings(defaults: HealthSettings, overrides: HealthOverrides) -> HealthSettings:
    """The settings of one worker: what its spec states, else the router's."""
    return HealthSettings(
        timeout_s=_or(overrides.timeout_s, defaults.timeout_s),
        check_interval_s=_or(overrides.check_interval_s, defaults.check_interval_s),
        success_threshold=int(_or(overrides.success_threshold, defaults.success_threshold)),
        failure_threshold=int(_or(overrides.failure_threshold, defaults.failure_threshold)),
    )


def _or(stated: float | None, default: float) -> float:
    return default if stated is None else stated
