"""Trainings in which something goes wrong at one chosen call that a probe makes."""

from __future__ import annotations

import contextlib
import copy
import errno
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from hostile import HostileModule, attributes, differences, fit, rng_fingerprint
from lightning.pytorch.callbacks import Callback
from toys import Rows

from lightning_landscape import Fromage

OPTIMIZERS = {
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Fromage": lambda weights: Fromage(weights, lr=0.01),
}

# out of reach of what a probe puts back
PLAN = {"fault": None, "at": 0, "calls": 0, "watch": None, "when_saved": None}


class Injected(HostileModule):
    """Has a fault in one of the calls that probes make, never in those of the training."""

    def __init__(self, optimizer="Adam"):
        super().__init__()
        self.save_hyperparameters()
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        return strike(self, output)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        return strike(self, None)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["rng"] = rng_fingerprint()

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        scheduler = {"scheduler": plateau, "monitor": "train_loss_epoch"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def strike(module, output):
    if type(module.trainer.logger).__name__ != "DummyLogger":  # it is the training that asks
        return output
    PLAN["calls"] += 1
    return PLAN["fault"](module, output) if PLAN["calls"] == PLAN["at"] else output


def failing(error):
    def fault(module, output):
        module.net.eval()
        module.net[4].bias.data = module.net[4].bias.data + 1
        module.left_over = torch.ones(3)
        raise error

    return fault


def not_a_number(module, output):
    return output and {**output, "loss": output["loss"] * float("nan")}


def interrupting(module, output):
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("unreachable")


def saving(path):
    def fault(module, output):
        PLAN["when_saved"] = PLAN["watch"].last
        module.trainer.save_checkpoint(path)
        return output

    return fault


def saving_by_signal(path):
    save = saving(path)

    def fault(module, output):
        before = signal.signal(signal.SIGUSR1, lambda number, frame: save(module, output))
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        return output

    return fault


class Files(Rows):
    """Has a folder, so that files are written besides."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    @property
    def save_dir(self):
        return str(self.folder)


class Watch(Callback):
    """Remembers the state as it was before the other callbacks had their turn."""

    def __init__(self):
        self.last = self.at_the_end = None

    def look(self, trainer, pl_module, *args, **kwargs):
        self.last = state(trainer, pl_module)

    on_train_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = look
    on_validation_epoch_start = on_validation_batch_start = look
    on_validation_batch_end = on_validation_epoch_end = look

    def on_exception(self, trainer, pl_module, exception):
        self.at_the_end = state(trainer, pl_module)


def state(trainer, module):
    """Return a copy of all that a probe may not move."""
    own = attributes(module)
    for name in ("._current_fx_name", "._metric_attributes"):  # Lightning's own
        own.pop(name, None)
    return {
        "state_dict": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "buffers": {name: buffer.clone() for name, buffer in module.named_buffers()},
        "optimizers": [copy.deepcopy(o.state_dict()) for o in trainer.optimizers],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "modes": [child.training for child in module.modules()],
        "attributes": own,
        "rng": rng_fingerprint(),
    }


@dataclass
class Run:
    """What came of a training.

    Attributes:
        result: What tells two runs apart; None if the fit was cut short.
        watch: The state before the last probe, and after the fit was cut short.
        warned: The warnings of the callbacks.
        calls: How many calls probes made.
        when_saved: The state before the probe in which a checkpoint was saved, if one was.
    """

    result: dict | None
    watch: Watch
    warned: list[str] = field(default_factory=list)
    calls: int = 0
    when_saved: dict | None = None


def run(callbacks, *, fault=None, at=0, optimizer="Adam", **options):
    """Train with some callbacks, and a fault at one of the calls they make."""
    watch, result = Watch(), None
    PLAN.update(fault=fault, at=at, calls=0, watch=watch, when_saved=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            result = fit([watch, *callbacks], module=lambda: Injected(optimizer), **options)
    ours = [str(w.message) for w in caught if "failed" in str(w.message)]
    ours += [str(w.message) for w in caught if "could not" in str(w.message).lower()]
    return Run(result, watch, ours, PLAN["calls"], PLAN["when_saved"])


def assert_saved(path, expected):
    """Check that a checkpoint is of a certain state."""
    saved = torch.load(path, weights_only=False)
    assert differences(dict(saved["state_dict"]), expected["state_dict"]) == []
    assert differences(saved["optimizer_states"], expected["optimizers"]) == []
    assert saved["rng"] == expected["rng"]


@contextlib.contextmanager
def disk_full_at(n_writes, n_bytes):
    """Let the n-th file be cut short as a full disk does: what fits is there, then the error."""
    write, seen = Path.write_bytes, []

    def write_bytes(self, content):
        seen.append(self)
        if len(seen) < n_writes:
            return write(self, content)
        write(self, content[:n_bytes])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with mock.patch.object(Path, "write_bytes", write_bytes):
        yield seen


def assert_whole(folder):
    """Check that every file can be read and that none is left under another name."""
    found = sorted(folder.rglob("*"))
    assert not [path for path in found if path.name.endswith(".partial")]
    for path in found:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                assert "step" in {name for name in arrays.files if arrays[name] is not None}
