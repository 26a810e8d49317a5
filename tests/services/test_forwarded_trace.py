"""A client's trace goes on to workers in the size of one: no more than that may take room in the metadata of a call."""

from __future__ import annotations

import pytest

from tandem_router.services.forwarding import MAX_TRACEPARENT, ForwardedMetadata

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("value", [TRACE, f"01{TRACE[2:]}-what-comes-later", "x" * MAX_TRACEPARENT])
def test_trace_goes_on_as_it_came(value: str) -> None:
    assert ForwardedMetadata().traceparent([("traceparent", value)]) == value


@pytest.mark.parametrize("length", [MAX_TRACEPARENT + 1, 12_000])
def test_trace_longer_than_any_stays_behind(length: int) -> None:
    """Servers refuse calls with 8 KiB of metadata at random, which would be counted against the worker."""
    assert ForwardedMetadata().traceparent([("traceparent", "x" * length)]) is None
