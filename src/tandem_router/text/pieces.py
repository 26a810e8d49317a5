"""What each token adds to a text, for the decoders that work token by token: nearly all of them.

A decoder of `tokenizers` sees whole sequences, and asking it again for every new token costs microseconds. But in the
families of byte-level BPE, byte fallback, Metaspace and WordPiece a token adds the same piece wherever it stands, save
at the very beginning. `pieces_of` recognises those by the decoder that tokenizer.json declares; of any other it says
so, and text is made from windows of tokens instead (`detokenizer.py`).

    decoder                                              piece            at the beginning
    ByteLevel                                            text, or bytes   -
    Sequence[Replace..., ByteFallback, Fuse, Strip?]     text, or 1 byte  up to Strip.start characters go
    Metaspace, WordPiece, none                           text             as the decoder gives for the token alone
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

__all__ = ["EACH_BYTE", "PieceTable", "Pieces", "pieces_of"]

EACH_BYTE = "tandem.replace_each_byte"
"""Error policy of codecs: U+FFFD for every byte that is no UTF-8, as ByteFallback writes them."""
_MAXIMAL_PART = "replace"
"""U+FFFD for every ill-formed part, as ByteLevel writes them; Rust and Python follow the same rule of Unicode 3.9."""
_ANCHOR = "a"
"""A token in front of the one asked about: it takes the beginning's treatment, and decoders leave it as it is."""


class PieceTable(dict[int, "bytes | str | None"]):
    """Token id to its piece, None where it adds nothing at all; filled as tokens come, at most the vocabulary.

    A piece is bytes only where they are not whole characters.
    """

    __slots__ = ("_read", "_size")

    def __init__(self, read: Callable[[int], bytes | str | None], size: int) -> None:
        """Args:
        read: the piece of an id below `size`.
        size: ids at or above it are in no vocabulary, add nothing, and are not kept.
        """
        super().__init__()
        self._read = read
        self._size = size

    def __missing__(self, token_id: int) -> bytes | str | None:
        if not 0 <= token_id < self._size:
            return None
        piece = self[token_id] = self._read(token_id)
        return piece


@dataclass(frozen=True, slots=True)
class Pieces:
    """How the tokens of one tokenizer join to a text."""

    table: PieceTable
    errors: str = _MAXIMAL_PART
    """What becomes of bytes that are no UTF-8: an error policy of codecs."""
    first: Callable[[int], str] | None = None
    """The text of a token at the very beginning; None where it adds there what it adds everywhere."""
    strip: str = ""
    """A character that goes from the beginning of the text ..."""
    strip_most: int = 0
    """... so many times at most."""


def pieces_of(rust: RustTokenizer, *, skip_special_tokens: bool, vocab_size: int) -> Pieces | None:
    """How the tokens join, or None where the decoder is none of those that work token by token."""
    added = rust.get_added_tokens_decoder().values()
    skipped = frozenset(token.content for token in added if token.special) if skip_special_tokens else frozenset()

    def token_of(token_id: int) -> str | None:
        token: str | None = rust.id_to_token(token_id)
        return None if token in skipped else token

    # The binding shows a decoder's settings in its pickle only, which is the JSON of tokenizer.json.
    steps = _steps(None if rust.decoder is None else json.loads(rust.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    decode: Callable[[Sequence[str]], str] = rust.decoder.decode if rust.decoder is not None else " ".join
    if decode([_ANCHOR]) != _ANCHOR:
        return None
    if kinds == ["ByteLevel"]:
        return Pieces(
            PieceTable(_reader(token_of, lambda token: _whole(_bytes_of(token)) if token else None), vocab_size)
        )
    if "ByteFallback" in kinds:
        return _with_fallback(steps, token_of, decode, vocab_size)
    if kinds in ([], ["Metaspace"], ["WordPiece"]):
        return Pieces(
            PieceTable(_reader(token_of, lambda token: _after_anchor(decode, token)), vocab_size),
            first=lambda token_id: decode([token_of(token_id) or ""]),
        )
    return None


def _with_fallback(
    steps: Sequence[Mapping[str, Any]],
    token_of: Callable[[int], str | None],
    decode: Callable[[Sequence[str]], str],
    vocab_size: int,
) -> Pieces | None:
    kinds = [step["type"] for step in steps]
    replacing = [kind for kind in kinds if kind == "Replace"]
    strip: Mapping[str, Any] = steps[-1] if kinds[-1] == "Strip" else {"content": "", "start": 0, "stop": 0}
    # What Strip takes from the end is known at the end only.
    if kinds not in ([*replacing, "ByteFallback", "Fuse"], [*replacing, "ByteFallback", "Fuse", "Strip"]):
        return None
    if strip["stop"]:
        return None

    def read(token: str) -> bytes | str:
        byte = _fallback_byte(token)
        return _after_anchor(decode, token) if byte is None else _whole(byte)

    table = PieceTable(_reader(token_of, read), vocab_size)
    return Pieces(table, EACH_BYTE, strip=strip["content"], strip_most=strip["start"])


def _steps(declared: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    if declared is None:
        return ()
    if declared["type"] != "Sequence":
        return (declared,)
    return [step for inner in declared["decoders"] for step in _steps(inner)]


def _reader(
    token_of: Callable[[int], str | None], read: Callable[[str], bytes | str | None]
) -> Callable[[int], bytes | str | None]:
    def piece(token_id: int) -> bytes | str | None:
        token = token_of(token_id)
        return None if token is None else read(token)

    return piece


def _after_anchor(decode: Callable[[Sequence[str]], str], token: str) -> str:
    return decode([_ANCHOR, token])[len(_ANCHOR) :]


def _whole(data: bytes) -> bytes | str:
    """The text of bytes that are whole characters. Whatever waits before them is then unfinished for good."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _fallback_byte(token: str) -> bytes | None:
    """The byte of `<0xNN>`, or None for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return None
    return None


def _byte_of_character() -> Mapping[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _bytes_of(token: str) -> bytes:
    """The bytes of a byte-level token; of a token that is not in that alphabet, such as most added ones, its UTF-8."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)
