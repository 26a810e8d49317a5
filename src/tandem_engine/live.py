"""A request while the engine has it: state, pages, choices. Owned and changed by its rank's scheduler only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tandem_engine.block_hash import chain, root_hash
from tandem_engine.lifecycle import TRANSITIONS, RequestInput, RequestState
from tandem_engine.requests import Emission, EngineError, EngineErrorReason, EngineRequest, HeldPages, Phase
from tandem_engine.sampling import Sampled
from tandem_engine.stopping import StopWatch

__all__ = ["Choice", "EmissionSink", "LiveRequest"]


class EmissionSink(Protocol):
    """Where a request's results go; never raises, never blocks."""

    def emit(self, emission: Emission) -> None:
        """The next token or end of a choice."""
        ...

    def landed(self, pages: Sequence[int]) -> None:
        """Decode: the landing pages are allocated."""
        ...

    def held(self, held: HeldPages) -> None:
        """Prefill: the prompt's pages are held."""
        ...

    def ended(self, reason: str) -> None:
        """No more emissions, and no pages that have not been told yet."""
        ...


class Choice:
    """One continuation of the prompt."""

    __slots__ = ("chain", "finished", "index", "output", "private_pages", "stop_watch", "table")

    def __init__(self, index: int, stop_watch: StopWatch) -> None:
        self.index = index
        self.stop_watch = stop_watch
        self.output: list[int] = []
        self.private_pages: tuple[int, ...] = ()
        self.table: tuple[int, ...] = ()  # the request's shared pages, then the private ones
        self.chain: list[int] = []  # hashes of this choice's full blocks after the prompt's full blocks
        self.finished = False


class LiveRequest:
    """`max_tokens` and `seed` are the effective ones. Positions [0, computed) of the prompt have KV."""

    def __init__(
        self,
        request: EngineRequest,
        sink: EmissionSink,
        *,
        rank: int,
        page_size: int,
        max_tokens: int,
        seed: int,
        stop_watches: Sequence[StopWatch],
    ) -> None:
        self.request = request
        self.sink = sink
        self.rank = rank
        self.max_tokens = max_tokens
        self.seed = seed
        self.page_size = page_size
        self.state = RequestState.WAITING
        self.choices = tuple(Choice(index, watch) for index, watch in enumerate(stop_watches))
        self.root = root_hash(request.adapter.cache_key if request.adapter else None, request.cache_salt)
        self.chain = chain(self.root, request.token_ids, page_size)
        self.shared_pages: tuple[int, ...] = ()  # one per full prompt block, shared by the choices
        self.computed = 0
        self.arrived_pages = 0
        self.written_from = 0  # positions below came from a cache or a transfer and are not written again
        self.cached_tokens = 0
        self.published = 0
        self.input_logprobs: list[float | None] = [None]
        self.hold: HeldPages | None = None
        self.embedding: tuple[float, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.token_ids)

    @property
    def content(self) -> int:
        """What the shared pages hold: the last full prompt block's hash, or the root when there is none."""
        return self.chain[-1] if self.chain else self.root

    @property
    def full_blocks(self) -> int:
        return len(self.chain)

    @property
    def pages_per_choice(self) -> int:
        """Private pages of one choice: what follows the full prompt blocks. The last token is never fed back."""
        slots = self.prompt_tokens + max(self.max_tokens, 1) - 1
        return -(-slots // self.page_size) - self.full_blocks

    @property
    def pages_needed(self) -> int:
        return self.full_blocks + self.pages_per_choice * len(self.choices)

    @property
    def is_decode(self) -> bool:
        return self.request.phase is Phase.DECODE

    @property
    def is_open_room(self) -> bool:
        """True while the other side of the room may still write to, or read from, pages here."""
        if self.request.room is None:
            return False
        if self.is_decode:
            return self.state in (RequestState.WAITING, RequestState.TRANSFER, RequestState.LINGERING)
        return self.request.phase is Phase.PREFILL and self.state is not RequestState.DONE

    def step(self, happened: RequestInput) -> RequestState:
        """Move along the table. Raises EngineError(WRONG_STATE) and changes nothing when the table has no such move."""
        try:
            self.state = TRANSITIONS[self.state, happened]
        except KeyError:
            raise EngineError(
                EngineErrorReason.WRONG_STATE,
                f"request {self.request.request_id} is {self.state.value}: {happened.value} does not fit",
            ) from None
        return self.state

    def emit_token(self, choice: Choice, sampled: Sampled, finish: str | None, matched: int | str | None) -> None:
        """Send the token just appended to `choice.output`."""
        first = choice.index == 0 and len(choice.output) == 1
        self.sink.emit(
            Emission(
                choice=choice.index,
                token_id=sampled.token_id,
                logprob=sampled.logprob,
                top_logprobs=sampled.top,
                position=self.prompt_tokens + len(choice.output) - 1,
                finish=finish,
                matched_stop=matched,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=len(choice.output),
                cached_tokens=self.cached_tokens,
                input_logprobs=tuple(self.input_logprobs) if first and self.request.input_logprobs else (),
            )
        )

    def emit_end(self, choice: Choice, finish: str, error: str | None = None) -> None:
        """End `choice` without a token."""
        choice.finished = True
        unsent = choice.index == 0 and not choice.output and finish == "length" and self.request.input_logprobs
        self.sink.emit(
            Emission(
                choice=choice.index,
                token_id=None,
                logprob=None,
                top_logprobs=(),
                position=self.prompt_tokens + len(choice.output),
                finish=finish,
                matched_stop=None,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=len(choice.output),
                cached_tokens=self.cached_tokens,
                input_logprobs=tuple(self.input_logprobs) if unsent else (),
                error=error,
                embedding=self.embedding if finish == "length" else (),
            )
        )
