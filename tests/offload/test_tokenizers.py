"""The codecs of the fleet's models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.offload.tokenizers import PooledCodec, TokenizerPool


@pytest.fixture
async def pool() -> AsyncIterator[TokenizerPool]:
    subject = TokenizerPool()
    yield subject
    await subject.close()


async def codec(pool: TokenizerPool, archive: bytes) -> PooledCodec:
    await pool.load("m", archive)
    found = pool.get("m")
    assert found is not None
    return found


async def test_unknown_model_has_no_codec(pool: TokenizerPool) -> None:
    assert pool.get("m") is None


async def test_bad_archive_is_refused_and_the_old_codec_stays(pool: TokenizerPool, archive: bytes) -> None:
    before = await codec(pool, archive)
    with pytest.raises(TandemError):
        await pool.load("m", b"garbage")
    assert pool.get("m") is before


@pytest.mark.parametrize("length", [10, 100_000])
async def test_text_survives_short_and_long_ways(pool: TokenizerPool, archive: bytes, length: int) -> None:
    subject = await codec(pool, archive)
    text = "é👋 a" * (length // 4)
    assert subject.decode(await subject.encode(text), skip_special_tokens=True) == text


async def test_stream_gives_whole_characters(pool: TokenizerPool, archive: bytes) -> None:
    subject = await codec(pool, archive)
    stream = subject.stream(skip_special_tokens=True)
    assert [stream.push([token]) for token in await subject.encode("👋")] == ["", "", "", "👋"]


async def test_vocabulary_size_is_known(pool: TokenizerPool, archive: bytes) -> None:
    assert (await codec(pool, archive)).vocab_size == 256


async def test_chat_is_rendered_by_the_models_template(pool: TokenizerPool, archive: bytes) -> None:
    subject = await codec(pool, archive)
    assert await subject.render_chat([("user", "hi"), ("assistant", "ho")]) == "[user]hi[assistant]ho"


async def test_chat_without_a_template_is_refused(pool: TokenizerPool, plain_archive: bytes) -> None:
    subject = await codec(pool, plain_archive)
    with pytest.raises(TandemError) as caught:
        await subject.render_chat([("user", "hi")])
    assert caught.value.reason is Reason.INVALID_REQUEST


async def test_loop_runs_while_a_megabyte_is_encoded(pool: TokenizerPool, archive: bytes) -> None:
    subject = await codec(pool, archive)
    encoding = asyncio.create_task(subject.encode("the quick brown fox " * 50_000))
    turns = 0
    while not encoding.done():
        await asyncio.sleep(0)
        turns += 1
    await encoding
    assert turns > 1000


async def test_closing_twice_is_harmless(pool: TokenizerPool) -> None:
    await pool.close()
    await pool.close()
