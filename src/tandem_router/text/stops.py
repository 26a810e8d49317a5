"""Finding stop strings in a growing text, wherever its pieces happen to be cut.

An engine looks for stop strings in the text of whole tokens, each engine in its own way and after its own rounding of
unfinished characters. Here the text is read character by character, so the answer depends on the text alone: the match
that ends first wins, and of two that end together the longer one. A character that may belong to a stop string is held
back until that is decided.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopScanner"]


class _Matcher:
    """Knuth, Morris and Pratt's automaton of one stop string: `matched` of its characters end the text so far."""

    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = [0] * (len(text) + 1)
        """The longest proper beginning of the first k characters that also ends them."""
        shared = 0
        for at in range(1, len(text)):
            while shared and text[at] != text[shared]:
                shared = self._fallback[shared]
            shared += text[at] == text[shared]
            self._fallback[at + 1] = shared

    def step(self, character: str) -> bool:
        """Whether the string ends with this character; a match that is not heeded leaves its own tail as a start."""
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._fallback[matched]
        matched += self.text[matched] == character
        is_whole = matched == len(self.text)
        self.matched = self._fallback[matched] if is_whole else matched
        return is_whole


class StopScanner:
    """The stop strings of one choice. After `found` is set, everything that is pushed is dropped."""

    __slots__ = ("_held", "_includes_stop", "_matchers", "found")

    def __init__(self, stops: Sequence[str], *, includes_stop: bool) -> None:
        """Args:
        stops: none of them empty.
        includes_stop: the matched string stays at the end of the text.
        """
        self._matchers = [_Matcher(stop) for stop in stops]
        self._includes_stop = includes_stop
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str, *, counts: bool) -> str:
        """The text that no stop string can take back any more.

        counts: whether a match that ends in `text` ends the choice (`min_tokens` lets the first ones pass).
        """
        if self.found is not None:
            return ""
        for at, character in enumerate(text):
            # All of them read every character, so that each is right where another match is not heeded.
            ends = [matcher.text for matcher in self._matchers if matcher.step(character)]
            if ends and counts:
                self.found = max(ends, key=len)
                whole = self._held + text[: at + 1]
                self._held = ""
                return whole if self._includes_stop else whole[: len(whole) - len(self.found)]
        whole = self._held + text
        certain = len(whole) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = whole[certain:]
        return whole[:certain]

    def flush(self) -> str:
        """What was held back, where nothing follows that could complete a stop string."""
        held, self._held = self._held, ""
        return held
