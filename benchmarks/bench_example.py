"""`examples/noisy_digits.py` with monitors and without, and whether `max_overhead` holds there."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rounds import Clock
from torch.utils.data import DataLoader

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

EXAMPLE = Path(__file__).parents[1] / "examples" / "noisy_digits.py"
SHARE, TOLERANCE = 0.05, 0.02
LIGHT = {"families": "gaussian", "n_directions": 2, "n_points": 5}  # short enough to be afforded


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("noisy_digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _quietly(quick):
    if quick:
        pytest.skip("trainings are for the full run")
    pytest.importorskip("sklearn", reason="the example needs scikit-learn")
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def train(example, callbacks, epochs=65):
    """Run the example, with other callbacks."""
    training, test = example.noisy_digits(seed_everything(0, verbose=False))
    loader = DataLoader(training, batch_size=64, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(example.Digits(), loader, DataLoader(test, batch_size=100))


def test_default_run(benchmark, record, example):
    """The whole example, figures included, beside the same without callbacks of ours."""
    clock = Clock()

    def ours():
        swa = SWA(start=0.25)
        monitor = AsymmetryMonitor(every_n_epochs=5, swa=swa, n_batches=8, validation=True)
        train(example, [swa, monitor])

    def round_of_both():
        clock.beside({"bare": lambda: train(example, []), "ours": ours})

    train(example, [], epochs=2)
    benchmark.pedantic(round_of_both, rounds=2)
    record("example/default run", "x", **clock.ratio("ours", to="bare"))


FREQUENCIES = [
    {"every_n_steps": 1},
    {"every_n_steps": 100},
    {"every_n_epochs": 1},
    {"every_n_epochs": 5},
]
MONITORS = {
    "AsymmetryMonitor": AsymmetryMonitor,
    "AsymmetryMonitor, light": lambda **options: AsymmetryMonitor(**LIGHT, **options),
    "GradientBreakdownMonitor": GradientBreakdownMonitor,
}


@pytest.mark.parametrize("frequency", FREQUENCIES, ids=lambda f: " ".join(map(str, *f.items())))
@pytest.mark.parametrize("kind", MONITORS)
def test_budget(benchmark, record, example, kind, frequency):
    """The share of the fit's wall time in the hooks of a monitor, the last probe left out.

    The last weights are probed, and the last step is measured, whatever the budget says.
    """
    shares, probes = [], []

    def one():
        monitor = MONITORS[kind](max_overhead=SHARE, on_error="raise", **frequency)
        clock, hooks = Clock(time.perf_counter), timed_hooks(monitor)
        run = monitor.run

        def timed_run(*args, is_last=False):
            with clock("last" if is_last else "probe"):
                run(*args, is_last=is_last)

        monitor.run = timed_run
        began = time.perf_counter()
        train(example, [monitor], epochs=520 if "light" in kind else 65)
        in_end = hooks.pop("on_train_end") + hooks.pop("on_fit_end")
        in_step = sum(clock.seconds["last"]) if kind == "GradientBreakdownMonitor" else 0.0
        took = time.perf_counter() - began - in_end - in_step
        shares.append((sum(hooks.values()) - in_step) / took)
        probes.append(sum(map(len, clock.seconds.values())))

    benchmark.pedantic(one, rounds=1)
    name = " ".join(str(part) for item in frequency.items() for part in item)
    record(f"budget/{kind}/{name}", "share", max(shares), SHARE + TOLERANCE, probes=probes)


def timed_hooks(callback):
    """Have a callback time its own hooks; return the seconds by hook."""
    seconds = {}

    def timed(name, hook):
        def run(*args, **kwargs):
            began = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

        return run

    for name in ("setup", *filter(lambda name: name.startswith("on_"), dir(callback))):
        hook = getattr(callback, name)
        if callable(hook):
            setattr(callback, name, timed(name, hook))
    return seconds
