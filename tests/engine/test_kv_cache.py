"""Pages: who owns them, what freeing leaves behind, what is reused and evicted."""

from __future__ import annotations

import numpy as np
import pytest

from tandem_engine.block_hash import chain, root_hash
from tandem_engine.kv_cache import Block, PagedKvCache, PageLayout, PagesError
from tandem_engine.kv_events import KvEventKind

LAYOUT = PageLayout(layers=2, kv_heads=1, page_size=4, head_dim=8)


def blocks(count: int, salt: str | None = None) -> list[Block]:
    tokens = tuple(range(count * 4))
    root = root_hash(None, salt)
    hashes = chain(root, tokens, 4)
    return [
        Block(hashes[at], hashes[at - 1] if at else root, tokens[at * 4 : at * 4 + 4], is_first=at == 0)
        for at in range(count)
    ]


def cached(cache: PagedKvCache, named: list[Block]) -> tuple[int, ...]:
    """Store `named` in fresh pages and let go of them."""
    pages = cache.reserve((), len(named))
    assert pages is not None
    cache.data[list(pages)] = 1.0
    for page, block in zip(pages, named, strict=True):
        cache.publish(page, block)
    cache.release(pages)
    return pages


def test_a_released_unpublished_page_is_free_and_not_a_number() -> None:
    cache = PagedKvCache(LAYOUT, 3)
    pages = cache.reserve((), 1)
    assert pages is not None
    cache.data[pages[0]] = 1.0
    cache.release(pages)
    assert cache.free_pages == 3
    assert np.isnan(cache.data[pages[0]]).all()


def test_a_released_published_page_keeps_its_contents() -> None:
    cache = PagedKvCache(LAYOUT, 3)
    pages = cached(cache, blocks(2))
    assert (cache.cached_pages, cache.referenced_pages, cache.free_pages) == (2, 0, 1)
    assert (cache.data[list(pages)] == 1.0).all()


def test_match_finds_the_longest_run_from_the_start() -> None:
    cache = PagedKvCache(LAYOUT, 8)
    named = blocks(3)
    pages = cached(cache, [named[0], named[2]])
    assert cache.match([block.block_hash for block in named]) == pages[:1]


def test_another_salt_matches_nothing() -> None:
    cache = PagedKvCache(LAYOUT, 8)
    cached(cache, blocks(3))
    assert cache.match([block.block_hash for block in blocks(3, "tenant")]) == ()


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    hits = cached(cache, blocks(2))
    assert cache.reserve(hits, 3) is None
    assert (cache.cached_pages, cache.free_pages) == (2, 2)


def test_hits_are_not_evicted_to_make_room_for_their_own_request() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    pages = cached(cache, blocks(3))
    assert cache.reserve(pages[:1], 3) is not None
    assert (cache.data[pages[0]] == 1.0).all()


def test_eviction_takes_the_end_of_the_least_recently_used_chain_first() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    named = blocks(3)
    cached(cache, named)
    cache.reserve((), 2)
    assert len(cache.match([block.block_hash for block in named])) == 2


def test_an_evicted_page_is_announced_as_removed() -> None:
    cache = PagedKvCache(LAYOUT, 2)
    named = blocks(2)
    cached(cache, named)
    cache.reserve((), 1)
    last = (cache.events.since(2) or ())[-1]
    assert (last.kind, last.block_hashes) == (KvEventKind.REMOVED, (named[1].block_hash,))


def test_stored_events_name_the_parent_and_the_tokens() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    named = blocks(2)
    cached(cache, named)
    events = cache.events.since(0) or ()
    assert [(event.sequence, event.parent_hash, event.token_ids) for event in events] == [
        (1, None, (0, 1, 2, 3)),
        (2, named[0].block_hash, (4, 5, 6, 7)),
    ]


def test_an_equal_block_is_published_once() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    cached(cache, blocks(1))
    pages = cache.reserve((), 1)
    assert pages is not None
    assert not cache.publish(pages[0], blocks(1)[0])
    cache.release(pages)
    assert (cache.cached_pages, cache.events.last_sequence) == (1, 1)


def test_clear_frees_cached_pages_and_says_so() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    cached(cache, blocks(3))
    assert (cache.clear(), cache.free_pages) == (3, 4)
    assert (cache.events.since(3) or ())[-1].kind is KvEventKind.CLEARED


def test_a_page_in_use_during_clear_becomes_free_when_released() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    pages = cached(cache, blocks(1))
    cache.reserve(pages, 0)
    cache.clear()
    cache.release(pages)
    assert cache.free_pages == 4


def test_releasing_twice_is_an_error() -> None:
    cache = PagedKvCache(LAYOUT, 2)
    pages = cache.reserve((), 1)
    assert pages is not None
    cache.release(pages)
    with pytest.raises(PagesError):
        cache.release(pages)


def test_a_page_survives_the_wire_bit_for_bit() -> None:
    cache = PagedKvCache(LAYOUT, 2)
    cache.data[0] = np.random.default_rng(1).standard_normal(LAYOUT.shape)
    cache.write_page(1, cache.read_page(0))
    assert cache.data[0].tobytes() == cache.data[1].tobytes()


@pytest.mark.parametrize("size", [0, LAYOUT.page_bytes - 1, LAYOUT.page_bytes + 4])
def test_a_page_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(PagesError, match=str(LAYOUT.page_bytes)):
        PagedKvCache(LAYOUT, 2).write_page(0, bytes(size))


def test_a_reader_too_far_behind_is_told_to_resync() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    events = cache.events
    events._events = type(events._events)(maxlen=2)
    for _ in range(4):
        cache.clear()
    assert (events.since(1), len(events.since(2) or ())) == (None, 2)


def test_a_subscriber_hears_events_until_it_leaves() -> None:
    cache = PagedKvCache(LAYOUT, 4)
    heard: list[int] = []
    leave = cache.events.subscribe(lambda event: heard.append(event.sequence))
    cache.clear()
    leave()
    leave()
    cache.clear()
    assert heard == [1]
