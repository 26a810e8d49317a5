"""GetLoads as the engines that share the core section answer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from tandem_router.model.worker import RankLoad

__all__ = ["NoLoads", "core_loads"]


def core_loads(response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
    """One sample per rank, from rank 0 on; `sampled_at_s` on the router's monotonic clock.

    vLLM leaves out a rank whose statistics it cannot read: what comes after a gap would be taken for another rank's.
    """
    loads = sorted(response.loads, key=lambda load: load.dp_rank)
    return [
        RankLoad(
            running=load.num_running_reqs,
            waiting=load.num_waiting_reqs,
            used_tokens=load.num_used_tokens,
            max_tokens=load.max_total_num_tokens,
            sampled_at_s=sampled_at_s,
        )
        for rank, load in enumerate(loads)
        if load.dp_rank == rank or len(loads) == 1  # a process of one rank may be any of a fleet's
    ]


class NoLoads:
    """Part of a dialect whose protocol has no GetLoads: its load is not known, which is no ill health."""

    def loads_request(self) -> Message:
        """Never called: `methods.loads` is None."""
        raise NotImplementedError("the protocol has no GetLoads")

    def loads(self, response: Any, sampled_at_s: float) -> Sequence[RankLoad]:
        """Never called: `methods.loads` is None."""
        raise NotImplementedError("the protocol has no GetLoads")
