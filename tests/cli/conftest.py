"""A fake router, a fixed clock and a narrow terminal for every test of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tests.cli.fakes import FakeRouter
from tests.cli.things import NOW_S

from tandem_router.cli import words


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    """Answers at the default address of every command."""
    with FakeRouter().listening() as listening:
        for name in ("TANDEM_ADDRESS", "TANDEM_ADMIN_ADDRESS", "TANDEM_HEALTH_ADDRESS"):
            monkeypatch.setenv(name, listening.address)
        yield listening


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is always NOW_S."""
    monkeypatch.setattr(words, "time", SimpleNamespace(time=lambda: NOW_S))
