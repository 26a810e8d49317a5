"""The tokenizer's files as one zip, in the chunks of GetTokenizer."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from smg_grpc_proto.generated import common_pb2

__all__ = ["CHUNK_BYTES", "TokenizerArchive"]

CHUNK_BYTES = 256 << 10
"""Well below gRPC's default message limit of 4 MiB, with which most clients read."""

_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


class TokenizerArchive:
    """Zipped at the first call and kept: the same bytes, so the same fingerprint, for the process's whole life."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packed: asyncio.Future[bytes] | None = None

    async def chunks(self) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """The zip in order; the last chunk carries the SHA-256 of the whole."""
        if self._packed is None:
            self._packed = asyncio.ensure_future(asyncio.to_thread(_pack, self._folder))
        data = await asyncio.shield(self._packed)
        digest = hashlib.sha256(data).hexdigest()
        for start in range(0, len(data), CHUNK_BYTES):
            is_last = start + CHUNK_BYTES >= len(data)
            yield common_pb2.GetTokenizerChunk(data=data[start : start + CHUNK_BYTES], sha256=digest if is_last else "")


def _pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _FILES:
            path = folder / name
            if path.is_file():
                # ZipInfo's default date: the same folder gives the same bytes anywhere.
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
