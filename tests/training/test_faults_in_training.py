"""One training, the same fault at each call that a probe makes in turn: nothing of it stays."""

import functools
import inspect
import signal
from types import SimpleNamespace

import pytest
import torch
from hostile import differences, fit
from injection import (
    Files,
    Injected,
    assert_saved,
    assert_whole,
    failing,
    interrupting,
    not_a_number,
    run,
    saving,
    saving_by_signal,
    strike,
)
from lightning.pytorch.callbacks import Callback

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

pytestmark = pytest.mark.usefixtures("no_figures")

# the calls of one epoch with a probe at its end, few enough to try each
CALLBACKS = {
    "AsymmetryMonitor": lambda: [
        AsymmetryMonitor(
            every_n_epochs=1, families=["sign"], n_directions=1, n_points=5, n_batches=1
        )
    ],
    "GradientBreakdownMonitor": lambda: [
        GradientBreakdownMonitor(every_n_epochs=1, directions="update", etas=[0.5, 1.0])
    ],
    "SWA": lambda: [SWA(0, bn_batches=2)],
}
N_CALLS = {"AsymmetryMonitor": 7, "GradientBreakdownMonitor": 6, "SWA": 10}
EACH = [(name, at) for name, n in N_CALLS.items() for at in range(1, n + 1)]
SLOW = [(name, at) for name, at in EACH if at not in (1, 4)]  # in the default run: these two
# these passes ask whether the step can do without a graph: an exception is an answer
ASKED = {("AsymmetryMonitor", 2), ("GradientBreakdownMonitor", 2)}
ASKED |= {("SWA", at) for at in (1, 2, 3, 4)}  # for the average and for the control
ERRORS = {
    "an exception": ValueError("mine"),
    "out of memory": torch.OutOfMemoryError("mine"),
}

every_call = pytest.mark.parametrize(("name", "at"), EACH)
every_call_slowly = pytest.mark.parametrize(
    ("name", "at"),
    [pytest.param(*call, marks=pytest.mark.slow if call in SLOW else ()) for call in EACH],
)


def train(name, **options):
    return run(CALLBACKS[name](), max_epochs=1, **options)


@functools.cache
def plain():
    return run([], max_epochs=1).result


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_faults_below_meet_every_call(name):
    found = train(name)
    assert found.calls == N_CALLS[name]
    assert found.warned == []


@pytest.mark.tried("faults", "an exception at each call of a probe in turn: the same training")
@every_call
def test_an_exception_at_any_call_costs_one_warning(name, at):
    found = train(name, fault=failing(ERRORS["an exception"]), at=at)
    assert differences(plain(), found.result) == []
    assert len(found.warned) == ((name, at) not in ASKED)
    assert all(name in text and "ValueError: mine" in text for text in found.warned)


@pytest.mark.tried("faults", "out of memory at each call of a probe in turn: the same training")
@every_call_slowly
def test_no_memory_at_any_call_costs_one_warning(name, at):
    found = train(name, fault=failing(ERRORS["out of memory"]), at=at)
    assert differences(plain(), found.result) == []
    assert len(found.warned) == 1


@pytest.mark.tried("faults", "NaN at each call of a probe in turn: the same training, no warning")
@every_call_slowly
def test_nan_at_any_call_costs_nothing(name, at):
    found = train(name, fault=not_a_number, at=at)
    assert differences(plain(), found.result) == []
    assert found.warned == []


@pytest.mark.tried(
    "faults", "Ctrl-C at each call of a probe in turn: the fit ends, nothing was moved"
)
@every_call_slowly
def test_an_interrupt_at_any_call_ends_the_fit_with_nothing_moved(name, at):
    found = train(name, fault=interrupting, at=at)
    assert found.result is None
    assert differences(found.watch.last, found.watch.at_the_end) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Terminated(Callback):
    """Has the process asked to end at one hook, without a probe."""

    def __init__(self, hook):
        setattr(self, hook, self.terminate)

    def terminate(self, trainer, pl_module):
        if not trainer.sanity_checking:
            signal.raise_signal(signal.SIGTERM)


@functools.cache
def terminated(hook):
    return run([Terminated(hook)], max_epochs=1).watch.at_the_end


@pytest.mark.tried(
    "faults", "SIGTERM at each call of a probe in turn: the probe ends, then the fit, as without"
)
@every_call_slowly
def test_a_termination_at_any_call_ends_the_fit_as_without_the_probe(name, at):
    def terminating(module, output):
        signal.raise_signal(signal.SIGTERM)
        return output

    found = train(name, fault=terminating, at=at)
    assert found.result is None
    assert found.warned == []
    hook = "on_train_epoch_end"
    if name == "SWA":  # estimates at the start of validation, runs its batches at the end
        hook = "on_validation_epoch_start" if at <= 4 else "on_validation_epoch_end"
    assert differences(terminated(hook), found.watch.at_the_end) == []


@pytest.mark.tried(
    "faults", "a checkpoint saved at each call of a probe in turn: it holds what was before"
)
@every_call_slowly
@pytest.mark.parametrize("how", [saving, saving_by_signal])
def test_a_checkpoint_at_any_call_is_that_of_before(how, name, at, tmp_path):
    found = train(name, fault=how(tmp_path / "saved.ckpt"), at=at)
    assert_saved(tmp_path / "saved.ckpt", found.when_saved)
    assert differences(plain(), found.result) == []
    assert found.warned == []


def test_a_strike_leaves_the_calls_of_the_training_alone():
    module = SimpleNamespace(trainer=SimpleNamespace(logger=object()))
    assert strike(module, "output") == "output"


@pytest.mark.tried("faults", "a fault after a fault: the same training, still one warning")
def test_a_callback_that_always_fails_warns_once(tmp_path):

    swa = SWA(0, every_n_steps=1, average=lambda average, new, n: 1 / 0)
    monitor = AsymmetryMonitor(every_n_steps=1, n_directions=1, loss_fn=lambda *_: 1 / 0)
    found = run([swa, monitor], max_epochs=1, logger=Files(tmp_path))
    assert differences(plain(), found.result) == []
    assert sorted(text.split(" failed")[0] for text in found.warned if " failed" in text) == [
        "The probe of AsymmetryMonitor"
    ]
    assert len(found.warned) == 2
    assert_whole(tmp_path)


def test_callbacks_that_fail_of_one_cause_warn_once(tmp_path):
    broken = lambda *_: 1 / 0  # noqa: E731
    callbacks = [
        AsymmetryMonitor(every_n_steps=1, n_directions=1, loss_fn=broken),
        GradientBreakdownMonitor(every_n_steps=1, loss_fn=broken),
        SWA(0, every_n_steps=1, loss_fn=broken),
    ]
    found = run(callbacks, max_epochs=1, logger=Files(tmp_path))
    assert differences(plain(), found.result) == []
    (warned,) = found.warned
    assert "ZeroDivisionError" in warned
    assert "this one in other callbacks" in warned


class SavesItself(Injected):
    """Has a step that saves a checkpoint, whoever calls it."""

    def training_step(self, batch, batch_idx):
        self.trainer.save_checkpoint(SavesItself.path)
        SavesItself.depth = max(SavesItself.depth, len(inspect.stack()))
        return super().training_step(batch, batch_idx)


@pytest.mark.tried("faults", "a training step that saves a checkpoint itself, with an average kept")
def test_a_step_that_saves_does_not_estimate_for_ever(tmp_path):
    SavesItself.path, SavesItself.depth = tmp_path / "saved.ckpt", 0
    short = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1}
    swa = SWA(0, every_n_steps=1)
    found = fit([swa], module=SavesItself, **short)  # a warning would be an error
    assert SavesItself.depth < 200
    saved = torch.load(SavesItself.path, weights_only=False)["callbacks"][swa.state_key]
    assert saved["statistics_of"] == saved["n_averaged"] == 3
    assert differences(fit([], module=SavesItself, **short), found) == []
