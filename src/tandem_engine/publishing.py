"""Offering computed blocks for reuse: which page holds which full block, under which hash."""

from __future__ import annotations

from tandem_engine.block_hash import extend
from tandem_engine.kv_cache import Block, PagedKvCache
from tandem_engine.live import Choice, LiveRequest

__all__ = ["publish_generated", "publish_prompt"]


def publish_prompt(cache: PagedKvCache, live: LiveRequest) -> None:
    """Publish the full prompt blocks that have KV by now and are not published yet."""
    for index in range(live.published, min(live.computed // live.page_size, live.full_blocks)):
        tokens = live.request.token_ids[index * live.page_size : (index + 1) * live.page_size]
        parent = live.chain[index - 1] if index else live.root
        cache.publish(live.shared_pages[index], _block(live, live.chain[index], parent, tokens, index))
        live.published = index + 1


def publish_generated(cache: PagedKvCache, live: LiveRequest, choice: Choice) -> None:
    """Publish the block that the newest computed position of `choice` has filled, if it has.

    Called once per step, before the step's token is appended: every position of prompt and output has KV then.
    """
    index = live.full_blocks + len(choice.chain)
    begin = index * live.page_size
    if live.prompt_tokens + len(choice.output) < begin + live.page_size:
        return
    prompt = live.request.token_ids[begin:]
    tokens = (*prompt, *choice.output[max(begin - live.prompt_tokens, 0) :])[: live.page_size]
    parent = choice.chain[-1] if choice.chain else (live.chain[-1] if live.chain else live.root)
    block_hash = extend(parent, tokens)
    choice.chain.append(block_hash)
    cache.publish(choice.table[index], _block(live, block_hash, parent, tokens, index))


def _block(live: LiveRequest, block_hash: int, parent: int, tokens: tuple[int, ...], index: int) -> Block:
    name = live.request.adapter.name if live.request.adapter else None
    return Block(block_hash, parent, tokens, is_first=index == 0, adapter=name)
