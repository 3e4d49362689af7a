"""SWA on two processes: the user's validation is that of a plain run, and nobody waits for ever."""

import datetime
import warnings

import pytest
import torch
import torch.nn.functional as F
from hostile import EndsItsGroup, Samples, differences
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from toys import QUIET

from lightning_landscape import SWA, AsymmetryMonitor
from lightning_landscape.callbacks import swa_group, swa_validation
from lightning_landscape.callbacks.average import WeightAverage

pytestmark = pytest.mark.slow  # forks two processes a test


class Exchanging(LightningModule):
    """Its validation step sends twice: what it gathers, and what it logs on each step.

    Both ranks have as many validation batches, of 1 to 4 samples here and 2 to 5 there.
    """

    fails_at = None  # where rank 1 raises, at weights that are not the live ones

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.live = torch.zeros(6, 8)

    def training_step(self, batch, batch_idx):
        self.fail("estimate")
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_validation_epoch_start(self):
        self.fail("epoch start")

    def validation_step(self, batch, batch_idx):
        self.fail("before the collectives")
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        gathered = self.all_gather(loss.detach())
        self.fail("between the collectives")
        self.log("val_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("gathered", gathered.mean(), sync_dist=True)
        self.fail("after the collectives")

    def on_validation_epoch_end(self):
        self.fail("epoch end")

    def fail(self, place):
        moved = not torch.equal(self.net[0].weight, self.live)
        if self.fails_at == place and self.trainer.global_rank == 1 and moved:
            raise ZeroDivisionError(place)

    def on_train_start(self):
        self.on_train_batch_end()

    def on_train_batch_end(self, *args):
        self.live = self.net[0].weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = TensorDataset(Samples().x, Samples().y)
        mine = range(self.trainer.global_rank, len(data), 2)
        return DataLoader(Subset(data, mine), batch_size=6)

    def val_dataloader(self):
        data, batches, at = TensorDataset(Samples(400).x, Samples(400).y), [], 0
        for i in range(self.n_batches()):
            size = 1 + i % 4 + self.trainer.global_rank
            batches.append(list(range(at, at + size)))
            at += size
        return DataLoader(data, batch_sampler=batches)

    def n_batches(self):
        return 40


class Uneven(Exchanging):
    """As many validation batches as the rank says; the step sends nothing."""

    def n_batches(self):
        return (40, 3)[self.trainer.global_rank]

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)


class Ledger(Callback):
    """The user's validation loss, epoch by epoch."""

    def __init__(self):
        self.losses = []

    def on_validation_end(self, trainer, pl_module):
        name = "val_loss_epoch" if "val_loss_epoch" in trainer.callback_metrics else "val_loss"
        self.losses.append(float(trainer.callback_metrics[name]))


def train(*callbacks, module=Exchanging, fails_at=None, epochs=2):
    seed_everything(0, verbose=False)
    model, ledger = module(), Ledger()
    model.fails_at = fails_at
    trainer = Trainer(
        max_epochs=epochs,
        devices=2,
        strategy=DDPStrategy(start_method="fork", timeout=datetime.timedelta(seconds=60)),
        callbacks=[EndsItsGroup(), *callbacks, ledger],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **QUIET,
    )
    trainer.fit(model)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return model.state_dict(), metrics


@pytest.fixture(scope="module")
def plain():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {module: train(module=module) for module in (Exchanging, Uneven)}


def same_as(plain, found):
    state, metrics = found
    ours = [name for name in metrics if name.startswith("swa/")]
    assert differences(plain[0], state) == []
    assert plain[1] == {name: value for name, value in metrics.items() if name not in ours}
    return {name: metrics[name] for name in ours}


@pytest.mark.parametrize("module", [Exchanging, Uneven])
def test_the_users_validation_is_that_of_the_plain_run(plain, module):
    ours = same_as(plain[module], train(SWA(0), module=module))
    assert "swa/n_averaged" in ours
    assert any("control" in name for name in ours)


@pytest.mark.filterwarnings("ignore:.*could not run the average")
@pytest.mark.parametrize(
    "place",
    [
        "estimate",
        "epoch start",
        "before the collectives",
        "between the collectives",
        "after the collectives",
        "epoch end",
    ],
)
def test_a_rank_that_fails_in_the_users_code_costs_nothing_else(plain, place):
    ours = same_as(plain[Exchanging], train(SWA(0), fails_at=place))
    assert ours["swa/n_averaged"] == 1  # at first the average is where the live weights are


@pytest.mark.filterwarnings("ignore:.*could not run the average")
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (WeightAverage, "update"),
        (swa_group, "keep_batch"),
        (swa_validation, "clone_batch"),
        (swa_validation, "Snapshot"),
        (swa_validation, "epoch_metrics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rank_that_fails_in_ours_costs_nothing_else(plain, monkeypatch, owner, name):
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        if torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("here")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    assert same_as(plain[Exchanging], train(SWA(0))) == {}


def test_a_monitor_takes_as_many_batches_of_each_kind_as_every_rank_has(plain):
    probe = {
        "families": ("gaussian",),
        "n_directions": 2,
        "n_points": 5,
        "n_batches": 8,
        "mode": "eval",
    }
    monitor = AsymmetryMonitor(**probe, validation=True, every_n_epochs=2, on_error="raise")
    state, metrics = train(monitor, module=Uneven)  # 8 validation batches here and 3 there
    assert differences(plain[Uneven][0], state) == []
    assert "landscape/gaussian/area" in metrics


def test_rank_zero_says_what_went_wrong_elsewhere():
    with pytest.raises(Exception, match="failed on rank 1: ZeroDivisionError"):
        train(SWA(0), fails_at="before the collectives")  # warnings are errors here
