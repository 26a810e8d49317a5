"""What `tandem workers get` tells beside what the transcript shows."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.v1 import worker_pb2
from tandem_router.cli.worker_text import worker_text

FOUND: Any = {"models": [{"id": "m", "context_length": 4096}]}


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ([], "4096 tokens"),
        ([{"id": "m"}], "4096 tokens"),
        ([{"id": "m", "context_length": 2048}], "2048 tokens"),
        ([{"id": "m", "context_length": 2048}, {"id": "n", "context_length": 1024}], "1024 tokens, 2048 tokens"),
    ],
    ids=["nothing", "a model alone", "a length", "two models"],
)
def test_the_context_length_that_is_stated_wins_over_the_one_that_is_found(stated: Any, told: str) -> None:
    worker = worker_pb2.Worker(spec={"models": stated}, facts=FOUND)
    assert f"context     {told}" in worker_text(worker).splitlines()


def test_an_unknown_context_length_is_not_shown() -> None:
    assert "context" not in worker_text(worker_pb2.Worker(facts={"models": [{"id": "m"}]}))
