"""Incremental detokenizing for any decoder: at a cost per token that does not grow with the text.

For decoders that do not work token by token; `piece_stream.py` is simpler and quicker for those that do.

What a token sequence decodes to depends on its neighbours (a leading space is stripped, bytes join to characters), so
text is the difference of two decodes of a short window: up to `_shown`, and to the end. It is held back while it ends
in U+FFFD (an unfinished character) or does not extend what was shown.

    tokens   ... | a  b  c | d  e |
                 ^_start   ^_shown ^ end of the window; text(a..e) minus text(a..c) is new
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_WINDOW = 32
"""A character is at most 4 bytes, so at most 4 tokens; a longer window is garbage bytes, which are cut off cleanly."""
_TAIL = 4


class Detokenizer:
    """`TextStream` of one choice.

    The concatenation of all `push` results and `flush` equals `decode` of all tokens, where a later token does not
    change text that a run of whole characters had before it.
    """

    __slots__ = ("_decode", "_is_flushed", "_shown", "_shown_text", "_window")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """Args:
        decode: text of a whole token sequence, special tokens already treated as wanted.
        """
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0
        """How many tokens of the window have been turned into text."""
        self._shown_text = ""
        """decode(window[:shown])"""
        self._is_flushed = False

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that has become certain; never half a character."""
        out = ""
        for token_id in token_ids:
            out += self._push_one(token_id)
        return out

    def flush(self) -> str:
        """What is left at the end, unfinished characters as U+FFFD; empty when asked again."""
        if self._is_flushed:
            return ""
        self._is_flushed = True
        return self._decode(self._window)[len(self._shown_text) :]

    def _push_one(self, token_id: int) -> str:
        window = self._window
        window.append(token_id)
        text = self._decode(window)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._shown_text):
            return self._cut(text) if len(window) > _MAX_WINDOW else ""
        new = text[len(self._shown_text) :]
        self._slide(len(window))
        return new

    def _slide(self, shown: int) -> None:
        """Everything up to `shown` has been given out; the tokens given out last stay as context."""
        del self._window[: self._shown]
        self._shown = shown - self._shown
        self._shown_text = self._decode(self._window[: self._shown])

    def _cut(self, text: str) -> str:
        """Give out what no later token is likely to change, where the window has grown long without a certain end."""
        window = self._window
        at = last = len(window) - _TAIL
        while at > self._shown and self._decode(window[:at]) + self._decode(window[at:]) != text:
            at -= 1
        if at == self._shown:
            at = last  # no place splits it cleanly; it is garbage either way, and the window must not grow
        new = self._decode(window[:at])[len(self._shown_text) :]
        self._slide(at)
        return new
