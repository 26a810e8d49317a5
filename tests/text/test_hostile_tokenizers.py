"""Tokenizer files that break the libraries that read them break nothing of ours: each is a TandemError that says so.

`tokenizers` is Rust: what it did not foresee is a panic, which Python sees as a BaseException that `except Exception`
lets through. A job that died of one would never end.
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from typing import Any

import pytest
from archives import archive, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_router.errors import Reason, TandemError
from tandem_router.offload.tokenizers import TokenizerPool
from tandem_router.text import archive as subject
from tandem_router.text.archive import TokenizerFiles, open_archive
from tandem_router.text.tokenizer import Tokenizer

LETTER: dict[str, Any] = {"type": "BPE", "vocab": {"h": 0}, "merges": []}


def declared(model: dict[str, Any] = LETTER, **parts: Any) -> str:
    """A tokenizer.json of these parts."""
    empty: dict[str, Any] = {
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
    }
    return json.dumps({"version": "1.0", **empty, "post_processor": None, "decoder": None, **parts, "model": model})


PANICS_ON_LOADING = declared(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
PANICS_ON_ENCODING = {
    "a template that names a token it does not define": declared(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "pieces of no length": declared(pre_tokenizer={"type": "FixedLength", "length": 0}),
}
FAILS_ON_A_TEXT = {
    "WordLevel": declared({"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}),
    "Unigram": declared({"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
    "BPE": declared({"type": "BPE", "unk_token": "<unk>", "vocab": {"a": 0}, "merges": []}),
}


def test_file_that_the_library_panics_on_is_refused() -> None:
    with pytest.raises(TandemError) as caught:
        Tokenizer(TokenizerFiles(PANICS_ON_LOADING))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


def test_archive_that_the_library_panics_on_ends_its_load() -> None:
    async def scene() -> None:
        pool = TokenizerPool()
        try:
            with pytest.raises(TandemError) as caught:
                await pool.load("m", archive({"tokenizer.json": PANICS_ON_LOADING}))
            assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
        finally:
            await pool.close()

    asyncio.run(scene())


@pytest.mark.parametrize("kind", PANICS_ON_ENCODING)
def test_tokenizer_that_panics_is_no_fault_of_the_text(kind: str) -> None:
    subject = Tokenizer(TokenizerFiles(PANICS_ON_ENCODING[kind]))
    with pytest.raises(TandemError) as caught:
        subject.encode("hello")
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


STRIPS_WHAT_IS_NOT_THERE = declared(
    {"type": "WordLevel", "unk_token": "a", "vocab": {" ": 0, "a": 1}},
    decoder={
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}],
    },
)
"""Of a text that is one space, Strip takes two: a panic."""


def test_decoder_that_panics_on_some_tokens_is_told_so() -> None:
    subject = Tokenizer(TokenizerFiles(STRIPS_WHAT_IS_NOT_THERE))
    assert subject.decode([1], skip_special_tokens=True) == "a"
    with pytest.raises(TandemError) as caught:
        subject.decode([0], skip_special_tokens=True)
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


def test_stream_of_a_decoder_that_panics_on_some_tokens_is_told_so() -> None:
    stream = Tokenizer(TokenizerFiles(STRIPS_WHAT_IS_NOT_THERE)).stream(skip_special_tokens=True)
    with pytest.raises(TandemError) as caught:
        stream.push([0])
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


def test_decoder_that_panics_on_every_token_is_refused() -> None:
    everything = {"type": "Strip", "content": "a", "start": 1, "stop": 1}
    with pytest.raises(TandemError) as caught:
        Tokenizer(TokenizerFiles(declared(decoder=everything)))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


@pytest.mark.parametrize("kind", FAILS_ON_A_TEXT)
def test_text_that_a_tokenizer_has_no_token_for_is_refused_by_its_field(kind: str) -> None:
    subject = Tokenizer(TokenizerFiles(FAILS_ON_A_TEXT[kind]))
    assert subject.encode("a") == (0,)
    with pytest.raises(TandemError) as caught:
        subject.encode("b")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "text")


@pytest.mark.parametrize("name", [[1], {"a": 1}, None, 7], ids=["list", "object", "null", "number"])
def test_named_template_with_an_odd_name_is_not_the_default(name: Any) -> None:
    templates = [{"name": name, "template": "odd"}, {"name": "default", "template": "d"}]
    config = json.dumps({"chat_template": templates})
    assert open_archive(archive({"tokenizer.json": "{}", "tokenizer_config.json": config})).chat_template == "d"


@pytest.mark.parametrize(
    "name", ["../a.txt", "a/../../b.txt", "/etc/passwd", "..\\a.txt", "\\\\host\\a.txt", "C:a.txt"]
)
def test_whole_tokenizer_beside_an_entry_that_leaves_its_folder_is_refused_for_that(name: str) -> None:
    with pytest.raises(TandemError, match="leaves its folder"):
        open_archive(archive({"tokenizer.json": byte_level(), name: "x"}))


@pytest.mark.parametrize("others", [255, 256])
def test_whole_tokenizer_among_too_many_entries_is_refused_for_that(others: int) -> None:
    data = archive({"tokenizer.json": byte_level()} | {f"{number}.txt": "" for number in range(others)})
    if others + 1 <= subject.MAX_ENTRIES:
        assert open_archive(data).tokenizer_json == byte_level()
        return
    with pytest.raises(TandemError, match="has 257 entries"):
        open_archive(data)


@pytest.mark.parametrize(("limit", "is_read"), [(700, False), (999, False), (1000, True)])
def test_limit_holds_for_all_files_together_to_the_byte(
    monkeypatch: pytest.MonkeyPatch, limit: int, is_read: bool
) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", limit)
    data = archive({"tokenizer.json": "0" * 600, "tokenizer_config.json": "{}".ljust(400)})
    if is_read:
        assert open_archive(data).tokenizer_json == "0" * 600
        return
    with pytest.raises(TandemError, match=f"inflates to more than {limit} bytes"):
        open_archive(data)


@pytest.mark.parametrize("stated", [[], ["text"], [{"name": "tool_use", "template": "t"}], {"a": "b"}, 7])
def test_template_that_is_none_by_default_is_none(stated: Any) -> None:
    config = json.dumps({"chat_template": stated})
    assert open_archive(archive({"tokenizer.json": "{}", "tokenizer_config.json": config})).chat_template is None


COMPRESSIONS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
OTHERS = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


def compressed(kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as written:
        written.writestr("tokenizer.json", byte_level())
    return buffer.getvalue()


def outcome(data: bytes) -> str | Reason:
    try:
        return open_archive(data).tokenizer_json
    except TandemError as error:
        return error.reason


@pytest.mark.parametrize("kind", OTHERS)
def test_compression_whose_memory_the_archive_chooses_is_not_read(kind: str) -> None:
    with pytest.raises(TandemError, match="compress") as caught:
        open_archive(compressed(OTHERS[kind]))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE


@pytest.mark.parametrize("kind", [*COMPRESSIONS, *OTHERS])
@settings(deadline=None)
@given(data=st.data())
def test_damaged_archive_is_refused_or_whole(kind: str, data: st.DataObject) -> None:
    whole = compressed({**COMPRESSIONS, **OTHERS}[kind])
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        near_an_end = st.one_of(st.integers(0, 120), st.integers(len(whole) - 120, len(whole) - 1))
        damaged[data.draw(near_an_end)] = data.draw(st.integers(0, 255))
    assert outcome(bytes(damaged)) in (byte_level(), Reason.TOKENIZER_UNAVAILABLE)
