"""A fault at any call that any callback makes, in any configuration: training is as without."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from hostile import differences
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from injection import (
    OPTIMIZERS,
    Files,
    assert_saved,
    assert_whole,
    disk_full_at,
    failing,
    interrupting,
    not_a_number,
    run,
    saving,
    saving_by_signal,
)

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

FAILURES = {
    "an error": ValueError("mine"),
    "an error of torch": RuntimeError("mine"),
    "out of memory": torch.OutOfMemoryError("mine"),
    "out of host memory": MemoryError("mine"),
}
FAULTS = (*FAILURES, "nan", "interrupt", "exit", "save", "signal", "full disk", "logger")
FAMILIES = ("gaussian", "uniform@norm", "sign", "rademacher@*.weight", "gaussian@other")

schedules = st.one_of(
    st.fixed_dictionaries({"every_n_epochs": st.integers(1, 2)}),
    st.fixed_dictionaries({"every_n_steps": st.integers(1, 4)}),
)
modes = st.sampled_from(["train", "eval", "recalibrated"])


@st.composite
def callbacks(draw):
    """Return a function that makes the callbacks, and what it makes in words."""
    swa_options = draw(
        st.none()
        | st.fixed_dictionaries(
            {
                "start": st.sampled_from([0, 1, 0.5]),
                "average": st.sampled_from(["equal", "ema"]),
                "validate": st.booleans(),
                "bn_batches": st.integers(1, 3),
            }
        )
    )
    asymmetry = draw(
        st.none()
        | st.fixed_dictionaries(
            {
                "mode": modes,
                "families": st.lists(
                    st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True
                ),
                "n_directions": st.integers(1, 2),
                "n_points": st.just(5),
                "n_batches": st.integers(1, 3),
                "validation": st.booleans(),
                "normalize": st.sampled_from(["filter", "layer", "model", "none"]),
            }
        )
    )
    breakdown = draw(
        st.fixed_dictionaries(
            {
                "mode": modes,
                "directions": st.sampled_from([("update",), ("gradient", "random")]),
                "etas": st.just((0.5, 1.0)),
            }
        )
        | (st.none() if swa_options or asymmetry else st.nothing())
    )
    when = [draw(schedules) for _ in range(3)]

    def make():
        swa = None if swa_options is None else SWA(**swa_options, **when[0])
        made = [] if swa is None else [swa]
        if asymmetry is not None:
            made.append(AsymmetryMonitor(**asymmetry, **when[1], swa=swa))
        if breakdown is not None:
            made.append(GradientBreakdownMonitor(**breakdown, **when[2]))
        return made

    note(f"swa={swa_options} asymmetry={asymmetry} breakdown={breakdown} when={when}")
    return make


trainings = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["32-true", "bf16-mixed", "64-true"]),
        "accumulate_grad_batches": st.integers(1, 2),
        "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
        "limit_val_batches": st.sampled_from([0, 2]),
    }
)


class Broken(Files):
    """Refuses what the callbacks log, from the n-th time on."""

    def __init__(self, folder, n):
        super().__init__(folder)
        self.left = n

    def log_metrics(self, metrics, step=None):
        self.left -= any(key.startswith(("landscape/", "swa/", "breakdown/")) for key in metrics)
        if self.left <= 0 and not any("loss" in key for key in metrics):
            raise ConnectionError("offline")
        super().log_metrics(metrics, step)


@functools.cache
def plain(**training):
    return fit_with([], training).result


def fit_with(callbacks, training, *, logger=None, **fault):
    double = {"dtype": torch.float64} if training["precision"] == "64-true" else {}
    return run(callbacks, **fault, **training, **double, max_epochs=2, logger=logger)


def check(make, training, kind, at, folder):
    """Train with a fault, and compare with the training without callbacks."""
    path = folder / "saved.ckpt"
    fault = {
        **{name: failing(error) for name, error in FAILURES.items()},
        "nan": not_a_number,
        "interrupt": interrupting,
        "exit": failing(SystemExit("mine")),
        "save": saving(path),
        "signal": saving_by_signal(path),
    }.get(kind)
    logger = Broken(folder, at) if kind == "logger" else Files(folder)
    with disk_full_at(at if kind == "full disk" else 10**6, n_bytes=7 * at):
        found = fit_with(make(), training, fault=fault, at=at, logger=logger)
    assert_whole(folder)
    if found.result is None:
        assert kind in ("interrupt", "exit")
        assert differences(found.watch.last, found.watch.at_the_end) == []
    else:
        assert differences(plain(**training), found.result) == []
    if found.when_saved is not None:
        assert_saved(path, found.when_saved)
    for callback in ("SWA", "AsymmetryMonitor", "GradientBreakdownMonitor"):
        failed = [text for text in found.warned if f"{callback}" in text]
        assert len(failed) <= 1, failed


law = given(
    make=callbacks(), training=trainings, kind=st.sampled_from(FAULTS), at=st.integers(1, 40)
)


@pytest.mark.tried(
    "faults", "any fault at any call, under configurations and trainings that Hypothesis draws"
)
@pytest.mark.usefixtures("no_figures")
@law
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
def test_a_fault_at_any_call_costs_training_nothing(make, training, kind, at):
    with tempfile.TemporaryDirectory() as folder:
        check(make, training, kind, at, Path(folder))


@pytest.mark.slow
@pytest.mark.tried(
    "faults", "any fault at any call, under configurations and trainings that Hypothesis draws"
)
@law
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_a_fault_at_any_call_costs_training_nothing_many_times(make, training, kind, at):
    with tempfile.TemporaryDirectory() as folder:
        check(make, training, kind, at, Path(folder))
