"""An update of the average beside one of torch's `AveragedModel`."""

from __future__ import annotations

import pytest
from networks import NETWORKS
from rounds import Clock
from torch.optim.swa_utils import AveragedModel

from lightning_landscape import SWA


@pytest.mark.parametrize("name", NETWORKS)
def test_update(benchmark, record, quick, name):
    module = NETWORKS[name].module()
    swa, torchs, clock = SWA(0), AveragedModel(module), Clock()
    jobs = {"swa": lambda: swa.update(module), "torch": lambda: torchs.update_parameters(module)}
    for job in jobs.values():  # the first update copies
        job()
    benchmark.pedantic(lambda: clock.beside(jobs), rounds=50 if quick else 300, warmup_rounds=3)
    record(f"{name}/swa update", "x", limit=1.0, **clock.ratio("swa", to="torch"))
