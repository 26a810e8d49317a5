"""The worker conformance suite: does an engine, or a pair of engines, do what the router relies on?

Public: the command `tandem conformance` is this code, and an engine's own CI can run it. Each check is one fact with a
name; what an engine precisely refuses is skipped, what is only a habit is noted, and only a broken promise fails.
"""

from tandem_router.testing.conformance.asking import Limits
from tandem_router.testing.conformance.engine_run import ENGINE_CHECKS, check_engine
from tandem_router.testing.conformance.pair_run import PAIR_CHECKS, check_pair
from tandem_router.testing.conformance.subject import Target
from tandem_router.testing.conformance.suite import Check, Choice, Report
from tandem_router.testing.conformance.verdict import Outcome, Verdict

__all__ = [
    "ENGINE_CHECKS",
    "PAIR_CHECKS",
    "Check",
    "Choice",
    "Limits",
    "Outcome",
    "Report",
    "Target",
    "Verdict",
    "check_engine",
    "check_pair",
]
