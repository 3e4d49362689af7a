"""An objective made from a module: the same weights give the same bits, and nothing stays."""

import collections
import contextlib
import dataclasses
import itertools
import operator
import os
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from hostile import GAN, HostileModule, Samples, differences, gan_loss, rng_fingerprint
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from test_snapshot import seen
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor, probing
from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.engine import recorded
from lightning_landscape.engine.batch_norm import estimate_batch_norm
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.probing import opened
from lightning_landscape.engine.tensors import same_bits
from lightning_landscape.measures.slices import evaluate_slice, symmetric_grid

ALPHAS = (0.5, 0.0, -1.0, 0.5, 0.0)
MODES = ("train", "eval", "recalibrated")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Step(LightningModule):
    """A small network whose step can be given something to do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.build()

    def build(self):
        pass

    def inputs(self):
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(6, 3, generator=generator) for _ in range(2)]

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        other = self.write(loss, batch)
        return loss if other is None else other

    def write(self, loss, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class BatchNorm(Step):
    def build(self):
        self.net[1] = nn.BatchNorm1d(4)
        self.register_buffer("ema", torch.zeros(()), persistent=False)

    def write(self, loss, batch):
        self.ema.lerp_(loss.detach().to(self.ema), 0.5)
        return loss + self.ema


class Dropout(Step):
    def build(self):
        self.net[1] = nn.Dropout(0.5)

    def write(self, loss, batch):
        return loss * (1 + torch.rand(()) + np.random.rand() + random.random())


class SpectralNorm(Step):
    def build(self):
        parametrizations.spectral_norm(self.net[0])
        nn.utils.spectral_norm(self.net[2])


class WeightNorm(Step):
    def build(self):
        parametrizations.weight_norm(self.net[0])
        self.net[2] = nn.utils.weight_norm(self.net[2])


class Recurrent(Step):
    def build(self):
        self.lstm = nn.LSTM(3, 3, batch_first=True, num_layers=2, dropout=0.3)
        self.normed = nn.utils.weight_norm(nn.GRU(3, 3), "weight_hh_l0")
        self.hidden = None

    def training_step(self, batch, batch_idx):
        output, hidden = self.lstm(batch[None], self.hidden)
        self.hidden = tuple(state.detach() for state in hidden)
        return self.net(self.normed(output)[0]).square().mean()


class Tied(Step):
    def build(self):
        self.back = nn.Linear(3, 4, bias=False)
        self.back.weight = self.net[0].weight
        self.same = self.net[2]
        self.flat = self.net[0].weight.detach().view(-1)
        self.listed = [self.net[2].weight]

    def write(self, loss, batch):
        return loss + self.back(batch).mean() + self.flat.sum() + self.listed[0].sum()


class Metrics(Step):
    def build(self):
        self.metrics = torchmetrics.MetricCollection(
            [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()]
        )
        self.mean, self.all = torchmetrics.MeanMetric(), torchmetrics.CatMetric()

    def write(self, loss, batch):
        self.mean.update(loss.detach())
        self.all.update(loss.detach())
        value = self.metrics(batch[:, 0], batch[:, 1])["MeanSquaredError"]
        return loss * (1 + self.mean.compute() + self.all.compute().sum() + value)


class Counters(Step):
    def build(self):
        self.calls, self.history, self.table = 0, collections.deque(maxlen=2), np.zeros(2)
        self.by_name = collections.defaultdict(list)
        self.unregistered = [nn.BatchNorm1d(3)]
        self.sobol = torch.quasirandom.SobolEngine(1)

    def write(self, loss, batch):
        self.calls += 1
        self.history.append(self.calls)
        self.table += self.calls
        self.by_name[self.calls].append(loss.detach())
        self.unregistered[0](batch)
        running = self.unregistered[0].running_mean.sum() + self.sobol.draw(1).sum()
        return loss * (self.calls + sum(self.history) + self.table.sum()) + running


class NewAttributes(Step):
    def build(self):
        self.doomed, self.kept = 1, torch.zeros(2)
        self.register_buffer("buffer", torch.zeros(2))

    def write(self, loss, batch):
        late = getattr(self, "late", 0)
        self.late = late + 1
        self.register_buffer("fresh", torch.ones(2))
        self.kept = self.kept + 1
        self.buffer = self.buffer + 1
        penalty = getattr(self, "doomed", 100)
        if hasattr(self, "doomed"):
            del self.doomed
        self.net[0].register_forward_hook(lambda module, inputs, output: output * 2)
        self.net.train(not self.net.training)
        return loss * (1 + late) + penalty + self.kept.sum() + self.buffer.sum()


class MutatedBatch(Step):
    def inputs(self):
        return [{"x": x, "y": [x[:, 0]], "n": np.zeros(1)} for x in super().inputs()]

    def training_step(self, batch, batch_idx):
        batch["x"] += 1
        batch["y"][0].mul_(2)
        batch["n"] += 1
        batch["x"], extra = batch["x"] * 2, batch.pop("z", 0)
        batch["z"] = extra + 1
        target = batch["y"].pop()
        return (self.net(batch["x"])[:, 0] - target).square().mean() * (1 + extra + batch["n"][0])


class Adversarial(Step):
    """Goes backward itself and reads the gradients that leaves."""

    def write(self, loss, batch):
        batch.requires_grad_()
        self.net(batch).square().mean().backward()
        size = self.net[0].weight.grad.norm()
        return self.net(batch.detach() + 0.1 * batch.grad.sign()).square().mean() + size


class HiddenLeaf(Step):
    """Leaves gradients where no optimizer of the module would look."""

    def build(self):
        self.scale = torch.ones(1, requires_grad=True)
        self.others = [nn.Linear(3, 1)]

    def write(self, loss, batch):
        (self.others[0](batch) * self.scale).square().mean().backward()
        return loss + self.scale.grad.sum()


class GradientPenalty(Step):
    def write(self, loss, batch):
        batch = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(batch).sum(), batch, create_graph=True)
        return loss + slope.norm()


class NeedsGraph(Step):
    def write(self, loss, batch):
        return loss * len(loss.grad_fn.next_functions)


class KnowsGradMode(Step):
    def write(self, loss, batch):
        return loss if torch.is_grad_enabled() else loss * 2


class Encoder(Step):
    """Runs a fused kernel without gradients in eval mode."""

    def build(self):
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def training_step(self, batch, batch_idx):
        hidden = self.encoder(self.net[0](batch)[None].expand(3, -1, -1))
        return self.net[2](hidden).square().mean()


class Teacher(Step):
    """A momentum teacher that moves inside the step, and weights that are clipped there."""

    def build(self):
        self.teacher = nn.Linear(3, 4).requires_grad_(False)

    def write(self, loss, batch):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.net[0].weight, 0.5)
        distance = (self.teacher(batch) - self.net[0](batch)).square().mean()
        self.net[2].weight.data.clamp_(-0.1, 0.1)
        self.net[0].bias.data = self.net[0].bias.data.clamp(-0.1, 0.1)
        return loss + distance


class Freezing(Step):
    def write(self, loss, batch):
        self.net[0].bias.requires_grad_(not self.net[0].bias.requires_grad)


class Memory(Step):
    """Writes into a plain tensor with the graph attached."""

    def build(self):
        self.memory = torch.zeros(2)

    def write(self, loss, batch):
        self.memory += self.net(batch).mean(0)
        self.memory.detach_()


class SparseEmbedding(Step):
    def build(self):
        self.table = nn.Embedding(5, 3, sparse=True)

    def write(self, loss, batch):
        return loss + self.net(self.table(torch.tensor([1, 1, 2]))).square().mean()


class OddParameters(Step):
    def build(self):
        self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.narrow = nn.Parameter(torch.ones(2, dtype=torch.float16))
        self.bfloat = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.unused = nn.Parameter(torch.ones(2))
        self.scalar = nn.Parameter(torch.tensor(1.0))

    def write(self, loss, batch):
        others = self.complex.abs().square().sum() + self.narrow.float().square().sum()
        others = others + self.bfloat.float().square().sum() * self.scalar
        return (loss + others + self.empty.sum()).double()


class Checkpointed(Step):
    reentrant = False

    def build(self):
        self.dropout = nn.Dropout(0.3)

    def training_step(self, batch, batch_idx):
        hidden = batch * self.net[0].bias.sum()
        body = nn.Sequential(self.net, self.dropout)
        loss = checkpoint(body, hidden, use_reentrant=self.reentrant).square().mean()
        return self.write(loss, batch) or loss


class Reentrant(Checkpointed):
    reentrant = True


class CheckpointedBackward(Checkpointed):
    """Goes backward itself besides, and uses the gradients that have piled up."""

    def write(self, loss, batch):
        if torch.is_grad_enabled():
            self.net(batch).square().mean().backward()
        return loss * (1 + self.net[0].weight.grad.norm())


class ReentrantBackward(CheckpointedBackward):
    reentrant = True


class Compiled(Step):
    def build(self):
        self.net[1] = nn.BatchNorm1d(4)
        self.net[2] = torch.compile(self.net[2], backend="eager")


STEPS = [
    Step,
    BatchNorm,
    Dropout,
    SpectralNorm,
    WeightNorm,
    Recurrent,
    Tied,
    Metrics,
    Counters,
    NewAttributes,
    MutatedBatch,
    Adversarial,
    HiddenLeaf,
    GradientPenalty,
    NeedsGraph,
    KnowsGradMode,
    Encoder,
    Teacher,
    Freezing,
    Memory,
    SparseEmbedding,
    OddParameters,
    Checkpointed,
    Reentrant,
    ReentrantBackward,
    Compiled,
]

# torch's advice on old ways that people use all the same
OLD_WAYS = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.*weight_norm` is deprecated",
    "ignore:None of the inputs have requires_grad",
    "ignore:.*compute.. method of metric",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)


def direction_of(module, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(p.shape, generator=generator)).to(p)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def everything(module):
    """Return all that may not change, as copies."""
    return {
        "weights": {name: p.detach().clone() for name, p in module.named_parameters()},
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "free": [p.requires_grad for p in module.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "modes": [child.training for child in module.modules()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "attributes": dict(sorted(plain_attributes(module).items())),
        "rng": rng_fingerprint(),
    }


def plain_attributes(module):
    """Return what the attributes of all submodules hold, in a form that compares."""
    return {
        f"{name}.{key}": seen(value)
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if key not in ("_trainer", "_parameters", "_buffers", "_modules") and "hook" not in key
    }


@contextlib.contextmanager
def unchanged(module):
    objects = [p.grad for p in module.parameters()]
    before = everything(module)
    yield
    assert differences(before, everything(module)) == []
    assert all(p.grad is grad for p, grad in zip(module.parameters(), objects, strict=True))


def plain_gradient(module, batches):
    """Return the gradient of the mean loss as a training loop would have it."""
    loss = sum(module.training_step(batch, i) for i, batch in enumerate(batches)) / len(batches)
    weights = dict(module.named_parameters())
    gradients = torch.autograd.grad(
        loss, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, gradients, strict=True))


@OLD_WAYS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", STEPS)
def test_the_same_alpha_gives_the_same_bits(kind, mode):
    module = kind()
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    direction, losses = direction_of(module), {}
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        for alpha in ALPHAS:
            value = objective.losses(direction, alpha)
            assert same_bits(value, losses.setdefault(alpha, value))
            with_gradient, gradient = objective.gradient(direction, alpha)
            assert same_bits(with_gradient, losses[alpha])
            assert list(gradient) == list(objective.params)
        assert same_bits(objective.losses(direction, -1.0), losses[-1.0])
    assert losses[0.0].shape == (2,)
    assert losses[0.0].dtype == torch.float64
    assert not same_bits(losses[0.0], losses[0.5])
    # another probe, in another order, gradients first
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        for alpha in sorted(losses):
            assert same_bits(objective.gradient(direction, alpha)[0], losses[alpha])
            assert same_bits(objective.losses(direction, alpha), losses[alpha])


@pytest.mark.parametrize("seed", range(8))
def test_a_fused_kernel_is_noticed_where_the_loss_agrees_by_chance(seed):
    module = Encoder()
    torch.manual_seed(seed)
    batch = torch.randn(4, 3)
    with probing(module, [batch], mode="eval") as objective:
        for alpha in (0.0, 0.5, 1.0):
            value = objective.losses(direction_of(module), alpha)
            assert objective.gradient(direction_of(module), alpha)[0].equal(value)


def test_a_graph_does_not_stay_in_a_plain_tensor():
    class Remembers(Step):
        def build(self):
            self.memory = torch.zeros(2)

        def training_step(self, batch, batch_idx):
            self.memory += self.net(batch).mean(0)
            return self.memory.square().sum()

    module = Remembers()
    with unchanged(module), probing(module, module.inputs()[:1]) as objective:
        value, gradient = objective.gradient(direction_of(module), 1.0)
        for _ in range(2):
            assert objective.losses(direction_of(module), 1.0).equal(value)
            again = objective.gradient(direction_of(module), 1.0)[1]
            assert differences(gradient, again) == []
    assert module.memory.grad_fn is None


def test_losses_are_those_of_the_training_step_at_moved_weights():
    module = Step()
    direction = direction_of(module)
    with probing(module, module.inputs()) as objective:
        losses = objective.losses(direction, 0.7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(direction[name], alpha=0.7)
        expected = [module.training_step(batch, 0).item() for batch in module.inputs()]
    assert losses.tolist() == expected


@pytest.mark.parametrize("kind", [Step, BatchNorm, GradientPenalty, SparseEmbedding, Checkpointed])
def test_the_gradient_is_that_of_autograd(kind):
    module = kind()
    with probing(module, module.inputs()) as objective:
        _, gradient = objective.gradient()
    module = kind()
    torch.manual_seed(0)
    expected = plain_gradient(module, module.inputs())
    for name in expected:
        torch.testing.assert_close(gradient[name], expected[name].to_dense())


def test_the_gradient_is_that_of_finite_differences():
    module = Step()
    module.net[1] = nn.BatchNorm1d(4)
    module = module.double()
    batches = [batch.double() for batch in module.inputs()]
    direction = direction_of(module)
    with probing(module, batches) as objective:
        for alpha in (0.0, 0.4):
            _, gradient = objective.gradient(direction, alpha)
            slope = sum((gradient[name] * direction[name]).sum() for name in gradient)
            along = objective.along(direction)
            rise = along(alpha + 1e-6).mean() - along(alpha - 1e-6).mean()
            assert slope.item() == pytest.approx(rise.item() / 2e-6, rel=1e-7)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "kinds", [(Checkpointed, Reentrant), (CheckpointedBackward, ReentrantBackward)]
)
@pytest.mark.tried("steps", "the gradient through reentrant gradient checkpoints")
def test_a_reentrant_checkpoint_has_the_gradient_of_a_plain_one(kinds):
    gradients = []
    for kind in kinds:
        module = kind()
        with probing(module, module.inputs()) as objective:
            gradients.append(objective.gradient(direction_of(module), 0.3))
    assert differences(*gradients) == []
    assert objective.n_evaluations == 1 + 4  # two for losses, two for gradients


def test_unused_and_frozen_parameters():
    module = OddParameters()
    module.scalar.requires_grad_(False)
    with probing(module, module.inputs()) as objective:
        _, gradient = objective.gradient()
        assert "scalar" not in objective.params
    assert gradient["unused"].tolist() == [0, 0]
    assert gradient["empty"].shape == (0, 3)
    assert gradient["complex"].tolist() == [2, 2]


def test_a_loss_without_a_graph_has_no_slope():
    module = Step()
    loss_fn = lambda module, batch: module.net(batch).detach().mean()  # noqa: E731
    with probing(module, module.inputs(), loss_fn=loss_fn) as objective:
        _, gradient = objective.gradient()
    assert not any(tensor.any() for tensor in gradient.values())


CALLS = []  # out of reach of what is put back


class Counted(Step):
    def training_step(self, batch, batch_idx):
        CALLS.append(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("mode", "passes"), [("train", 1), ("eval", 1), ("recalibrated", 2)])
def test_a_slice_costs_its_points_and_two_to_learn_from(mode, passes, monkeypatch):
    monkeypatch.setattr(Counted, "build", lambda self: setattr(self, "bn", nn.BatchNorm1d(3)))
    module = Counted()
    CALLS.clear()
    with probing(module, module.inputs(), mode=mode) as objective:
        assert not CALLS
        evaluate_slice(objective, direction_of(module), symmetric_grid(0.5, 5))
        assert len(CALLS) == (5 + 2) * 2 * passes
        objective.prepare()
        assert objective.n_evaluations == 5 + 2
        objective.gradient(direction_of(module), 0.1)
        objective.gradient(direction_of(module), 0.2)
        assert objective.n_evaluations == 5 + 2 + 2 + 1
    assert len(CALLS) == 10 * 2 * passes
    assert CALLS[:4] == [0, 1, 0, 1]


def test_gradients_alone_cost_at_most_six_more():
    module = Counted()
    CALLS.clear()
    with probing(module, module.inputs()) as objective:
        for alpha in (0.1, 0.2, 0.3):
            objective.gradient(direction_of(module), alpha)
    assert 3 < objective.n_evaluations <= 3 + 6
    assert len(CALLS) == 2 * objective.n_evaluations


def test_plain_modules_need_only_a_loss():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    batches = [(torch.ones(3, 2), torch.zeros(3, 2))]

    def loss_fn(module, batch):
        return {"loss": F.mse_loss(module(batch[0]), batch[1]), "other": torch.ones(())}

    with probing(net, batches, loss_fn=loss_fn, mode="eval") as objective:
        assert not net.training
        value = objective.losses()
    assert value.item() == F.mse_loss(net[0](batches[0][0]), batches[0][1]).item()
    assert net.training


def test_a_gan_is_probed_through_its_loss():
    gan = GAN()
    batch = {"x": torch.randn(6, 8)}
    with unchanged(gan), probing(gan, [batch], loss_fn=gan_loss) as objective:
        assert objective.losses().isfinite().all()
        assert objective.gradient()[0].equal(objective.losses())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_hostile_module_leaves_no_trace():
    module = HostileModule()
    samples = Samples()
    batch = {"x": samples.x[:6], "y": samples.y[:6]}
    with unchanged(module), probing(module, [batch, batch]) as objective:
        first = objective.losses(direction_of(module), 0.5)
        objective.gradient(direction_of(module), 1.0)
        assert objective.losses(direction_of(module), 0.5).equal(first)


# ---------------------------------------------------------------------------------------- modes


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


def test_recalibrating_does_not_spoil_a_batch_that_is_written_to():
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
    """Keeps its own books in `train`, and merges weights there, as LoRA does."""

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
def test_a_module_with_its_own_train_method(mode, evaluating):
    expected = [Merging().training_step(batch, 0).item() for batch in Merging().inputs()]
    module = Merging()
    module.train(not evaluating)
    direction = direction_of(module)
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        assert module.net[1].training is False
        for _ in range(2):
            assert objective.losses().tolist() == pytest.approx(expected)
            objective.losses(direction, 1.0)


# --------------------------------------------------------------------------------------- at, who


def test_at_is_where_it_stands():
    module = Tied()
    shifted = {name: p.detach() + 0.5 for name, p in module.named_parameters()}
    with unchanged(module), probing(module, module.inputs(), at=shifted) as objective:
        assert differences(dict(objective.params), shifted) == []
        there = objective.losses(), objective.gradient()[1]
        objective.losses({"net.0.bias": torch.ones(4)}, 1.0)
        assert objective.losses().equal(there[0])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(shifted[name])
    with probing(module, module.inputs()) as objective:
        assert differences(there, (objective.losses(), objective.gradient()[1])) == []


def test_at_may_name_some_and_frozen_ones_in_another_dtype():
    module = Teacher()
    at = {
        "net.0.weight": torch.zeros(4, 3, dtype=torch.float64),
        "teacher.bias": torch.ones(4, dtype=torch.bfloat16),
    }
    with unchanged(module), probing(module, module.inputs(), at=at) as objective:
        objective.losses(direction_of(module), 1.0)
        start = objective.losses()
        assert objective.params["net.0.weight"].dtype == torch.float32
        assert "teacher.bias" not in objective.params
    module.net[0].weight.data.zero_()
    module.teacher.bias.data.fill_(1)
    with probing(module, module.inputs()) as objective:
        assert objective.losses().equal(start)


def test_views_of_weights_are_no_reason_to_warn():
    module = Tied()
    with unchanged(module), probing(module, module.inputs()) as objective:
        for alpha in (0.0, 1.0):
            objective.losses({"net.2.bias": torch.ones(2)}, alpha)
        objective.losses({"net.0.weight": torch.ones(4, 3)}, 1.0)


def test_a_probe_elsewhere_goes_on_after_another():
    module = BatchNorm()
    at = {"net.0.weight": torch.ones(4, 3)}
    with probing(module, module.inputs(), at=at) as outer:
        expected = outer.losses()
        with probing(module, module.inputs()) as inner:
            assert not inner.losses().equal(expected)
            assert outer.losses().equal(expected)
        assert outer.losses().equal(expected)


def test_two_probes_of_one_module_at_once():
    module = BatchNorm()
    direction, (first, second) = direction_of(module), module.inputs()
    alone = []
    for batch, mode in ((first, "train"), (second, "eval")):
        with probing(module, [batch], mode=mode) as objective:
            alone.append([objective.losses(direction, alpha).item() for alpha in (0.0, 1.0)])
    with unchanged(module), probing(module, [first]) as outer:
        values = [[outer.losses().item()], []]
        outer.losses(direction, 1.0)
        with probing(module, [second], mode="eval") as inner:
            assert differences(dict(outer.params), dict(inner.params)) == []
            values[1].append(inner.losses().item())
            values[0].append(outer.losses(direction, 1.0).item())
            values[1].append(inner.losses(direction, 1.0).item())
            again = outer.losses().item()
            inner.losses(direction, 0.5)
        assert outer.losses().item() == again == alone[0][0]
        outer.losses(direction, 0.5)
        with probing(module, [second], mode="eval") as inner:  # and closed without a word between
            inner.losses(direction, 0.5)
    assert values == alone


def test_probes_of_two_modules_at_once_do_not_meet():
    a, b = Dropout(), Dropout()
    b.net[0].bias.data.add_(1)
    expected = []
    for module in (a, b):
        with probing(module, module.inputs()) as objective:
            expected.append(objective.losses())
    with probing(a, a.inputs()) as first, probing(b, b.inputs()) as second:
        for _ in range(2):
            assert second.losses().equal(expected[1])
            assert first.losses().equal(expected[0])


def test_writing_to_what_an_objective_hands_out_does_no_harm():
    module = Step()
    at = {"net.0.bias": torch.ones(4)}
    with unchanged(module), probing(module, module.inputs(), at=at) as objective:
        value, gradient = objective.gradient()
        for handed_out in (objective.params, gradient):
            for tensor in handed_out.values():
                tensor.fill_(7)
        assert objective.losses().equal(value)
        assert not objective.gradient()[1]["net.0.bias"].eq(7).any()
    assert at["net.0.bias"].tolist() == [1] * 4


def test_an_objective_is_of_no_use_outside_its_context():
    module = Step()
    with probing(module, module.inputs()) as objective:
        along = objective.along(direction_of(module))
        along(1.0)
    with unchanged(module):
        for use in (lambda: along(1.0), objective.losses, objective.gradient):
            with pytest.raises(RuntimeError, match="inside the `with probing"):
                use()


def test_the_random_numbers_are_those_of_the_seed():
    module = Dropout()
    values = []
    for seed in (1, 1, 2):
        with unchanged(module), probing(module, module.inputs(), seed=seed) as objective:
            values.append(objective.losses().tolist())
    assert values[0] == values[1] != values[2]


def test_an_accelerator_nobody_has_woken_is_not_seeded():
    module = Step()
    torch.manual_seed(7)
    queued = torch.cuda._lazy_seed_tracker.get_calls()
    with probing(module, module.inputs()) as objective:
        objective.losses()
    now = torch.cuda._lazy_seed_tracker.get_calls()
    assert [id(call) for call in now] == [id(call) for call in queued]


# ------------------------------------------------------------------------------------ batches


def test_batches_are_copied_before_anything_else():
    module = MutatedBatch()
    batches = module.inputs()
    with probing(module, batches) as objective:
        value = objective.losses()
        batches[0]["x"].zero_()
        assert objective.losses().equal(value)
    assert list(batches[1]) == ["x", "y", "n"]
    assert batches[1]["x"].equal(module.inputs()[1]["x"])


def test_clones_share_nothing():
    @dataclasses.dataclass(frozen=True)
    class Pair:
        x: torch.Tensor
        names: list

    held = Pair(torch.ones(2, requires_grad=True), ["a"])
    twin = clone_batch({"pair": held, "view": torch.zeros(4)[1:3].expand(3, 2)})
    twin["pair"].names.append("b")
    with torch.no_grad():
        twin["pair"].x.add_(1)
    assert held.names == ["a"]
    assert held.x.tolist() == [1, 1]
    assert twin["pair"].x.requires_grad
    assert twin["view"].shape == (3, 2)


def test_transfer_hooks_run_once():
    class Transfers(Step):
        def build(self):
            self.transferred = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.transferred += 1
            return batch * 2

        def write(self, loss, batch):
            return loss * (1 + self.transferred)

    module = Transfers()
    with unchanged(module), probing(module, module.inputs()) as objective:
        value = [objective.losses() for _ in range(3)]
    assert value[0].equal(value[1])
    assert value[0].equal(value[2])
    assert value[0][0].item() == Step().training_step(2 * module.inputs()[0], 0).item()
    with opened(
        module,
        [KeptBatch(2 * batch, 0) for batch in module.inputs()],
        trainer=None,
        loss_fn=None,
        mode="train",
        seed=0,
    ) as objective:
        assert objective.losses().equal(value[0])


def test_a_step_may_take_only_the_batch():
    class Short(Step):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    with probing(Short(), Step().inputs()) as objective:
        short = objective.losses()
    with probing(Step(), Step().inputs()) as objective:
        assert objective.losses().equal(short)


# ------------------------------------------------------------------------------ surroundings


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_around_do_not_matter(around):
    module = BatchNorm()
    direction = direction_of(module)
    with probing(module, module.inputs()) as objective:
        expected = objective.gradient(direction, 0.5)
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        batches = module.inputs()
        with unchanged(module), probing(module, batches) as objective:
            assert objective.losses(direction, 0.5).equal(expected[0])
            for _ in range(3):
                assert differences(expected, objective.gradient(direction, 0.5)) == []
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_a_grad_mode_that_a_step_leaves_reaches_no_other_evaluation():
    entered = []

    class TogglesGradMode(Step):
        def write(self, loss, batch):
            entered.append(torch.is_grad_enabled())
            torch.set_grad_enabled(not torch.is_grad_enabled())

    module = TogglesGradMode()
    with probing(module, module.inputs()[:1]) as objective:
        objective.losses(direction_of(module), 0.5)
        entered.clear()
        evaluate_slice(objective, direction_of(module), symmetric_grid(0.5, 5))
        assert entered == [False] * 5
    assert torch.is_grad_enabled()


@pytest.mark.tried("steps", "a step that freezes or unfreezes a layer where the loss is high")
@pytest.mark.parametrize("trained", [True, False])
def test_what_a_step_freezes_at_some_weights_is_no_other_at_the_next(trained):
    class Freezes(Step):
        def build(self):
            self.net[2].bias.requires_grad_(trained)

        def write(self, loss, batch):
            self.net[2].bias.requires_grad_(trained == (loss.item() < 100))

    plain, module = Step(), Freezes()
    plain.net[2].bias.requires_grad_(trained)
    direction, found = direction_of(plain), []
    for kind in (plain, module):
        with unchanged(kind), probing(kind, kind.inputs()) as objective:
            objective.losses(direction, 0.5)
            objective.gradient(direction, 0.5)
            objective.losses(direction, 1e4)
            found.append(objective.gradient(direction, 1.0))
    assert ("net.2.bias" in found[1][1]) is trained
    assert differences(*found) == []


class SlopeOverNorm(BatchNorm):
    """Takes a gradient it has no use for."""

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


@pytest.mark.tried("precision", "probing inside a region of autocast, which keeps cast weights")
def test_casts_kept_by_an_autocast_around_are_those_of_no_other_weights():
    module = Step()
    direction, grid = direction_of(module), symmetric_grid(0.5, 5)
    batches = module.inputs()

    def cast():
        return torch.autocast("cpu", torch.bfloat16)

    def loss_fn(module, batch):
        return module.training_step(batch, 0).float()

    def within(module, batch):
        with cast():
            return loss_fn(module, batch)

    with probing(module, batches, loss_fn=within) as objective:
        expected = evaluate_slice(objective, direction, grid), objective.gradient(direction, 0.5)
    with cast(), torch.no_grad():
        before = loss_fn(module, batches[0])
        with probing(module, batches, loss_fn=loss_fn) as objective:
            found = evaluate_slice(objective, direction, grid), objective.gradient(direction, 0.5)
        with probing(module, batches, at=direction, loss_fn=loss_fn) as objective:
            objective.losses()
        assert loss_fn(module, batches[0]).equal(before)
    assert found[0].losses.equal(expected[0].losses)
    assert differences(expected[1], found[1]) == []


def test_the_default_dtype_does_not_matter():
    module = BatchNorm()
    with probing(module, module.inputs()) as objective:
        expected = objective.gradient()
    batches = module.inputs()
    torch.set_default_dtype(torch.float64)
    try:
        with probing(module, batches) as objective:
            assert differences(expected, objective.gradient()) == []
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.tried("steps", "a graph kept across batches, gone backward through after a probe")
def test_a_graph_kept_across_batches_survives():
    gradients = []
    for probes in (False, True):
        module = Step()
        module.state = None
        first, second = module.inputs()

        def step(module, batch):
            output = module.net(batch)
            module.state = output if module.state is None else output + module.state
            return module.state.square().mean()

        loss = step(module, first)
        if probes:
            with probing(module, [second], loss_fn=step) as objective:
                objective.losses(direction_of(module), 1.0)
                objective.gradient(direction_of(module), 1.0)
                objective.gradient()
        (loss + step(module, second)).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    assert differences(*gradients) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.tried("precision", "a plain module compiled as a whole, probed without a Trainer")
def test_compiled_as_a_whole():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    compiled = torch.compile(net, backend="eager")
    loss_fn = lambda module, batch: module(batch).square().mean()  # noqa: E731
    with probing(net, Step().inputs(), loss_fn=loss_fn, mode="eval") as objective:
        expected = objective.gradient(direction_of(net), 0.5)
    prefixed = {f"_orig_mod.{name}": step for name, step in direction_of(net).items()}
    with (
        unchanged(net),
        probing(compiled, Step().inputs(), loss_fn=loss_fn, mode="eval") as objective,
    ):
        value, _ = objective.gradient(prefixed, 0.5)
        assert value.equal(expected[0])
    assert net.training


# ---------------------------------------------------------------------------------- a Trainer


class Logging(BatchNorm):
    """Uses its trainer in every way a step can."""

    def build(self):
        super().build()
        self.accuracy = torchmetrics.MeanMetric()
        self.stored_log = self.log

    def write(self, loss, batch):
        self.accuracy(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy)
        self.log_dict({"a": 1.0})
        self.stored_log("stored", loss.detach())
        rate = self.optimizers().param_groups[0]["lr"] + self.lr_schedulers().get_last_lr()[0]
        assert self.logger is None or self.logger.experiment is not None
        return loss * (1 + self.trainer.current_epoch + rate)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch).mean())

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def loader(module):
    return DataLoader(torch.cat(module.inputs()), batch_size=6)


@pytest.mark.parametrize("logs", [False, True])
def test_after_fit_the_step_still_has_its_trainer(logs, tmp_path):
    module = Logging()
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1) if logs else False
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, **{**QUIET, "logger": logger})
    trainer.fit(module, loader(module), loader(module))
    metrics = dict(trainer.callback_metrics)
    rows = [file.read_text() for file in tmp_path.rglob("metrics.csv")]
    assert len(rows) == logs
    with unchanged(module), probing(module, module.inputs()) as objective:
        value = objective.losses(direction_of(module), 0.5)
        objective.gradient(direction_of(module), 1.0)
        assert objective.losses(direction_of(module), 0.5).equal(value)
    assert differences(metrics, dict(trainer.callback_metrics)) == []
    assert "log" not in vars(module)
    if logs:
        trainer.logger.save()
    assert rows == [file.read_text() for file in tmp_path.rglob("metrics.csv")]
    trainer.validate(module, loader(module), verbose=False)


def test_inside_validate():
    class Probing(BatchNorm):
        def validation_step(self, batch, batch_idx):
            assert torch.is_inference_mode_enabled()
            with unchanged(self), probing(self, [batch]) as objective:
                value = objective.gradient(direction_of(self), 0.5)
            VALUES.append(value)

    VALUES = []
    module = Probing()
    with probing(module, module.inputs()[:1]) as objective:
        expected = objective.gradient(direction_of(module), 0.5)
    trainer = Trainer(**QUIET)
    trainer.validate(module, DataLoader(module.inputs()[0], batch_size=6), verbose=False)
    assert differences(VALUES, [expected]) == []


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_numbers_are_those_of_training(precision):
    class Recorded(BatchNorm):
        def on_train_batch_start(self, batch, batch_idx):
            with probing(self, [clone_batch(batch)]) as objective:
                probed = objective.gradient()
            self.probed = probed

        def on_after_backward(self):
            RECORDS.append((self.probed[0].item(), self.probed[1], self.gradients()))

        def write(self, loss, batch):
            self.last = super().write(loss, batch)
            RECORDED_LOSSES.append(self.last.item())
            return self.last

        def gradients(self):
            return {name: p.grad.clone() for name, p in self.named_parameters()}

    RECORDS, RECORDED_LOSSES = [], []
    module = Recorded()
    trainer = Trainer(max_epochs=1, precision=precision, **QUIET)
    data = torch.cat(module.inputs())
    data = data.double() if precision == "64-true" else data
    trainer.fit(module, DataLoader(data, batch_size=6))
    trained = [RECORDED_LOSSES[i] for i in range(3, len(RECORDED_LOSSES), 4)]
    assert len(trained) == len(RECORDS) == 2
    assert [probed for probed, _, _ in RECORDS] == trained
    for _, probed, real in RECORDS:
        assert differences(probed, real) == []


def test_what_is_measured_in_fit_can_be_measured_again(tmp_path):
    class Kept(Dropout):
        def write(self, loss, batch):
            return loss * (1 + torch.rand(()))

    monitor = AsymmetryMonitor(
        every_n_epochs=1,
        families=("gaussian",),
        n_directions=1,
        n_points=5,
        n_batches=2,
        on_error="raise",
    )
    slices = []

    class Collect(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            slices.append(monitor.last.surveys["gaussian"].slices[0])

    module = Kept()
    trainer = Trainer(max_epochs=2, callbacks=[monitor, Collect()], **QUIET)
    trainer.fit(module, loader(module))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Kept()
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    direction = monitor_direction(again)
    with probing(again, again.inputs()) as objective:
        line = evaluate_slice(objective, direction, monitor.alphas)
    assert len(slices) == 2
    assert torch.equal(line.losses, slices[1].losses)
    assert not torch.equal(line.losses, slices[0].losses)


def monitor_direction(module):
    from lightning_landscape.measures.directions import direction_generator, sample_direction
    from lightning_landscape.params import trainable

    return sample_direction(
        trainable(module),
        "gaussian",
        module=module,
        generator=direction_generator(0, "gaussian", 0),
    )


# ------------------------------------------------------------------------------------ bad input


def opening(module, batches, **options):
    def open_it():
        with probing(module, batches, **options):
            raise AssertionError("this must not be reached")

    return open_it


def frozen():
    return Step().requires_grad_(False)


def stepless():
    return type("Stepless", (LightningModule,), {"training_step": None})()


def meta():
    with torch.device("meta"):
        return nn.Linear(2, 2)


def lazy():
    module = Step()
    module.net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    return module


class TakesIterator(Step):
    def training_step(self, dataloader_iter):
        raise AssertionError


def any_loss(module, batch):
    raise AssertionError


BAD = {
    "mode": (lambda: (Step(), {"mode": "test"}), "`mode` must be one of .*'test'"),
    "verify": (lambda: (Step(), {"verify": "never"}), "`verify` must be one of .*'never'"),
    "no batches": (lambda: (Step(), {"batches": []}), "`batches` must hold at least one batch"),
    "unknown names": (
        lambda: (Step(), {"at": {"nobody": torch.ones(1)}}),
        r"`at` must name parameters .*\['nobody'\]; known are \['net.0.weight'",
    ),
    "wrong shape": (
        lambda: (Step(), {"at": {"net.0.bias": torch.ones(1)}}),
        r"`at` must have the shapes .*\(1,\) for 'net.0.bias', which has \(4,\)",
    ),
    "nothing to move": (lambda: (frozen(), {}), "at least one parameter that requires gradients"),
    "nothing at all": (
        lambda: (nn.ReLU(), {"loss_fn": any_loss}),
        "at least one parameter that requires gradients",
    ),
    "no step": (lambda: (nn.Linear(1, 1), {}), "`loss_fn` is needed .*Linear has none"),
    "manual": (lambda: (GAN(), {}), "`loss_fn` is needed .*GAN optimises manually"),
    "iterator": (lambda: (TakesIterator(), {}), "`loss_fn` is needed .*dataloader_iter"),
    "lazy": (lambda: (lazy(), {}), r"must hold its weights.*\['net.0.weight', 'net.0.bias'\]"),
    "meta": (
        lambda: (meta(), {"loss_fn": any_loss}),
        r"must hold its weights.*\['weight', 'bias'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_clear_error(name):
    make, message = BAD[name]
    module, options = make()
    opens = opening(module, **{"batches": Step().inputs(), **options})
    rng = rng_fingerprint()
    with pytest.raises(ConfigurationError, match=message):
        opens()
    assert rng_fingerprint() == rng


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (None, "None: this batch was skipped"),
        ({"accuracy": 1}, r"a dict of \['accuracy'\]"),
        ({"loss": None}, "None"),
        (torch.ones(3), r"a tensor of shape \(3,\)"),
        (1.0, "float"),
    ],
)
def test_a_step_must_return_its_loss(output, shown):
    module = Step()
    opening = probing(module, module.inputs(), loss_fn=lambda *_: output)
    error = pytest.raises(TypeError, match=f"one element.* Got {shown}")
    with unchanged(module), opening as objective, error:
        objective.losses()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_may_be_any_tensor_of_one_element(shape):
    module = Step()
    loss_fn = lambda module, batch: module.net(batch).mean().reshape(shape)  # noqa: E731
    with probing(module, module.inputs(), loss_fn=loss_fn) as objective:
        assert objective.losses().shape == (2,)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({"nobody": torch.ones(1)}, "only name parameters of the objective. Got 'nobody'"),
        ({"net.0.bias": torch.ones(2)}, r"shapes of the parameters. Got \(2,\)"),
        ({"teacher.bias": torch.ones(4)}, "only name parameters of the objective"),
    ],
)
def test_directions_must_fit(direction, message):
    module = Teacher()
    with unchanged(module), probing(module, module.inputs()) as objective:
        for use in (objective.losses, objective.gradient, lambda d, alpha: objective.along(d)):
            with pytest.raises(ValueError, match=message):
                use(direction, 1.0)
        assert objective.n_evaluations == 0


# ------------------------------------------------------------------------------------------- cost


class HostReads(TorchDispatchMode):
    """Counts the numbers read from tensors: on an accelerator each waits for the device."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_slice_reads_no_number_from_the_device_before_its_end():
    module = Step()
    with probing(module, module.inputs()) as objective:
        loss = objective.along(direction_of(module))
        loss(0.1), loss(0.2)
        with HostReads() as reads:
            losses = [loss(alpha) for alpha in (-0.3, 0.0, 0.3)]
        assert reads.n == 0
        assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("by", ["losses", "each", "gradient"])
def test_a_step_may_return_every_loss_in_the_same_tensor(by):
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    kept = torch.zeros((), dtype=torch.float64)

    def loss(module, x):
        kept.copy_(module(x).detach().mean())
        return kept

    with probing(net, [torch.ones(1, 1), 2 * torch.ones(1, 1)], loss_fn=loss) as objective:
        along = objective.along({"weight": torch.ones(1, 1)})
        along(1.0)
        found = {
            "losses": objective.losses,
            "each": lambda: along.each([0.0])[0],
            "gradient": lambda: objective.gradient()[0],
        }[by]()
    assert found.tolist() == [1.0, 2.0]


# ------------------------------------------------------------------------ steps that read more


class ReadsTrainer(Step):
    def write(self, loss, batch):
        return loss

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.trainer.global_step)


class ReadsTrainerElsewhere(Step):
    def write(self, loss, batch):
        return loss * (1 + self.trainer.global_step)


@pytest.mark.parametrize("module", [ReadsTrainer, ReadsTrainerElsewhere])
def test_a_step_that_reads_its_trainer_can_be_given_one(module):
    module = module()
    trainer = Trainer(**QUIET)
    with unchanged(module), probing(module, module.inputs(), trainer=trainer) as objective:
        assert objective.losses().isfinite().all()
    assert module._trainer is None


def test_a_step_that_reads_its_trainer_is_refused_without_one():
    module = ReadsTrainer()
    with (
        unchanged(module),
        pytest.raises(ConfigurationError, match="Pass trainer=Trainer"),
        probing(module, module.inputs()),
    ):
        raise AssertionError("unreachable")


def test_a_step_whose_helpers_read_the_trainer_is_told_what_to_do():
    module = ReadsTrainerElsewhere()
    with (
        unchanged(module),
        probing(module, module.inputs()) as objective,
        pytest.raises(ConfigurationError, match="Pass trainer=Trainer"),
    ):
        objective.losses()


class Meddles(Step):
    """Sets this and that on its trainer, and reads where its logger writes."""

    def build(self):
        self.folders = []

    def write(self, loss, batch):
        self.trainer.limit_val_batches = 7
        self.trainer.gradient_clip_val = 3.0
        self.trainer.fit_loop.max_epochs = 99
        self.trainer.callback_metrics["mine"] = loss.detach()
        FOLDERS.append((self.logger.log_dir, self.logger.save_dir, self.logger.version))


FOLDERS = []


def test_a_logger_stays_where_it_is_and_settings_of_the_trainer_go_back(tmp_path):
    module = Meddles()
    logger = CSVLogger(tmp_path, name="mine", version=3)
    trainer = Trainer(max_epochs=1, **{**QUIET, "logger": logger})
    FOLDERS.clear()
    with unchanged(module), probing(module, module.inputs(), trainer=trainer) as objective:
        objective.losses()
    assert set(FOLDERS) == {(logger.log_dir, logger.save_dir, 3)}
    assert (trainer.limit_val_batches, trainer.gradient_clip_val) == (1.0, None)
    assert trainer.fit_loop.max_epochs == 1
    assert "mine" not in trainer.callback_metrics
    assert trainer.loggers == [logger]


@pytest.mark.parametrize("seed", [0, 2**63, 2**70])
def test_any_seed_can_be_used(seed):
    module = Dropout()
    with unchanged(module), probing(module, module.inputs(), seed=seed) as objective:
        assert objective.losses().equal(objective.losses())


def test_what_is_not_looked_into_is_named_when_everything_is_verified():
    module = Step()
    module.stream = open(os.devnull)  # noqa: SIM115
    with (
        module.stream,
        pytest.warns(UserWarning, match=r"does not look into.*stream: an iterator"),
        probing(module, module.inputs(), verify="always"),
    ):
        pass


class Carries(torch.Tensor):
    """A tensor whose class has its own mind about most that is done to it, as MONAI's has."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.stack, torch.Tensor.reshape, torch.Tensor.detach, torch.zeros_like):
            raise TypeError("not with me")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_loss_of_a_class_of_its_own_is_a_number_all_the_same():
    class Returns(Step):
        def write(self, loss, batch):
            return loss.as_subclass(Carries)

    module = Returns()
    with unchanged(module), probing(module, module.inputs()) as objective:
        plain = Step().training_step(module.inputs()[0], 0)
        assert objective.losses()[0] == objective.gradient()[0][0] == plain.item()


class PerSample(Step):
    def write(self, loss, batch):
        def of_one(weights, x):
            return torch.func.functional_call(self.net, weights, (x[None],)).square().mean()

        weights = dict(self.net.named_parameters())
        gradients = torch.func.vmap(torch.func.grad(of_one), (None, 0))(weights, batch)
        return loss + sum(gradient.square().mean() for gradient in gradients.values())


def test_a_step_that_takes_gradients_of_each_sample_is_measured():
    module = PerSample()
    expected = [module.training_step(batch, i).item() for i, batch in enumerate(module.inputs())]
    with unchanged(module), probing(module, module.inputs()) as objective:
        assert objective.losses().tolist() == pytest.approx(expected, rel=1e-6)
        assert objective.gradient()[0].tolist() == pytest.approx(expected, rel=1e-6)


class HoldsMuch(Step):
    def build(self):
        self.register_buffer("queue", torch.zeros(9))
        self.near = torch.zeros(2)
        self.data = {"tensor": torch.zeros(9), "array": np.zeros(9), "few": np.zeros(1)}

    def write(self, loss, batch):
        self.queue += 1
        self.near += 1
        self.data["few"] += 1
        self.data[self.writes] += 1


@pytest.mark.parametrize("writes", ["tensor", "array", "few"])
def test_what_is_too_large_to_be_copied_is_not_written_unseen(writes, monkeypatch):
    monkeypatch.setattr(recorded, "MOST_BYTES", 20)
    module = HoldsMuch()
    module.writes = writes
    before = module.data["array"].copy()
    told = {
        "tensor": pytest.warns(UserWarning, match=r"data: it was written to, and is too large"),
        "array": pytest.raises(ValueError, match="read-only"),
        "few": contextlib.nullcontext(),
    }
    with told[writes], probing(module, module.inputs()) as objective:
        objective.losses()
    assert module.queue.sum() == module.near.sum() == module.data["few"].sum() == 0
    assert (module.data["array"] == before).all()
    assert module.data["array"].flags.writeable


class HoldsIterators(Step):
    def build(self):
        self.held = iter(DataLoader(range(9)))
        self.inside = {"deep": [itertools.count(), (i for i in range(9))]}
        self.reads = None

    def iterators(self):
        return [self.held, *self.inside["deep"]]

    def write(self, loss, batch):
        if self.reads is not None:
            next(self.iterators()[self.reads])


def test_iterators_that_a_module_holds_are_not_read():
    module = HoldsIterators()
    held = module.iterators()
    for module.reads, name in enumerate(("held", "inside", "inside")):
        with (
            pytest.raises(RuntimeError, match=f"reads `{name}`.*Pass a `loss_fn`"),
            probing(module, module.inputs()) as objective,
        ):
            objective.losses()
    module.reads = None
    with unchanged(module), probing(module, module.inputs()) as objective:
        objective.losses()
    assert all(map(operator.is_, held, module.iterators()))
    assert list(map(next, held)) == [0, 0, 0]


def test_another_thread_may_read_an_iterator_while_a_module_is_probed():
    module, read = HoldsIterators(), []
    with probing(module, module.inputs()):
        ahead = threading.Thread(target=lambda: read.extend(map(next, module.iterators())))
        ahead.start()
        ahead.join()
    assert [*read, *map(next, module.iterators())] == [0, 0, 0, 1, 1, 1]


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("never")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("mine"), "ValueError: mine (test_probing.py, line"),
        (ValueError(), "ValueError, without a message (test_probing.py, line"),
        (Mute(), "Mute, whose message cannot be read (test_probing.py, line"),
    ],
)
def test_an_exception_is_described_by_type_text_and_line(error, told):
    with pytest.raises(type(error)) as raised:
        raise error
    assert describe_error(raised.value).startswith(told)


def test_the_line_named_is_the_innermost_of_the_users_code():
    with pytest.raises(RuntimeError) as raised:
        F.linear(torch.ones(2), torch.ones(3, 3))
    assert "(test_probing.py, line" in describe_error(raised.value)


@pytest.mark.parametrize("callback", [SWA(), AsymmetryMonitor(), GradientBreakdownMonitor()])
def test_a_callback_of_fabric_says_to_use_probing(callback):
    fabric = Fabric(accelerator="cpu", callbacks=[callback])
    with pytest.raises(ConfigurationError, match=r"Got Fabric.*use `with probing"):
        fabric.call("setup", fabric, Step(), "fit")


def test_a_module_that_fabric_wraps_can_be_probed():
    module = Fabric(accelerator="cpu").setup_module(nn.Linear(3, 1))
    with probing(
        module, [torch.ones(2, 3)], loss_fn=lambda module, x: module(x).square().mean()
    ) as objective:
        assert objective.gradient()[0].isfinite().all()
