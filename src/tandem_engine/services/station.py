"""What the servicers of one engine share: engine, faults, life, open calls, and how a call is refused."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from tandem_engine.adapters import AdapterShelf
from tandem_engine.bootstrap import BootstrapServer
from tandem_engine.engine import Engine
from tandem_engine.faults import Faults
from tandem_engine.options import EngineOptions
from tandem_engine.requests import EngineError, EngineErrorReason
from tandem_engine.services.calls import Calls
from tandem_engine.services.legs import Leg
from tandem_engine.services.life import Life

__all__ = ["Context", "Station", "stop_when_gone"]

Context = grpc.aio.ServicerContext[Any, Any]

_STATUS = {code.value[0]: code for code in grpc.StatusCode}

_CODES = {
    EngineErrorReason.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    EngineErrorReason.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    EngineErrorReason.STOPPED: grpc.StatusCode.UNAVAILABLE,
    EngineErrorReason.ABORTED: grpc.StatusCode.ABORTED,
    EngineErrorReason.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
}


@dataclass(frozen=True, slots=True)
class Station:
    """`scope` owns every task that outlives the call that started it. `instance` is the process's own uuid."""

    options: EngineOptions
    engine: Engine
    faults: Faults
    life: Life
    bootstrap: BootstrapServer
    bootstrap_port: int
    scope: asyncio.TaskGroup
    instance: str
    adapters: AdapterShelf
    calls: Calls = field(default_factory=Calls)

    def engine_id_of(self, rank: int) -> str:
        """The name a decode engine must knock with; vLLM tells its ranks apart with a suffix."""
        name = self.options.name or self.instance
        return name if self.options.dp_size == 1 else f"{name}_dp{rank}"

    def new_id(self, request_id: str) -> str:
        """An id for the engine, which wants unique ones; clients may repeat theirs."""
        return f"{request_id}-{secrets.token_hex(4)}"

    def idle_rank(self) -> int:
        """The rank with the fewest requests, for those that are not pinned."""
        return min(self.engine.loads(), key=lambda load: (load.running + load.waiting, load.rank)).rank

    async def refuse_if_unfit(self, context: Context) -> None:
        """Aborts the call when a fault, death or shutdown says so."""
        self.life.received()
        plan = self.faults.plan
        if plan.refuse:
            await context.abort(_STATUS[plan.refuse_code or grpc.StatusCode.UNAVAILABLE.value[0]], "fault: refuse")
        if self.life.is_dead:
            await self.dead(context)
        if self.life.is_stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is stopping")

    async def refuse_unless_generating(self, context: Context) -> None:
        """Aborts the call when this engine was started for embeddings alone: INVALID_ARGUMENT, as vLLM does."""
        await self.refuse_if_unfit(context)
        if not self.options.task.generates:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This model does not support generation")

    async def dead(self, context: Context) -> NoReturn:
        """Aborts the call as a dead engine does."""
        await context.abort(grpc.StatusCode.INTERNAL, f"EngineDeadError: {self.life.cause_of_death}")

    async def die(self, cause: str, context: Context) -> NoReturn:
        """Kills the engine, as this request would an unmodified one, and aborts the call."""
        self.life.kill(cause)
        await self.dead(context)

    async def refuse(self, error: EngineError, context: Context) -> NoReturn:
        """Aborts the call with the status of what the engine said."""
        if error.reason is EngineErrorReason.STOPPED and self.life.is_dead:
            await self.dead(context)
        await context.abort(_CODES[error.reason], error.message)

    async def silence(self) -> NoReturn:
        """Waits until the call is cancelled, saying nothing."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError("a future that nobody holds was resolved")


def stop_when_gone(leg: Leg, context: Context) -> None:
    """Stops `leg` within milliseconds of the client's cancel, also when the handler is stuck in a write."""

    def stop(_: object) -> None:
        leg.stop("the client went away")

    # types-grpcio 1.85 declares a class where it means a callable.
    context.add_done_callback(stop)  # type: ignore[arg-type]
