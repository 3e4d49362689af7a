"""What a step reaches by its trainer is put back like what its module holds."""

import pytest
import torch
from hostile import differences
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, WeightedRandomSampler
from toys import QUIET, Data, Plain, Samples

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor
from lightning_landscape.engine.isolation import isolated

N = 18


class Counts(Data):
    """A data module that steps write to."""

    def __init__(self):
        super().__init__()
        self.n = 0
        self.losses = []
        self.weights = torch.ones(N, dtype=torch.double)

    def train_dataloader(self):
        sampler = WeightedRandomSampler(self.weights, N)
        return DataLoader(Samples(N, noise=0.0), batch_size=6, sampler=sampler)


class Keeps(Callback):
    rows: list[int]

    def on_fit_start(self, trainer, pl_module):
        self.rows = []


class Steps(Plain):
    """Scales its loss by a count that is kept elsewhere."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + 0.01 * self.count(batch))

    def count(self, batch):
        return 0


class DataModule(Steps):
    def count(self, batch):
        self.trainer.datamodule.n += 1
        return self.trainer.datamodule.n


class Sampler(Steps):
    def count(self, batch):
        weights = self.trainer.train_dataloader.sampler.weights
        weights[: len(batch["y"])] += self.net[0].bias.detach().mean().exp()
        return weights.sum().item()


class OfACallback(Steps):
    def count(self, batch):
        return counted(self.trainer)


def counted(trainer):
    [rows] = [callback.rows for callback in trainer.callbacks if isinstance(callback, Keeps)]
    rows.append(1)
    return len(rows)


class OnTheTrainer(Steps):
    def count(self, batch):
        self.trainer.history = getattr(self.trainer, "history", [])
        self.trainer.history.append(1)
        return len(self.trainer.history)


class Moments(Steps):
    def count(self, batch):
        for state in self.optimizers().state.values():
            state["exp_avg"].mul_(0.9)
        return 0


class Evaluator(Steps):
    """Collects its validation on the data module, and fails where nothing was collected."""

    def validation_step(self, batch, batch_idx):
        self.trainer.datamodule.losses.append(self.loss(batch))

    def on_validation_epoch_end(self):
        losses = self.trainer.datamodule.losses
        self.log("val_loss", torch.stack(losses).mean())
        losses.clear()


def train(kind, *callbacks):
    seed_everything(0, verbose=False)
    module, data = kind(), Counts()
    trainer = Trainer(max_epochs=2, callbacks=[Keeps(), *callbacks], **QUIET)
    trainer.fit(module, data)
    return {
        "weights": module.state_dict(),
        "moments": trainer.optimizers[0].state_dict(),
        "data": (data.n, data.losses, data.weights),
        "trainer": getattr(trainer, "history", None),
        "val_loss": trainer.callback_metrics["val_loss"],
    }


def every_step():
    return [
        SWA(0, every_n_steps=1),
        AsymmetryMonitor(every_n_steps=2, n_directions=1, n_points=5, on_error="raise"),
        GradientBreakdownMonitor(every_n_steps=2, on_error="raise"),
    ]


@pytest.mark.tried("steps", "a step that writes to its data module, sampler, callback or optimizer")
@pytest.mark.parametrize(
    "kind", [DataModule, Sampler, OfACallback, OnTheTrainer, Moments, Evaluator]
)
def test_what_a_step_reaches_by_its_trainer_is_put_back(kind):
    assert differences(train(kind), train(kind, *every_step())) == []


def test_who_looks_in_mid_probe_sees_the_data_module_as_before():
    module, trainer = DataModule(), Trainer(**QUIET)
    trainer.datamodule = data = Counts()
    with isolated(module, trainer=trainer) as isolation:
        data.n = 5
        with isolation.as_before():
            assert data.n == 0
        assert data.n == 5
        data.n = 0
