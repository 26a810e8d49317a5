"""How text for people looks: states in colour, columns, ages."""

from __future__ import annotations

import io

import pytest
from tests.cli.fakes import Terminal

from tandem_router.cli.text import Column, Table, age, pairs

STATES: Table[tuple[str, str]] = Table(
    (
        Column("STATUS", lambda row: row[0], is_state=True, room=8),
        Column("NAME", lambda row: row[1]),
        Column("MORE", lambda row: row[1], is_wide=True),
    )
)
ROWS = [("READY", "a"), ("FAILED", "")]


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_state_is_coloured_on_a_terminal_and_padding_is_not() -> None:
    assert STATES.lines(ROWS, Terminal(), wide=False) == [
        "\x1b[1mSTATUS  NAME\x1b[0m",
        "\x1b[32mREADY\x1b[0m   a",
        "\x1b[31mFAILED\x1b[0m  -",
    ]


def test_state_is_plain_in_a_pipe() -> None:
    assert STATES.lines(ROWS, io.StringIO(), wide=False) == ["STATUS  NAME", "READY   a", "FAILED  -"]


def test_wide_column_is_shown_only_when_asked_for() -> None:
    assert STATES.lines(ROWS[:1], io.StringIO(), wide=True)[0] == "STATUS  NAME  MORE"


def test_line_that_comes_later_fits_under_the_first_ones() -> None:
    widths = STATES.widths(ROWS, io.StringIO(), wide=False)
    assert STATES.lines([("DRAINING", "b")], io.StringIO(), wide=False, widths=widths)[1] == "DRAINING  b"
    assert STATES.lines(ROWS, io.StringIO(), wide=False, widths=widths)[1] == "READY     a"


def test_cell_holds_neither_line_breaks_nor_terminal_commands() -> None:
    (_, line) = STATES.lines([("a\nb", "\x1b[2J")], Terminal(), wide=False)
    assert line == "a b     \ufffd[2J"


def test_name_without_a_value_is_left_out() -> None:
    assert pairs([("status", "READY"), ("reason", ""), ("url", "x")], io.StringIO()) == ["status  READY", "url     x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (184, "3m4s"), (7500, "2h5m"), (86400, "1d"), (529_200, "6d3h")],
)
def test_age_has_two_units_at_most(seconds: float, text: str) -> None:
    assert age(seconds) == text
