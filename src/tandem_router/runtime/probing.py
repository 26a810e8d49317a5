"""The probes that run now: one per registered worker, begun and ended as the registry says."""

from __future__ import annotations

import asyncio

from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.runtime.probes import ProbeContext, WorkerProbe

__all__ = ["Probing"]


class Probing:
    """Owns the probes' tasks, which live in the context's scope."""

    def __init__(self, context: ProbeContext) -> None:
        self._context = context
        self._probes: dict[WorkerId, WorkerProbe] = {}
        self._tasks: dict[WorkerId, asyncio.Task[None]] = {}

    def start(self, worker_id: WorkerId) -> None:
        """Probe the worker from now on, instead of a probe that may be running; nothing where it is gone."""
        self.stop(worker_id)
        worker = self._context.pipeline.registry.worker(worker_id)
        if worker is not None:
            probe = WorkerProbe(self._context, worker)
            self._probes[worker_id] = probe
            self._tasks[worker_id] = self._context.scope.spawn(probe.run(), f"probe {worker_id}")

    def stop(self, worker_id: WorkerId) -> None:
        """Probe it no more; idempotent."""
        self._probes.pop(worker_id, None)
        task = self._tasks.pop(worker_id, None)
        if task is not None:
            task.cancel()

    def of(self, worker_id: WorkerId) -> WorkerProbe | None:
        """The worker's probe, None where it is not probed."""
        return self._probes.get(worker_id)

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        """Passive health, for whoever probes the worker."""
        probe = self._probes.get(key.worker_id)
        if probe is not None:
            probe.leg_failed(key, failure)

    def __len__(self) -> int:
        return len(self._probes)
