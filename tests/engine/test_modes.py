"""A module runs in the mode of the objective, with the batch-norm statistics of that mode."""

import pytest
import torch
import torch.nn.functional as F
from hostile import differences
from probed import MODES, BatchNorm, Step, direction_of, unchanged
from torch import nn

from lightning_landscape import probing
from lightning_landscape.engine.batch_norm import estimate_batch_norm
from lightning_landscape.engine.batches import KeptBatch
from lightning_landscape.measures.slices import evaluate_slice, symmetric_grid


def test_modes_run_the_module_as_they_say():
    module = Step()
    module.net[1] = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    norm, dropout = module.net[1]
    norm.running_mean.fill_(3.0)
    modes = {}
    for mode in MODES:
        with probing(module, module.inputs(), mode=mode) as objective:
            modes[mode] = objective.losses().tolist()
            assert (norm.training, dropout.training) == ((mode == "train"),) * 2
            assert objective.mode == mode
    hidden = [module.net[0](batch).detach() for batch in module.inputs()]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    var = torch.stack([h.var(0) for h in hidden]).mean(0)
    for mode, statistics in (
        ("eval", (norm.running_mean, norm.running_var)),
        ("recalibrated", (mean, var)),
    ):
        for value, h in zip(modes[mode], hidden, strict=True):
            expected = module.net[2](F.batch_norm(h, *statistics, norm.weight, norm.bias))
            assert value == pytest.approx(expected.square().mean().item(), rel=1e-5)


def test_recalibrating_keeps_a_batch_that_the_step_writes_to():
    class InPlace(BatchNorm):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.mul_(2).add_(1), batch_idx)

    class OutOfPlace(BatchNorm):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch * 2 + 1, batch_idx)

    values = []
    for module in (InPlace(), OutOfPlace()):
        with probing(module, module.inputs(), mode="recalibrated") as objective:
            values.append([objective.losses(), objective.losses(direction_of(module), 1.0)])
    assert differences(*values) == []


class Merging(Step):
    """Merges weights in its own `train`, as LoRA does, and counts how often."""

    def build(self):
        self.merged, self.switches = False, 0

    def train(self, mode=True):
        super().train(mode)
        if hasattr(self, "merged") and self.merged is mode:
            self.net[0].weight.data += -1 if mode else 1
            self.merged, self.switches = not mode, self.switches + 1
        self.net[1].train(False)  # as those do who freeze batch norms
        return self

    def training_step(self, batch, batch_idx):
        weight = self.net[0].weight + (0 if self.merged else 1)
        return (batch @ weight.T).square().mean()


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_train_method_that_merges_weights_leaves_the_losses_right(mode, evaluating):
    expected = [Merging().training_step(batch, 0).item() for batch in Merging().inputs()]
    module = Merging()
    module.train(not evaluating)
    direction = direction_of(module)
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        assert module.net[1].training is False
        for _ in range(2):
            assert objective.losses().tolist() == pytest.approx(expected)
            objective.losses(direction, 1.0)


class Notes(nn.Tanh):
    """Notes the attributes that are set on it."""

    def __init__(self):
        super().__init__()
        self.__dict__["notes"] = []

    def __setattr__(self, name, value):
        self.__dict__.get("notes", []).append(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("mode", MODES)
def test_the_setattr_of_a_layer_is_never_called(mode):
    module = Step()
    module.net[1] = Notes()
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        objective.losses(direction_of(module), 1.0)
    assert module.net[1].notes == []


class SlopeOverNorm(BatchNorm):
    """Takes a gradient in its step and does not use it."""

    def write(self, loss, batch):
        torch.autograd.grad(loss, self.net[0].weight, retain_graph=True)
        return super().write(loss, batch)


@pytest.mark.tried("steps", "a gradient penalty over batch norms that are estimated anew")
def test_batch_norms_are_estimated_also_by_steps_that_take_gradients():
    found = []
    for kind in (BatchNorm, SlopeOverNorm):
        module = kind()
        direction, batches = direction_of(module), module.inputs()
        with unchanged(module), probing(module, batches, mode="recalibrated") as objective:
            line = evaluate_slice(objective, direction, symmetric_grid(0.5, 5)).losses
            found.append((line, objective.gradient(direction, 0.5)))
        with unchanged(module):
            kept = [KeptBatch(batch, i) for i, batch in enumerate(batches)]
            step = module.training_step
            found[-1] += (estimate_batch_norm(module, kept, at=None, step=step, trainer=None),)
    assert differences(*found) == []
