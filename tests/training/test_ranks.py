"""Several processes: bit-identical training, one answer on all ranks, and nobody waits for ever."""

import datetime

import pytest
import torch
import torch.nn.functional as F
from hostile import EndsItsGroup, Samples, differences
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_landscape import SWA, AsymmetryMonitor, ranks

pytestmark = pytest.mark.slow  # forks two processes a test


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        # rank 0 sees the samples 0, 2, 4, ... and rank 1 the others
        data = TensorDataset(Samples().x, Samples().y)
        mine = range(self.trainer.global_rank, len(data), self.trainer.world_size)
        return DataLoader(Subset(data, mine), batch_size=12 // self.trainer.world_size)

    val_dataloader = train_dataloader


class Failing(Net):
    """Cannot be probed on the second rank."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1 and not self.training:
            raise ZeroDivisionError("only here")
        return super().training_step(batch, batch_idx)


def train(*callbacks, module=Net, devices=2, **options):
    seed_everything(0, verbose=False)
    model = module()
    ddp = DDPStrategy(start_method="fork", timeout=datetime.timedelta(seconds=60))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy=ddp if devices > 1 else "auto",
        callbacks=[EndsItsGroup(), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(model)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return model.state_dict(), metrics


def monitor(**options):
    return AsymmetryMonitor(
        **{"families": ("gaussian", "sign"), "n_directions": 2, "n_points": 5, **options}
    )


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_training_on_two_ranks_is_bit_identical(options):
    plain, _ = train(**options)
    swa = SWA(0)
    probed, metrics = train(swa, monitor(swa=swa, validation=True, every_n_steps=2), **options)
    assert differences(plain, probed) == []
    assert "landscape/gaussian/area" in metrics
    assert "swa/val_loss" in metrics


def test_two_ranks_have_the_scores_of_one_on_the_joined_batches():
    # one process with batches of 12 takes the steps of two with 6: equal means have equal weight
    found = []
    for devices in (2, 1):
        swa = SWA(0)
        probe = monitor(on_error="raise", n_batches=1, swa=swa, every_n_steps=4)
        found.append(train(swa, probe, devices=devices)[1])
    two, one = found
    names = [name for name in one if name.startswith(("landscape/", "swa/"))]
    names = [
        name for name in names if "area_corrected" not in name
    ]  # a ratio of two roundings here
    for name in names:
        if name not in ("landscape/seconds", "landscape/overhead"):
            assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), name
    assert {"landscape/swa/gap", "landscape/swa/outward_ratio", "swa/val_loss"} <= {*names}


@pytest.mark.filterwarnings("ignore:The probe of AsymmetryMonitor failed")
def test_a_rank_that_fails_leaves_nobody_waiting():
    plain, _ = train(module=Failing)
    probed, metrics = train(monitor(mode="eval"), module=Failing)
    assert differences(plain, probed) == []
    assert "landscape/gaussian/area" not in metrics


def test_the_others_are_told_what_went_wrong():
    # warnings are errors here, and rank 0 alone warns
    with pytest.raises(Exception, match="failed on rank 1: ZeroDivisionError"):
        train(monitor(mode="eval"), module=Failing)


def test_without_processes_a_failure_is_just_raised():
    with pytest.raises(ZeroDivisionError):
        ranks.agree(ZeroDivisionError(), torch.device("cpu"))
    ranks.agree(None, torch.device("cpu"))
    assert ranks.n_ranks() == 1
