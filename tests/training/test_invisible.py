"""Promise 1: training with the callbacks is bit-identical to training without."""

import collections
import functools
import random

import numpy as np
import pytest
import torch
from hostile import GAN, differences, fit, gan_loss

from lightning_landscape import SWA, AsymmetryMonitor, _lightning
from lightning_landscape.engine import isolation
from lightning_landscape.engine.snapshot import Snapshot
from lightning_landscape.engine.weights import Weights

OPTIONS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "workers": {"workers": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "double": {"precision": "64-true", "dtype": torch.float64},
    "validation in mid-epoch": {"val_check_interval": 2},
}
FAMILIES = ("gaussian", "uniform@norm", "sign@*.weight")


def callbacks(**schedule):
    swa = SWA(start=0)
    monitor = AsymmetryMonitor(
        families=FAMILIES,
        n_directions=1,
        n_points=5,
        swa=swa,
        validation=True,
        on_error="raise",
        **schedule,
    )
    return [swa, monitor]


@functools.cache
def plain_run(name):
    return fit([], **OPTIONS[name])


@pytest.mark.parametrize("schedule", [{"every_n_epochs": 1}, {"every_n_steps": 2}], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_training_is_bit_identical(name, schedule):
    assert differences(plain_run(name), fit(callbacks(**schedule), **OPTIONS[name])) == []


@pytest.mark.parametrize("mode", ["eval", "recalibrated"])
def test_training_is_bit_identical_in_every_mode(mode):
    monitor = AsymmetryMonitor(n_directions=1, n_points=5, mode=mode, on_error="raise")
    assert differences(plain_run("plain"), fit([monitor])) == []


@pytest.mark.tried("steps", "a GAN by hand, its loss given as loss_fn")
def test_training_a_gan_by_hand_is_bit_identical():
    monitor = AsymmetryMonitor(
        every_n_steps=2, n_directions=1, n_points=5, loss_fn=gan_loss, on_error="raise"
    )
    assert differences(fit([], module=GAN), fit([SWA(0), monitor], module=GAN)) == []
    assert monitor.n_steps == 12


def test_two_plain_runs_are_bit_identical():
    assert differences(plain_run("plain"), fit([])) == []


def no_op(*args, **kwargs):
    return None


def forgetting(*kinds):
    """Return a Snapshot that does not record some kinds of values."""

    class Forgetful(Snapshot):
        def _add_value(self, value, name):
            if name.startswith("batch") or not isinstance(value, kinds):
                super()._add_value(value, name)

        def _add_empty(self, container, name):
            if not isinstance(container, kinds):
                super()._add_empty(container, name)

    return isolation, "Snapshot", Forgetful


GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# what is switched off, and how; without it the comparison above must fail, first at the key named
PROTECTIONS = {
    "random numbers": (isolation, "set_rng_states", no_op),
    "weights": (Weights, "put_back", no_op),
    "train and eval flags": (isolation, "_flags_of", lambda module: no_op),
    "the log": (isolation, "mute", no_op),
    "loggers": (_lightning, "_silence", no_op),
    "results of a stored log": (_lightning, "_throw_results_away", no_op),
    "buffers and plain tensors": (Snapshot, "_visit_tensor", no_op),
    "containers": forgetting(dict, list, set, collections.deque),
    "arrays": forgetting(np.ndarray),
    "generators": forgetting(*GENERATORS),
    "attributes": (Snapshot, "_add_namespace", no_op),
    "attributes of plain objects": (Snapshot, "_visit_attributes", no_op),
}
DIFFERS = {
    "random numbers": "/rng",
    "weights": "/state_dict",
    "train and eval flags": "/modes",
    "the log": "/rows",
    "loggers": "/rows",
    "results of a stored log": "/rows",
    "generators": "/attributes",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROTECTIONS)
def test_without_this_protection_training_changes(name, monkeypatch):
    monkeypatch.setattr(*PROTECTIONS[name])
    monitor = AsymmetryMonitor(
        every_n_steps=2, n_directions=1, n_points=5, mode="eval", on_error="raise"
    )
    found = differences(plain_run("plain"), fit([monitor]))
    assert any(path.startswith(DIFFERS.get(name, "/")) for path in found), found
