"""Engines over a random model, without real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_model import ManualClock, RunEngine, write_random_model

from tandem_engine.engine import Engine, EngineSettings
from tandem_engine.model import Model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("random-model"))


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return Model.from_folder(model_folder)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def run_engine(model: Model, clock: ManualClock) -> RunEngine:
    """`async with run_engine(num_pages=...) as engine`: a running engine on the manual clock; stopped at the end."""

    @asynccontextmanager
    async def run(*, faults: Any = None, of: Model | None = None, **settings: Any) -> AsyncIterator[Engine]:
        engine = Engine(of or model, EngineSettings(**settings), faults=faults, clock=clock, draw_seed=lambda: 42)
        task = asyncio.create_task(engine.run())
        try:
            yield engine
        finally:
            engine.stop()
            await asyncio.gather(task, return_exceptions=True)

    return run
