"""What the shell supplies to the runtime: Protocols only, no logic and no defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tandem_router.model.detection import OnAsked
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import PairId, RankKey, WorkerId
from tandem_router.model.kv_events import KvBatch
from tandem_router.model.operations import Operated, Operation
from tandem_router.model.pairing import LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.stream import EngineItem, Finished, OutputChunk, QueueStatus
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import Credentials, RankLoad, Worker, WorkerFacts

__all__ = [
    "Clock",
    "EngineCall",
    "EngineClient",
    "EngineDialer",
    "Fleet",
    "Ids",
    "KvEventCall",
    "LegTraces",
    "Observer",
    "Rng",
    "Store",
    "TextCodec",
    "TextCodecs",
    "TextStream",
    "TokenSink",
]


class Clock(Protocol):
    """Time comes in through this door."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back; the running loop's own clock."""

    def wall_s(self) -> float:
        """Seconds since the epoch, for what people read."""


class Ids(Protocol):
    """Mints identities."""

    def uuid(self) -> str:
        """A fresh canonical UUID."""


class Rng(Protocol):
    """Randomness of decisions."""

    def random(self) -> float:
        """A float in [0, 1)."""


class EngineCall(Protocol):
    """One running call to an engine."""

    async def receive(self) -> EngineItem | None:
        """The next item, or None after the last choice's end.

        Raises EngineFailure on any bad end, `complete` with reason "error" or "abort" under status OK included, and on
        a stream that ends without the ends it owes.
        """

    def cancel(self) -> None:
        """End the call on our side (RST_STREAM); idempotent, never raises, does not wait."""


class KvEventCall(Protocol):
    """One running subscription to an engine's KV events."""

    async def receive(self) -> KvBatch | None:
        """The next batch, load-only messages left out; None when the engine ended the stream with OK.

        Raises EngineFailure: KV_EVENTS_LOST when the engine no longer has what is to be resumed, or says that it lost
        something (OUT_OF_RANGE, DATA_LOSS); RUNTIME_CANNOT_PUBLISH_KV_EVENTS; what a broken connection raises.
        """

    def cancel(self) -> None:
        """End it on our side; idempotent, never raises, does not wait."""


class EngineClient(Protocol):
    """One worker process in one life, whatever it speaks."""

    @property
    def last_sign_of_life_s(self) -> float | None:
        """Loop clock when the engine's own work was last seen (an item, a vector); None before."""

    def generate(self, leg: LegRequest, *, timeout_s: float | None) -> EngineCall:
        """Write the request and return at once; failures come out of `receive`.

        timeout_s: sent as grpc-timeout; None sends none.
        """

    async def embed(self, leg: EmbedLeg, *, timeout_s: float | None) -> Vector:
        """One vector; raises EngineFailure, RUNTIME_CANNOT_EMBED where the protocol or the engine has no such rpc, and
        TandemError for a leg that its wire cannot carry. Cancelling the caller cancels the call.
        """

    async def operate(self, operation: Operation, *, timeout_s: float) -> Operated:
        """Have the engine do something for an operator; raises EngineFailure, with the reason in `operations.CANNOT`
        where the protocol or the engine has no such rpc, and TandemError where the dialect refuses a parameter of it.
        """

    def kv_events(self, *, resume_at: int) -> KvEventCall:
        """Subscribe and return at once; failures come out of `receive`. resume_at: 0 = from the present state."""

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        """Ask the engine to stop a leg (the Abort rpc); raises EngineFailure when it cannot be asked."""

    async def probe(self, *, timeout_s: float) -> None:
        """Return if the engine is alive and serving; raise EngineFailure otherwise."""

    async def describe(self, *, timeout_s: float) -> WorkerFacts:
        """What the engine says of itself; raises EngineFailure."""

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        """Load per rank in rank order, or None where the protocol has no such rpc; raises EngineFailure."""

    async def fetch_tokenizer(self, *, timeout_s: float) -> bytes | None:
        """The tokenizer archive (zip) whose sha256 has been checked, or None where the engine has none."""

    async def close(self) -> None:
        """Close the connection; running calls fail."""


class EngineDialer(Protocol):
    """Opens workers."""

    async def dial(
        self,
        spec: WorkerSpec,
        credentials: Credentials | None,
        *,
        timeout_s: float,
        on_asked: OnAsked | None = None,
    ) -> EngineClient:
        """Connect, and detect the protocol, or check the stated one (spec.url is canonical).

        on_asked: told of each question of the detection as it is answered, so also when it fails; never before the
        connection stands.
        Raises EngineFailure: WORKER_UNREACHABLE, WORKER_TLS_FAILED, RUNTIME_NOT_DETECTED, WORKER_REFUSED.
        """

    async def probe_bootstrap(self, host: str, port: int, *, timeout_s: float) -> None:
        """Return if something accepts connections there; raises EngineFailure."""


class Fleet(Protocol):
    """The workers that can be called now; the control loop's side of the relay."""

    def workers(self) -> Mapping[WorkerId, Worker]:
        """An immutable snapshot of all registered workers, oldest first; every decision cites one snapshot."""

    def client(self, key: RankKey) -> EngineClient | None:
        """The open client of that life of a worker, or None when that life is over."""

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        """Passive health: a leg on this rank failed. Returns at once; a broken connection means NOT_READY."""

    def leg_succeeded(self, key: RankKey) -> None:
        """Passive health: a leg on this rank ended well."""


class TextStream(Protocol):
    """Turns the tokens of one choice into text, step by step."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that has become certain; never half a character."""

    def flush(self) -> str:
        """What is left at the end."""


class TextCodec(Protocol):
    """A model's tokenizer."""

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens of the template included in the text recognised.

        adds_special: the model's own leading and trailing tokens are added; not to a chat, whose template wrote them.
        """

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt text of (role, content) messages by the model's chat template; raises TandemError."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole token sequence."""

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> TextStream:
        """A fresh incremental decoder.

        continues: the text goes on with another one, so a space at its beginning stays where a decoder drops it from
        whole texts (Llama-2's and T5's kinds do).
        """

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""


class TextCodecs(Protocol):
    """The tokenizers of the fleet's models."""

    def get(self, model: str) -> TextCodec | None:
        """The codec of a model id, or None while none is loaded."""

    def source(self, model: str) -> TokenizerSource | None:
        """Where the codec of a model id came from, or None while none is loaded."""

    async def digest(self, archive: bytes) -> str:
        """Equal for archives of equal tokenizers and templates, whatever the order and age of their files; hex.

        Raises TandemError(TOKENIZER_UNAVAILABLE).
        """

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        """Load and keep a model's tokenizer; raises TandemError(TOKENIZER_UNAVAILABLE), then the old one stays.

        archive: what the worker handed out; not read, and may be None, where `source` states a path.
        """


class TokenSink(Protocol):
    """The client's end of one request. The relay makes one call at a time; nothing after `finish`."""

    async def queued(self, status: QueueStatus) -> None:
        """Say where the request stands, before any chunk; commits the call (headers go out)."""

    async def chunk(self, chunk: OutputChunk) -> None:
        """Deliver new output; waits while the client is behind, within the sink's bound in bytes."""

    async def finish(self, finished: Finished) -> None:
        """Deliver the last message of a good stream. Bad ends are raised to the caller of the relay instead."""


class Store(Protocol):
    """Where events become durable before they are applied."""

    async def commit(self, events: Sequence[object]) -> None:
        """Keep the events, in order and all or none; raises when they could not be kept."""


class Observer(Protocol):
    """Is told what happened; must not block or raise."""

    def observe(self, event: object) -> None:
        """One event of the past tense (a frozen value of model/ or core/)."""


class LegTraces(Protocol):
    """Names the spans of legs before their requests are written."""

    def begin_leg(self, pair_id: PairId, leg_id: str, role: LegRole, key: RankKey) -> str | None:
        """Open a leg's span and return its W3C traceparent; None leaves the client's. Must not block or raise.

        The span ends with the leg's LegClosed.
        """
