"""Tokenizer archives as engines stream them: a good one, and those that a router must survive."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator

from smg_grpc_proto.generated import common_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tandem_router.testing.grpc_engines.script import Archive

__all__ = ["EOS_TOKEN_ID", "FIRST_LETTER", "archive_bytes", "archive_chunks"]

SPECIAL = ("<s>", "<|end|>", "<|user|>")
EOS_TOKEN_ID = 1
CHUNK_BYTES = 64 * 1024
_TEMPLATE = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
_BOMB_PART = b" " * (16 * 1024 * 1024)
_BOMB_PARTS = 16
"""256 MiB inflated, a thousandth of it deflated; the largest published tokenizers have about 35 MB."""


def _vocabulary() -> dict[str, int]:
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {piece: token_id for token_id, piece in enumerate(pieces)}


FIRST_LETTER = _vocabulary()["a"]
"""Token id of "a"; the other small letters follow it."""


@functools.cache
def archive_bytes(kind: Archive) -> bytes:
    """The archive of a kind that has one; the good tokenizer knows bytes and three special tokens, nothing else."""
    if kind is Archive.GARBAGE:
        return b"this is no zip " * 1000
    if kind is Archive.BOMB:
        return _zip({"tokenizer.json": _BOMB_PART}, repeat=_BOMB_PARTS)
    tokenizer = Tokenizer(models.BPE(_vocabulary(), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    config = {"chat_template": _TEMPLATE, "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    return _zip({"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()})


def archive_chunks(kind: Archive) -> Iterator[common_pb2.GetTokenizerChunk]:
    """An archive in order; its sha256 is on the last chunk alone."""
    data = archive_bytes(kind)
    digest = "0" * 64 if kind is Archive.WRONG_DIGEST else hashlib.sha256(data).hexdigest()
    for at in range(0, len(data), CHUNK_BYTES):
        is_last = at + CHUNK_BYTES >= len(data)
        yield common_pb2.GetTokenizerChunk(data=data[at : at + CHUNK_BYTES], sha256=digest if is_last else "")


def _zip(files: dict[str, bytes], repeat: int = 1) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)  # its default date: the same bytes at any time
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as entry:
                for _ in range(repeat):
                    entry.write(content)
    return buffer.getvalue()
