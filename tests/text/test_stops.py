"""Stop strings end a text at one place, however the text is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.text.stops import StopScanner

LETTERS = st.text(alphabet="ab🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), min_size=1, max_size=4)


def scan(pieces: list[str], stops: list[str], *, includes_stop: bool = False) -> tuple[str, str | None]:
    scanner = StopScanner(stops, includes_stop=includes_stop)
    shown = "".join(scanner.push(piece, counts=True) for piece in pieces)
    return shown + scanner.flush(), scanner.found


def expected(text: str, stops: list[str], *, includes_stop: bool) -> tuple[str, str | None]:
    """Said plainly: the shortest beginning of the text that ends with a stop string, and the longest such string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if includes_stop else end - len(stop)], stop
    return text, None


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30)), includes_stop=st.booleans())
def test_the_answer_depends_on_the_text_and_not_on_its_pieces(
    text: str, stops: list[str], cuts: list[int], includes_stop: bool
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert scan(pieces, stops, includes_stop=includes_stop) == expected(text, stops, includes_stop=includes_stop)


@given(text=LETTERS, stops=STOPS)
def test_no_character_is_shown_that_a_stop_string_takes_back(text: str, stops: list[str]) -> None:
    final, _ = expected(text, stops, includes_stop=False)
    scanner = StopScanner(stops, includes_stop=False)
    shown = ""
    for character in text:
        shown += scanner.push(character, counts=True)
        assert final.startswith(shown)


@given(text=LETTERS, stops=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops, includes_stop=False)
    shown = scanner.push(text, counts=True)
    if scanner.found is None:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_match_that_does_not_count_is_text_and_may_begin_the_next() -> None:
    scanner = StopScanner(["abab"], includes_stop=False)
    assert scanner.push("abab", counts=False) == "ab"
    assert scanner.push("ab", counts=True) == ""
    assert scanner.found == "abab"


def test_a_match_whose_last_character_counts_is_a_stop_wherever_it_began() -> None:
    scanner = StopScanner(["END"], includes_stop=False)
    assert scanner.push("one EN", counts=False) == "one "
    assert scanner.push("D two", counts=True) == ""
    assert (scanner.found, scanner.flush()) == ("END", "")


@pytest.mark.parametrize("after", ["x", "END"])
def test_after_the_stop_everything_is_dropped(after: str) -> None:
    scanner = StopScanner(["END"], includes_stop=True)
    assert scanner.push("aENDb", counts=True) == "aEND"
    assert scanner.push(after, counts=True) + scanner.flush() == ""


def test_what_was_held_back_is_text_when_nothing_follows() -> None:
    assert scan(["one EN"], ["END"]) == ("one EN", None)
