"""The table of a request's life: every state against every input."""

from __future__ import annotations

import itertools

import pytest

from tandem_engine.lifecycle import TRANSITIONS, RequestInput, RequestState
from tandem_engine.live import LiveRequest
from tandem_engine.requests import EngineError, EngineErrorReason, EngineRequest


class Nowhere:
    def emit(self, emission: object) -> None: ...
    def landed(self, pages: object) -> None: ...
    def held(self, held: object) -> None: ...
    def ended(self, reason: str) -> None: ...


@pytest.mark.parametrize(
    ("state", "happened"),
    list(itertools.product(RequestState, RequestInput)),
    ids=lambda member: member.value,
)
def test_an_input_moves_along_the_table_or_is_refused_without_effect(
    state: RequestState, happened: RequestInput
) -> None:
    live = LiveRequest(EngineRequest("r", (1,)), Nowhere(), rank=0, page_size=16, max_tokens=1, seed=0, stop_watches=())
    live.state = state
    expected = TRANSITIONS.get((state, happened))
    if expected is not None:
        assert live.step(happened) is expected
        return
    with pytest.raises(EngineError) as refused:
        live.step(happened)
    assert (refused.value.reason, live.state) == (EngineErrorReason.WRONG_STATE, state)


def test_every_state_can_reach_done() -> None:
    reaches = {RequestState.DONE}
    for _ in RequestState:
        reaches |= {state for (state, _), after in TRANSITIONS.items() if after in reaches}
    assert reaches == set(RequestState)


def test_nothing_leaves_done() -> None:
    assert not [state for state, _ in TRANSITIONS if state is RequestState.DONE]


def test_every_state_that_owns_something_can_fail() -> None:
    owning = set(RequestState) - {RequestState.DONE}
    assert {state for state, happened in TRANSITIONS if happened is RequestInput.FAILED} == owning
