"""What a watch tells its reader."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem_router.model.job import Job
from tandem_router.model.worker import Worker

__all__ = ["WatchEvent", "WatchEventType", "WorkerReading"]

ThingT = TypeVar("ThingT")


class WatchEventType(enum.StrEnum):
    """What one message says (tandem.v1.WatchEventType)."""

    SNAPSHOT = "SNAPSHOT"
    SYNCED = "SYNCED"
    ADDED = "ADDED"
    UPDATED = "UPDATED"
    REMOVED = "REMOVED"
    PROGRESS = "PROGRESS"


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[ThingT]):
    """One message."""

    type: WatchEventType
    revision: int
    """The reader knows everything up to it; in a SNAPSHOT, it will once it has SYNCED."""
    thing: ThingT | None = None
    """None in SYNCED and PROGRESS."""


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """A worker at one revision, with the job that it shows."""

    worker: Worker
    job: Job | None
