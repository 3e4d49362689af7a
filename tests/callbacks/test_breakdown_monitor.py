"""The step just taken, watched while training goes on: measured right, and nobody notices."""

import functools
import gc
import math

import numpy as np
import pytest
import torch
from hostile import GAN, HostileModule, differences, fit, gan_loss
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from toys import QUIET

from lightning_landscape import GradientBreakdownMonitor
from lightning_landscape.callbacks import breakdown as breakdown_monitor
from lightning_landscape.fromage import Fromage
from lightning_landscape.measures.breakdown import DEFAULT_ETAS, measure_breakdown
from lightning_landscape.measures.steps import optimizer_steps

near = functools.partial(pytest.approx, rel=1e-5)

# `best = min(best, loss)` is written where the loss is least: downhill, not where it was learned
pytestmark = pytest.mark.filterwarnings("ignore:A probe of Hostile.* wrote to best at some")


# --- promise 1: nobody notices ------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.05),
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
    "Fromage": functools.partial(Fromage, lr=0.01),
}


def optimized_by(name):
    class Hostile(HostileModule):
        def configure_optimizers(self):
            return OPTIMIZERS[name](self.parameters())

    return Hostile


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical_with_any_optimizer(name):
    module = optimized_by(name)
    monitor = GradientBreakdownMonitor(every_n_steps=1, on_error="raise")
    assert differences(fit([], module=module), fit([monitor], module=module)) == []
    assert [len(rows) for rows in monitor.history.values()] == [12, 12]


def test_training_a_gan_by_hand_is_bit_identical():
    monitor = GradientBreakdownMonitor(every_n_steps=2, loss_fn=gan_loss, on_error="raise")
    assert differences(fit([], module=GAN), fit([monitor], module=GAN)) == []
    assert set(monitor.history) == {
        f"{net}/{direction}"
        for net in ("generator", "discriminator")
        for direction in ("update", "gradient")
    }


# --- a step whose every number is known ---------------------------------------------------------


class Bowl(LightningModule):
    """`x * curvature / 2 * ||W||^2` on a batch of x: along -W everything is known."""

    def __init__(self, lr=0.25, curvature=2.0, momentum=0.0, decay=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        self.curvature = curvature
        self.options = {"lr": lr, "momentum": momentum, "weight_decay": decay}
        self.n_calls = 0

    def training_step(self, batch, batch_idx):
        CALLS.append(float(batch.mean()))
        return batch.mean() * self.curvature / 2 * self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.options)


CALLS = []  # out of reach of any probe


class Recorder(Callback):
    """Weights before every batch and after, as anybody could see them."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append([p.detach().clone() for p in pl_module.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append([p.detach().clone() for p in pl_module.parameters()])


class Found(list):
    """Every `GradientBreakdown` that monitors find, and the direction it was found along."""

    def __call__(self, objective, direction, etas, **options):
        found = measure_breakdown(objective, direction, etas, **options)
        self.append((found, direction))
        return found


@pytest.fixture
def found(monkeypatch):
    every = Found()
    monkeypatch.setattr(breakdown_monitor, "measure_breakdown", every)
    return every


def run(module, *monitors, batches=4, recorder=None, ckpt_path=None, **options):
    """Fit on batches that hold 1, 2, 3 ..., each once, in order."""
    data = batches
    if isinstance(batches, int):
        data = [torch.full((2,), float(k + 1)) for k in range(batches)]
    callbacks = [*([recorder] if recorder else []), *monitors]
    trainer = Trainer(**{**QUIET, "max_epochs": 1, **options}, callbacks=callbacks)
    CALLS.clear()
    trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def watching(n=1, **options):
    options = {"directions": "update", "on_error": "raise", "every_n_steps": n, **options}
    return GradientBreakdownMonitor(**options)


def logged(trainer):
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("breakdown/")}


@pytest.mark.parametrize("lr", [0.15, 0.25, 0.6, 0.9])
def test_the_step_of_plain_sgd_in_a_bowl_is_known_in_every_number(lr):
    # the step is -a W with a = lr * curvature: as relative steps the bottom is at 1, the start is
    # reached again at 2, and the gradient a, beside a model of one layer that says a as well
    ones = [torch.ones(2)] * 2
    values = logged(run(Bowl(lr=lr), watching(etas=(0.5, 1, 2, 4, 8), layers=True), batches=ones))
    update = {k.removeprefix("breakdown/update/"): v for k, v in values.items() if "update/" in k}
    a = 2 * lr
    assert update == {
        "max": near(a),
        "layer/weight": near(a),
        "critical_rate": near(1),  # 2 over the curvature
        "learning_rate": near(lr),
        "model": near(a),
        "excess": near(1),
        "descent_limit": near(1),
        "break_even": near(2),
        "trust_lr": near(1),
    }
    step = {k.removeprefix("breakdown/step/"): v for k, v in values.items() if "step/" in k}
    assert step == {
        "relative_update": near(a),
        "relative_gradient": near(2),
        "weight_gradient_cosine": near(1),
        "successive_cosine": near(1 if a < 1 else -1),  # back and forth: it hovers
    }
    assert values["breakdown/seconds"] > 0


def test_the_update_is_what_the_optimizer_did_momentum_and_decay_included():
    # a = lr * curvature = .5, b = lr * decay = .1: W1 = (1 - a - b) W0, the second step is
    # -(m (a + b) W0 + (a + b) W1), so relative to W1 it is (a + b) (1 + m / (1 - a - b))
    module = Bowl(lr=0.25, momentum=0.5, decay=0.4)
    values = logged(run(module, watching(2), batches=[torch.ones(2)] * 2))
    assert values["breakdown/step/relative_update"] == near(0.6 * (1 + 0.5 / 0.4))


def test_the_update_is_what_the_optimizer_did_clipping_included():
    # ||W|| = 5, ||g|| = 10 cut to 1, so the step is lr / 5 of the weights
    values = logged(run(Bowl(lr=0.25), watching(), batches=1, gradient_clip_val=1.0))
    assert values["breakdown/step/relative_update"] == near(0.25 / 5)
    assert values["breakdown/step/relative_gradient"] == near(2)  # the gradient as it was


def test_a_step_up_the_hill_has_no_descent_in_it(found):
    class Climber(Bowl):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, maximize=True)

    values = logged(run(Climber(), watching(), batches=1))
    assert values["breakdown/update/descent_limit"] == 0
    assert values["breakdown/update/trust_lr"] < 0 or values["breakdown/update/trust_lr"] == 0


def test_the_gradient_direction_does_not_depend_on_the_optimizer(found):
    run(Bowl(lr=1e-6), watching(directions="gradient"), batches=1)
    (result, direction), *_ = found
    assert torch.equal(direction["weight"], torch.tensor([[-3.0, -4.0]]))
    assert result.breakdown[0].tolist() == near(list(DEFAULT_ETAS["gradient"]), abs=1e-6)
    assert result.descent_limit == math.inf  # .1 is the last, the bottom is at 1


def test_the_random_direction_is_one_for_all_probes_of_a_seed(found):
    run(Bowl(lr=0.0), watching(directions="random", etas=[0.1]), batches=2)
    run(Bowl(lr=0.0), watching(directions="random", etas=[0.1], seed=1), batches=1)
    first, second, other = (direction["weight"] for _, direction in found)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.norm() == near(5)  # filter-normalised


# --- where it stands, and on what ---------------------------------------------------------------


class Net(LightningModule):
    """Large steps in float32: before + (after - before) is not after."""

    def __init__(self, lr=0.7, optimizer=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2))
        self.make, self.lr = optimizer, lr

    def training_step(self, batch, batch_idx):
        SEEN.append([p.detach().clone() for p in self.parameters()])
        return self.loss(batch)

    def loss(self, batch):
        return self.net(batch).square().sum(dim=1).mean()

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=self.lr)


SEEN = []  # the weights of every evaluation


class Snoop(Callback):
    """Runs after the monitor: the last evaluation of its probe, and the weights as they are."""

    def __init__(self):
        self.pairs, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.pairs.append((SEEN[-1], [p.detach().clone() for p in pl_module.parameters()]))
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # the dropout mask of every evaluation
            self.losses.append(float(pl_module.loss(batch)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, Fromage])
def test_the_update_at_1_is_the_step_to_the_last_bit(optimizer, found):
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, generator=g) for _ in range(5)]
    snoop = Snoop()
    run(Net(optimizer=optimizer), watching(etas=[0.5, 1.0]), snoop, batches=batches)
    assert all(
        torch.equal(seen, live)
        for at_one, after in snoop.pairs
        for seen, live in zip(at_one, after, strict=True)
    )
    assert [float(result.loss[-1]) for result, _ in found] == snoop.losses


def test_without_its_end_the_update_would_miss_the_step(monkeypatch):
    def endless(*args):
        steps = optimizer_steps(*args)
        for step in steps.values():
            step.end = {}
        return steps

    monkeypatch.setattr(breakdown_monitor, "optimizer_steps", endless)
    g = torch.Generator().manual_seed(0)
    snoop = Snoop()
    run(Net(), watching(etas=[1.0]), snoop, batches=[torch.randn(4, 3, generator=g)])
    ((at_one, after),) = snoop.pairs
    assert not all(torch.equal(a, b) for a, b in zip(at_one, after, strict=True))


def test_it_stands_before_the_step_on_the_batch_of_that_step(found):
    recorder = Recorder()
    run(Bowl(lr=0.05), watching(2), batches=4, recorder=recorder)
    for (result, _), step in zip(found, (1, 3), strict=True):
        x, (before,) = step + 1, recorder.before[step]
        assert result.loss_start == near(float(x * before.square().sum()))


def test_of_a_window_it_takes_the_last_batch_and_the_first_weights(found):
    recorder = Recorder()
    options = {"recorder": recorder, "accumulate_grad_batches": 3}
    trainer = run(Bowl(lr=0.02), watching(), batches=5, **options)
    assert trainer.global_step == 2
    for (result, direction), (first, last) in zip(found, [(0, 2), (3, 4)], strict=True):
        before, after = recorder.before[first][0], recorder.after[last][0]
        assert result.loss_start == near(float((last + 1) * before.square().sum()))
        assert torch.equal(direction["weight"], after - before)


def test_a_batch_that_the_step_overwrites_is_measured_as_it_came(found):
    class Overwriting(Bowl):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch.clone(), batch_idx)
            batch.zero_()
            return loss

    run(Overwriting(lr=0.05), watching(), batches=1)
    assert found[0][0].loss_start == near(25.0)


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.full((2,), float(k + 1)) for k in range(5))


def streamed(module=None, **options):
    trainer = Trainer(max_epochs=2, **QUIET, **options)
    trainer.fit(module or Bowl(lr=0.01), DataLoader(Stream(), batch_size=None))


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_by_epochs_it_looks_at_the_last_step_of_the_epoch(accumulate, length, found):
    monitor = watching(None, every_n_epochs=1)
    recorder = Recorder()
    options = {"accumulate_grad_batches": accumulate}
    if length == "known":
        run(Bowl(lr=0.01), monitor, batches=5, max_epochs=2, recorder=recorder, **options)
    else:
        streamed(callbacks=[recorder, monitor], **options)
    assert len(found) == 2
    for (result, direction), last in zip(found, (4, 9), strict=True):
        first = last - (4 % accumulate)
        before, after = recorder.before[first][0], recorder.after[last][0]
        assert result.loss_start == near(float(5 * before.square().sum()))
        assert torch.equal(direction["weight"], after - before)


def test_an_epoch_that_max_steps_cuts_short_still_ends_with_a_probe(found):
    run(Bowl(lr=0.01), watching(None, every_n_epochs=1), batches=5, max_steps=3, max_epochs=-1)
    assert found[0][0].loss_start > 0
    assert len(found) == 1


class LargeBowl(Bowl):
    def __init__(self, n):
        super().__init__(lr=0.01)
        self.weight = nn.Parameter(torch.ones(n, 13))


class CountsCopies(Callback):
    """How many copies of the weights somebody holds after each step, besides the training."""

    def __init__(self):
        self.n_held = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gc.collect()
        pl_module.zero_grad()
        self.n_held.append(n_held(pl_module.weight.numel()) - 1)


def test_the_weights_are_kept_only_around_the_steps_that_are_probed():
    counting = CountsCopies()
    run(LargeBowl(1009), counting, watching(4), batches=9)
    assert counting.n_held == [0, 0, 1, 2, 0, 0, 1, 2, 0]


def test_two_copies_are_kept_where_the_last_step_is_unforeseen():
    counting = CountsCopies()
    streamed(LargeBowl(1013), callbacks=[counting, watching(None, every_n_epochs=1)])
    assert counting.n_held == [1] + [2] * 9


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.tried("configuration", "fast_dev_run: one breakdown, nothing written")
def test_a_fast_development_run_probes_once_and_writes_nothing(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Bowl(lr=0.01), GradientBreakdownMonitor(on_error="raise"), fast_dev_run=True, logger=True)
    assert len(found) == 2  # update and gradient
    assert list(tmp_path.iterdir()) == []


def test_a_fast_development_run_does_not_probe_the_same_step_twice(found):
    run(Bowl(lr=0.01), watching(1), fast_dev_run=True)
    assert len(found) == 1


class Overflowing(Bowl):
    """Its gradient overflows on the second batch, so that the scaler skips the step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.tensor(1e38) * 1e38 if float(batch.mean()) == 2 else loss


def test_a_step_that_the_loss_scaler_skips_has_no_update_and_is_no_failure(found):
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = run(Overflowing(lr=0.01), watching(), batches=3, plugins=[scaled])
    assert trainer.global_step == 3
    assert [result.loss_start > 0 for result, _ in found] == [True, True]


def test_where_nothing_moved_the_other_directions_are_still_measured(found):
    trainer = run(Bowl(lr=0.0), GradientBreakdownMonitor(every_n_steps=1, on_error="raise"))
    assert "breakdown/gradient/max" in logged(trainer)
    assert "breakdown/update/max" not in logged(trainer)
    assert math.isnan(logged(trainer)["breakdown/step/successive_cosine"])


# --- several optimizers -------------------------------------------------------------------------


class Alternating(LightningModule):
    """Two bowls; the second optimizer steps on every other batch."""

    def __init__(self, names=("a", "b")):
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleDict({k: nn.Linear(2, 1, bias=False) for k in names})
        for net in self.nets.values():
            nn.init.constant_(net.weight, 1.0)

    def training_step(self, batch, batch_idx):
        for k, optimizer in enumerate(self.optimizers()):
            if k == 0 or batch_idx % 2:
                optimizer.zero_grad()
                self.manual_backward(bowls(self, batch))
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=lr)
                for net, lr in zip(self.nets.values(), (0.1, 0.3), strict=True)]  # fmt: skip


def bowls(module, batch):
    return sum(net.weight.square().sum() for net in module.nets.values()) / 2


def test_each_optimizer_has_a_report_of_its_own_parameters(found):
    trainer = run(Alternating(), watching(2, loss_fn=bowls, layers=True), batches=2)
    values = logged(trainer)
    assert values["breakdown/nets.a/update/layer/nets.a.weight"] == near(0.1)
    assert values["breakdown/nets.b/update/layer/nets.b.weight"] == near(0.3)
    assert values["breakdown/nets.a/step/relative_update"] == near(0.1)
    assert values["breakdown/nets.b/step/relative_update"] == near(0.3)
    assert [set(direction) for _, direction in found] == [{"nets.a.weight"}, {"nets.b.weight"}]
    assert not any("/layer/nets.b" in k for k in values if k.startswith("breakdown/nets.a"))


@pytest.mark.parametrize(("module", "times"), [(Alternating, 1), (lambda: Bowl(lr=0.1), 0)])
def test_one_loss_that_judges_several_optimizers_is_said_once(module, times, caplog):
    with caplog.at_level("INFO"):
        run(module(), watching(1, loss_fn=bowls if times else None), batches=4)
    assert caplog.text.count("the steps of 2 optimizers are judged by one loss") == times


def test_no_direction_moves_what_belongs_to_another_optimizer(found):
    directions = ("gradient", "random")
    run(Alternating(), watching(2, loss_fn=bowls, directions=directions), batches=2)
    moved = [set(direction) for _, direction in found]
    assert moved == [{"nets.a.weight"}] * 2 + [{"nets.b.weight"}] * 2


def test_an_optimizer_that_did_not_step_has_no_update_to_report(found):
    run(Alternating(), watching(1, loss_fn=bowls), batches=1)
    assert [set(direction) for _, direction in found] == [{"nets.a.weight"}]


@pytest.mark.tried("steps", "several optimizers that share the parts of a module")
def test_optimizers_that_share_a_module_have_numbers_for_names():
    class Mixed(Alternating):
        def configure_optimizers(self):
            first, second = (net.weight for net in self.nets.values())
            return [torch.optim.SGD([p], lr=0.1) for p in (second, first)]

    class Flat(Mixed):
        def __init__(self):
            super().__init__()
            self.u, self.v = (nn.Parameter(torch.ones(1, 2)) for _ in "uv")

        def configure_optimizers(self):
            return [torch.optim.SGD([p], lr=0.1) for p in (self.u, self.v)]

    loss = lambda module, batch: module.u.square().sum() + module.v.square().sum()  # noqa: E731
    parts = lambda trainer: {tag.split("/")[1] for tag in logged(trainer)} - {"seconds"}  # noqa: E731
    monitor = watching(2, loss_fn=loss, directions="gradient")
    assert parts(run(Mixed(), watching(2, loss_fn=bowls))) == {"nets.a", "nets.b"}
    assert parts(run(Flat(), monitor, batches=2)) == {"0", "1"}


def test_manual_optimisation_needs_a_loss_function():
    with pytest.raises(ValueError, match="`loss_fn` is needed"):
        run(Alternating(), GradientBreakdownMonitor())


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"directions": "update"}, 1 + 5),
        ({"directions": "gradient"}, 1 + 7),
        ({"directions": ("update", "gradient", "random")}, 1 + 5 + 7 + 7),
        ({"etas": [0.5, 1.0]}, 1 + 2 + 2),
        ({"etas": {"update": [1.0]}}, 1 + 1 + 7),
    ],
    ids=str,
)
def test_a_probe_costs_what_it_says_and_three_evaluations_to_learn_from(options, n):
    monitor = GradientBreakdownMonitor(every_n_steps=2, on_error="raise", **options)
    run(Bowl(lr=0.01), monitor, batches=3)
    assert monitor.n_evaluations == n
    assert len(CALLS) == 3 + n + 3


def test_all_optimizers_share_the_start_and_the_announced_cost(caplog):
    calls = []
    counted = lambda module, batch: (calls.append(1), bowls(module, batch))[1]  # noqa: E731
    with caplog.at_level("INFO"):
        run(Alternating(), watching(2, loss_fn=counted), batches=2)
    assert len(calls) == 1 + 2 * 5 + 3
    assert "GradientBreakdownMonitor: one probe = 11 evaluations" in caplog.text


def test_at_an_evaluation_seven_copies_of_the_weights_are_held_at_most():
    # the weights and their gradient, which training has, the weights before the step and after it,
    # the step, a direction, and the gradient where it starts
    counts = []

    class Counting(LargeBowl):
        def training_step(self, batch, batch_idx):
            counts.append(n_held(self.weight.numel()))
            return super().training_step(batch, batch_idx)

    monitor = GradientBreakdownMonitor(every_n_steps=2, on_error="raise")
    run(Counting(1021), monitor, batches=4)
    assert monitor.history
    assert max(counts) == 7


def n_held(numel):
    """Return in how many places Python holds as many numbers."""
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    return len({t.untyped_storage().data_ptr() for t in tensors if t.numel() == numel})


def test_a_probe_over_the_budget_is_left_out():
    trainer = run(Bowl(lr=0.01), watching(max_overhead=1e-6))
    assert logged(trainer) == {}
    assert trainer.global_step == 4


def test_nothing_is_kept_for_a_probe_that_the_budget_will_not_allow():
    counting = CountsCopies()
    run(LargeBowl(1019), counting, watching(max_overhead=1e-6), batches=4)
    assert counting.n_held == [1, 0, 0, 0]  # before the first step nothing tells what one takes


def test_every_hundredth_step_is_probed_within_the_automatic_budget():
    monitor = GradientBreakdownMonitor(on_error="raise")
    run(Bowl(lr=0.01), monitor, batches=1)
    assert monitor.budget.share == 0.05
    assert str(monitor.schedule) == "every 100 steps"


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 3),
        ({"max_epochs": 2}, 7),
        ({"max_epochs": 9, "max_steps": 6}, 5),
        ({"accumulate_grad_batches": 2}, 1),
        ({"accumulate_grad_batches": 3}, 1),
        ({"limit_train_batches": 2}, 1),
    ],
    ids=str,
)
def test_by_default_a_fit_does_not_end_without_a_measured_step(options, step):
    monitor = GradientBreakdownMonitor(on_error="raise")
    run(Bowl(lr=0.01), monitor, **options)
    assert [steps for steps, _ in monitor.history["update"]] == [step]
    near_twice = pytest.approx(2 / 2)  # the critical rate of a bowl is 2 over its curvature
    rates = [report.critical_rate for report in monitor.last if report.direction == "update"]
    assert rates == [near_twice] or rates == [math.inf]


@pytest.mark.parametrize(
    ("monitor", "options"),
    [
        (lambda: GradientBreakdownMonitor(every_n_steps=100), {}),  # as it was told to
        (lambda: GradientBreakdownMonitor(), {"max_epochs": -1, "max_time": "00:00:00:01"}),
    ],
    ids=["own schedule", "no end in sight"],
)
def test_a_step_that_is_not_due_is_measured_at_a_known_end_alone(monitor, options):
    monitor = monitor()
    run(Bowl(lr=0.01), monitor, batches=2, **options)
    steps = [step for step, _ in monitor.history.get("update", [])]
    assert all((step + 1) % 100 == 0 for step in steps)


def test_measuring_the_last_step_leaves_training_as_it_was():
    monitor = GradientBreakdownMonitor(on_error="raise")
    assert differences(fit([]), fit([monitor])) == []
    assert monitor.history


# --- failures -----------------------------------------------------------------------------------


def test_a_probe_that_fails_costs_one_warning_and_never_the_training():
    def broken(module, batch):
        raise RuntimeError("no such kernel")

    plain, watched = Bowl(lr=0.01), Bowl(lr=0.01)
    run(plain)
    with pytest.warns(UserWarning, match="probe of GradientBreakdownMonitor failed.*no such") as w:
        run(watched, watching(loss_fn=broken, on_error="warn"))
    assert len([1 for one in w if "failed" in str(one.message)]) == 1
    assert torch.equal(plain.weight, watched.weight)


def test_a_batch_that_cannot_be_kept_costs_one_warning_too():
    class Odd(Bowl):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.x, batch_idx)

    class Uncopyable:
        def __init__(self, x):
            self.x = x

        def __deepcopy__(self, memo):
            raise TypeError("not to be copied")

    with pytest.warns(UserWarning, match=r"Keeping.* failed.*not to be copied"):
        trainer = run(Odd(lr=0.01), watching(on_error="warn"), batches=[Uncopyable(torch.ones(2))])
    assert trainer.global_step == 1


def test_losses_that_are_not_finite_are_reported_as_they_are(found):
    class Cliff(Bowl):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + torch.where(self.weight.sum() < 3, math.inf, 0.0)

    values = logged(run(Cliff(lr=0.1), watching(), batches=1))
    assert not found[0][0].loss[-1].isfinite()
    assert math.isfinite(values["breakdown/update/descent_limit"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "updates"}, r"`directions` must be some of .*'update'.* Got \['updates'\]"),
        ({"directions": ()}, "`directions` must be some of"),
        ({"directions": ("update", "update")}, "each once"),
        ({"etas": [1.0, 0.5]}, "`etas` must be at least one finite step"),
        ({"etas": []}, "`etas` must be at least one finite step"),
        ({"etas": {"random": [1.0]}}, r"`etas` must be for some of .* Got \['random'\]"),
        ({"every_n_steps": 1, "every_n_epochs": 1}, "exclude each other"),
        ({"max_overhead": 2.0}, "`max_overhead`"),
        ({"mode": "test"}, "`mode`"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        GradientBreakdownMonitor(**options)


# --- where it goes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    logger = TensorBoardLogger(folder, name="", version="")
    monitor = GradientBreakdownMonitor(
        every_n_steps=2, on_error="raise", layers=True, details=True, figures="all"
    )
    run(Bowl(lr=0.05), monitor, batches=4, logger=logger, log_every_n_steps=1)
    logger.finalize("success")
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    return folder, events


@pytest.mark.tried("loggers", "TensorBoard: every tag of GradientBreakdownMonitor")
def test_tensorboard_has_every_tag_of_the_table_and_no_other(written):
    _, events = written
    tags = events.Tags()
    scalars = {tag for tag in tags["scalars"] if tag.startswith("breakdown/")}
    names = ["max", "model", "excess", "descent_limit", "break_even", "trust_lr", "layer/weight"]
    sizes = ["relative_update", "relative_gradient", "weight_gradient_cosine", "successive_cosine"]
    assert scalars == {
        "breakdown/seconds",
        *(f"breakdown/{direction}/{n}" for direction in ("update", "gradient") for n in names),
        "breakdown/update/critical_rate",
        "breakdown/update/learning_rate",
        *(f"breakdown/step/{n}" for n in sizes),
    }
    assert set(tags["images"]) == {
        f"breakdown/{history}{direction}"
        for history in ("", "history/")
        for direction in ("update", "gradient")
    }
    assert [row.step for row in events.Scalars("breakdown/update/max")] == [1, 3]


def test_tensorboard_says_it_in_words_with_a_table_of_the_layers(written):
    _, events = written
    row = events.Tensors("breakdown/update/summary/text_summary")[-1]
    text = row.tensor_proto.string_val[0].decode()
    assert "times the step that was made (descent limit)" in text or "still falls" in text
    assert "deep relative trust (model)" in text
    assert "The cosine between this step and the one before is" in text
    head, rule, line = text.split("\n\n")[1].splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == 6
    assert line.startswith("| `weight` |")


def test_all_that_was_measured_lies_beside_as_arrays(written):
    folder, _ = written
    with np.load(folder / "landscape" / "breakdown-step=3.npz") as found:
        arrays = {name.removeprefix("update/"): found[name] for name in found.files}
        assert arrays["names"].tolist() == ["weight"]
        assert arrays["etas"].tolist() == list(DEFAULT_ETAS["update"])
        assert arrays["breakdown"].shape == (1, 5)
        assert arrays["step_weight_gradient_cosine"] == near(1.0)
        assert arrays["dead"].tolist() == []
        assert int(arrays["step"]) == 3


def test_steps_that_overshoot_a_bowl_are_said_to_undo_each_other():
    ones = [torch.ones(2)] * 9
    monitor = watching()
    run(Bowl(lr=0.75), monitor, batches=ones)  # beyond the bottom each time: W <- -W / 2
    assert "Successive steps undo each other (median cosine -1 [-1, -1], of 8)" in monitor.summary()
    resumed = watching()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.state_dict() == monitor.state_dict()


def test_the_history_goes_on_after_a_restart(tmp_path):
    first, second = watching(), watching()
    run(Bowl(lr=0.01), first, batches=2).save_checkpoint(tmp_path / "some.ckpt")
    run(Bowl(lr=0.01), second, batches=2, max_epochs=2, ckpt_path=tmp_path / "some.ckpt")
    assert [step for step, _ in second.history["update"]] == [0, 1, 2, 3]
    assert second.n_steps == 4
