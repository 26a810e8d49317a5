"""The tokenizer archive as engines stream it: pieces, and the sha256 of the whole on the last one."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from tandem_router.engines.contract import Rpc
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure

__all__ = ["collect_archive"]

_MAX_ARCHIVE_BYTES = 64 * 1024 * 1024
"""Compressed; the largest published tokenizers are about 10 MB zipped."""


async def collect_archive(call: Any, rpc: Rpc, where: str) -> bytes:
    """The archive whose digest was right; raises EngineFailure(ENGINE_PROTOCOL_ERROR), and grpc's error as it is."""
    data = bytearray()
    digest = ""
    while (piece := await call.read()) is not grpc.aio.EOF:
        try:
            chunk: Any = rpc.response.FromString(piece)
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{where}: {rpc.path}: {error}", code=Code.INTERNAL
            ) from None
        data += chunk.data
        digest = chunk.sha256 or digest
        if len(data) > _MAX_ARCHIVE_BYTES:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{where}: the tokenizer archive exceeds {_MAX_ARCHIVE_BYTES} bytes"
            )
    if not digest or hashlib.sha256(data).hexdigest() != digest.lower():
        raise EngineFailure(
            Reason.ENGINE_PROTOCOL_ERROR, f"{where}: the tokenizer archive does not have the sha256 it came with"
        )
    return bytes(data)
