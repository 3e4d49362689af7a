"""Promise 1: training with the callbacks is bit-identical to training without."""

import functools

import pytest
import torch
from hostile import GAN, differences, fit, gan_loss
from lightning.pytorch.callbacks import Callback

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

# `best = min(best, loss)` is written only where the loss is least
pytestmark = pytest.mark.filterwarnings("ignore:A probe of .* wrote to best at some")

OPTIONS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "workers": {"workers": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "double": {"precision": "64-true", "dtype": torch.float64},
    "validation in mid-epoch": {"val_check_interval": 2},
}
FAMILIES = ("gaussian", "uniform@norm", "sign@*.weight")
SMALL = {"n_directions": 1, "n_points": 5, "on_error": "raise"}


def callbacks(**schedule):
    swa = SWA(start=0)
    directions = ("update", "gradient", "random")
    return [
        swa,
        AsymmetryMonitor(families=FAMILIES, swa=swa, validation=True, **SMALL, **schedule),
        GradientBreakdownMonitor(directions=directions, etas=[1.0], on_error="raise", **schedule),
    ]


@functools.cache
def plain_run(name):
    return fit([], **OPTIONS[name])


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, {"every_n_steps": 2}) for name in OPTIONS]
    + [(name, {"every_n_epochs": 1}) for name in ("plain", "accumulation")],
)
def test_training_is_bit_identical(name, schedule, request):
    if name != "plain":
        request.getfixturevalue("no_figures")
    made = callbacks(**schedule)
    assert differences(plain_run(name), fit(made, **OPTIONS[name])) == []
    assert set(made[2].state_dict()["history"]) == {"update", "gradient", "random"}


@pytest.mark.parametrize("mode", ["eval", "recalibrated"])
def test_training_is_bit_identical_in_every_mode(mode):
    made = [
        AsymmetryMonitor(every_n_epochs=1, mode=mode, **SMALL),
        GradientBreakdownMonitor(every_n_steps=3, mode=mode, on_error="raise"),
    ]
    assert differences(plain_run("plain"), fit(made)) == []
    assert all(monitor.history for monitor in made)


@pytest.mark.tried("steps", "a GAN by hand, its loss given as loss_fn")
def test_training_a_gan_by_hand_is_bit_identical():
    monitor = AsymmetryMonitor(every_n_steps=2, loss_fn=gan_loss, **SMALL)
    assert differences(fit([], module=GAN), fit([SWA(0), monitor], module=GAN)) == []
    assert monitor.n_steps == 12


def test_two_plain_runs_are_bit_identical():
    assert differences(plain_run("plain"), fit([])) == []


class Careless(Callback):
    """Evaluates the loss at other weights after the last step, and restores nothing."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 12:
            with torch.no_grad():
                pl_module.net[4].bias.add_(0.1)
                pl_module.net[3].eval()
                pl_module.training_step({"x": batch["x"], "y": batch["extra"]}, batch_idx)


@functools.cache
def careless_paths():
    found = differences(plain_run("plain"), fit([Careless()]))
    return [path.split(":")[0] for path in found]


# what the hostile module keeps, and the key at which the comparison must show that it changed
KEPT = {
    "a weight": "/state_dict/net.4.bias",
    "a buffer": "/buffers/ema",
    "a buffer that is bound anew": "/buffers/rebound",
    "running statistics": "/buffers/net.1.running_mean",
    "the vectors of a spectral norm": "/buffers/net.0.parametrizations.weight.0._u",
    "weights of another module": "/state_dict/teacher.bias",
    "random numbers": "/rng",
    "a torch generator": "/attributes/.torch_generator",
    "a NumPy generator": "/attributes/.numpy_generator",
    "an old NumPy generator": "/attributes/.legacy_generator",
    "a Python generator": "/attributes/.python_generator",
    "train and eval flags": "/modes",
    "the log": "/callback_metrics/train_loss",
    "rows sent to the logger directly": "/rows",
    "a log method kept by another object": "/callback_metrics/stored_log",
    "a metric": "/callback_metrics/train_acc",
    "a number": "/attributes/.calls",
    "a tensor that is no buffer": "/attributes/.plain",
    "an array": "/attributes/.array",
    "a deque": "/attributes/.recent",
    "a counter": "/attributes/.counter",
    "an ordered dict": "/attributes/.ordered",
    "a nested list": "/attributes/.nested/inner/losses",
    "a namespace": "/attributes/.namespace",
    "an object with slots": "/attributes/meter",
    "a frozen dataclass": "/attributes/frozen",
    "a module in a plain list": "/attributes/unregistered",
}


@pytest.mark.parametrize("kind", KEPT)
def test_the_comparison_shows_an_evaluation_that_changes(kind):
    assert [path for path in careless_paths() if path.startswith(KEPT[kind])]
