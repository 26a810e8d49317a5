"""Giving a request its pages: all it can ever need, at once, behind what is cached of its prompt."""

from __future__ import annotations

from tandem_engine.accounts import RankAccounts
from tandem_engine.kv_cache import PagedKvCache
from tandem_engine.live import LiveRequest

__all__ = ["give_pages", "start_behind"]


def give_pages(cache: PagedKvCache, live: LiveRequest, accounts: RankAccounts) -> bool:
    """Reserves every page of `live`; False, and nothing changed, when they do not fit now."""
    # A decode never reuses its own prefix: a hit would hide a page that was lost on the way.
    # Log probabilities of prompt tokens need every prompt position computed.
    alone = live.is_decode or live.request.input_logprobs
    hits = () if alone else cache.match(live.chain)
    fresh = cache.reserve(hits, live.pages_needed - len(hits))
    if fresh is None:
        return False
    missing = live.full_blocks - len(hits)
    live.shared_pages = (*hits, *fresh[:missing])
    for choice in live.choices:
        begin = missing + choice.index * live.pages_per_choice
        choice.private_pages = fresh[begin : begin + live.pages_per_choice]
        choice.table = (*live.shared_pages, *choice.private_pages)
    if not live.is_decode:
        start_behind(live, len(hits))
        live.published = len(hits)
        accounts.looked_up_tokens += live.prompt_tokens
        accounts.hit_tokens += live.cached_tokens
    return True


def start_behind(live: LiveRequest, pages: int) -> None:
    """The first `pages` blocks have KV. The last prompt token is always evaluated: its logits are needed."""
    live.written_from = pages * live.page_size
    live.computed = min(live.written_from, live.prompt_tokens - 1)
    live.cached_tokens = live.computed
    live.input_logprobs = [None] * (live.computed + 1)
