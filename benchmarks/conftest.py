"""What all benchmarks share: the environment they need, and where their numbers go.

    python benchmarks/report.py          # sets the environment, runs them, says what regressed
    pytest benchmarks --benchmark-only   # within that environment

Run directly, they measure whichever `lightning_landscape` is importable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # else pages that were freed are faulted in again, and the same code takes .9 or 1.6
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}

Record = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rounds, no peers, no trainings")


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("--benchmark-only") and not config.option.collectonly
    missing = {name: value for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    if wanted and missing:
        settings = " ".join(f"{name}={value}" for name, value in missing.items())
        raise pytest.UsageError(f"Times mean little without {settings} in the environment.")


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def record(benchmark: Any) -> Record:
    """Return what puts a number into the JSON: a name, a unit, a value, perhaps a limit."""
    numbers = benchmark.extra_info.setdefault("numbers", {})

    def put(name: str, unit: str, value: float, limit: float | None = None, **more: Any) -> None:
        numbers[name] = {"unit": unit, "value": value, "limit": limit, **more}

    return put


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
