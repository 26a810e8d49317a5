"""A tokenizer archive is believed in nothing."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile

import pytest
from archives import TEMPLATE, archive, byte_level, files

from tandem_router.errors import Reason, TandemError
from tandem_router.text import archive as subject
from tandem_router.text.archive import open_archive


def refusal(data: bytes) -> str:
    with pytest.raises(TandemError) as caught:
        open_archive(data)
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
    return caught.value.sentence


def test_known_files_are_read() -> None:
    found = open_archive(archive())
    assert (found.tokenizer_json, found.chat_template) == (byte_level(), TEMPLATE)


def test_config_wins_over_the_special_tokens_map() -> None:
    assert open_archive(archive()).special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}


def test_template_file_wins_over_the_config() -> None:
    assert open_archive(archive(files(chat_template__jinja="file"))).chat_template == "file"


def test_default_of_named_templates_is_taken() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config = json.dumps({"chat_template": named})
    assert open_archive(archive(files(tokenizer_config__json=config))).chat_template == "d"


def test_archive_with_the_tokenizer_alone_is_enough() -> None:
    assert open_archive(archive({"tokenizer.json": byte_level()})).chat_template is None


@pytest.mark.parametrize(
    "contents",
    [
        {"a.txt": "x"},
        {"../tokenizer.json": "{}"},
        {"a/../../tokenizer.json": "{}"},
        {"/etc/passwd": "x"},
        {"..\\tokenizer.json": "{}"},
        {"tokenizer.json": "{}", "tokenizer_config.json": "[]"},
        {"tokenizer.json": "{}", "tokenizer_config.json": "{"},
        {f"{number}.txt": "" for number in range(300)},
    ],
    ids=["no tokenizer", "parent", "hidden parent", "absolute", "backslash", "list", "not JSON", "many entries"],
)
def test_odd_archive_is_refused(contents: dict[str, str]) -> None:
    refusal(archive(contents))


@pytest.mark.parametrize(
    "data", [b"", b"not a zip", archive()[:200], archive()[:-30]], ids=["empty", "text", "cut", "end"]
)
def test_garbage_is_refused(data: bytes) -> None:
    refusal(data)


def test_flipped_byte_is_refused() -> None:
    data = bytearray(archive({"tokenizer.json": byte_level()}))
    data[len(data) // 2] ^= 0xFF
    refusal(bytes(data))


def test_zip_bomb_is_stopped_while_inflating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", 1_000_000)
    assert "inflates" in refusal(archive({"tokenizer.json": "0" * 50_000_000}))


def test_limit_counts_all_files_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", 1_000_000)
    refusal(archive({"tokenizer.json": "0" * 600_000, "tokenizer_config.json": "0" * 600_000}))


def test_size_that_lies_in_the_header_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", 1_000_000)
    data = bytearray(archive({"tokenizer.json": "0" * 50_000_000}))
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 10)
    refusal(bytes(data))


def test_unknown_files_are_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", 1_000_000)
    assert open_archive(archive({"tokenizer.json": byte_level(), "model.bin": "0" * 50_000_000})).tokenizer_json


def test_two_entries_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as written:
        warnings.simplefilter("ignore")
        written.writestr("tokenizer.json", "{}")
        written.writestr("tokenizer.json", "{}")
    refusal(buffer.getvalue())


REAL_SERVICER = {
    "tokenizer.json": byte_level(),
    "tokenizer_config.json": json.dumps(
        {"bos_token": {"content": "<s>"}, "eos_token": "<|end|>", "add_bos_token": True}
    ),
    "config.json": "{}",
    "generation_config.json": "{}",
    "special_tokens_map.json": json.dumps({"eos_token": {"content": "<|end|>"}, "additional_special_tokens": ["<x>"]}),
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2",
    "tokenizer.model": "binary",
    "tiktoken.model": "binary",
    "chat_template.json": json.dumps({"chat_template": "from json"}),
    "preprocessor_config.json": "{}",
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "qwen.tiktoken": "IQ== 0",
    "tool_use.jinja": "not the default",
    "other.model": "binary",
}


def test_everything_that_a_servicer_packs_is_accepted() -> None:
    found = open_archive(archive(REAL_SERVICER))
    assert (found.chat_template, found.special_tokens) == ("from json", {"bos_token": "<s>", "eos_token": "<|end|>"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tokenizer.model", "SentencePiece"),
        ("tiktoken.model", "tiktoken"),
        ("qwen.tiktoken", "tiktoken"),
        ("tekken.json", "Tekken"),
        ("vocab.json", "bare vocabulary"),
        ("vocab.txt", "bare vocabulary"),
    ],
)
def test_model_with_another_kind_of_tokenizer_is_told_so(name: str, kind: str) -> None:
    sentence = refusal(archive({name: "x", "tokenizer_config.json": "{}"}))
    assert sentence.startswith("the archive has no tokenizer.json; it has a")
    assert kind in sentence


def test_files_in_a_folder_of_the_archive_are_not_searched() -> None:
    assert refusal(archive({"model/tokenizer.json": byte_level()})) == "the archive has no tokenizer.json"


def test_archive_in_an_archive_is_not_opened() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("inner.zip", archive())
    assert refusal(buffer.getvalue()) == "the archive has no tokenizer.json"


def test_link_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        link = zipfile.ZipInfo("tokenizer.json")
        link.external_attr = 0o120777 << 16
        written.writestr(link, "../../etc/passwd")
    assert "link" in refusal(buffer.getvalue())


def test_encrypted_entry_is_refused() -> None:
    data = bytearray(archive({"tokenizer.json": byte_level()}))
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(bytes(data))


def test_text_that_is_not_utf8_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("tokenizer.json", b"\xff\xfe{}")
    assert "cannot be read" in refusal(buffer.getvalue())


def test_deeply_nested_json_is_refused() -> None:
    assert "not JSON" in refusal(archive({"tokenizer.json": "{}", "tokenizer_config.json": "[" * 200_000}))
