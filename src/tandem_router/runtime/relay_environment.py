"""What every attempt needs: the ports, the core's tables and the relay's scope, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem_router.core.default_sampling import parse_default_sampling
from tandem_router.core.ledger import LegLedger, LegRow
from tandem_router.core.rooms import RoomAllocator
from tandem_router.core.watch_pairs import PairTable
from tandem_router.model.ids import PairId, RankKey
from tandem_router.model.pairing import LegRole
from tandem_router.model.settings import RuntimeSettings
from tandem_router.policies.contract import Candidate, Plan, Query
from tandem_router.policies.plan import Planner
from tandem_router.ports import Clock, Fleet, Ids, LegTraces, Observer, Rng, TextCodecs
from tandem_router.runtime.scope import TaskScope

if TYPE_CHECKING:
    from tandem_router.runtime.attempt import PairAttempt
    from tandem_router.runtime.embed_attempt import EmbedAttempt

__all__ = ["RelayEnvironment"]


@dataclass(slots=True)
class RelayEnvironment:
    """Shared by all attempts of one relay."""

    clock: Clock
    ids: Ids
    rng: Rng
    fleet: Fleet
    codecs: TextCodecs
    ledger: LegLedger
    rooms: RoomAllocator
    planner: Planner
    observer: Observer
    settings: RuntimeSettings
    traces: LegTraces | None = None
    """None: legs carry the client's own trace context."""
    scope: TaskScope = field(default_factory=lambda: TaskScope("relay"))
    attempts: dict[PairId, PairAttempt] = field(default_factory=dict)
    """Attempts of Generate with an open leg, oldest first."""
    embeds: dict[str, EmbedAttempt] = field(default_factory=dict)
    """Attempts of Embed, by leg id, oldest first."""
    pairs: PairTable = field(default_factory=PairTable)
    """The same as operators see them, without aggregated ones."""
    default_sampling: Mapping[str, float] = field(init=False)
    """The server's own, which every other default goes before."""

    def __post_init__(self) -> None:
        self.default_sampling = parse_default_sampling(self.settings.default_sampling)

    def open_leg(self, key: RankKey, role: LegRole, prompt_tokens: int) -> str:
        """Reserve a slot: enter a leg in the ledger under a fresh id.

        The id is a UUID, so no leg's id is a prefix of another's (SGLang aborts every request whose id begins so).
        """
        leg_id = self.ids.uuid()
        self.ledger.open(LegRow(leg_id, key, role, prompt_tokens, self.clock.monotonic_s()))
        return leg_id

    def replace_decode(self, plan: Plan, query: Query) -> Candidate | None:
        """Another decode worker for the plan's unused handle, or None."""
        random = self.rng.random()
        return self.planner.replace_decode(plan, query, self.fleet.workers(), self.ledger.in_flight, random=random)
