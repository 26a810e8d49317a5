"""The order of defaults, as a table: server < model < worker < request."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest

from tandem_router.core.default_sampling import RANGES, parse_default_sampling, with_defaults
from tandem_router.model.request import Sampling

SERVER, MODEL, WORKER, REQUEST = 0.1, 0.2, 0.3, 0.4
LAYERS = (SERVER, MODEL, WORKER, REQUEST)


@pytest.mark.parametrize("stated", list(product([False, True], repeat=4)), ids=str)
def test_the_most_binding_value_that_is_stated_counts(stated: tuple[bool, bool, bool, bool]) -> None:
    server, model, worker = (
        {"temperature": value} if is_stated else {} for value, is_stated in zip(LAYERS, stated[:3], strict=False)
    )
    asked = Sampling(temperature=REQUEST if stated[3] else None)
    expected = max((value for value, is_stated in zip(LAYERS, stated, strict=True) if is_stated), default=None)
    assert with_defaults(asked, server, model, worker).temperature == expected


@pytest.mark.parametrize("name", RANGES)
def test_every_parameter_of_the_table_has_a_default(name: str) -> None:
    assert getattr(with_defaults(Sampling(), {name: 1.0}), name) == 1


@pytest.mark.parametrize("name", RANGES)
def test_zero_in_a_request_is_a_value(name: str) -> None:
    assert getattr(with_defaults(Sampling(**{name: 0}), {name: 1.0}), name) == 0


def test_each_parameter_is_taken_from_its_own_layer() -> None:
    merged = with_defaults(Sampling(min_p=0.5), {"top_p": 0.9, "top_k": 40.0}, {"top_k": 20.0}, {"temperature": 0.6})
    assert (merged.top_p, merged.top_k, merged.temperature, merged.min_p) == (0.9, 20, 0.6, 0.5)


def test_what_engines_publish_besides_is_not_read() -> None:
    assert with_defaults(Sampling(), {"max_new_tokens": 2048.0, "n": 4.0}) == Sampling()


@pytest.mark.parametrize("off", [0.0, -1.0])
def test_top_k_off_is_off_for_every_engine(off: float) -> None:
    assert with_defaults(Sampling(), {"top_k": off}).top_k == -1


GOOD: list[tuple[str, Mapping[str, float]]] = [
    ("", {}),
    ("{}", {}),
    ('{"temperature": 0, "top_k": 20}', {"temperature": 0.0, "top_k": 20.0}),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_an_operators_text_is_read(text: str, expected: Mapping[str, float]) -> None:
    assert parse_default_sampling(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"seed": 1}',
        '{"temperature": "hot"}',
        '{"temperature": true}',
        '{"temperature": NaN}',
        '{"top_p": 0}',
        '{"top_p": 2}',
        '{"top_k": 1.5}',
        '{"presence_penalty": -3}',
    ],
)
def test_a_text_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_default_sampling(text)
