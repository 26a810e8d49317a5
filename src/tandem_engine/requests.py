"""The values that cross the engine's door: what is asked, what comes back, what is counted.

Wire servicers build `EngineRequest`, iterate `Emission`, read `Ledger` and `RankLoad`. Nothing here knows a protocol.
Times are float seconds. Token positions are absolute: the index of a token in prompt + output.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields

from tandem_engine.lora import Adapter
from tandem_engine.sampling import SamplingParams

__all__ = [
    "Emission",
    "EngineError",
    "EngineErrorReason",
    "EngineRequest",
    "HeldPages",
    "Ledger",
    "Phase",
    "RankLedger",
    "RankLoad",
]


class Phase(enum.Enum):
    """What part of a request this engine does."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"
    EMBED = "embed"  # the prompt's embedding, no tokens


class EngineErrorReason(enum.Enum):
    """Why the engine refused or failed a call; servicers map this to their protocol's status."""

    INVALID = "INVALID"  # the request can never be served: empty prompt, bad token id, bad parameter, too long
    ALREADY_EXISTS = "ALREADY_EXISTS"  # a live request has this request_id
    STOPPED = "STOPPED"  # the engine has stopped or its step loop has failed
    ABORTED = "ABORTED"  # the request ended before the awaited thing (pages) came to be
    WRONG_STATE = "WRONG_STATE"  # a call that does not fit the request's phase or state


class EngineError(Exception):
    """Refusal or failure of one call. `reason` is for programs, the text names the field and the limit."""

    def __init__(self, reason: EngineErrorReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt and how to go on from it.

    `dp_rank` None lets the engine choose: `room % dp_size` when a room is given, else the least loaded rank.
    `room` is the bootstrap room; the engine only counts it as open (`Ledger.rooms`) while pages are held or awaited.
    `adapter` changes what is computed; it and `cache_salt` separate prefix caches. `input_logprobs` asks for the log
    probability of every prompt token but the first (which is None); they come with the first emission of choice 0.
    """

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    phase: Phase = Phase.AGGREGATED
    room: int | None = None
    stream: bool = True
    adapter: Adapter | None = None
    cache_salt: str | None = None
    input_logprobs: bool = False
    dp_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Emission:
    """One token of one choice, or the end of a choice without a token.

    The last token of a choice carries `finish` itself ("stop" or "length"; a stop token is emitted too). `token_id` is
    None only when a choice ends without a token: "abort" and "error", and "length" when max_tokens is 0.
    `position` is absolute. Counts are running totals of this choice; `cached_tokens` is how many prompt tokens were
    not computed here (prefix hit, or received from the prefill worker). `matched_stop` is the stop token's id or the
    stop string. For "error", `error` says why. `embedding` is the vector of an EMBED request, on its one emission.
    """

    choice: int
    token_id: int | None
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    position: int
    finish: str | None
    matched_stop: int | str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    input_logprobs: tuple[float | None, ...] = ()
    error: str | None = None
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldPages:
    """A finished prefill's pages, kept until `Engine.release` or the lease ends (`deadline_s` on the engine's clock).

    `pages` are the pages of FULL prompt blocks only, in prompt order; `num_tokens` is the whole prompt's length.
    `content` is the last one's block hash; without any it is the root, which only the adapter and salt decide.
    """

    hold_id: int
    request_id: str
    rank: int
    pages: tuple[int, ...]
    num_tokens: int
    deadline_s: float
    content: int


@dataclass(frozen=True, slots=True)
class RankLedger:
    """What one data-parallel rank has in hand now, and its totals since start."""

    rank: int
    running: int
    waiting: int
    held_pages: int
    cached_pages: int
    free_pages: int
    rooms: int
    recomputed_blocks: int
    pages_sent: int
    pages_received: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    aborted: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the engine has in hand (sums over ranks); an idle engine has zero running, waiting, held_pages and rooms.

    `held_pages`: pages referenced by requests and holds; cached pages that nobody references do not count.
    `recomputed_blocks`: FULL prompt blocks that DECODE requests computed themselves (0 when every transfer worked).
    `waiting` includes decode requests whose pages have not arrived.
    """

    running: int
    waiting: int
    held_pages: int
    cached_pages: int
    free_pages: int
    rooms: int
    recomputed_blocks: int
    pages_sent: int
    pages_received: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    aborted: int
    ranks: tuple[RankLedger, ...]

    @classmethod
    def of(cls, ranks: tuple[RankLedger, ...]) -> Ledger:
        """The sums over `ranks`."""
        counts = [item.name for item in fields(RankLedger) if item.name != "rank"]
        return cls(**{name: sum(getattr(rank, name) for rank in ranks) for name in counts}, ranks=ranks)


@dataclass(frozen=True, slots=True)
class RankLoad:
    """Load of one rank, for GetLoads. `token_usage` and `cache_hit_rate` are in [0, 1]; throughput in tokens/s."""

    rank: int
    running: int
    waiting: int
    used_tokens: int
    max_tokens: int
    token_usage: float
    gen_throughput: float
    cache_hit_rate: float
    max_running: int
