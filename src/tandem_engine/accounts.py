"""One rank's totals since start, and the ledger and load made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_engine.kv_cache import PagedKvCache
from tandem_engine.requests import RankLedger, RankLoad
from tandem_engine.throughput import TokenRate

__all__ = ["RankAccounts"]


@dataclass(slots=True)
class RankAccounts:
    """Totals only rise. Owned by the rank's scheduler; `pages_sent` and `pages_received` are counted by the engine.

    What is in hand (requests, pages, rooms) is not counted here but derived when asked, so it cannot drift.
    """

    rank: int
    recomputed_blocks: int = 0
    pages_sent: int = 0
    pages_received: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    aborted: int = 0
    looked_up_tokens: int = 0
    hit_tokens: int = 0
    rate: TokenRate = field(default_factory=TokenRate)

    def step_done(self, now_s: float, generated: int) -> None:
        """Count a step that made `generated` tokens."""
        self.steps += 1
        self.generated_tokens += generated
        self.rate.add(now_s, generated)

    def ledger(self, cache: PagedKvCache, *, running: int, waiting: int, rooms: int) -> RankLedger:
        """The row of this rank."""
        return RankLedger(
            rank=self.rank,
            running=running,
            waiting=waiting,
            held_pages=cache.referenced_pages,
            cached_pages=cache.cached_pages,
            free_pages=cache.free_pages,
            rooms=rooms,
            recomputed_blocks=self.recomputed_blocks,
            pages_sent=self.pages_sent,
            pages_received=self.pages_received,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            steps=self.steps,
            aborted=self.aborted,
        )

    def load(self, now_s: float, ledger: RankLedger, page_size: int, max_running: int) -> RankLoad:
        """What load balancers ask for. Reserved pages count as used, since nobody else can have them."""
        used = ledger.held_pages * page_size
        most = used + (ledger.cached_pages + ledger.free_pages) * page_size
        return RankLoad(
            rank=self.rank,
            running=ledger.running,
            waiting=ledger.waiting,
            used_tokens=used,
            max_tokens=most,
            token_usage=used / most,
            gen_throughput=self.rate.per_second(now_s),
            cache_hit_rate=self.hit_tokens / self.looked_up_tokens if self.looked_up_tokens else 0.0,
            max_running=max_running,
        )
