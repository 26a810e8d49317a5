"""Identities: canonical UUIDs for resources, and the (worker, epoch, rank) that counts belong to."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import NewType

__all__ = ["JobId", "PairId", "RankKey", "WorkerId", "canonical_uuid"]

WorkerId = NewType("WorkerId", str)
"""Lower-case canonical UUID text; never used again after a delete."""
JobId = NewType("JobId", str)
PairId = NewType("PairId", str)


def canonical_uuid(text: str) -> str | None:
    """The canonical lower-case form of a UUID in any accepted spelling, or None when `text` is not one.

    Ids compare as parsed values: a client may send upper case or braces (smg parses for validity and then looks the raw
    string up, so a valid upper-case id is "not found" there).
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, order=True)
class RankKey:
    """One schedulable slot in one life of one worker process; load and legs are counted under this key."""

    worker_id: WorkerId
    epoch: int
    """Rises on every reconnect or restart of the process; counts of an old epoch are dropped."""
    dp_rank: int
    """0 for an engine without data parallelism."""
