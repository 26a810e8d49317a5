"""Incremental detokenizing by pieces: one look-up and one decoding of a few bytes per token, no window."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tandem_router.text.pieces import Pieces

__all__ = ["PieceStream"]


class PieceStream:
    """`TextStream` of one choice. At most 3 bytes are ever held back: those of an unfinished character.

    The concatenation of all `push` results and `flush` is the same however the tokens are cut into steps, and equals
    `Tokenizer.decode` of all tokens, or what they add to it after others.
    """

    __slots__ = ("_errors", "_first", "_pieces", "_strip", "_strip_left", "_unfinished")

    def __init__(self, pieces: Pieces, *, continues: bool = False) -> None:
        """Args:
        continues: other tokens come before, so nothing is done that is done at the beginning of a text.
        """
        self._pieces = pieces.table
        self._first = None if continues else pieces.first
        self._strip = pieces.strip
        self._strip_left = 0 if continues else pieces.strip_most
        self._errors = pieces.errors
        self._unfinished = b""
        """The first bytes of a character whose others have not come."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that has become certain; never half a character."""
        out = ""
        for token_id in token_ids:
            piece = self._pieces[token_id]
            if piece is None:
                continue
            if isinstance(piece, bytes):
                data = self._unfinished + piece
                text, used = codecs.utf_8_decode(data, self._errors, False)
                self._unfinished = data[used:]
                out += text
                continue
            if self._first is not None:
                piece = self._first(token_id)
                self._first = None
            if self._unfinished:
                out += self._given_up()
            out += piece
        return self._stripped(out) if self._strip_left and out else out

    def flush(self) -> str:
        """What is left at the end, unfinished characters as U+FFFD; empty when asked again."""
        return self._stripped(self._given_up())

    def _given_up(self) -> str:
        """What the unfinished character becomes when nothing more of it comes."""
        text, self._unfinished = self._unfinished.decode(errors=self._errors), b""
        return text

    def _stripped(self, text: str) -> str:
        """What remains of the next text while the beginning may still lose characters."""
        at = 0
        while at < len(text) and self._strip_left and text[at] == self._strip:
            at += 1
            self._strip_left -= 1
        if at < len(text):
            self._strip_left = 0
        return text[at:]
