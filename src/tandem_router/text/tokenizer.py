"""A model's tokenizer: Hugging Face `tokenizers` in Rust, from the worker's own files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tokenizers import Tokenizer as RustTokenizer

from tandem_router.errors import Reason, TandemError
from tandem_router.text.archive import TokenizerFiles
from tandem_router.text.detokenizer import Detokenizer
from tandem_router.text.piece_stream import PieceStream
from tandem_router.text.pieces import EACH_BYTE, pieces_of

__all__ = ["Tokenizer"]

_SHOWN_CHARS = 300
"""Of the library's words, which may quote the file."""


class Tokenizer:
    """Encodes, decodes and streams. Immutable after construction and safe to use from several threads."""

    def __init__(self, files: TokenizerFiles) -> None:
        """Takes about a second for the largest vocabularies: construct it off the loop.

        Raises TandemError(TOKENIZER_UNAVAILABLE) when tokenizer.json is not one.
        """
        self._bos_token = files.special_tokens.get("bos_token")
        with _panics_told():
            try:
                self._rust = RustTokenizer.from_str(files.tokenizer_json)
            except Exception as error:  # the binding raises bare Exception
                raise _unusable(error) from None
            # A stored truncation or padding is a training setting; it would silently cut prompts.
            self._rust.no_truncation()
            self._rust.no_padding()
            vocabulary = self._rust.get_vocab(with_added_tokens=True)
            self._vocab_size = max(vocabulary.values(), default=-1) + 1
            self._pieces = {
                skips: pieces_of(self._rust, skip_special_tokens=skips, vocab_size=self._vocab_size)
                for skips in (False, True)
            }

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._vocab_size

    def encode(self, text: str, *, adds_special: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt; special tokens written in the text are recognised as such.

        adds_special: the model's own leading and trailing tokens are added, unless the text begins with the leading one
        already.
        CPU-bound, about 1 s per 2 MB, with the GIL released (as batches only; `encode` keeps it).
        Raises TandemError: INVALID_REQUEST when the text has lone surrogates or something that the model has no token
        for, TOKENIZER_UNAVAILABLE when the tokenizer itself breaks on it.
        """
        if self._bos_token and text.startswith(self._bos_token):
            adds_special = False
        try:
            with _panics_told():
                [encoding] = self._rust.encode_batch_fast([text], add_special_tokens=adds_special)
        except TandemError:
            raise
        except (UnicodeError, TypeError) as error:
            raise TandemError(Reason.INVALID_REQUEST, f"the text is not Unicode: {error}", field="text") from None
        except Exception as error:
            sentence = f"the model's tokenizer cannot encode the text: {error}"
            raise TandemError(Reason.INVALID_REQUEST, sentence, field="text") from None
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole token sequence; ids outside the vocabulary decode to nothing.

        As `tokenizers` decodes it, with one difference: it turns a whole run of byte-fallback tokens into U+FFFD when
        anything in the run is no UTF-8, so that one bad or missing byte at the end takes back every character before
        it. Here, as in a stream, the characters stay and each byte that is none becomes U+FFFD.
        Raises TandemError(TOKENIZER_UNAVAILABLE) when the tokenizer breaks on these tokens; its streams do too.
        """
        text = self._decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        pieces = self._pieces[skip_special_tokens]
        if pieces is not None and pieces.errors == EACH_BYTE and "\N{REPLACEMENT CHARACTER}" in text:
            stream = PieceStream(pieces)
            return stream.push(token_ids) + stream.flush()
        return text

    def stream(self, *, skip_special_tokens: bool, continues: bool = False) -> PieceStream | Detokenizer:
        """A fresh incremental decoder.

        continues: the tokens go on with a text, as "▁time" goes on with "Once upon a": the space is kept, which
        decoders of that kind drop at the beginning. Decoders that are read through a window have no such rule.
        """
        pieces = self._pieces[skip_special_tokens]
        if pieces is not None:
            return PieceStream(pieces, continues=continues)
        return Detokenizer(partial(self._decode, skip_special_tokens=skip_special_tokens))

    def _decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        with _panics_told():
            text: str = self._rust.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


@contextmanager
def _panics_told() -> Iterator[None]:
    """A panic of the library's Rust is a BaseException, which ends a task past every `except Exception`."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:
        raise _unusable(panic) from None


def _unusable(error: BaseException) -> TandemError:
    return TandemError(Reason.TOKENIZER_UNAVAILABLE, f"tokenizer.json is not usable: {str(error)[:_SHOWN_CHARS]}")
