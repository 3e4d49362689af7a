"""A fit with both monitors leaves records that the tab and the page can show."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor
from lightning_landscape.reporting.html import page_of_run
from lightning_landscape.reporting.records import read_events


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, index):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    data = [(torch.randn(16, 4), torch.randint(0, 3, (16,))) for _ in range(4)]
    swa = SWA(start=1)
    monitors = [
        swa,
        AsymmetryMonitor(every_n_epochs=1, swa=swa, validation=True),
        GradientBreakdownMonitor(every_n_steps=4),
    ]
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=monitors, log_every_n_steps=1,
    )  # fmt: skip
    loaders = (torch.utils.data.DataLoader(data, batch_size=None) for _ in range(2))
    trainer.fit(Net(), *loaders)
    return folder


def test_every_probe_is_recorded(folder):
    records, problems = read_events(folder)
    assert problems == []
    found = {(record.monitor, record.kind, record.name) for record in records}
    assert found >= {
        ("landscape", "family", "gaussian"),
        ("landscape", "family", "uniform@norm"),
        ("landscape", "line", "swa"),
        ("landscape", "cost", "probe"),
        ("breakdown", "breakdown", "update"),
    }
    steps = {record.step for record in records if record.name == "gaussian"}
    assert len(steps) == 3


def test_a_default_probe_with_validation_takes_less_than_ten_kilobytes(folder):
    records, _ = read_events(folder)
    last = [r for r in records if r.monitor == "landscape" and r.step == records[-1].step]
    assert sum(len(record.to_bytes()) for record in last) < 10_000


def test_the_run_becomes_a_page(folder):
    made = page_of_run(folder)
    assert "Directions: uniform@norm" in made
    assert len(made) < 1_000_000
