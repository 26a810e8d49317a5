"""Which tests need which real engine, and the engines, shared by the whole run.

`make test` runs what needs MLX alone; `make test-engines` runs everything. A venv that is missing skips its tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.real_engines.house import House, System
from tests.real_engines.launching import MLX_PYTHON, VLLM_PYTHON

_MISSING = {
    "vllm": (VLLM_PYTHON, "no .venv-vllm: run make test-engines"),
    "mooncake": (VLLM_PYTHON, "no .venv-vllm: run make test-engines"),
    "mlx": (MLX_PYTHON, "no .venv-mlx: run make mlx, with a Python 3.11"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends engines comes last."""
    items.sort(key=lambda item: "test_real_losses" in item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what has no engine here, by name."""
    for name, (python, reason) in _MISSING.items():
        if item.get_closest_marker(name) and not python.exists():
            pytest.skip(reason)


@pytest.fixture(scope="session")
def fleet() -> Iterator[House]:
    house = House()
    try:
        yield house
    finally:
        house.close()


@pytest.fixture(
    scope="session", params=[pytest.param("mlx", marks=pytest.mark.mlx), pytest.param("vllm", marks=pytest.mark.vllm)]
)
def system(request: pytest.FixtureRequest, fleet: House) -> System:
    """Each engine's router in turn."""
    return fleet.mlx() if request.param == "mlx" else fleet.vllm()


@pytest.fixture(scope="session")
def vllm_system(fleet: House) -> System:
    return fleet.vllm()


@pytest.fixture(scope="session")
def mlx_system(fleet: House) -> System:
    return fleet.mlx()


@pytest.fixture(scope="session")
def mooncake_system(fleet: House) -> System:
    return fleet.mooncake()
