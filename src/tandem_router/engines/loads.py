"""GetLoads as the engines that share the core section answer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem_router.model.worker import RankLoad

__all__ = ["core_loads"]


def core_loads(response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
    """One sample per rank, in rank order; `sampled_at_s` on the router's monotonic clock."""
    return [
        RankLoad(
            running=load.num_running_reqs,
            waiting=load.num_waiting_reqs,
            used_tokens=load.num_used_tokens,
            max_tokens=load.max_total_num_tokens,
            sampled_at_s=sampled_at_s,
        )
        for load in sorted(response.loads, key=lambda load: load.dp_rank)
    ]
