"""Opens the zip of tokenizer files that an engine hands out. It comes from the network, so nothing in it is believed.

What servicers put into it (tokenizer_bundle.py of smg-grpc-servicer): the files below side by side, which are read, and
configurations, vocabularies, other templates and SentencePiece or tiktoken models, which are not.

Nothing is ever written to disk, sizes are counted while inflating (a header may lie), and only known files are read.
"""

from __future__ import annotations

import io
import json
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem_router.errors import Reason, TandemError

__all__ = ["KNOWN_NAMES", "MAX_INFLATED_BYTES", "TokenizerFiles", "files_of", "open_archive", "unavailable"]

MAX_ENTRIES = 256
"""SMG zips a model folder's small files; folders of 20-40 files are common."""
MAX_INFLATED_BYTES = 192 * 1024 * 1024
"""All known files together; the largest published tokenizer.json is about 35 MB."""
KNOWN_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files that are read, in an archive and in a folder."""
_OTHER_KINDS = {
    "tokenizer.model": "a SentencePiece model",
    ".tiktoken": "a tiktoken vocabulary",
    "tiktoken.model": "a tiktoken vocabulary",
    "tekken.json": "a Tekken vocabulary",
    "vocab.json": "a bare vocabulary",
    "vocab.txt": "a bare vocabulary",
}
"""Ends of names of tokenizers that a model may come with instead."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the others, LZMA takes as much memory as the archive says."""
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the archive holds that matters."""

    tokenizer_json: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json; empty when there is none."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token, ...: text of each, from special_tokens_map.json and the config."""
    chat_template: str | None = None


def open_archive(data: bytes) -> TokenizerFiles:
    """The files of a tokenizer archive; raises TandemError(TOKENIZER_UNAVAILABLE) for anything odd."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            texts = _known_texts(archive)
            names = archive.namelist()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise unavailable(f"the archive cannot be read: {error}") from None
    return files_of(texts, "the archive", names)


def files_of(texts: Mapping[str, str], place: str, names: Iterable[str]) -> TokenizerFiles:
    """The files by their texts; raises TandemError(TOKENIZER_UNAVAILABLE).

    place: what they were found in, for the sentence of an error.
    names: everything that is there, to say what a model without tokenizer.json has instead.
    """
    if "tokenizer.json" not in texts:
        kinds = [kind for end, kind in _OTHER_KINDS.items() if any(name.endswith(end) for name in names)]
        instead = f"; it has {kinds[0]}, which is not read: convert it to tokenizer.json" if kinds else ""
        raise unavailable(f"{place} has no tokenizer.json{instead}")
    config = _json_object(texts, "tokenizer_config.json")
    return TokenizerFiles(
        tokenizer_json=texts["tokenizer.json"],
        config=config,
        special_tokens=_special_tokens(config, _json_object(texts, "special_tokens_map.json")),
        chat_template=_chat_template(texts, config),
    )


def _known_texts(archive: zipfile.ZipFile) -> dict[str, str]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise unavailable(f"the archive has {len(entries)} entries, more than {MAX_ENTRIES}")
    left = MAX_INFLATED_BYTES
    texts: dict[str, str] = {}
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in entry.filename:
            raise unavailable(f"the archive has an entry that leaves its folder: {entry.filename[:80]!r}")
        if entry.filename not in KNOWN_NAMES:
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise unavailable(f"the archive has a link in place of {entry.filename}")
        if entry.filename in texts:
            raise unavailable(f"the archive has two entries named {entry.filename}")
        if entry.compress_type not in _COMPRESSIONS:
            raise unavailable(f"the archive has {entry.filename} compressed in a way that is not read")
        content = _inflate(archive, entry, left)
        left -= len(content)
        texts[entry.filename] = content.decode("utf-8")
    return texts


def _inflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit_bytes: int) -> bytes:
    content = bytearray()
    with archive.open(entry) as stream:
        while piece := stream.read(min(_CHUNK_BYTES, limit_bytes + 1 - len(content))):
            content += piece
            if len(content) > limit_bytes:
                raise unavailable(f"the archive inflates to more than {MAX_INFLATED_BYTES} bytes")
    return bytes(content)


def _json_object(texts: Mapping[str, str], name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(texts[name]) if name in texts else {}
    except (ValueError, RecursionError) as error:
        raise unavailable(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise unavailable(f"{name} is not a JSON object")
    return value


def _special_tokens(config: Mapping[str, Any], mapping: Mapping[str, Any]) -> Mapping[str, str]:
    """Hugging Face writes a token as text or as an object with its text in `content`; the config wins."""
    tokens: dict[str, str] = {}
    for source in (mapping, config):
        for name, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                tokens[name] = text
    return tokens


def _chat_template(texts: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """The default template: a file wins over the config, as in transformers."""
    if "chat_template.jinja" in texts:
        return texts["chat_template.jinja"]
    stated = _json_object(texts, "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(stated, list):
        named = [item.get("template") for item in stated if isinstance(item, dict) and item.get("name") == "default"]
        stated = named[-1] if named else None
    return stated if isinstance(stated, str) else None


def unavailable(sentence: str) -> TandemError:
    """The error of a tokenizer that cannot be had."""
    return TandemError(Reason.TOKENIZER_UNAVAILABLE, sentence)
