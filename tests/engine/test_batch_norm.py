"""Batch-norm statistics are estimated by the forward pass of training, without its dropout."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_landscape import recalibrate_batch_norm
from lightning_landscape.engine.batch_norm import estimate_batch_norm, runner
from lightning_landscape.engine.batches import KeptBatch

BATCHES = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]


def statistics(norm):
    return norm.running_mean.item(), norm.running_var.item()


class Detector(nn.Module):
    """Returns losses in training, boxes otherwise; dropout comes first."""

    def __init__(self):
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(1)
        self.frozen = nn.BatchNorm1d(1)
        self.frozen.running_mean.fill_(9.0)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        if not self.training:
            raise RuntimeError("boxes have no loss")
        return {"loss": self.norm(self.drop(x)).sum() + self.frozen(x).sum()}


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_differs_in_eval_mode_runs_as_in_training(training):
    module = Detector().train(training)
    flags = [child.training for child in module.modules()]
    recalibrate_batch_norm(module, BATCHES)
    assert statistics(module.norm) == (4.0, 2.0)  # of 2 and 6; of two pairs 2 apart
    assert [child.training for child in module.modules()] == flags


def test_batch_norms_in_eval_mode_keep_their_statistics():
    module = Detector().train()
    kept = [KeptBatch(batch, i) for i, batch in enumerate(BATCHES)]
    found = estimate_batch_norm(module, kept, at=None, step=runner(module), trainer=None)
    assert found["frozen.running_mean"].item() == 9.0
    assert found["frozen.running_var"].item() == 1.0


@pytest.mark.parametrize(
    "dropping",
    [nn.Dropout(0.9), nn.AlphaDropout(0.9), type("DropPath", (nn.Dropout,), {})(0.9)],
    ids=lambda module: type(module).__name__,
)
def test_estimates_are_made_without_dropout(dropping):
    module = nn.Sequential(dropping, nn.BatchNorm1d(1)).train()
    recalibrate_batch_norm(module, BATCHES)
    assert statistics(module[1]) == (4.0, 2.0)


def test_a_loss_function_runs_batches_that_the_module_does_not_take():
    module = nn.Sequential(nn.BatchNorm1d(1))
    batches = [{"x": x} for x in BATCHES]
    recalibrate_batch_norm(module, batches, loss_fn=lambda module, batch: module(batch["x"]))
    assert statistics(module[0]) == (4.0, 2.0)


class ByHand(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.norm = nn.BatchNorm1d(1)

    def training_step(self, batch, batch_idx):
        raise AssertionError("it would step the optimizers")

    def loss(self, batch):
        return self.norm(batch).sum()


def test_a_step_with_manual_optimisation_is_not_run():
    module = ByHand()
    recalibrate_batch_norm(module, BATCHES, loss_fn=lambda module, batch: module.loss(batch))
    assert statistics(module.norm) == (4.0, 2.0)


def test_an_error_of_the_module_is_raised_and_nothing_changes():
    module = nn.Sequential(nn.BatchNorm1d(1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate_batch_norm(module, [torch.ones(1, 1)])
    assert statistics(module[0]) == (0.0, 1.0)
    assert module[0].momentum == 0.1


def test_batch_norms_of_a_frozen_module_are_estimated():
    module = nn.Sequential(nn.BatchNorm1d(1)).requires_grad_(False)
    recalibrate_batch_norm(module, BATCHES)
    assert statistics(module[0]) == (4.0, 2.0)


class Shared:
    """Cannot be copied, so batches share it with training."""

    n = 0

    def __reduce_ex__(self, protocol):
        raise TypeError("never")


def test_an_object_that_batches_share_with_training_is_restored():
    shared, norm = Shared(), nn.BatchNorm1d(1)

    def loss_fn(module, batch):
        batch[1].n += 1
        return module(batch[0]).sum()

    recalibrate_batch_norm(norm, [(batch, shared) for batch in BATCHES], loss_fn=loss_fn)
    assert statistics(norm) == (4.0, 2.0)
    assert shared.n == 0
