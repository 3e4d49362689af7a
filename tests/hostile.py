"""A module that keeps state in every place a module can, and a way to compare whole runs."""

from __future__ import annotations

import collections
import copy
import math
import multiprocessing.util
import random
import types
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader
from toys import OURS, QUIET, Classifier, Rows, Samples, loss_of  # noqa: F401

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor


class Meter:
    """A user's own bookkeeping, not a module."""

    __slots__ = ("history", "total")

    def __init__(self):
        self.total, self.history = 0.0, []

    def add(self, value):
        self.total += value
        self.history.append(value)


@dataclass(frozen=True)
class Frozen:
    seen: list = field(default_factory=list)


class AuxiliaryLoss:
    """Holds a bound `self.log` of somebody else."""

    def __init__(self, log):
        self._log = log

    def __call__(self, loss):
        self._log("stored_log", loss.detach() * 2, on_step=True, on_epoch=True)


class HostileModule(LightningModule):
    """Everything an evaluation could leave behind, in one training step."""

    def __init__(self):
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16))
        self.net = nn.Sequential(
            spectral, nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        self.teacher = nn.Linear(8, 3).requires_grad_(False)
        self.unregistered = [nn.BatchNorm1d(8, affine=False)]
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.validation_accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.register_buffer("ema", torch.zeros(3), persistent=False)
        self.register_buffer("rebound", torch.zeros(1))
        self.calls = 0
        self.outputs = []
        self.recent = collections.deque(maxlen=3)
        self.counter = collections.Counter()
        self.ordered = collections.OrderedDict(first=0)
        self.nested = {"inner": {"losses": []}}
        self.array = np.zeros(3)
        self.plain = torch.zeros(3)
        self.best = float("inf")
        self.seen_labels = set()
        self.meter = Meter()
        self.frozen = Frozen()
        self.namespace = types.SimpleNamespace(last=None)
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(2)
        self.legacy_generator = np.random.RandomState(3)
        self.python_generator = random.Random(4)
        self.auxiliary = AuxiliaryLoss(self.log)

    def training_step(self, batch, batch_idx):
        x, y = batch["x"], batch["y"]
        x.add_(0.01 * torch.randn(x.shape, generator=self.torch_generator).to(x))
        batch["extra"] = batch.pop("y")
        x = x + 0.01 * float(np.random.rand() + random.random())
        x = x + 0.01 * float(self.numpy_generator.random() + self.python_generator.random())
        x = x + 0.01 * float(self.legacy_generator.rand())
        x = x.to(next(self.net.parameters()).dtype)
        with torch.no_grad():
            self.unregistered[0](x.float())
            student = dict(self.net.named_parameters())["4.bias"]
            self.teacher.bias.mul_(0.9).add_(0.1 * student)
        logits = self.net(x)
        loss = F.cross_entropy(logits, y) + 0.01 * (self.teacher(x) - logits).square().mean()
        self.calls += 1
        self.created_late = self.calls
        self.outputs.append(loss.detach())
        self.recent.append(loss.item())
        self.counter.update(y.tolist())
        self.ordered["last"] = self.calls
        self.nested["inner"]["losses"].append(loss.item())
        self.array[self.calls % 3] += loss.item()
        self.plain += logits.detach().mean(0).float()
        self.seen_labels.update(y.tolist())
        self.meter.add(loss.item())
        self.frozen.seen.append(self.calls)
        self.namespace.last = loss.detach()
        self.best = min(self.best, loss.item())
        with torch.no_grad():
            self.ema.lerp_(logits.detach().mean(0).to(self.ema), 0.1)
            self.rebound = self.rebound + 1
        self.accuracy(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"calls": float(self.calls), "best": self.best})
        self.auxiliary(loss)
        if self.logger is not None:
            self.logger.log_metrics({"direct": loss.item()}, step=self.calls)
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self):
        self.log("epoch_mean", torch.stack(self.outputs).mean())
        self.outputs.clear()

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch["x"].to(next(self.net.parameters()).dtype))
        self.validation_accuracy(logits, batch["y"])
        self.log("val_loss", F.cross_entropy(logits, batch["y"]))
        self.log("val_acc", self.validation_accuracy)
        self.outputs_of_validation = getattr(self, "outputs_of_validation", [])
        self.outputs_of_validation.append(logits.mean())

    def on_validation_epoch_end(self):
        self.log("val_collected", torch.stack(self.outputs_of_validation).mean())
        self.outputs_of_validation = []

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "strict": False},
        }


class GAN(LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        for optimizer, loss in zip(self.optimizers(), (self.fool, self.tell), strict=True):
            optimizer.zero_grad()
            value = loss(batch)
            self.manual_backward(value)
            optimizer.step()
            self.log(loss.__name__, value, on_step=True)

    def fool(self, batch):
        return F.softplus(-self.discriminator(self.fake(batch))).mean()

    def tell(self, batch):
        real = F.softplus(-self.discriminator(batch["x"])).mean()
        return real + F.softplus(self.discriminator(self.fake(batch).detach())).mean()

    def fake(self, batch):
        return self.generator(torch.randn(len(batch["x"]), 4).to(batch["x"]))

    def configure_optimizers(self):
        nets = (self.generator, self.discriminator)
        return [torch.optim.Adam(net.parameters(), lr=0.01) for net in nets]


def gan_loss(module, batch):
    return {"loss": module.fool(batch) + module.tell(batch)}


class EndsItsGroup(Callback):
    """Lets a started process leave its group before it ends: else gloo's threads may abort it."""

    def setup(self, trainer, pl_module, stage):
        if multiprocessing.parent_process() is not None:
            multiprocessing.util.Finalize(None, dist.destroy_process_group, exitpriority=0)


class Ledger(Callback):
    """Writes down, batch by batch, what a disturbance would show in first."""

    def __init__(self):
        self.entries = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.entries.append((float(outputs["loss"]) if outputs else 0.0, rng_fingerprint()))


class Numbers(Callback):
    """Takes home the numbers that our callbacks found."""

    def on_train_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        self.values = {k: float(v) for k, v in metrics.items() if k.startswith(OURS)}


def assert_invisible_and_at_work(
    *, loss_fn=None, validation=False, mode="train", without=(), **options
):
    """Train plainly and with all our callbacks at work; compare, and look at their numbers.

    Args:
        loss_fn: Of the monitors.
        validation: Whether to probe on validation batches too.
        mode: Of the monitors.
        without: The steps, from 1, at which the breakdown of the update cannot be measured.
        options: What `fit` takes.

    Returns:
        The numbers by tag, and the steps of each breakdown that was measured.
    """
    common = {"loss_fn": loss_fn, "mode": mode, "on_error": "raise"}
    swa, numbers, sizes = SWA(0, loss_fn=loss_fn), Numbers(), {"n_directions": 1, "n_points": 5}
    asymmetry = AsymmetryMonitor(
        every_n_steps=2, families=("gaussian",), swa=swa, validation=validation, **sizes, **common
    )
    breakdown = GradientBreakdownMonitor(every_n_steps=1, etas=[0.5, 1.0], **common)
    plain = fit([], **options)
    watched = fit([swa, asymmetry, breakdown, numbers], **options)
    disturbed = differences(plain, watched)
    assert disturbed == [], disturbed
    for name in ("gaussian/area", "swa/distance", "swa/gap"):
        assert math.isfinite(numbers.values[f"landscape/{name}"]), name
    if "val_loss" in plain["callback_metrics"]:
        assert math.isfinite(numbers.values["swa/val_loss"])
        assert numbers.values["swa/n_averaged"] > 0
    expected = [k for k in range(1, breakdown.n_steps + 1) if k not in without]
    measured = {}
    for name, history in breakdown.state_dict()["history"].items():
        rows = history["breakdown"]
        measured[name] = len(rows)
        assert all(row and all(map(math.isfinite, row.values())) for row in rows), name
        if name.endswith("update"):
            assert len(rows) == len(expected), (name, len(rows))
    assert any(name.endswith("update") for name in measured)
    return numbers.values, measured


def rng_fingerprint():
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return (
        *(hash(state.numpy().tobytes()) for state in devices),
        hash(torch.get_rng_state().numpy().tobytes()),
        hash(np.random.get_state()[1].tobytes()) ^ np.random.get_state()[2],
        hash(random.getstate()),
    )


def fit(
    callbacks,
    *,
    module=HostileModule,
    loaders=None,
    plugins=list,
    dtype=torch.float32,
    workers=0,
    logger=None,
    **options,
):
    """Train from seed 0 with some callbacks; return all that could tell two runs apart."""
    seed_everything(0, verbose=False)
    model = module()
    loader_options = {"num_workers": workers, "persistent_workers": workers > 0}
    train = DataLoader(Samples(dtype=dtype), batch_size=6, shuffle=True, **loader_options)
    validation = DataLoader(Samples(24, dtype=dtype), batch_size=8)
    if loaders is not None:
        train, validation = loaders()
    logger, ledger = logger or Rows(), Ledger()
    trainer = Trainer(
        **{**QUIET, "max_epochs": 2, "limit_val_batches": 3, "logger": logger, **options},
        plugins=plugins(),
        callbacks=[ledger, EndsItsGroup(), *callbacks],
    )
    inner = getattr(model, "_orig_mod", model)  # of a compiled one
    has_validation = type(inner).validation_step is not LightningModule.validation_step
    trainer.fit(model, train, validation if has_validation else None)
    own = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(OURS)}
    return {
        "state_dict": model.state_dict(),
        "buffers": dict(model.named_buffers()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "rows": logger.rows,
        "callback_metrics": own,
        "ledger": ledger.entries,
        "rng": rng_fingerprint(),
        "modes": [child.training for child in model.modules()],
        "attributes": attributes(model),
        "global_step": trainer.global_step,
    }


def attributes(model):
    skipped = {"_trainer", "_parameters", "_buffers", "_modules", "auxiliary", "frozen", "meter"}
    skipped |= {"_torchdynamo_wrapper_id", "_compiler_ctx", "_compile_kwargs", "_flat_weight_refs"}
    found = {}
    for name, child in model.named_modules():
        for key, value in child.__dict__.items():
            if key not in skipped and not callable(value):
                # the keys of hooks are counted up over all modules
                found[f"{name}.{key}"] = len(value) if key.endswith("_hooks") else value
    if hasattr(model, "meter"):
        found["meter"] = (model.meter.total, model.meter.history)
        found["frozen"] = model.frozen.seen
        found["unregistered"] = model.unregistered[0].state_dict()
    return {key: copy.deepcopy(_plain(value)) for key, value in found.items()}


def _plain(value):
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return [part for part in value.get_state() if not isinstance(part, str)]
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    return value


def differences(a, b, path=""):
    """Return the paths at which two nested results differ in a bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        same = same and torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30))
        return [] if same else [path]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return [] if np.array_equal(a, b, equal_nan=True) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if list(map(str, a)) != list(map(str, b)):
            return [f"{path}: keys {set(map(str, a)) ^ set(map(str, b))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple, collections.deque)) and isinstance(b, type(a)):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)}, {len(b)}"]
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, nn.Module):
        return []
    return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} != {b!r}"]
