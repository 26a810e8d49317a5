"""What happens to a vector between the engine and the client."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.vectors import shaped
from tandem_router.errors import Reason, TandemError

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
VECTORS = st.lists(FINITE, min_size=1, max_size=64).map(tuple)


def single(value: float) -> float:
    """As the wire carries it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@given(VECTORS, st.data())
def test_a_cut_and_normalised_vector_has_length_one_or_is_zero(values: tuple[float, ...], data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, len(values)))
    result = shaped(values, dimensions=dimensions, normalize=True)
    assert len(result) == dimensions
    if any(values[:dimensions]):
        assert math.hypot(*result) == pytest.approx(1.0, abs=2e-6)
    else:
        assert result == values[:dimensions]


@given(VECTORS)
def test_without_normalize_the_engine_s_values_go_on_as_they_are(values: tuple[float, ...]) -> None:
    assert shaped(values, dimensions=None, normalize=False) == values


@given(VECTORS.filter(any))
def test_a_vector_that_the_engine_scaled_in_float32_goes_on_bit_for_bit(values: tuple[float, ...]) -> None:
    length = math.hypot(*values)
    unit = tuple(single(value / length) for value in values)
    assert shaped(unit, dimensions=None, normalize=True) == unit


def test_the_cut_comes_before_the_scaling() -> None:
    assert shaped((3.0, 4.0, 12.0), dimensions=2, normalize=True) == (0.6, 0.8)


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    with pytest.raises(TandemError) as caught:
        shaped((1.0, 0.0), dimensions=3, normalize=True)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "dimensions")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_value_that_is_no_number_is_the_engine_s_fault(value: float, normalize: bool) -> None:
    with pytest.raises(TandemError) as caught:
        shaped((1.0, value), dimensions=None, normalize=normalize)
    assert caught.value.reason is Reason.ENGINE_PROTOCOL_ERROR
