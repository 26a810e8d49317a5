"""A model's tokenizer: Hugging Face `tokenizers` in Rust, from the worker's own files."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as RustTokenizer

from tandem_router.errors import Reason, TandemError
from tandem_router.text.archive import TokenizerFiles
from tandem_router.text.detokenizer import Detokenizer

__all__ = ["Tokenizer"]


class Tokenizer:
    """Encodes, decodes and streams. Immutable after construction and safe to use from several threads."""

    def __init__(self, files: TokenizerFiles) -> None:
        """Takes about a second for the largest vocabularies: construct it off the loop.

        Raises TandemError(TOKENIZER_UNAVAILABLE) when tokenizer.json is not one.
        """
        try:
            self._rust = RustTokenizer.from_str(files.tokenizer_json)
        except Exception as error:  # the binding raises bare Exception
            raise TandemError(Reason.TOKENIZER_UNAVAILABLE, f"tokenizer.json is not usable: {error}") from None
        # A stored truncation or padding is a training setting; it would silently cut prompts.
        self._rust.no_truncation()
        self._rust.no_padding()
        vocabulary = self._rust.get_vocab(with_added_tokens=True)
        self._vocab_size = max(vocabulary.values(), default=-1) + 1
        self._bos_token = files.special_tokens.get("bos_token")

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._vocab_size

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt; special tokens written in the text are recognised as such.

        The model's own leading tokens are added, unless the text begins with them already: a rendered chat template
        brings its own. CPU-bound, about 1 s per 2 MB, with the GIL released (as batches only; `encode` keeps it).
        Raises TandemError(INVALID_REQUEST) when the text has lone surrogates.
        """
        adds_special = not (self._bos_token and text.startswith(self._bos_token))
        try:
            [encoding] = self._rust.encode_batch_fast([text], add_special_tokens=adds_special)
        except (UnicodeError, TypeError) as error:
            raise TandemError(Reason.INVALID_REQUEST, f"the text is not Unicode: {error}", field="text") from None
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole token sequence; ids outside the vocabulary decode to nothing."""
        return self._rust.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool) -> Detokenizer:
        """A fresh incremental decoder."""
        rust_decode = self._rust.decode
        return Detokenizer(lambda window: rust_decode(window, skip_special_tokens=skip_special_tokens))
