"""The vocabulary of choice: candidates are filtered, scored in [0, 1] and picked; a Plan or a Refusal comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem_router.handshake.contract import Handshake
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import ConstraintKind, ServingMode
from tandem_router.model.worker import Worker

__all__ = ["Candidate", "Plan", "Query", "Refusal", "Rejection", "Scorer"]


@dataclass(frozen=True, slots=True)
class Query:
    """What is to be placed."""

    model: str
    prompt_tokens: int
    needs_seed: bool = False
    constraint: ConstraintKind | None = None
    """The kind of form that the answer must have."""
    adapters: tuple[str, ...] = ()
    """Names that every worker of the attempt must have loaded."""
    embeds: bool = False
    """A vector is wanted, which one worker makes alone: serving_mode is AGGREGATED."""
    choices: int = 1
    """How many one call to the worker that serves it alone asks for."""
    temperature: float | None = None
    """As the request says; None = the worker's default. Some engines take fewer choices where it is 0."""
    target_worker_id: WorkerId | None = None
    """The worker that must decode, or serve alone."""
    target_dp_rank: int | None = None
    target_prefill_id: WorkerId | None = None
    """The worker that must prefill; naming one asks for a pair."""
    target_prefill_rank: int | None = None
    serving_mode: ServingMode | None = None
    """What the caller insists on; None = the router decides."""
    avoid: Sequence[WorkerId] = ()
    """Workers that failed this request before; taken only when there is no other."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedulable slot as policies see it."""

    worker: Worker
    dp_rank: int
    in_flight: int
    """Open legs of this router on the slot."""

    @property
    def key(self) -> RankKey:
        """The slot in its worker's present life."""
        return self.worker.rank_key(self.dp_rank)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a worker was not taken."""

    worker_id: WorkerId
    reason: str
    """UPPER_SNAKE: NOT_READY, NOT_TARGET, RANK_UNHEALTHY, INCOMPATIBLE, CANNOT_SEED, CANNOT_CONSTRAIN, CANNOT_EMBED,
    CANNOT_GENERATE, CANNOT_RETURN_CONTEXT_PARAMS, CANNOT_APPLY_ADAPTERS, LACKS_ADAPTER, TOO_MANY_CHOICES."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Where an attempt goes. `handshake` and `prefill` are None when one worker does both phases."""

    decode: Candidate
    prefill: Candidate | None
    handshake: Handshake | None
    scorecard: Mapping[RankKey, float]
    """Scores that led to the choice."""
    rejections: tuple[Rejection, ...]
    reason: str
    """UPPER_SNAKE: why a pair or one worker: PAIR_FITS, PROMPT_SHORT, NO_PAIR, REQUESTED."""

    @property
    def serving_mode(self) -> ServingMode:
        """A pair or one worker."""
        return ServingMode.AGGREGATED if self.handshake is None else ServingMode.DISAGGREGATED

    @property
    def kind(self) -> HandshakeKind:
        """How the legs meet."""
        return HandshakeKind.AGGREGATE if self.handshake is None else self.handshake.kind

    @property
    def abort_in_transfer(self) -> AbortInTransfer:
        """As the handshake declares; SAFE where there is no transfer."""
        return AbortInTransfer.SAFE if self.handshake is None else self.handshake.abort_in_transfer


@dataclass(frozen=True, slots=True)
class Refusal:
    """No place now, and why; never raised."""

    failure: Failure
    rejections: tuple[Rejection, ...]


class Scorer(Protocol):
    """A pure opinion about candidates: one score in [0, 1] each, higher is better, independent of their order."""

    @property
    def name(self) -> str:
        """lower_snake; shown by PlanPair."""

    def score(self, query: Query, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Scores in the order of the candidates."""


InFlight = Callable[[RankKey], int]
"""Open legs of a slot: the read side of `core.ledger`."""
