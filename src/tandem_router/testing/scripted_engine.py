"""One scripted engine process: takes legs over the virtual network, answers with real habits and invented tokens.

Times, faults and kind come from outside; what it holds is in its ledger, and what a real engine would not have survived
is in `ledger.violations`. The router side is `scripted_client`, the machines that processes live on `scripted_fleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, KvRole, LegRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.model.worker import RankLoad, WorkerFacts
from tandem_router.ports import Rng
from tandem_router.testing.scripted_adapters import ScriptedAdapters
from tandem_router.testing.scripted_kv import KvFetch, KvSource
from tandem_router.testing.scripted_kv_messages import Release
from tandem_router.testing.scripted_model import EOS, VOCABULARY
from tandem_router.testing.scripted_request import ScriptedRequest, serve
from tandem_router.testing.scripted_wire import (
    CancelCall,
    EngineLedger,
    EngineScript,
    Faults,
    OpenCall,
    Reply,
    StreamEnd,
    UnaryCall,
)
from tandem_router.testing.virtual_network import Endpoint, Receiver, Refused, VirtualNetwork

__all__ = ["ScriptedEngine"]


class ScriptedEngine:
    """One process in one life: starts listening when made, ends with `kill`."""

    def __init__(
        self,
        network: VirtualNetwork,
        rng: Rng,
        script: EngineScript,
        faults: Faults,
        *,
        address: str,
        bootstrap: BootstrapEndpoint,
        instance: str,
    ) -> None:
        """Args:
        faults: shared with the machine, so that they outlive the process.
        address: host:port of the engine's gRPC server.
        bootstrap: where decodes knock or pull; listened on by PREFILL workers.
        instance: names this life of the process in its facts; its engine id too.
        """
        self.network = network
        self.script = script
        self.faults = faults
        self.address = address
        self.bootstrap = bootstrap
        self.instance = instance
        self.ledger = EngineLedger()
        self.is_dead = False
        self.endpoints: dict[Endpoint, None] = {}
        self.routers: dict[Endpoint, _RouterConnection] = {}
        self.requests: dict[str, ScriptedRequest] = {}
        self._decode_rooms: dict[int, str] = {}
        self._rng = rng
        self._slots = asyncio.Semaphore(script.max_running)
        self._chores: dict[asyncio.Task[None], None] = {}
        self.met: dict[str, None] = {}
        """Engine ids of prefill workers that have written into our memory; a Mooncake decode keeps their addresses."""
        self.adapters = ScriptedAdapters(script.adapters or (), is_managed=script.adapters is not None)
        engine_ids = frozenset(self.engine_id(rank) for rank in range(script.dp_size))
        self.source = KvSource(network.loop, script, faults, self.ledger, self.pause, self.endpoints, engine_ids)
        network.listen(address, self)
        if script.worker_type is WorkerType.PREFILL:
            network.listen(f"{bootstrap.host}:{bootstrap.port}", self.source)

    def accept(self, endpoint: Endpoint) -> Receiver:
        """A router connects."""
        self.endpoints[endpoint] = None
        self.routers[endpoint] = _RouterConnection(self, endpoint)
        return self.routers[endpoint]

    def cut(self) -> None:
        """Break every connection to a router; the process and its transfers live on."""
        for endpoint, connection in list(self.routers.items()):
            endpoint.close()
            connection.on_closed()

    def kill(self) -> None:
        """SIGKILL: connections break, nothing is said, all state is gone. Idempotent."""
        if self.is_dead:
            return
        self.is_dead = True
        self.network.unlisten(self.address)
        if self.script.worker_type is WorkerType.PREFILL:
            self.network.unlisten(f"{self.bootstrap.host}:{self.bootstrap.port}")
        for endpoint in list(self.endpoints):
            endpoint.close()
        self.source.die()
        for request in list(self.requests.values()):
            request.task.cancel()
            request.close_stream()
        for chore in list(self._chores):
            chore.cancel()

    # --- what requests are made of

    async def pause(self, seconds: float) -> None:
        """Work for about that long; longer while hung."""
        await asyncio.sleep(seconds * (0.8 + 0.4 * self._rng.random()))
        while self.faults.is_hung:  # noqa: ASYNC110 - a knob is a plain field that anyone turns
            await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of max_running places; the others wait."""
        self.ledger.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.ledger.waiting -= 1
        self.ledger.running += 1
        try:
            yield
        finally:
            self.ledger.running -= 1
            self._slots.release()

    def open(self, call: OpenCall, endpoint: Endpoint) -> ScriptedRequest | None:
        """Take a request, or answer at once why not."""
        self.ledger.requests += 1
        fatal = self._what_kills(call)
        if fatal is not None:
            self.ledger.violations.append(fatal)
            self.kill()
            return None
        refusal = self._refusal(call.leg)
        if refusal is not None:
            endpoint.send(StreamEnd(call.call_id, refusal))
            return None
        if call.leg.leg_id in self.requests:
            self.ledger.violations.append(f"leg {call.leg.leg_id} is sent twice at once")
            endpoint.send(
                StreamEnd(call.call_id, EngineFailure(Reason.ENGINE_ERROR, "duplicate id", code=Code.INTERNAL))
            )
            return None
        request = ScriptedRequest(call, endpoint, self.ledger)
        if isinstance(call.leg.handoff, TransferParams) and call.leg.role is LegRole.DECODE:
            # Before the first step: a handle that is cancelled at once is given back, not used.
            request.resources.callback(self._give_back, request, json.loads(call.leg.handoff.json))
        request.task = self.network.loop.create_task(serve(self, request), name=f"{self.instance} {call.leg.leg_id}")
        self.requests[call.leg.leg_id] = request
        self.ledger.live += 1
        request.resources.callback(self._forget, call.leg.leg_id)
        request.task.add_done_callback(request.closed)
        return request

    def _forget(self, leg_id: str) -> None:
        del self.requests[leg_id]
        self.ledger.live -= 1

    def _refusal(self, leg: LegRequest) -> EngineFailure | None:
        if self.faults.is_zombie:
            return EngineFailure(Reason.ENGINE_ERROR, "EngineDeadError", code=Code.INTERNAL)
        if self.faults.is_refusing:
            return EngineFailure(Reason.WORKER_REFUSED, "the request queue is full", code=Code.RESOURCE_EXHAUSTED)
        if leg.dp_rank is not None and leg.dp_rank == self.faults.failing_rank:
            return EngineFailure(Reason.ENGINE_ERROR, "device-side assert triggered", code=Code.INTERNAL)
        missing = self.adapters.lacks(adapter.name for adapter in leg.adapters)
        if missing:
            return EngineFailure(Reason.ENGINE_ERROR, f"{missing} not loaded", code=Code.INVALID_ARGUMENT)
        return None

    def _what_kills(self, call: OpenCall) -> str | None:
        """Requests that real engines do not survive (real-engines.md); a router must never send them."""
        leg = call.leg
        if not leg.token_ids:
            return f"leg {leg.leg_id} has an empty prompt"
        if any(not 0 <= token < VOCABULARY for token in leg.token_ids):
            return f"leg {leg.leg_id} has a token outside the vocabulary"
        needs_room = self.script.kind is HandshakeKind.RENDEZVOUS and self.script.worker_type is not WorkerType.REGULAR
        if needs_room and (leg.kind is not HandshakeKind.RENDEZVOUS or leg.handoff is None):
            return f"leg {leg.leg_id} has no room on a {self.script.worker_type} worker"
        if leg.dp_rank is not None and not 0 <= leg.dp_rank < self.script.dp_size:
            return f"leg {leg.leg_id} is for rank {leg.dp_rank} of {self.script.dp_size}"
        unknown = self.adapters.never_had(adapter.name for adapter in leg.adapters)
        if unknown:
            return f"leg {leg.leg_id} names adapters that it never had: {unknown}"
        limit = self.script.max_choices
        if leg.sampling.temperature == 0 and self.script.max_greedy_choices is not None:
            limit = self.script.max_greedy_choices
        if limit is not None and leg.sampling.n > limit:
            return f"leg {leg.leg_id} asks for {leg.sampling.n} choices at once"
        if isinstance(leg.handoff, TransferParams):
            params = json.loads(leg.handoff.json)
            names_blocks = "transfer_id" in params if self.script.is_mooncake else "remote_block_ids" in params
            if not names_blocks:
                return f"leg {leg.leg_id} is to fetch blocks that its parameters do not name"
        return None

    def engine_id(self, rank: int | None) -> str:
        """What decodes call a rank of this process; with one rank, and in GetServerInfo, the process itself."""
        return self.instance if rank is None or self.script.dp_size == 1 else f"{self.instance}_dp{rank}"

    def strand(self, pages: int, until_s: float) -> None:
        """Keep memory of a cancelled request, which its prefill might still write to, until the transfer times out."""
        self.ledger.held_pages += pages
        self.network.loop.call_at(until_s, self._unstrand, pages)

    def _unstrand(self, pages: int) -> None:
        self.ledger.held_pages -= pages

    def claim_room(self, request: ScriptedRequest, room: int) -> None:
        """A decode request enters a room; the table is keyed by room alone, as SGLang's is."""
        if room in self._decode_rooms:
            self.ledger.violations.append(f"duplicate room {room} at a decode")
        self._decode_rooms[room] = request.leg_id
        self.ledger.rooms += 1
        request.resources.callback(self._leave_room, room)

    def _leave_room(self, room: int) -> None:
        self._decode_rooms.pop(room, None)
        self.ledger.rooms -= 1

    def _give_back(self, request: ScriptedRequest, params: dict[str, Any]) -> None:
        if self.is_dead or request.has_released_handle:
            return
        if "transfer_id" in params:
            address, handle = params["remote_bootstrap_addr"].removeprefix("http://"), params["transfer_id"]
        else:
            address, handle = f"{params['remote_host']}:{params['remote_port']}", params["remote_request_id"]
        self.do(self.network.loop.create_task(self._release(address, handle), name=f"{self.instance} release"))

    async def _release(self, address: str, handle: str) -> None:
        with contextlib.suppress(Refused):
            endpoint = await self.network.connect(address, KvFetch("", self.ledger))
            endpoint.send(Release(handle))
            endpoint.close()

    def stop(self, request: ScriptedRequest, by: str) -> None:
        """End a request because of an "abort", a "cancel", a "deadline" or a lost "connection"."""
        if request.task.done():
            return
        if request.is_receiving_pages and by != "connection":
            self.ledger.violations.append(f"{by} of leg {request.leg_id} while its pages were on their way")
            self._corrupt_a_neighbour(request)
        if request.fetch is not None and request.leg.kind is HandshakeKind.RENDEZVOUS and by != "connection":
            # Prefill writes into this memory. A handoff's decode pulls, and stops pulling when it stops.
            request.fetch.is_freed = True
        request.task.cancel()

    def _corrupt_a_neighbour(self, request: ScriptedRequest) -> None:
        for other in self.requests.values():
            if other is not request and not other.task.done():
                other.is_corrupted = True
                return

    def abort(self, leg_id: str) -> None:
        """The Abort rpc. SGLang goes by prefix and leaves the stream open; vLLM ends it with reason "abort"."""
        for request in list(self.requests.values()):
            if self.script.is_sglang and request.leg_id.startswith(leg_id):
                self.stop(request, "abort")
            elif request.leg_id == leg_id and not request.task.done():
                self.stop(request, "abort")
                request.end(EngineFailure(Reason.ENGINE_ABORTED, "finish_reason abort", code=Code.OK))

    def do(self, chore: asyncio.Task[None]) -> None:
        """Own a task that is nobody's request."""
        self._chores[chore] = None
        chore.add_done_callback(lambda ended: self._chores.pop(ended, None))

    def answer(self, call: UnaryCall, endpoint: Endpoint) -> None:
        """Answer a unary call in a while."""
        self.do(self.network.loop.create_task(self._answer(call, endpoint), name=f"{self.instance} {call.method}"))

    async def _answer(self, call: UnaryCall, endpoint: Endpoint) -> None:
        await self.pause(self.script.rpc_s)
        failure: EngineFailure | None = None
        value: object = None
        match call.method:
            case "abort":
                self.abort(str(call.argument))
            case "operate" if not isinstance(call.argument, str):
                try:
                    value = self.adapters.operate(call.argument)
                except EngineFailure as refused:
                    failure = refused
            case "probe" if self.faults.is_zombie:
                failure = EngineFailure(Reason.ENGINE_ERROR, "healthy=false", code=Code.UNAVAILABLE)
            case "describe":
                value = self.facts()
            case "loads":
                value = self._loads()
        endpoint.send(Reply(call.call_id, value, failure))

    def _loads(self) -> tuple[RankLoad, ...]:
        # A zombie's zeros are the truth about its ledger and a lie about its health.
        return tuple(
            RankLoad(
                running=self.ledger.running if rank == 0 else 0,
                waiting=self.ledger.waiting if rank == 0 else 0,
                used_tokens=self.ledger.held_pages if rank == 0 else 0,
                max_tokens=100_000,
                sampled_at_s=self.network.loop.time(),
            )
            for rank in range(self.script.dp_size)
        )

    def facts(self) -> WorkerFacts:
        """What the engine says of itself."""
        script = self.script
        role = {WorkerType.PREFILL: KvRole.PRODUCER, WorkerType.DECODE: KvRole.CONSUMER}.get(script.worker_type)
        is_pairable = script.kind is not HandshakeKind.AGGREGATE and script.worker_type is not WorkerType.REGULAR
        is_meeting = script.kind is HandshakeKind.RENDEZVOUS and script.worker_type is WorkerType.PREFILL
        return WorkerFacts(
            runtime_type=script.runtime or (RuntimeType.SGLANG if script.is_sglang else RuntimeType.VLLM),
            model_id=script.model,
            context_length=8192,
            vocab_size=VOCABULARY,
            can_embed=script.worker_type is WorkerType.REGULAR,
            eos_token_ids=(EOS,),
            max_running_requests=script.max_running,
            dp_size=script.dp_size,
            handshake=script.kind if is_pairable else None,
            kv_connector=(script.connector or _connector(script)) if is_pairable else None,
            kv_role=role if is_pairable and not script.is_sglang else None,
            kv_engine_id=self.instance if is_pairable else None,
            bootstrap=self.bootstrap if is_meeting else None,
            disaggregation_mode=script.worker_type,
            load_balance_method="follow_bootstrap_room" if script.is_sglang else None,
            max_choices=script.max_choices,
            max_greedy_choices=script.max_greedy_choices,
            applies_adapters=script.adapters is not None,
            adapters=tuple(self.adapters.loaded.values()),
            supports_seed=True,
            position_keyed_sampling=True,
            batch_invariant=True,
            instance=self.instance,
            version="scripted",
        )

    def __repr__(self) -> str:
        return f"<ScriptedEngine {self.instance} {self.ledger.held() or 'idle'}>"


def _connector(script: EngineScript) -> str:
    return "mooncake" if script.is_sglang else "NixlConnector"


class _RouterConnection:
    """The engine's end of one connection from a router."""

    def __init__(self, engine: ScriptedEngine, endpoint: Endpoint) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._calls: dict[int, ScriptedRequest] = {}

    def on_message(self, message: object) -> None:
        match message:
            case OpenCall():
                request = self._engine.open(message, self._endpoint)
                if request is not None:
                    self._open(message, request)
            case CancelCall(call_id):
                self._close(call_id, "cancel")
            case UnaryCall():
                self._engine.answer(message, self._endpoint)

    def on_closed(self) -> None:
        self._engine.endpoints.pop(self._endpoint, None)
        self._engine.routers.pop(self._endpoint, None)
        for call_id in list(self._calls):
            self._close(call_id, "connection")

    def _open(self, message: OpenCall, request: ScriptedRequest) -> None:
        self._calls[message.call_id] = request
        request.on_stream_end = lambda: self._calls.pop(message.call_id, None)
        if message.timeout_s is not None:
            request.deadline = self._engine.network.loop.call_later(
                message.timeout_s, self._close, message.call_id, "deadline"
            )

    def _close(self, call_id: int, by: str) -> None:
        request = self._calls.get(call_id)
        if request is not None:
            self._engine.stop(request, by)
            request.close_stream()
