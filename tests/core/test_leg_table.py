"""One leg: the table is total, closed legs stay closed, and open legs end."""

from __future__ import annotations

from itertools import product

import pytest

from tandem_router.core.leg import OPEN_STATES, TRANSITIONS, LegEffect, LegInput, step
from tandem_router.model.pairing import LegState

CELLS = list(product(LegState, LegInput))


def test_table_has_every_cell_and_no_other() -> None:
    assert set(TRANSITIONS) == set(CELLS)


@pytest.mark.parametrize("happened", LegInput)
def test_closed_leg_ignores_everything(happened: LegInput) -> None:
    assert step(LegState.CLOSED, happened) == (LegEffect.NONE, LegState.CLOSED)


@pytest.mark.parametrize(("state", "happened"), CELLS)
def test_an_ended_leg_never_opens_again(state: LegState, happened: LegInput) -> None:
    _, after = step(state, happened)
    if state not in OPEN_STATES:
        assert after not in OPEN_STATES


@pytest.mark.parametrize(("state", "happened"), CELLS)
def test_a_wire_cancel_goes_out_only_for_a_leg_that_is_on_the_wire(state: LegState, happened: LegInput) -> None:
    effect, _ = step(state, happened)
    if effect is LegEffect.CANCEL:
        assert state in (LegState.SENT, LegState.RUNNING, LegState.LINGERING)


@pytest.mark.parametrize("state", sorted(OPEN_STATES))
def test_abort_now_closes_every_open_leg(state: LegState) -> None:
    assert step(state, LegInput.ABORT)[1] is LegState.CLOSED


def test_deferred_abort_of_a_sent_leg_lingers_without_touching_the_wire() -> None:
    assert step(LegState.SENT, LegInput.ABORT_DEFERRED) == (LegEffect.LINGER, LegState.LINGERING)


@pytest.mark.parametrize("state", [LegState.SENT, LegState.RUNNING])
def test_a_leg_that_is_heard_out_is_asked_to_stop_and_drained(state: LegState) -> None:
    assert step(state, LegInput.ABORT_AND_DRAIN) == (LegEffect.ASK, LegState.LINGERING)


@pytest.mark.parametrize(
    ("happened", "effect"),
    [
        (LegInput.ITEM, LegEffect.CANCEL),
        (LegInput.GRACE_OVER, LegEffect.CANCEL),
        (LegInput.FINISHED, LegEffect.NONE),
        (LegInput.BROKEN, LegEffect.NONE),
    ],
)
def test_a_lingering_leg_ends_at_its_first_item_its_end_or_the_grace(happened: LegInput, effect: LegEffect) -> None:
    assert step(LegState.LINGERING, happened) == (effect, LegState.CLOSED)
