"""The pair: every cell of kind x legs x committed x ended x handle x input, against rules stated here independently."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from tandem_router.core.pair import Directive, Do, PairInput, PairMachine, shown_state
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, LegState, PairState

FAILURE = Failure(Reason.WORKER_LOST, "it is gone")
OPEN = {LegState.RESERVED, LegState.SENT, LegState.RUNNING, LegState.LINGERING}
ON_THE_WIRE = {LegState.SENT, LegState.RUNNING, LegState.LINGERING}
BREAKS = {PairInput.PREFILL_BROKEN, PairInput.DECODE_BROKEN, PairInput.DECODE_UNSENT}


def machine(
    kind: HandshakeKind,
    mode: AbortInTransfer,
    prefill: LegState,
    decode: LegState,
    *,
    is_committed: bool,
    is_ended: bool,
    has_handle: bool,
) -> PairMachine:
    pair = PairMachine(kind, mode)
    pair.prefill, pair.decode = prefill, decode
    pair.is_committed, pair.is_ended = is_committed, is_ended
    pair.failure = FAILURE if is_ended else None
    pair._has_handle = has_handle
    return pair


def cells() -> Iterator[tuple[PairMachine, PairMachine, PairInput, list[Directive]]]:
    """(before, after, input, directives) of every cell; before and after are separate machines."""
    flags = (False, True)
    for kind, mode, prefill, decode, committed, ended, handle, happened in product(
        HandshakeKind, AbortInTransfer, LegState, LegState, flags, flags, flags, PairInput
    ):
        if kind is HandshakeKind.AGGREGATE and prefill is not LegState.CLOSED:
            continue
        arguments = {"is_committed": committed, "is_ended": ended, "has_handle": handle}
        before = machine(kind, mode, prefill, decode, **arguments)
        after = machine(kind, mode, prefill, decode, **arguments)
        yield before, after, happened, after.step(happened, FAILURE)


CELLS = list(cells())


def legs(pair: PairMachine) -> tuple[tuple[LegRole, LegState], ...]:
    return ((LegRole.PREFILL, pair.prefill), (LegRole.DECODE, pair.decode))


def test_the_product_is_the_whole_product() -> None:
    inputs, states, flags, modes = len(PairInput), len(LegState), 8, 2
    assert len(CELLS) == modes * flags * inputs * (2 * states * states + states)


def test_every_cell_closes_a_leg_exactly_when_it_leaves_the_open_states() -> None:
    for before, after, happened, todo in CELLS:
        for (role, was), (_, now) in zip(legs(before), legs(after), strict=True):
            closes = todo.count(Directive(Do.CLOSE, role))
            reopened = happened is PairInput.DECODE_REPLACED and was is LegState.FAILED
            expected = int(was in OPEN and now not in OPEN)
            assert closes == expected or reopened, (before, happened, todo)


def test_every_cell_answers_the_client_once_when_it_ends_the_pair_and_never_again() -> None:
    for before, after, happened, todo in CELLS:
        answers = [directive.do for directive in todo if directive.do in (Do.FINISH, Do.FAIL)]
        assert len(answers) == int(after.is_ended and not before.is_ended), (before, happened, todo)


def test_every_cell_cancels_only_what_is_on_the_wire() -> None:
    for before, _, happened, todo in CELLS:
        for role, was in legs(before):
            if Directive(Do.CANCEL, role) in todo:
                assert was in ON_THE_WIRE, (before, happened, todo)


def test_ending_a_pair_leaves_no_leg_open_but_a_lingering_one() -> None:
    for before, after, happened, todo in CELLS:
        if after.is_ended and not before.is_ended:
            for role, now in legs(after):
                assert now not in OPEN - {LegState.LINGERING}, (before, happened, role, todo)


def test_before_the_commit_point_either_legs_failure_ends_both() -> None:
    for before, after, happened, todo in CELLS:
        if before.is_committed or before.is_ended or happened not in BREAKS:
            continue
        broken = before.prefill if happened is PairInput.PREFILL_BROKEN else before.decode
        moves_handle = Do.REPLACE_DECODE in [directive.do for directive in todo]
        if broken in OPEN and not moves_handle:
            assert after.is_ended, (before, happened, todo)
            assert todo[-1] == Directive(Do.FAIL, failure=FAILURE)


def test_after_the_commit_point_losing_prefill_is_noted_and_the_stream_goes_on() -> None:
    seen = 0
    for before, after, happened, todo in CELLS:
        if before.is_committed and not before.is_ended and happened is PairInput.PREFILL_BROKEN:
            assert not after.is_ended
            assert after.decode is before.decode
            if before.prefill in OPEN:
                seen += 1
                assert todo[-1] == Directive(Do.NOTE_PREFILL_LOST, LegRole.PREFILL, FAILURE)
    assert seen > 0


def test_a_decode_in_transfer_is_never_cancelled_at_once_where_that_corrupts() -> None:
    for before, after, happened, todo in CELLS:
        deferred = before.abort_in_transfer is AbortInTransfer.DEFER and before.kind is not HandshakeKind.AGGREGATE
        if deferred and before.decode is LegState.SENT:
            assert Directive(Do.CANCEL, LegRole.DECODE) not in todo, (before, happened, todo)
            if after.is_ended and not before.is_ended and after.decode in OPEN:
                assert Directive(Do.LINGER, LegRole.DECODE) in todo


def test_where_aborting_is_safe_nothing_of_decode_lingers() -> None:
    for before, after, happened, todo in CELLS:
        if before.abort_in_transfer is AbortInTransfer.SAFE and before.decode is not LegState.LINGERING:
            assert after.decode is not LegState.LINGERING, (before, happened, todo)


def test_commit_happens_once_and_only_by_decode() -> None:
    for before, after, happened, todo in CELLS:
        commits = [directive for directive in todo if directive.do is Do.COMMIT]
        assert len(commits) == int(after.is_committed and not before.is_committed), (before, happened, todo)
        if commits:
            assert happened in (PairInput.DECODE_ITEM, PairInput.DECODE_FINISHED)


def test_enough_ends_a_committed_pair_well_and_means_nothing_to_any_other() -> None:
    seen = 0
    for before, after, happened, todo in CELLS:
        if happened is not PairInput.DECODE_ENOUGH:
            continue
        if before.is_ended or not before.is_committed:
            assert (todo, after.state) == ([], before.state)
            continue
        seen += 1
        assert Directive(Do.FINISH) in todo
        assert after.failure is None
        if before.decode is LegState.RUNNING:
            assert Directive(Do.CANCEL, LegRole.DECODE) in todo
        assert Directive(Do.CANCEL, LegRole.PREFILL) not in todo or before.prefill is LegState.RUNNING
    assert seen > 0


def test_decode_of_a_handoff_is_sent_only_for_an_unused_handle() -> None:
    for before, _, happened, todo in CELLS:
        if before.kind is HandshakeKind.HANDOFF and Directive(Do.SEND, LegRole.DECODE) in todo:
            assert happened in (PairInput.PREFILL_FINISHED, PairInput.DECODE_REPLACED), (before, happened, todo)


def test_a_cell_that_ends_the_pair_gives_an_unused_handle_back() -> None:
    for before, after, happened, todo in CELLS:
        if before._has_handle and after.is_ended and not before.is_ended and Do.FAIL in [d.do for d in todo]:
            assert Directive(Do.RELEASE_HANDLE) in todo, (before, happened, todo)


def test_every_cell_has_a_shown_state() -> None:
    for _, after, _, _ in CELLS:
        state = after.state
        is_open = after.prefill in OPEN or after.decode in OPEN
        if after.is_ended:
            assert state is (PairState.ABORTING if is_open else state)
            assert state in (PairState.ABORTING, PairState.DONE, PairState.FAILED)
        else:
            assert state in (PairState.RESERVED, PairState.PREFILLING, PairState.DECODING)


@pytest.mark.parametrize(
    ("prefill", "decode", "committed", "shown"),
    [
        (LegState.RESERVED, LegState.RESERVED, False, PairState.RESERVED),
        (LegState.SENT, LegState.SENT, False, PairState.PREFILLING),
        (LegState.SENT, LegState.RESERVED, False, PairState.PREFILLING),
        (LegState.DONE, LegState.SENT, False, PairState.PREFILLING),
        (LegState.SENT, LegState.RUNNING, True, PairState.DECODING),
        (LegState.CLOSED, LegState.RESERVED, False, PairState.RESERVED),
    ],
)
def test_shown_state_of_a_live_pair(prefill: LegState, decode: LegState, committed: bool, shown: PairState) -> None:
    assert shown_state(prefill, decode, is_committed=committed, is_ended=False, failure=None) is shown


@pytest.mark.parametrize("happened", sorted(BREAKS | {PairInput.CANCEL}))
def test_a_bad_end_without_a_failure_is_a_fault_of_the_caller(happened: PairInput) -> None:
    with pytest.raises(ValueError, match="needs a failure"):
        PairMachine(HandshakeKind.RENDEZVOUS).step(happened)


def test_the_prefill_of_a_handoff_that_finishes_after_the_end_gives_its_handle_back() -> None:
    pair = PairMachine(HandshakeKind.HANDOFF)
    pair.step(PairInput.START)
    ended = pair.step(PairInput.CANCEL, FAILURE)
    assert [directive.do for directive in ended] == [Do.ASK, Do.LINGER, Do.CLOSE, Do.FAIL]
    late = pair.step(PairInput.PREFILL_FINISHED)
    assert [directive.do for directive in late] == [Do.CLOSE, Do.RELEASE_HANDLE]
    assert pair.is_closed


Key = tuple[LegState, LegState, bool, bool, bool]


def explore(
    kind: HandshakeKind, mode: AbortInTransfer
) -> Iterator[tuple[list[PairInput], PairMachine, list[Directive]]]:
    """Every state reachable from a fresh pair, one path to it, and all that was to be done on that path."""

    def replay(path: list[PairInput]) -> tuple[PairMachine, list[Directive]]:
        pair, todo = PairMachine(kind, mode), []
        for happened in path:
            todo += pair.step(happened, FAILURE)
        return pair, todo

    seen: set[Key] = set()
    frontier: list[list[PairInput]] = [[PairInput.START]]
    while frontier:
        path = frontier.pop(0)
        pair, todo = replay(path)
        key = (pair.prefill, pair.decode, pair.is_committed, pair.is_ended, pair._has_handle)
        if key in seen:
            continue
        seen.add(key)
        yield path, pair, todo
        frontier += [[*path, happened] for happened in PairInput]


@pytest.mark.parametrize("kind", HandshakeKind)
@pytest.mark.parametrize("mode", AbortInTransfer)
def test_from_every_reachable_state_a_cancel_and_the_grace_close_the_pair(
    kind: HandshakeKind, mode: AbortInTransfer
) -> None:
    reached = 0
    for path, pair, _ in explore(kind, mode):
        reached += 1
        for happened in (PairInput.CANCEL, PairInput.PREFILL_GRACE_OVER, PairInput.DECODE_GRACE_OVER):
            pair.step(happened, FAILURE)
        assert pair.is_closed, path
        assert pair.is_ended, path
    assert reached >= 5


@pytest.mark.parametrize("kind", HandshakeKind)
@pytest.mark.parametrize("mode", AbortInTransfer)
def test_on_every_path_each_leg_closes_once_per_reservation(kind: HandshakeKind, mode: AbortInTransfer) -> None:
    for path, pair, todo in explore(kind, mode):
        replaced = sum(first.do is Do.REPLACE_DECODE for first in todo) if PairInput.DECODE_REPLACED in path else 0
        closed = sum(directive.do is Do.CLOSE and directive.role is LegRole.DECODE for directive in todo)
        is_open = pair.decode in OPEN
        assert closed + is_open <= 1 + replaced, path
