import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# a busy machine is no bug
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["reliability"]  # `--reliability` writes docs/reliability.md


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # tiny tensors: a second thread only waits
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
