import logging
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from lightning_landscape.reporting.output import Output

# a busy machine is no bug
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # no doctests; several have one name
pytest_plugins = ["reliability"]  # `--reliability` writes docs/reliability.md


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # tiny tensors: a second thread only waits
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _captured():
    # imported before pytest listens, Lightning keeps its messages to itself
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).propagate = True


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Clock:
    """A clock that moves only by what is said to take its time."""

    def __init__(self):
        self.now = 0.0

    def taking(self, seconds, function):
        """Return a function that takes so many seconds more."""

        def slow(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def clock(monkeypatch):
    """The clock that budgets go by."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def no_figures(monkeypatch):
    """Plot nothing: figures take most of a probe's time."""
    monkeypatch.setattr(Output, "figure", lambda self, tag, make: None)
