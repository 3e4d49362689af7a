"""Several processes: bit-identical training, one answer on all ranks, and nobody waits for ever."""

import datetime

import pytest
import torch
from hostile import EndsItsGroup, differences
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset
from toys import QUIET, Plain, Samples

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor, ranks
from lightning_landscape.engine import probing

two_processes = pytest.mark.slow  # they are forked


class Net(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def train_dataloader(self):
        # rank 0 sees the samples 0, 2, 4, ... and rank 1 the others
        mine = range(self.trainer.global_rank, 36, 2)
        return DataLoader(Subset(Samples(noise=0), mine), batch_size=6)

    val_dataloader = train_dataloader


class Failing(Net):
    """Cannot be probed on the second rank."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1 and not self.training:
            raise ZeroDivisionError("only here")
        return super().training_step(batch, batch_idx)


class Exchanging(Net):
    """Its training step sends twice; one rank cannot be probed."""

    failing = (1, "before")

    def training_step(self, batch, batch_idx):
        self.fail("before")
        loss = super().training_step(batch, batch_idx)
        self.all_gather(loss.detach())
        self.fail("between")
        gathered = self.all_gather(loss.detach())
        self.fail("after")
        return loss + 0 * gathered.sum()

    def fail(self, place):
        if not self.training and (self.trainer.global_rank, place) == self.failing:
            raise ZeroDivisionError(place)


def train(*callbacks, module=Net, **options):
    seed_everything(0, verbose=False)
    model = module()
    trainer = Trainer(
        **{**QUIET, **options},
        max_epochs=2,
        devices=2,
        strategy=DDPStrategy(start_method="fork", timeout=datetime.timedelta(seconds=60)),
        callbacks=[EndsItsGroup(), *callbacks],
        use_distributed_sampler=False,
    )
    trainer.fit(model)
    return model.state_dict(), set(trainer.callback_metrics)


def monitor(**options):
    return AsymmetryMonitor(**{"every_n_epochs": 1, "n_directions": 2, "n_points": 5, **options})


@two_processes
def test_training_on_two_ranks_in_windows_is_bit_identical():
    plain, _ = train(accumulate_grad_batches=2)
    swa = SWA(0)
    callbacks = swa, monitor(swa=swa, validation=True, every_n_epochs=None, every_n_steps=2)
    probed, metrics = train(*callbacks, accumulate_grad_batches=2)
    assert differences(plain, probed) == []
    assert {"landscape/gaussian/area", "swa/val_loss"} <= metrics


@two_processes
@pytest.mark.filterwarnings("ignore:The probe of AsymmetryMonitor failed")
def test_a_rank_that_fails_leaves_nobody_waiting():
    plain, _ = train(module=Failing)
    probed, metrics = train(monitor(mode="eval"), module=Failing)
    assert differences(plain, probed) == []
    assert "landscape/gaussian/area" not in metrics


@two_processes
@pytest.mark.filterwarnings("ignore:The probe of")
@pytest.mark.parametrize("place", ["before", "between", "after", "opening", "nowhere"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_between_exchanges_leaves_nobody_waiting(rank, place, monkeypatch):
    class Fails(Exchanging):
        failing = (rank, place)

    def out_of_memory(module, *args, real=probing.isolated, **kwargs):
        if module.trainer.global_rank == rank:
            raise torch.OutOfMemoryError
        return real(module, *args, **kwargs)

    plain, _ = train(module=Fails)
    if place == "opening":
        monkeypatch.setattr(probing, "isolated", out_of_memory)
    watching = GradientBreakdownMonitor(every_n_steps=2, mode="eval", etas=[1.0])
    probed, metrics = train(monitor(mode="eval"), watching, module=Fails)
    assert differences(plain, probed) == []
    measured = {"landscape/gaussian/area", "breakdown/update/max"} <= metrics
    assert measured is (place == "nowhere")


@two_processes
def test_the_others_are_told_what_went_wrong():
    # warnings are errors here, and rank 0 alone warns
    with pytest.raises(Exception, match="failed on rank 1: ZeroDivisionError"):
        train(monitor(mode="eval"), module=Failing)


def test_without_processes_a_failure_is_just_raised():
    with pytest.raises(ZeroDivisionError):
        ranks.agree(ZeroDivisionError(), torch.device("cpu"))
    ranks.agree(None, torch.device("cpu"))
    assert ranks.n_ranks() == 1
