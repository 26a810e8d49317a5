"""What the protocols' servicers share of one scripted engine: its script, its work, its lives and its deaths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2

from tandem_router.model.spec import WorkerType
from tandem_router.testing.grpc_engines.answering import Answering, Context
from tandem_router.testing.grpc_engines.archives import archive_chunks
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.meeting import Meeting
from tandem_router.testing.grpc_engines.script import Archive, GrpcScript

__all__ = ["Station"]

_FIRST_LIFE_AGE_S = 3600.0
"""A fresh process is a second old: the difference is more than a reading's tolerance."""
_EPOCH_S = 1_700_000_000
_BETWEEN_LIVES_S = 7200


@dataclass(slots=True)
class Station:
    """One engine. Its parts are set by `ScriptedGrpcEngine` before it serves."""

    script: GrpcScript
    meeting: Meeting
    life: int = 0
    """Counts its processes."""
    began_s: float = 0.0
    """Of this life, on the loop's clock."""
    deaths: list[str] = field(default_factory=list)
    """Why its engine died: a request that no router may send."""
    port: int = 0
    adapters: list[str] = field(default_factory=list)
    is_profiling: bool = False

    def current(self) -> GrpcScript:
        """The script in force."""
        return self.script

    @property
    def is_dead(self) -> bool:
        """The engine is dead; the process answers."""
        return self.script.is_dead or bool(self.deaths)

    @property
    def age_s(self) -> float:
        """How long the process says that it has been up."""
        base_s = _FIRST_LIFE_AGE_S if self.life == 1 else 1.0
        return base_s + asyncio.get_running_loop().time() - self.began_s

    @property
    def start_s(self) -> int:
        """When the process says that it began, seconds since the epoch."""
        return _EPOCH_S + self.life * _BETWEEN_LIVES_S

    @property
    def engine_id(self) -> str:
        """The stated one, else one for each life."""
        return self.script.engine_id or f"scripted-{self.port}-{self.life}"

    @property
    def connector(self) -> str:
        """Of vLLM's names; empty = the engine has none."""
        if self.script.kv_connector is not None:
            return self.script.kv_connector
        return "" if self.script.mode is WorkerType.REGULAR else "NixlConnector"

    async def refuse_if_dead(self, context: Context) -> None:
        """End the call as an engine does that is dead behind a living process."""
        if self.is_dead:
            cause = self.deaths[-1] if self.deaths else "EngineDeadError"
            await context.abort(grpc.StatusCode.INTERNAL, f"engine is dead: {cause}")

    async def die(self, cause: str, context: Context) -> None:
        """A request killed the engine."""
        self.deaths.append(cause)
        await self.refuse_if_dead(context)

    async def tokenizer(self, context: Context) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """GetTokenizer."""
        if self.script.archive is Archive.NONE:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the engine has no tokenizer")
        for chunk in archive_chunks(self.script.archive):
            yield chunk

    def loads(self, pb: Any, answering: Answering, dp_rank: int | None) -> Any:
        """GetLoads in the messages of `pb`: rank 0 has all the work; a dead engine tells zeros."""
        script = self.script
        ranks = range(max(1, script.dp_size)) if dp_rank is None else (dp_rank,)
        rows = [pb.SchedulerLoad(dp_rank=rank) for rank in ranks]
        for row in rows if not self.is_dead else ():
            row.max_running_requests = script.max_running
            row.max_total_num_tokens = script.context_length * script.max_running
            if row.dp_rank == 0:
                row.num_running_reqs = row.num_total_reqs = answering.running
                row.num_used_tokens = answering.tokens
        return pb.GetLoadsResponse(version="scripted", dp_rank_count=len(rows), loads=rows)

    def flush(self, answering: Answering, feed: KvFeed | None) -> common_pb2.FlushCacheResponse:
        """FlushCache: refused while requests run."""
        if answering.running:
            return common_pb2.FlushCacheResponse(success=False, message="requests are in flight")
        if feed is not None:
            feed.clear()
        return common_pb2.FlushCacheResponse(success=True, message="flushed")

    def profile(self, *, starts: bool) -> common_pb2.ProfileResponse:
        """StartProfile and StopProfile: each only after the other."""
        if self.is_profiling is starts:
            message = "profiling is already on" if starts else "profiling is not on"
            return common_pb2.ProfileResponse(success=False, message=message)
        self.is_profiling = starts
        return common_pb2.ProfileResponse(success=True, message="started" if starts else "written")
