"""The workers that can be called now: the registry's snapshot beside the open connection of each life."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tandem_router.core.registry import Registry
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.worker import Worker
from tandem_router.ports import EngineClient
from tandem_router.runtime.deadline import within
from tandem_router.runtime.idleness import Idleness
from tandem_router.runtime.rank_watch import RankWatch
from tandem_router.runtime.scope import TaskScope

__all__ = ["WorkerFleet"]

_CLOSE_TIMEOUT_S = 5.0
"""A connection that does not close by then is left to the process's end; nothing waits for it."""


class WorkerFleet:
    """ports.Fleet over a registry. Connections are entered and removed by the control loop alone."""

    def __init__(
        self,
        registry: Registry,
        scope: TaskScope,
        leg_failed: Callable[[RankKey, EngineFailure], None],
        idleness: Idleness,
        ranks: RankWatch,
    ) -> None:
        """Args:
        scope: owns the closing of connections.
        leg_failed: told of every failed leg; must return at once.
        idleness: tells when a former life's connection may be closed.
        ranks: told how every leg ended.
        """
        self._registry = registry
        self._idleness = idleness
        self._ranks = ranks
        self._scope = scope
        self._leg_failed = leg_failed
        self._clients: dict[WorkerId, dict[int, EngineClient]] = {}
        self._orphans: list[EngineClient] = []

    def workers(self) -> Mapping[WorkerId, Worker]:
        """The registry's immutable snapshot, oldest first."""
        return self._registry.workers()

    def client(self, key: RankKey) -> EngineClient | None:
        """The open client of that life, or None when that life is over."""
        return self._clients.get(key.worker_id, {}).get(key.epoch)

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        """A leg on this rank failed; never raises."""
        self._ranks.leg_failed(key, failure)
        self._leg_failed(key, failure)

    def leg_succeeded(self, key: RankKey) -> None:
        """A leg on this rank ended well. The worker's health does not count these: an engine is probed anyway."""
        self._ranks.leg_succeeded(key)

    def adopt(self, worker_id: WorkerId, epoch: int, client: EngineClient) -> None:
        """Enter the connection of a life, in the step in which its epoch is applied: a reader of the epoch finds it.

        Connections of former lives are closed once their last leg has ended.
        """
        lives = self._clients.setdefault(worker_id, {})
        for former in lives:
            if not self._scope.is_closed:
                self._scope.spawn(self._retire_idle(worker_id, former), f"retire {worker_id} epoch {former}")
        lives[epoch] = client

    async def _retire_idle(self, worker_id: WorkerId, epoch: int) -> None:
        while self._idleness.legs(worker_id, epoch):
            await self._idleness.wait(worker_id, epoch)
        self.discard(worker_id, epoch)

    def discard(self, worker_id: WorkerId, epoch: int) -> None:
        """Close the connection of one life; idempotent."""
        lives = self._clients.get(worker_id, {})
        client = lives.pop(epoch, None)
        if not lives:
            self._clients.pop(worker_id, None)
        if client is not None:
            self.close_client(client)

    def retire(self, worker_id: WorkerId) -> None:
        """Close every connection of a worker; idempotent."""
        for epoch in tuple(self._clients.get(worker_id, ())):
            self.discard(worker_id, epoch)

    def close_client(self, client: EngineClient) -> None:
        """Close a connection in the background."""
        if self._scope.is_closed:
            self._orphans.append(client)
        else:
            self._scope.spawn(_close(client), "close client")

    async def close(self) -> None:
        """Close every connection and wait for it; idempotent."""
        clients = [client for lives in self._clients.values() for client in lives.values()] + self._orphans
        self._clients.clear()
        self._orphans = []
        for client in clients:
            await _close(client)

    @property
    def open_clients(self) -> int:
        """Connections held."""
        return sum(len(lives) for lives in self._clients.values())


async def _close(client: EngineClient) -> None:
    try:
        await within(_CLOSE_TIMEOUT_S, "closing a connection", client.close())
    except EngineFailure:
        return  # it is gone either way
