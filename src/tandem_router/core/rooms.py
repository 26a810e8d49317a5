"""The one place that mints bootstrap rooms.

SGLang keys its table by the room alone, on both sides, in int32, and a duplicate crashes prefill and decode schedulers
(sglang #40125); with data parallelism it places the request on rank `room % dp_size` (sglang #24772). So a room is

    base(slot) + counter * dp_size + prefill_rank

inside the slot's own range, with a base that is a multiple of dp_size. The counter never falls behind wall time (at
`_STEPS_PER_SECOND`), so a room's number is tied to the time of its minting: a restarted router, or one whose counter
has come round, mints nothing that was minted within the last 28 minutes, which is past every quarantine. What a burst
runs ahead of the clock is covered by remembering live and resting rooms.
"""

from __future__ import annotations

from collections import OrderedDict

from tandem_router.model.settings import RoomSettings

__all__ = ["MAX_ROOM", "MIN_ROOM", "SLOTS", "RoomAllocator", "RoomsExhausted"]

MIN_ROOM = 1024
MAX_ROOM = 2**31 - 1
SLOTS = 64
"""Routers that may share a fleet; each has a range of about 2^25 rooms."""
_STEPS_PER_SECOND = 20_000
"""How fast the counter moves with wall time; one router mints fewer rooms than this. 2^25 / 20,000 is 28 minutes."""


class RoomsExhausted(Exception):
    """Every room of the slot's range is live or in quarantine."""


class RoomAllocator:
    """Mints rooms of one router slot. Not thread-safe; every `now_s` is of the clock that `started_at_s` is of."""

    def __init__(self, settings: RoomSettings, *, started_at_s: float, started_at_wall_s: float) -> None:
        if not 0 <= settings.slot < SLOTS:
            raise ValueError(f"slot {settings.slot} is outside 0..{SLOTS - 1}")
        self._width = (MAX_ROOM + 1 - MIN_ROOM) // SLOTS
        self._low = MIN_ROOM + settings.slot * self._width
        self._quarantine_s = settings.quarantine_s
        self._wall_offset_s = started_at_wall_s - started_at_s
        self._next = 0
        self._live: dict[int, None] = {}
        self._resting: OrderedDict[int, float] = OrderedDict()
        self._minted = 0

    def mint(self, *, prefill_rank: int, dp_size: int, now_s: float) -> int:
        """A room that no live or recent attempt has, with room % dp_size == prefill_rank.

        Raises RoomsExhausted when none is left.
        """
        if not 0 <= prefill_rank < dp_size:
            raise ValueError(f"rank {prefill_rank} is outside 0..{dp_size - 1}")
        self._wake(now_s)
        self._next = max(self._next, int((now_s + self._wall_offset_s) * _STEPS_PER_SECOND))
        first = -(-self._low // dp_size)  # the lowest multiple of dp_size inside the range, in units of dp_size
        count = (self._low + self._width) // dp_size - first
        step = -(-self._next // dp_size)  # up: a smaller dp_size may have used part of the group below
        # More misses than taken rooms would mean that a free one was passed over.
        for _ in range(min(count, len(self._live) + len(self._resting) + 1)):
            room = (first + step % count) * dp_size + prefill_rank
            step += 1
            if room not in self._live and room not in self._resting:
                self._next = step * dp_size
                self._live[room] = None
                self._minted += 1
                return room
        raise RoomsExhausted(f"{len(self._live)} live and {len(self._resting)} resting rooms")

    def retire(self, room: int, *, now_s: float) -> None:
        """The attempt is over; engines may remember the room, so it rests for the quarantine."""
        del self._live[room]
        self._resting[room] = now_s + self._quarantine_s

    def _wake(self, now_s: float) -> None:
        while self._resting:
            room, until_s = next(iter(self._resting.items()))
            if until_s > now_s:
                return
            del self._resting[room]

    @property
    def live(self) -> int:
        """Rooms of attempts that are not over."""
        return len(self._live)

    def __repr__(self) -> str:
        return f"<RoomAllocator {len(self._live)} live, {len(self._resting)} resting, {self._minted} minted>"
