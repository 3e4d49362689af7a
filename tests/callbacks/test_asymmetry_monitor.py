"""What the monitor logs, when, what it costs, and what it says to settings that cannot work."""

import itertools
import logging
import math

import pytest
import torch
from hostile import GAN, gan_loss
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader
from toys import CALLS, AllRows, Classifier, Data, Plain, Rows, Samples, train

from lightning_landscape import (
    SWA,
    AsymmetryMonitor,
    difference,
    evaluate_slice,
    line_grid,
    load_slices,
    probing,
    sample_direction,
    score_asymmetry,
)
from lightning_landscape.engine.batches import keep_batch
from lightning_landscape.measures.directions import direction_generator
from lightning_landscape.reporting.output import Output

SMALL = {"n_directions": 2, "n_points": 5, "n_batches": 2, "on_error": "raise"}


class Unvalidated(Classifier):
    validation_step = LightningModule.validation_step


def batches_of(size):
    data = Data()
    data.batch_size = size
    return data


def steps_of(trainer, name):
    return [step for step, row in trainer.logger.rows if name in row]


# -- when ------------------------------------------------------------------------------------------


def test_it_probes_after_every_epoch_at_the_step_of_the_users_scalars():
    _, trainer = train(AsymmetryMonitor(every_n_epochs=1, **SMALL), logger=AllRows())
    assert steps_of(trainer, "landscape/gaussian/area") == [5, 11]  # the last weights once
    assert set(steps_of(trainer, "landscape/gaussian/area")) <= set(steps_of(trainer, "train_loss"))


def test_it_probes_after_every_third_step():
    _, trainer = train(AsymmetryMonitor(every_n_steps=3, **SMALL), logger=AllRows())
    # after the steps 3, 6, 9, 12, which Lightning counts from 0
    assert steps_of(trainer, "landscape/gaussian/area") == [2, 5, 8, 11]
    assert set(steps_of(trainer, "train_loss")) >= {2, 5, 8, 11}


def test_an_accumulation_window_is_one_step():
    monitor = AsymmetryMonitor(every_n_steps=2, **SMALL)
    train(monitor, accumulate_grad_batches=3, max_epochs=2)
    assert monitor.n_steps == 4


@pytest.mark.tried("configuration", "fast_dev_run: one probe, nothing written")
def test_in_a_fast_development_run_it_probes_once_and_writes_nothing(tmp_path):
    monitor = AsymmetryMonitor(every_n_epochs=100, **SMALL)
    _, trainer = train(monitor, fast_dev_run=2, default_root_dir=tmp_path)
    assert "landscape/gaussian/area" in trainer.callback_metrics
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tried("configuration", "Trainer.validate: AsymmetryMonitor does nothing")
def test_outside_of_fit_it_does_nothing():
    monitor = AsymmetryMonitor(**SMALL)
    module, trainer = train(monitor)
    before = len(CALLS)
    trainer.validate(module, DataLoader(Samples(12), batch_size=4), verbose=False)
    assert len(CALLS) == before


def slow(monkeypatch, clock, *, step=0.01, batch=0.0):
    """Let each pass through the step, and each batch before it, take so many seconds."""
    for name, seconds in (("training_step", step), ("on_train_batch_start", batch)):
        monkeypatch.setattr(Classifier, name, clock.taking(seconds, getattr(Classifier, name)))


# 3 families of 2 directions of 5 points, on 2 batches; 2 evaluations more before them
SMALL_PASSES = 2 * (3 * 2 * 5 + 2)


def test_without_a_frequency_it_probes_as_often_as_the_budget_affords(monkeypatch, clock):
    slow(monkeypatch, clock, step=0.01, batch=0.99)  # a second a batch, six in an epoch
    _, trainer = train(AsymmetryMonitor(**SMALL), logger=AllRows(), max_epochs=30)
    # .64 s a probe at 5 %: every 12.2 s of training, so after two epochs of 6 s, or a little later
    steps = steps_of(trainer, "landscape/gaussian/area")
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert len(steps) >= 7
    assert all(12 <= gap <= 18 for gap in gaps[:-1]), gaps
    assert steps[-1] == 179
    last = 0.01 * SMALL_PASSES / clock.now
    assert trainer.callback_metrics["landscape/overhead"] <= 0.05 + last


def test_within_a_long_epoch_it_asks_the_budget_every_fifty_steps(monkeypatch, clock):
    slow(monkeypatch, clock, step=0.01, batch=0.99)
    monitor, data = AsymmetryMonitor(**SMALL), DataLoader(Samples(800), batch_size=2)
    _, trainer = train(monitor, module=Unvalidated, data=data, max_epochs=1, logger=AllRows())
    steps = steps_of(trainer, "landscape/gaussian/area")
    # the first when a step has told that opening is affordable
    assert steps == [*range(99, 400, 50)]


def test_monitors_without_a_frequency_share_the_automatic_budget(monkeypatch, clock):
    slow(monkeypatch, clock, step=0.01, batch=0.99)
    monitors = [AsymmetryMonitor(**SMALL), AsymmetryMonitor(name="second", **SMALL)]
    train(*monitors, max_epochs=30)
    assert [monitor.budget.share for monitor in monitors] == [0.025, 0.025]
    # each may have probed the last weights over its budget
    assert sum(m.budget.total() for m in monitors) <= 0.05 * clock.now + 2 * 0.01 * SMALL_PASSES


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.05),
        ({"every_n_epochs": 1}, None),
        ({"every_n_steps": 1}, None),
        ({"max_overhead": 0.3}, 0.3),
        ({"max_overhead": 0.3, "every_n_steps": 1}, 0.3),
        ({"max_overhead": None}, None),
    ],
    ids=str,
)
def test_the_automatic_budget_is_for_monitors_without_a_frequency(options, share):
    monitor = AsymmetryMonitor(**options, **SMALL)
    train(monitor, max_epochs=1, limit_train_batches=1)
    assert monitor.budget.share == share


def test_without_a_limit_and_without_a_frequency_it_probes_every_epoch():
    assert str(AsymmetryMonitor(max_overhead=None).schedule) == "every epoch"


def test_a_budget_leaves_probes_out_and_says_so(monkeypatch, clock, caplog):
    caplog.set_level(logging.INFO)
    slow(monkeypatch, clock, step=0.01)
    held = AsymmetryMonitor(every_n_epochs=1, max_overhead=0.01, **SMALL)
    _, trainer = train(held, logger=AllRows(), max_epochs=3)
    assert steps_of(trainer, "landscape/overhead") == [17]  # the last weights
    assert "3 probes were left out to stay within 1 % of the time; one takes about" in caplog.text


def test_before_the_first_probe_a_step_tells_what_one_takes(monkeypatch, clock):
    slow(monkeypatch, clock, step=0.01)
    opened = []
    monitor = AsymmetryMonitor(every_n_epochs=1, max_overhead=0.01, **SMALL)
    monkeypatch.setattr(monitor, "opened", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(TypeError):  # the probe of the last weights, which is always opened
        train(monitor, max_epochs=2)
    assert len(opened) == 1


def test_what_a_probe_takes_is_remembered_for_the_next_fit(monkeypatch, clock):
    slow(monkeypatch, clock, step=0.01)
    monitor = AsymmetryMonitor(**SMALL)
    module, _ = train(monitor, max_epochs=1)
    known = dict(monitor.budget.expected)
    train(monitor, module=module, max_epochs=0)
    assert monitor.budget.expected == known
    assert known["evaluation"] == pytest.approx(0.01 * SMALL_PASSES / 32)
    train(monitor, max_epochs=0)  # another module
    assert monitor.budget.expected == {}


# -- the last weights ------------------------------------------------------------------------------


class Stop(Callback):
    """Ends the fit after the tenth batch, in one way or another."""

    def __init__(self, way):
        self.way = way

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 10:
            self.way(trainer)


def should_stop(trainer):
    trainer.should_stop = True


@pytest.mark.tried("configuration", "the last weights of a fit are probed, however it ends")
@pytest.mark.parametrize(
    ("options", "callbacks", "last"),
    [
        ({"max_epochs": 2}, [], 11),
        ({"max_epochs": -1, "max_steps": 8}, [], 7),
        ({"max_epochs": 9}, [lambda: Stop(should_stop)], 9),
        ({"max_epochs": 9}, [lambda: EarlyStopping("val_loss", patience=1, min_delta=9.0)], 11),
        ({"max_epochs": 2, "limit_train_batches": 4}, [], 7),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, [], 3),
    ],
    ids=["max_epochs", "max_steps", "should_stop", "EarlyStopping", "limited", "accumulation"],
)
@pytest.mark.parametrize(
    "schedule", [{}, {"every_n_steps": 1000}, {"every_n_epochs": 100}], ids=str
)
def test_the_last_weights_are_probed_however_a_fit_ends(options, callbacks, last, schedule):
    seen = []

    class Last(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append([p.detach().clone() for p in pl_module.parameters()])

    monitor = AsymmetryMonitor(**schedule, **SMALL)
    module, trainer = train(
        monitor, *(make() for make in callbacks), Last(), logger=AllRows(), **options
    )
    assert steps_of(trainer, "landscape/gaussian/area")[-1] == last
    assert steps_of(trainer, "train_loss")[-1] == last
    assert all(map(torch.equal, seen[0], module.parameters()))


@pytest.mark.tried("configuration", "Ctrl-C: the weights it leaves are not probed")
def test_after_an_interrupt_nothing_is_probed():
    def interrupt(trainer):
        raise KeyboardInterrupt

    monitor = AsymmetryMonitor(**SMALL)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(monitor, Stop(interrupt), max_epochs=9)
    assert monitor.history == {}


def test_a_last_probe_that_takes_too_long_takes_fewer_directions(monkeypatch, clock, caplog):
    caplog.set_level(logging.INFO)
    slow(monkeypatch, clock, step=0.1)
    # 3 x 8 x 5 evaluations of .2 s, and 24 s: ten seconds are enough for 3.3 directions
    monitor = AsymmetryMonitor(**{**SMALL, "n_directions": 8})
    _, trainer = train(monitor, max_epochs=1)
    assert "takes 3 of 8 directions; a whole one would take about" in caplog.text
    assert trainer.callback_metrics["landscape/seconds"] < 10
    rate = trainer.callback_metrics["landscape/gaussian/rate"]
    assert min(abs(rate - k / 3) for k in range(4)) < 1e-6


def test_a_monitor_of_two_directions_never_takes_three(monkeypatch, clock):
    slow(monkeypatch, clock, step=10.0)
    _, trainer = train(AsymmetryMonitor(**SMALL), max_epochs=1, logger=AllRows())
    assert steps_of(trainer, "landscape/gaussian/area") == [5]


def test_without_a_limit_the_last_probe_is_whole(monkeypatch, clock):
    slow(monkeypatch, clock, step=10.0)
    monitor = AsymmetryMonitor(every_n_epochs=7, **{**SMALL, "n_directions": 4})
    train(monitor, max_epochs=1)
    assert monitor.budget.spent["probe"] == pytest.approx(10 * 2 * (3 * 4 * 5 + 2))


# -- figures ---------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The tags and steps of the figures that some logger got."""
    shown = []

    def figure(output, tag, make):
        if output.plots:
            shown.append((tag, output.step))

    monkeypatch.setattr(Output, "figure", figure)
    return shown


@pytest.mark.parametrize(
    ("which", "logger", "steps"),
    [
        ("last", TensorBoardLogger, {11}),
        ("last", CSVLogger, {5, 11}),
        ("all", TensorBoardLogger, {5, 11}),
        (False, TensorBoardLogger, set()),
        (False, CSVLogger, set()),
    ],
)
def test_tensorboard_gets_the_figures_of_the_last_probe(which, logger, steps, figures, tmp_path):
    monitor = AsymmetryMonitor(every_n_epochs=1, figures=which, **SMALL)
    train(monitor, logger=logger(tmp_path, name=""))
    assert {step for _, step in figures} == steps
    n_figures = 6 * len(steps)  # slices and history of three families
    assert len(figures) == n_figures


def test_under_a_budget_figures_take_at_most_as_much_time_as_probes(
    monkeypatch, clock, caplog, tmp_path
):
    caplog.set_level(logging.INFO)
    slow(monkeypatch, clock, step=0.001, batch=0.1)
    monkeypatch.setattr(Output, "figure", clock.taking(0.3, lambda *args: None))
    monitor = AsymmetryMonitor(
        every_n_steps=1,
        families="gaussian",
        max_overhead=0.05,
        figures="all",
        **{**SMALL, "n_batches": 1},
    )
    train(monitor, logger=CSVLogger(tmp_path, name=""), max_epochs=60)
    spent = monitor.budget.spent
    assert spent["figures"] <= spent["probe"] + 2 * 0.3
    assert monitor.budget.overhead() <= 0.051  # the last weights are probed whatever is left
    assert "probes without figures, to stay within 5 % of the time" in caplog.text


def test_a_schedule_longer_than_the_fit_is_said_to_be(caplog):
    caplog.set_level(logging.INFO)
    train(AsymmetryMonitor(every_n_steps=1000, **SMALL))
    assert "no probe was due, the fit was shorter than every 1000 steps" in caplog.text


# -- what ------------------------------------------------------------------------------------------


def test_one_probe_costs_exactly_what_it_says():
    monitor = AsymmetryMonitor(n_directions=2, n_points=9, n_batches=2, on_error="raise")
    train(max_epochs=1)
    plain = len(CALLS)
    train(monitor, max_epochs=1)
    assert monitor.n_evaluations == 3 * 2 * 9
    # an evaluation is a pass over two batches; two evaluations more to learn from
    assert len(CALLS) - plain == 2 * (monitor.n_evaluations + 2)


def test_the_cost_is_said_before_the_first_probe(caplog):
    with caplog.at_level(logging.INFO):
        train(AsymmetryMonitor(every_n_epochs=1, **SMALL))
    lines = [r.getMessage() for r in caplog.records if "one probe" in r.getMessage()]
    assert len(lines) == 1
    assert "one probe = 30 evaluations, about" in lines[0]
    assert "every epoch of about" in lines[0]


class Measure(Callback):
    """Measures by hand what the monitor measures, at the same moment."""

    def __init__(self, batches, mode):
        self.batches, self.mode, self.area = batches, mode, None

    def on_train_epoch_end(self, trainer, pl_module):
        with probing(pl_module, self.batches, mode=self.mode, seed=3) as objective:
            scores = []
            for k in range(2):
                direction = sample_direction(
                    objective.params,
                    "uniform@norm",
                    module=pl_module,
                    generator=direction_generator(3, "uniform@norm", k),
                )
                alphas = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
                scores.append(score_asymmetry(evaluate_slice(objective, direction, alphas)).area)
        self.area = sum(scores) / 2  # the median of two


@pytest.mark.parametrize("mode", ["train", "eval", "recalibrated"])
def test_the_number_logged_is_the_number_measured_by_hand(mode):
    loader = DataLoader(Samples(noise=0), batch_size=6)
    by_hand = Measure(list(loader)[:2], mode)
    monitor = AsymmetryMonitor(
        families=("uniform@norm",),
        n_directions=2,
        n_points=5,
        radius=0.5,
        n_batches=2,
        mode=mode,
        seed=3,
        on_error="raise",
    )
    _, trainer = train(monitor, by_hand, module=Unvalidated, data=loader, max_epochs=1)
    assert float(trainer.callback_metrics["landscape/uniform-norm/area"]) == pytest.approx(
        by_hand.area, rel=1e-6
    )


def test_a_network_without_norms_leaves_that_family_out_with_one_line(caplog):
    with caplog.at_level(logging.INFO):
        _, trainer = train(
            AsymmetryMonitor(every_n_epochs=1, **SMALL), module=Plain, logger=AllRows()
        )
    lines = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
    assert len(lines) == 1
    assert "'uniform@norm'" in lines[0]
    assert steps_of(trainer, "landscape/uniform-norm/area") == []
    assert steps_of(trainer, "landscape/sign/area") == [5, 11]


def test_the_line_to_the_average_is_that_of_the_weights_at_hand():
    swa = SWA(0, validate=False)
    seen = {}

    class ByHand(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            batches = [kept.data for kept in monitor.kept.train]
            with probing(pl_module, batches) as objective:
                line = evaluate_slice(
                    objective, difference(swa.weights, objective.params), line_grid(4.0)
                )
            at = {round(t, 9): i for i, t in enumerate(line.alphas.tolist())}
            seen["gap"] = float(line.mean[at[1.0]] - line.mean[at[0.0]])
            seen["distance"] = line.distance

    monitor = AsymmetryMonitor(swa=swa, **SMALL)
    _, trainer = train(swa, monitor, ByHand())
    for name, value in seen.items():
        assert float(trainer.callback_metrics[f"landscape/swa/{name}"]) == pytest.approx(value)


def test_train_and_validation_batches_are_told_apart(tmp_path):
    swa = SWA(0, validate=False)
    monitor = AsymmetryMonitor(swa=swa, validation=True, **SMALL)
    logger = TensorBoardLogger(tmp_path, name="")
    _, trainer = train(swa, monitor, logger=logger)
    found = {}
    for line in load_slices(f"{logger.log_dir}/landscape/landscape-step=11.npz"):
        found.setdefault(line.label, []).append(line.losses)
    for kind, n in (("gaussian", 2), ("swa", 1)):
        assert len(found[kind]) == len(found[f"{kind}, validation"]) == n
    assert all(loss.shape == (5, 2) for loss in found["gaussian"])  # points, batches
    assert not torch.equal(found["gaussian"][0], found["gaussian, validation"][0])
    metrics = trainer.callback_metrics
    shift = metrics["landscape/swa/val/minimum"] - metrics["landscape/swa/minimum"]
    assert float(metrics["landscape/swa/shift"]) == pytest.approx(float(shift), nan_ok=True)


def test_no_validation_batch_is_kept_twice_where_there_are_few():
    monitor = AsymmetryMonitor(validation=True, every_n_epochs=1, **{**SMALL, "n_batches": 5})
    train(monitor, max_epochs=4)
    assert len(monitor.kept.validation) == 2  # twelve samples in batches of six


@pytest.mark.parametrize(("batch_size", "n_kept"), [(36, 1), (18, 2), (6, 5)])
def test_no_sample_is_kept_twice_where_there_are_few_batches(batch_size, n_kept):
    monitor = AsymmetryMonitor(every_n_epochs=4, **{**SMALL, "n_batches": 5})
    train(monitor, max_epochs=4, data=batches_of(batch_size))  # of 36 samples, shuffled each epoch
    assert len(monitor.kept.train) == n_kept
    if n_kept == 1:  # the samples again in another order would seem to leave no error
        assert "1 batch is too few to tell a difference from noise" in monitor.summary()


def test_without_validation_batches_it_says_so_and_probes_on_training_ones(caplog):
    caplog.set_level(logging.INFO)
    monitor = AsymmetryMonitor(validation=True, every_n_steps=2, **SMALL)
    _, trainer = train(monitor, num_sanity_val_steps=0, max_epochs=1)
    assert caplog.text.count("no validation batch was seen yet") == 1
    assert "landscape/gaussian/area" in trainer.callback_metrics


def test_a_gan_is_probed_through_its_loss_fn():
    monitor = AsymmetryMonitor(loss_fn=gan_loss, families=("gaussian@generator.*",), **SMALL)
    _, trainer = train(monitor, module=GAN, data=DataLoader(Samples(), batch_size=6))
    assert math.isfinite(trainer.callback_metrics["landscape/gaussian-generator.*/area"])


# -- where -----------------------------------------------------------------------------------------


@pytest.mark.tried("loggers", "TensorBoard: every scalar and figure of AsymmetryMonitor and SWA")
def test_tensorboard_shows_the_scalars_and_the_figures(tmp_path):
    swa = SWA(0)
    monitor = AsymmetryMonitor(
        every_n_epochs=1, swa=swa, validation=True, details=True, figures="all", **SMALL
    )
    logger = TensorBoardLogger(tmp_path, name="")
    train(swa, monitor, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    for family in ("gaussian", "uniform-norm", "sign"):
        for name in ("rate", "rate_low", "rate_high", "area", "area_corrected", "ratio"):
            assert [e.step for e in events.Scalars(f"landscape/{family}/{name}")] == [5, 11]
        for figure in (f"landscape/{family}", f"landscape/history/{family}"):
            assert [e.step for e in events.Images(figure)] == [5, 11]
    assert "landscape/swa/line" in tags["images"]
    for name in ("distance", "gap", "minimum", "barrier", "outward_ratio"):
        assert f"landscape/swa/{name}" in tags["scalars"]
        assert f"landscape/swa/val/{name}" in tags["scalars"]
    assert {"landscape/seconds", "landscape/overhead", "landscape/swa/shift"} <= {*tags["scalars"]}
    assert {"swa/val_loss", "swa/n_averaged"} <= {*tags["scalars"]}


@pytest.mark.tried("configuration", "Trainer.fit(ckpt_path=...): the history goes on")
def test_history_goes_on_after_a_restart(tmp_path):
    first, second = (AsymmetryMonitor(every_n_epochs=1, **SMALL) for _ in range(2))
    module, trainer = train(first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    train(second, module=module, max_epochs=3, ckpt_path=tmp_path / "some.ckpt")
    assert [step for step, _ in second.history["gaussian"]] == [5, 11, 17]
    assert second.n_steps == 18


# -- failures --------------------------------------------------------------------------------------


def failing(module, batch):
    raise ZeroDivisionError("by me")


def test_a_step_that_stops_the_training_does_not_stop_it_in_a_probe():
    class Stopping(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if loss > 2.5:  # reached at radius 5, not in training
                self.trainer.should_stop = True
            return loss

    _, trainer = train(AsymmetryMonitor(radius=5.0, **SMALL), module=Stopping, max_epochs=3)
    assert trainer.current_epoch == 3


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.tried("steps", "None at the first batch of a fit")
def test_a_batch_that_the_step_skips_is_not_kept():
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 0 else loss

    monitor = AsymmetryMonitor(**SMALL)
    train(monitor, module=Skipping)
    assert [kept.index for kept in monitor.kept.train] == [1, 2]


@pytest.mark.tried("steps", "norm layers that freeze from the second epoch on")
def test_a_family_whose_parameters_freeze_is_left_out_while_they_are():
    class Freezing(Classifier):
        def on_train_epoch_start(self):
            self.net[1].requires_grad_(self.current_epoch == 0)

    _, trainer = train(
        AsymmetryMonitor(every_n_epochs=1, **SMALL), module=Freezing, logger=AllRows()
    )
    assert steps_of(trainer, "landscape/uniform-norm/area") == [5]
    assert steps_of(trainer, "landscape/gaussian/area") == [5, 11]


@pytest.mark.tried("configuration", "a second Trainer with the same callbacks, from step 0")
@pytest.mark.parametrize("same", [False, True])
def test_a_fit_from_step_0_begins_a_new_history(same):
    monitor = AsymmetryMonitor(**SMALL)
    module, _ = train(monitor)
    train(monitor, max_epochs=1, module=module if same else Classifier)
    assert [step for step, _ in monitor.history["gaussian"]] == [5]
    assert monitor.n_steps == 6


@pytest.mark.tried("steps", "packed sequences as batches")
def test_packed_sequences_can_be_kept():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    kept = keep_batch([], packed, 0)
    assert torch.equal(kept.data.data, packed.data)
    assert kept.data.data is not packed.data


def test_a_failing_probe_costs_one_warning_and_training_goes_on():
    monitor = AsymmetryMonitor(loss_fn=failing)
    with pytest.warns(UserWarning, match="failed: ZeroDivisionError: by me") as caught:
        _, trainer = train(monitor, max_epochs=3)
    assert trainer.current_epoch == 3
    assert len([w for w in caught if "failed" in str(w.message)]) == 1


def test_a_failing_probe_raises_where_it_is_asked_to():
    with pytest.raises(ZeroDivisionError, match="by me"):
        train(AsymmetryMonitor(loss_fn=failing, on_error="raise"))


def test_a_loss_that_is_not_finite_is_data():
    def sometimes(module, batch):
        loss = module.loss(batch)
        return loss.where(loss < 1.0, torch.inf)

    monitor = AsymmetryMonitor(loss_fn=sometimes, **SMALL)
    _, trainer = train(monitor)
    assert "landscape/gaussian/area" in trainer.callback_metrics


@pytest.mark.tried("loggers", "a logger whose `log_metrics` raises: one warning")
def test_a_logger_that_raises_costs_one_warning():
    class Broken(Rows):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("landscape") for name in metrics):
                raise OSError("disk full")

    with pytest.warns(UserWarning, match="Broken failed to log") as caught:
        _, trainer = train(AsymmetryMonitor(**SMALL), logger=Broken(), max_epochs=3)
    assert trainer.current_epoch == 3
    assert len([w for w in caught if "failed to log" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_points": 12}, r"`n_points` must be 4 k \+ 1"),
        ({"n_points": 1}, r"`n_points` must be 4 k \+ 1"),
        ({"radius": 0.0}, "`radius` must be positive"),
        ({"families": ("cauchy",)}, "`family` must be"),
        ({"families": ("gaussian", "gaussian")}, "must not repeat"),
        ({"families": ()}, "`families` must name at least one"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"loss_fn": "mine"}, "`loss_fn` must be a function"),
        ({"n_directions": 0}, "`n_directions` must be a whole number"),
        ({"n_batches": 0}, "`n_batches` must be a whole number"),
        ({"normalize": "row"}, "`normalize` must be one of"),
        ({"mode": "test"}, "`mode` must be one of"),
        ({"swa": StochasticWeightAveraging(1e-2)}, "`swa` must be a lightning_landscape.SWA"),
        ({"swa": SWA}, "`swa` must be a lightning_landscape.SWA callback, or None. Got SWA"),
        ({"on_error": "ignore"}, "`on_error` must be one of"),
        ({"max_overhead": 1.5}, "`max_overhead` must be a share"),
        ({"max_overhead": "5%"}, "`max_overhead` must be a share .* Got '5%'"),
        ({"radius": "1"}, "`radius` must be positive and finite. Got '1'"),
        ({"n_points": "13"}, "`n_points` must be 4 k .* Got '13': try 13"),
        ({"precision": "fine"}, "`precision` must be half .* Got 'fine'"),
        ({"families": [3]}, r"`families` must be a list of names.* Got \[3\]"),
        ({"families": ["sine"]}, "`families`: each `family` must be .* Got 'sine'"),
        ({"every_n_epochs": 1, "every_n_steps": 1}, "exclude each other"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be a whole number"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_bad_settings_are_refused_at_construction(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        AsymmetryMonitor(**options)
    with pytest.raises(ValueError, match=message):
        AsymmetryMonitor(**options)


@pytest.mark.parametrize(
    ("options", "module", "message"),
    [
        ({"families": ("gaussian@nothing.*",)}, Classifier, "matches none of"),
        ({}, GAN, "`loss_fn` is needed"),
        ({"swa": SWA(0)}, Classifier, "`swa` must be a callback of the same Trainer"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_what_does_not_fit_the_module_is_refused_at_the_start_of_fit(options, module, message):
    data = DataLoader(Samples(), batch_size=6) if module is GAN else Data()
    with pytest.raises(MisconfigurationException, match=message):
        train(AsymmetryMonitor(**options), module=module, data=data)
    assert CALLS == []


def test_a_batch_norm_on_single_samples_is_refused_before_the_first_step():
    class Frozen(Classifier):
        """Trains with running statistics, so that it can use single samples."""

        def on_train_epoch_start(self):
            self.net[1].eval()

    monitor = AsymmetryMonitor(mode="recalibrated", **SMALL)
    with pytest.raises(MisconfigurationException, match="batches of one sample"):
        train(monitor, module=Frozen, data=batches_of(1))
    for fine in (AsymmetryMonitor(mode="train", **SMALL), AsymmetryMonitor(mode="eval", **SMALL)):
        train(fine, module=Frozen, data=batches_of(1), max_epochs=1)
