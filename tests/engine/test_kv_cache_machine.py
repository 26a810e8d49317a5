"""Any order of reserve, publish, release and clear keeps every page in exactly one state."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tandem_engine.block_hash import chain, root_hash
from tandem_engine.kv_cache import Block, PagedKvCache, PageLayout
from tandem_engine.kv_events import KvEventKind

PAGES = 12
ROOT = root_hash(None, None)


class PagesMachine(RuleBasedStateMachine):
    """Owners hold pages; a model counts references and replays the events."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedKvCache(PageLayout(1, 1, 2, 2), PAGES)
        self.owners: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    @rule(family=st.integers(0, 2), length=st.integers(1, 5))
    def reserve(self, family: int, length: int) -> None:
        tokens = tuple(family * 100 + at for at in range(length * 2))
        hits = self.cache.match(chain(ROOT, tokens, 2))
        fresh = self.cache.reserve(hits, length - len(hits))
        if fresh is not None:
            self.cache.data[list(fresh)] = 1.0
            self.owners.append(((*hits, *fresh), tokens))

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 100), count=st.integers(0, 5))
    def publish(self, which: int, count: int) -> None:
        pages, tokens = self.owners[which % len(self.owners)]
        hashes = chain(ROOT, tokens, 2)
        for at, page in enumerate(pages[:count]):
            parent = hashes[at - 1] if at else ROOT
            self.cache.publish(page, Block(hashes[at], parent, tokens[at * 2 : at * 2 + 2], at == 0))

    @precondition(lambda self: self.owners)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        pages, _ = self.owners.pop(which % len(self.owners))
        self.cache.release(pages)

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def references_are_the_owners(self) -> None:
        counts = [sum(page in pages for pages, _ in self.owners) for page in range(PAGES)]
        assert [self.cache.references(page) for page in range(PAGES)] == counts

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        assert self.cache.free_pages + self.cache.cached_pages + self.cache.referenced_pages == PAGES
        assert self.cache.referenced_pages == len({page for pages, _ in self.owners for page in pages})

    @invariant()
    def exactly_the_free_pages_are_not_a_number(self) -> None:
        assert int(np.isnan(self.cache.data).all(axis=(1, 2, 3, 4, 5)).sum()) == self.cache.free_pages

    @invariant()
    def replayed_events_give_the_cached_hashes(self) -> None:
        stored: set[int] = set()
        for event in self.cache.events.since(0) or ():
            if event.kind is KvEventKind.STORED:
                stored |= set(event.block_hashes)
            elif event.kind is KvEventKind.REMOVED:
                stored -= set(event.block_hashes)
            else:
                stored = set()
        assert stored == set(self.cache._by_hash)


PagesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPagesMachine = PagesMachine.TestCase
