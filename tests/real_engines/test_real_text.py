"""The reference engine's end-to-end tests of text and of bad input, as they are, on real engines.

The names they use for a pair and for one worker are those of our systems; MLX, which has no pairs, has both names.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.processes import RouterProcess, eventually
from tests.e2e.test_bad_input import (
    test_bad_request_gets_its_documented_status_and_reaches_no_worker,
)
from tests.e2e.test_text_edges import (
    test_a_stop_string_over_token_borders_ends_the_answer_at_its_place,
    test_a_stop_token_ends_the_answer_and_is_named,
    test_no_piece_of_text_ends_within_a_character,
    test_output_tokens_text_and_both_say_the_same,
    test_special_tokens_are_left_out_of_the_text_unless_they_are_asked_for,
    test_text_is_the_full_decode_of_the_tokens,
    test_the_model_copies_what_it_was_trained_to_copy,
)
from tests.real_engines.house import System

__all__ = [
    "test_a_stop_string_over_token_borders_ends_the_answer_at_its_place",
    "test_a_stop_token_ends_the_answer_and_is_named",
    "test_bad_request_gets_its_documented_status_and_reaches_no_worker",
    "test_no_piece_of_text_ends_within_a_character",
    "test_output_tokens_text_and_both_say_the_same",
    "test_special_tokens_are_left_out_of_the_text_unless_they_are_asked_for",
    "test_text_is_the_full_decode_of_the_tokens",
    "test_the_model_copies_what_it_was_trained_to_copy",
]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def router(system: System) -> RouterProcess:
    return system.router


@pytest.fixture(scope="module")
def house(system: System) -> RouterProcess:
    """The name by which the tests of bad input know their router."""
    return system.router


@pytest.fixture
def undisturbed(system: System) -> Iterator[RouterProcess]:
    """The router; afterwards no engine runs anything, each is the process that it was, and it still answers."""
    before = {name: engine.processes() for name, engine in system.engines.items()}
    yield system.router
    eventually(system.is_idle, within_s=5, what="nothing runs")
    assert {name: engine.processes() for name, engine in system.engines.items()} == before
