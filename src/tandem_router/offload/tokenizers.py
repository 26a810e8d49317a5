"""The tokenizers of the fleet's models, with everything slow kept off the loop."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tandem_router.errors import Reason, TandemError
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.offload.templates import TemplateProcess
from tandem_router.text.archive import TokenizerFiles, open_archive, unavailable
from tandem_router.text.chat_template import TemplateRefusal, check_chat_template
from tandem_router.text.detokenizer import Detokenizer
from tandem_router.text.folder import open_path
from tandem_router.text.piece_stream import PieceStream
from tandem_router.text.tokenizer import Tokenizer

__all__ = ["PooledCodec", "TokenizerPool"]

_THREADS = 2
"""Encoding is bound by CPU; more threads than cores only raise the loop's latency."""
_INLINE_CHARS = 2048
"""A prompt this short encodes in well under a millisecond, which costs less than the way to a thread and back."""

_FROM_WORKER = TokenizerSource()


class PooledCodec:
    """`TextCodec` of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        files: TokenizerFiles,
        source: TokenizerSource,
        threads: ThreadPoolExecutor,
        templates: TemplateProcess,
    ) -> None:
        self.source = source
        """Where it came from."""
        self._tokenizer = tokenizer
        self._chat_template = files.chat_template
        self._special_tokens = files.special_tokens
        self._threads = threads
        self._templates = templates

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.vocab_size

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        """Token ids of a prompt; raises TandemError(INVALID_REQUEST)."""
        encode = functools.partial(self._tokenizer.encode, text, adds_special=adds_special)
        if len(text) <= _INLINE_CHARS:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode)

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt text of (role, content) messages; raises TandemError(INVALID_REQUEST)."""
        if self._chat_template is None:
            raise TandemError(
                Reason.INVALID_REQUEST, "the model has no chat template; send text or token_ids", field="chat"
            )
        return await self._templates.render(self._chat_template, messages, self._special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole token sequence."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> PieceStream | Detokenizer:
        """A fresh incremental decoder; `continues` keeps a space at the beginning, for text that goes on with text."""
        return self._tokenizer.stream(skip_special_tokens=skip_special_tokens, continues=continues)


class TokenizerPool:
    """`TextCodecs`: one codec per model id, the last loaded one; owns its threads and the template process."""

    def __init__(self, *, threads: int = _THREADS, templates: TemplateProcess | None = None) -> None:
        """Args:
        threads: that encode at once; more prompts wait their turn.
        templates: where chat templates run; None = a process of our own. Closed with the pool either way.
        """
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="tandem-tokenizer")
        self._templates = templates or TemplateProcess()
        self._codecs: dict[str, PooledCodec] = {}

    def get(self, model: str) -> PooledCodec | None:
        """The codec of a model id, or None while none is loaded."""
        return self._codecs.get(model)

    def source(self, model: str) -> TokenizerSource | None:
        """Where the codec of a model id came from, or None while none is loaded."""
        codec = self._codecs.get(model)
        return None if codec is None else codec.source

    async def digest(self, archive: bytes) -> str:
        """sha256 of what is read of an archive, hex: zips of one folder on two machines differ in dates and order.

        Raises TandemError(TOKENIZER_UNAVAILABLE).
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, _digest, archive)

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource = _FROM_WORKER) -> None:
        """Load and keep a tokenizer; raises TandemError(TOKENIZER_UNAVAILABLE), then the old one stays.

        archive: the worker's, not read where `source` states a path.
        """
        loop = asyncio.get_running_loop()
        files, tokenizer = await loop.run_in_executor(self._threads, _unpack, archive, source)
        self._codecs[model] = PooledCodec(tokenizer, files, source, self._threads, self._templates)

    async def close(self) -> None:
        """End threads and process; encodings under way are finished first. Idempotent."""
        await self._templates.close()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)


def _digest(archive: bytes) -> str:
    files = open_archive(archive)
    rest = json.dumps([files.config, files.special_tokens, files.chat_template], sort_keys=True)
    hashed = hashlib.sha256(rest.encode("utf-8", "surrogatepass"))
    hashed.update(files.tokenizer_json.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


def _unpack(archive: bytes | None, source: TokenizerSource) -> tuple[TokenizerFiles, Tokenizer]:
    if source.chat_template is not None:
        try:
            check_chat_template(source.chat_template)
        except TemplateRefusal as refusal:
            raise unavailable(f"chat_template: {refusal}") from None
    files = _files(archive, source)
    try:
        tokenizer = Tokenizer(files)
    except TandemError as error:
        raise unavailable(
            f"tokenizer_path {source.path}: {error.sentence}" if source.path else error.sentence
        ) from None
    return files if source.chat_template is None else replace(files, chat_template=source.chat_template), tokenizer


def _files(archive: bytes | None, source: TokenizerSource) -> TokenizerFiles:
    if source.path is None:
        return open_archive(archive or b"")
    try:
        return open_path(source.path)
    except TandemError as error:
        raise unavailable(f"tokenizer_path {error.sentence}") from None
