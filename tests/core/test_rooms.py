"""Bootstrap rooms: inside int32, congruent with the rank, never twice within the quarantine, restarts included."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.rooms import MAX_ROOM, MIN_ROOM, SLOTS, RoomAllocator, RoomsExhausted
from tandem_router.model.settings import RoomSettings


def allocator(slot: int = 0, started_at_wall_s: float = 1_700_000_000.0) -> RoomAllocator:
    return RoomAllocator(RoomSettings(slot=slot), started_at_s=0.0, started_at_wall_s=started_at_wall_s)


@given(
    slot=st.integers(0, SLOTS - 1),
    wall=st.floats(0, 4e9),
    dp=st.lists(st.integers(1, 16), min_size=1, max_size=40),
    data=st.data(),
)
def test_rooms_are_in_range_congruent_and_unique(slot: int, wall: float, dp: list[int], data: st.DataObject) -> None:
    rooms = allocator(slot, wall)
    minted = []
    for index, dp_size in enumerate(dp):
        rank = data.draw(st.integers(0, dp_size - 1))
        room = rooms.mint(prefill_rank=rank, dp_size=dp_size, now_s=index * 0.001)
        assert MIN_ROOM <= room <= MAX_ROOM
        assert room % dp_size == rank
        minted.append(room)
    assert len(set(minted)) == len(minted)


@given(data=st.data())
def test_slots_never_share_a_room(data: st.DataObject) -> None:
    first, second = data.draw(st.permutations(range(SLOTS)).map(lambda slots: slots[:2]))
    dp_size = data.draw(st.integers(1, 8))
    ours = {allocator(first).mint(prefill_rank=0, dp_size=dp_size, now_s=t) for t in range(20)}
    theirs = {allocator(second).mint(prefill_rank=0, dp_size=dp_size, now_s=t) for t in range(20)}
    assert not ours & theirs


@given(up_s=st.floats(0.0, 5_000.0), burst=st.integers(1, 200))
def test_a_restarted_router_mints_nothing_of_the_last_ten_minutes(up_s: float, burst: int) -> None:
    former = allocator()
    recent = [former.mint(prefill_rank=0, dp_size=1, now_s=up_s + 0.01 * i) for i in range(burst)]
    restarted_s = up_s + 0.01 * burst + 0.1
    after = RoomAllocator(RoomSettings(), started_at_s=0.0, started_at_wall_s=1_700_000_000.0 + restarted_s)
    fresh = [after.mint(prefill_rank=0, dp_size=1, now_s=float(second)) for second in range(0, 600, 7)]
    assert not set(recent) & set(fresh)


@pytest.mark.parametrize("slot", [0, 1, SLOTS - 1])
@pytest.mark.parametrize("dp_size", range(1, 17))
def test_every_rank_of_every_dp_size_gets_its_rooms_before_and_after_a_restart(dp_size: int, slot: int) -> None:
    former = allocator(slot)
    after = RoomAllocator(RoomSettings(slot=slot), started_at_s=5.0, started_at_wall_s=1_700_000_060.0)
    width = (MAX_ROOM + 1 - MIN_ROOM) // SLOTS
    low = MIN_ROOM + slot * width
    minted = []
    for rooms, now_s in ((former, 0.0), (former, 59.0), (after, 5.0)):
        for rank in range(dp_size):
            room = rooms.mint(prefill_rank=rank, dp_size=dp_size, now_s=now_s)
            assert room % dp_size == rank
            assert low <= room < low + width
            minted.append(room)
    assert len(set(minted)) == len(minted)


@given(slot=st.integers(0, SLOTS - 1), dp_size=st.integers(1, 16), wall=st.floats(0, 4e9), data=st.data())
def test_no_room_overflows_int32_at_the_end_of_a_range(
    slot: int, dp_size: int, wall: float, data: st.DataObject
) -> None:
    rooms = allocator(slot, wall)
    # Put the counter so that the next rooms are the last ones of the range, and the first ones again.
    first = -(-rooms._low // dp_size)
    count = (rooms._low + rooms._width) // dp_size - first
    before_end = data.draw(st.integers(0, 3))
    step = max(rooms._next, int(wall * 20_000)) // dp_size + 1
    rooms._next = (step + (count - before_end - step) % count) * dp_size
    for _ in range(8):
        rank = data.draw(st.integers(0, dp_size - 1))
        room = rooms.mint(prefill_rank=rank, dp_size=dp_size, now_s=0.0)
        assert MIN_ROOM <= rooms._low <= room < rooms._low + rooms._width <= MAX_ROOM + 1
        assert room % dp_size == rank


def test_a_retired_room_rests_and_a_live_one_cannot_be_minted() -> None:
    rooms = allocator()
    room = rooms.mint(prefill_rank=0, dp_size=1, now_s=0.0)
    assert rooms.live == 1
    rooms.retire(room, now_s=1.0)
    assert rooms.live == 0
    with pytest.raises(KeyError):
        rooms.retire(room, now_s=2.0)


def test_a_range_that_is_all_taken_says_so() -> None:
    rooms = allocator()
    rooms._width = 16
    for _ in range(16):
        rooms.mint(prefill_rank=0, dp_size=1, now_s=0.0)
    with pytest.raises(RoomsExhausted, match="16 live"):
        rooms.mint(prefill_rank=0, dp_size=1, now_s=0.0)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_fleet_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        allocator(slot)


@pytest.mark.parametrize(("rank", "dp_size"), [(-1, 1), (1, 1), (4, 4)])
def test_a_rank_outside_dp_size_is_refused(rank: int, dp_size: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        allocator().mint(prefill_rank=rank, dp_size=dp_size, now_s=0.0)
