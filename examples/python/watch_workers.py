"""Follow the fleet for as long as you like: over broken connections, restarts of the router, and history that is gone.

    python watch_workers.py            # until Ctrl-C
    python watch_workers.py --once     # what there is now

The router's admin listener is at TANDEM_ADMIN_ADDRESS, else at 127.0.0.1:50052.
"""

from __future__ import annotations

import os
import sys
import time

import grpc
from google.protobuf import duration_pb2
from refusal import refusal_of

from tandem.v1 import watch_pb2, worker_pb2, worker_service_pb2, worker_service_pb2_grpc

ADDRESS = os.environ.get("TANDEM_ADMIN_ADDRESS", "127.0.0.1:50052")
RECONNECT_S = 0.5
CHANNEL = [("grpc.max_reconnect_backoff_ms", 2000)]


class Fleet:
    """A copy of the router's workers, kept true by a watch."""

    def __init__(self, stub: worker_service_pb2_grpc.WorkerServiceStub) -> None:
        self._stub = stub
        self._workers: dict[str, worker_pb2.Worker] = {}
        self._revision: int | None = None
        """Where to resume. None: begin with a snapshot."""

    def read(self, *, once: bool) -> None:
        """Read one watch until it ends. Raises grpc.RpcError."""
        request = worker_service_pb2.WatchWorkersRequest(
            stop_after_synced=once,
            # PROGRESS moves our place on while nothing changes, so that it does not grow too old to resume from.
            progress_interval=duration_pb2.Duration(seconds=10),
        )
        if self._revision is not None:
            request.from_revision = self._revision
        snapshot: dict[str, worker_pb2.Worker] | None = None if request.HasField("from_revision") else {}
        for event in self._stub.WatchWorkers(request):
            worker = event.worker
            match event.type:
                case watch_pb2.WATCH_EVENT_TYPE_SNAPSHOT:
                    assert snapshot is not None, "a resumed watch has no snapshot"
                    snapshot[worker.id] = worker
                    continue  # no place to resume from before SYNCED
                case watch_pb2.WATCH_EVENT_TYPE_SYNCED:
                    if snapshot is not None:
                        self._take(snapshot)
                    say(event.revision, f"SYNCED, {len(self._workers)} workers")
                case watch_pb2.WATCH_EVENT_TYPE_REMOVED:
                    self._workers.pop(worker.id, None)
                    say(event.revision, "REMOVED", worker)
                case watch_pb2.WATCH_EVENT_TYPE_ADDED | watch_pb2.WATCH_EVENT_TYPE_UPDATED:
                    # The worker comes whole: replace, never merge.
                    self._workers[worker.id] = worker
                    say(event.revision, watch_pb2.WatchEventType.Name(event.type)[17:], worker)
            self._revision = event.revision

    def forget_place(self) -> None:
        """Begin with a snapshot next time."""
        self._revision = None

    def _take(self, snapshot: dict[str, worker_pb2.Worker]) -> None:
        # What went away while we were not looking is in no delta: it is only absent here.
        for gone in self._workers.keys() - snapshot.keys():
            print(f"{'':>16} GONE {gone}", flush=True)
        self._workers = snapshot
        for worker in snapshot.values():
            say(None, "PRESENT", worker)


def say(revision: int | None, what: str, worker: worker_pb2.Worker | None = None) -> None:
    shown = f" {worker.id} {worker.spec.url} {worker_pb2.WorkerStatus.Name(worker.status)[14:]}" if worker else ""
    print(f"{'' if revision is None else revision:>16} {what}{shown}", flush=True)


def main(*flags: str) -> int:
    with grpc.insecure_channel(ADDRESS, options=CHANNEL) as channel:
        fleet = Fleet(worker_service_pb2_grpc.WorkerServiceStub(channel))
        while True:
            try:
                fleet.read(once="--once" in flags)
                return 0
            except grpc.RpcError as error:
                refusal = refusal_of(error)
            match refusal.reason:
                case "REVISION_COMPACTED":  # our place is too old, or of another life of the router
                    fleet.forget_place()
                case "SLOW_CLIENT":  # we fell behind; nothing was skipped
                    pass
                case _ if refusal.code is grpc.StatusCode.UNAVAILABLE:
                    print(f"[{refusal.reason or 'not connected'}; trying again]", file=sys.stderr, flush=True)
                    time.sleep(RECONNECT_S)
                case _:
                    print(f"{refusal.code.name}: {refusal.message}", file=sys.stderr)
                    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
