"""The codecs of the fleet's models."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tandem_router.errors import Reason, TandemError
from tandem_router.model.tokenizer_source import TokenizerSource
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
    assert subject.decode(await subject.encode(text, adds_special=True), skip_special_tokens=True) == text


async def test_stream_gives_whole_characters(pool: TokenizerPool, archive: bytes) -> None:
    subject = await codec(pool, archive)
    stream = subject.stream(skip_special_tokens=True, continues=False)
    assert [stream.push([token]) for token in await subject.encode("👋", adds_special=True)] == ["", "", "", "👋"]


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
    encoding = asyncio.create_task(subject.encode("the quick brown fox " * 50_000, adds_special=True))
    turns = 0
    while not encoding.done():
        await asyncio.sleep(0)
        turns += 1
    await encoding
    assert turns > 1000


def written(folder: Path, archive: bytes) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        opened.extractall(folder)
    return folder


async def test_tokenizer_of_a_path_needs_no_archive(pool: TokenizerPool, archive: bytes, tmp_path: Path) -> None:
    source = TokenizerSource(path=str(written(tmp_path, archive)))
    await pool.load("m", None, source)
    assert pool.source("m") == source
    subject = pool.get("m")
    assert subject is not None
    assert await subject.render_chat([("user", "hi")]) == "[user]hi"


async def test_stated_template_wins_over_the_archives(pool: TokenizerPool, archive: bytes) -> None:
    await pool.load("m", archive, TokenizerSource(chat_template="{{ messages[0].content }}!"))
    subject = pool.get("m")
    assert subject is not None
    assert await subject.render_chat([("user", "hi")]) == "hi!"


async def test_stated_template_that_is_none_is_refused_with_its_line(pool: TokenizerPool, archive: bytes) -> None:
    with pytest.raises(TandemError) as caught:
        await pool.load("m", archive, TokenizerSource(chat_template="ok\n{% if %}"))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
    assert caught.value.sentence.startswith("chat_template: it is not a Jinja2 template:")
    assert "line 2" in caught.value.sentence
    assert pool.get("m") is None


@pytest.mark.parametrize("content", [None, "{}"], ids=["missing", "no tokenizer"])
async def test_path_that_gives_no_tokenizer_is_named(pool: TokenizerPool, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TandemError) as caught:
        await pool.load("m", None, TokenizerSource(path=str(tmp_path)))
    assert (caught.value.reason, str(tmp_path) in caught.value.sentence) == (Reason.TOKENIZER_UNAVAILABLE, True)


async def test_nothing_is_loaded_from_nowhere(pool: TokenizerPool) -> None:
    assert pool.source("m") is None


async def test_closing_twice_is_harmless(pool: TokenizerPool) -> None:
    await pool.close()
    await pool.close()


def rewritten(archive: bytes, *, replaced: dict[str, bytes] | None = None) -> bytes:
    """The same files in another order, of another date, with something beside them that is not read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in reversed(old.namelist()):
            new.writestr(zipfile.ZipInfo(name, (2001, 2, 3, 4, 5, 6)), (replaced or {}).get(name, old.read(name)))
        new.writestr("generation_config.json", b"{}")
    return buffer.getvalue()


async def test_zips_of_equal_files_have_equal_digests(pool: TokenizerPool, archive: bytes) -> None:
    again = rewritten(archive)
    assert again != archive
    assert await pool.digest(again) == await pool.digest(archive)


async def test_another_template_or_vocabulary_has_another_digest(
    pool: TokenizerPool, archive: bytes, plain_archive: bytes
) -> None:
    other = rewritten(archive, replaced={"tokenizer.json": b"{}"})
    assert len({await pool.digest(each) for each in (archive, plain_archive, other)}) == 3


async def test_garbage_has_no_digest(pool: TokenizerPool) -> None:
    with pytest.raises(TandemError) as caught:
        await pool.digest(b"garbage")
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
