"""Why a simulated run is not good."""

from __future__ import annotations

__all__ = ["SimBudgetExceeded", "SimDeadlock", "SimError", "SimFault", "SimForbidden", "SimLeak"]


class SimError(Exception):
    """A simulated run that cannot be called good, whatever its main coroutine returned."""


class SimDeadlock(SimError):
    """Nothing is ready and no timer is set, but the main coroutine has not ended: all wait for each other."""


class SimBudgetExceeded(SimError):
    """The run took more steps or more virtual seconds than it was given."""


class SimLeak(SimError):
    """Tasks were still alive after the main coroutine had ended and everything ready had run."""


class SimFault(SimError):
    """Exceptions that nobody awaited: each would have been a line in a log, and the run would have looked good."""


class SimForbidden(RuntimeError):
    """A thread or a socket was asked for; neither can be repeated."""
