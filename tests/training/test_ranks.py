"""Several processes: bit-identical training, one answer on all ranks, and nobody waits for ever."""

import datetime

import pytest
import torch
from hostile import EndsItsGroup, differences
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset
from toys import QUIET, Plain, Samples

from lightning_landscape import SWA, AsymmetryMonitor, ranks

pytestmark = pytest.mark.slow  # forks two processes a test


class Net(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def train_dataloader(self):
        # rank 0 sees the samples 0, 2, 4, ... and rank 1 the others
        data = Samples(noise=0)
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
        **{**QUIET, **options},
        max_epochs=2,
        devices=devices,
        strategy=ddp if devices > 1 else "auto",
        callbacks=[EndsItsGroup(), *callbacks],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
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
