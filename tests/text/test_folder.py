"""A tokenizer on the router's own machine: what is read, and what is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import TEMPLATE, archive, byte_level, files

from tandem_router.errors import Reason, TandemError
from tandem_router.text import folder as subject
from tandem_router.text.folder import open_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    return tmp_path


def refusal(path: Path | str) -> str:
    with pytest.raises(TandemError) as caught:
        open_path(str(path))
    assert caught.value.reason is Reason.TOKENIZER_UNAVAILABLE
    return caught.value.sentence


def test_folder_and_its_tokenizer_json_and_its_zip_are_the_same(folder: Path) -> None:
    packed = folder / "packed.zip"
    packed.write_bytes(archive())
    whole = open_path(str(folder))
    assert (whole.tokenizer_json, whole.chat_template, whole.special_tokens["bos_token"]) == (
        byte_level(), TEMPLATE, "<s>"
    )  # fmt: skip
    assert open_path(str(folder / "tokenizer.json")) == whole == open_path(str(packed))


def test_tokenizer_json_of_another_name_is_taken_with_its_neighbours(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "mine.json")
    assert open_path(str(folder / "mine.json")).chat_template == TEMPLATE


def test_template_file_wins_over_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("file")
    assert open_path(str(folder)).chat_template == "file"


def test_links_of_a_model_cache_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for name in files():
        (snapshot / name).symlink_to(folder / name)
    assert open_path(str(snapshot)) == open_path(str(folder))


def a_pipe(place: Path) -> None:
    os.mkfifo(place)


def a_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def a_folder(place: Path) -> None:
    place.mkdir()


def bytes_that_are_no_text(place: Path) -> None:
    place.write_bytes(b"\xff\xfe{}")


def a_link_in_a_circle(place: Path) -> None:
    place.symlink_to(place)


@pytest.mark.parametrize(
    "make", [a_pipe, a_device, a_folder, bytes_that_are_no_text, a_link_in_a_circle], ids=lambda make: make.__name__
)
def test_odd_file_in_place_of_the_tokenizer_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tokenizer.json")
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "No such file or directory"),
        ("missing.json", "No such file or directory"),
        ("notes.txt", "no folder, and no file named"),
        ("empty", "the folder has no tokenizer.json"),
        ("sentencepiece", "a SentencePiece model, which is not read"),
        ("broken.zip", "the archive cannot be read"),
    ],
)
def test_refusal_names_the_path_and_why(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "notes.txt").write_text("secret")
    (tmp_path / "broken.zip").write_text("secret")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sentencepiece").mkdir()
    (tmp_path / "sentencepiece" / "tokenizer.model").write_bytes(b"\x00")
    sentence = refusal(tmp_path / name)
    assert sentence.startswith(str(tmp_path / name))
    assert why in sentence
    assert "secret" not in sentence


def test_folder_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(subject.os, "open", forbidden)
    assert "Permission denied" in refusal(folder)


def test_limit_counts_all_files_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_INFLATED_BYTES", len(byte_level().encode()) + 10)
    assert "more than" in refusal(folder)
