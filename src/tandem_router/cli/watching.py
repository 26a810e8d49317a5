"""Watches: of the API's streams (workers, pairs), and of lists that have none (jobs, models), which are read again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import grpc
import typer

from tandem.v1 import watch_pb2
from tandem_router.cli.console import to_stderr
from tandem_router.cli.output import Format, show
from tandem_router.cli.text import Column, Table
from tandem_router.cli.words import state
from tandem_router.errors import Reason
from tandem_router.wire.status import decode

__all__ = ["FromRevision", "Rows", "StopAfterSynced", "Watch", "follow", "poll", "print_changes", "print_events"]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Then show every change, until Ctrl-C.")]
FromRevision = Annotated[int | None, typer.Option(min=0, help="Only what came after it. Default: all there is.")]
StopAfterSynced = Annotated[bool, typer.Option("--stop-after-synced", help="End when everything there is was shown.")]

POLL_S = 1.0
"""Between two readings of a list that has no watch."""
_NO_THING = (watch_pb2.WATCH_EVENT_TYPE_SYNCED, watch_pb2.WATCH_EVENT_TYPE_PROGRESS)


def follow(method: Any, request: Any) -> Iterator[Any]:
    """The events of a watch. A reader that fell behind (SLOW_CLIENT) resumes where it was, so nothing is missed.

    Any other end is the caller's: raises grpc.RpcError, after saying from where to resume.
    """
    request = type(request).FromString(request.SerializeToString())
    seen, is_synced = 0, False
    while True:
        try:
            for event in method(request):
                is_synced = is_synced or event.type == watch_pb2.WATCH_EVENT_TYPE_SYNCED
                if is_synced:
                    seen = event.revision
                yield event
            return
        except grpc.RpcError as failure:
            if not is_synced:
                raise
            if _is(failure, Reason.SLOW_CLIENT):
                request.from_revision = seen
                continue
            if isinstance(failure, grpc.Call) and failure.code() is grpc.StatusCode.UNAVAILABLE:
                to_stderr(f"The watch broke; --from-revision {seen} resumes it.")
            raise


@dataclass(slots=True)
class Rows:
    """A list that grows at its end: lines of a table whose columns keep their width or grow, or one message a line."""

    table: Table[Any]
    output: Format
    widths: Sequence[int] = ()
    shown: dict[str, str] = field(default_factory=dict)
    """The last line of each thing, by its id."""

    def begin(self, items: Sequence[Any], keys: Sequence[str] = ()) -> None:
        """The head and what there is now; keys, one for each item, as in `add`."""
        if not self.output.is_for_people:
            for item in items:
                self.add(item)
            return
        wide = self.output is Format.WIDE
        self.widths = self.table.widths(items, sys.stdout, wide=wide)
        head, *lines = self.table.lines(items, sys.stdout, wide=wide, widths=self.widths)
        self.shown = dict(zip(keys, lines, strict=False))
        print("\n".join([head, *lines]), flush=True)

    def add(self, item: Any, key: str = "") -> None:
        """One more line; none where the last one with the same key says the same."""
        if not self.output.is_for_people:
            show(item, self.output, str, stream=True)
            return
        lines = self.table.lines([item], sys.stdout, wide=self.output is Format.WIDE, widths=self.widths)
        if not key or self.shown.get(key) != lines[1]:
            print(lines[1], flush=True)
        self.shown[key] = lines[1]


def print_changes(items: Sequence[Any], events: Iterable[Any], noun: str, table: Table[Any], output: Format) -> None:
    """Show a list, then every thing of it that a watch says has changed."""
    rows = Rows(table, output)
    rows.begin(items, [item.id for item in items])
    for event in events:
        if event.HasField(noun):
            thing = getattr(event, noun)
            rows.add(thing, thing.id)


def print_events(events: Iterable[Any], noun: str, table: Table[Any], output: Format) -> None:
    """Show every event of a watch as it comes: its type and revision before the columns of its thing."""
    head: tuple[Column[Any], ...] = (
        Column("EVENT", lambda event: state(watch_pb2.WatchEventType, event.type), room=8),
        Column("REVISION", lambda event: str(event.revision)),
    )
    rows = Rows(Table((*head, *(_of_event(column, noun) for column in table.columns))), output)
    held: list[Any] | None = []
    for event in events:
        if held is not None and output.is_for_people:
            # The snapshot comes in one go: shown together, its columns fit.
            held.append(event)
            if event.type != watch_pb2.WATCH_EVENT_TYPE_SNAPSHOT:
                rows.begin(held)
                held = None
        else:
            rows.add(event)
    if held:
        rows.begin(held)


def _of_event(column: Column[Any], noun: str) -> Column[Any]:
    def cell(event: Any) -> str:
        return "" if event.type in _NO_THING else column.cell(getattr(event, noun))

    return replace(column, cell=cell)


def poll(
    read: Callable[[], Sequence[Any]], table: Table[Any], output: Format, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show a list, then every thing of it that is new or changed, until interrupted. Raises grpc.RpcError."""
    rows = Rows(table, output)
    known: dict[str, bytes] | None = None
    while True:
        things = read()
        changed = [thing for thing in things if known is None or known.get(thing.id) != _bytes(thing)]
        if known is None:
            rows.begin(things, [thing.id for thing in things])
        else:
            for thing in changed:
                rows.add(thing, thing.id)
        known = {thing.id: _bytes(thing) for thing in things}
        sleep(POLL_S)


def _bytes(thing: Any) -> bytes:
    whole: bytes = thing.SerializeToString(deterministic=True)
    return whole


def _is(failure: grpc.RpcError, reason: Reason) -> bool:
    if not isinstance(failure, grpc.Call):
        return False
    error = decode([(key, value) for key, value in failure.trailing_metadata() or ()])
    return error is not None and error.reason is reason
