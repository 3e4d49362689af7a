"""Modules whose steps write to what a probe restores, and a check that nothing has changed."""

import collections
import contextlib
import random

import numpy as np
import pytest
import torch
import torchmetrics
from hostile import differences, rng_fingerprint
from lightning.pytorch import LightningModule
from test_snapshot import seen
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

MODES = ("train", "eval", "recalibrated")


class Step(LightningModule):
    """A small network; a subclass defines what its step writes."""

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
    """Calls `backward` in its step and reads the gradients."""

    def write(self, loss, batch):
        batch.requires_grad_()
        self.net(batch).square().mean().backward()
        size = self.net[0].weight.grad.norm()
        return self.net(batch.detach() + 0.1 * batch.grad.sign()).square().mean() + size


class HiddenLeaf(Step):
    """Leaves gradients in a tensor that no optimizer has."""

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
    """Writes into a plain tensor, which then has a graph."""

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
    """Calls `backward` in its step too, and uses the accumulated gradients."""

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
    """Return copies of everything that must not change."""
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
    """Return the attributes of all submodules in a form that can be compared."""
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
