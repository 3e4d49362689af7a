"""What the console says when a fit has ended."""

import logging
import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_swa_control import Validated, data
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET, Samples

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

QUESTIONS = (
    "Is this an asymmetric valley?",
    "Does averaging help?",
    "Is the step too large?",
    "What did this cost?",
)


class OneMetric(Validated):
    """Logs one validation metric, as most do."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


@pytest.fixture
def said(tmp_path, caplog):
    """Fit with some callbacks and return what Lightning's logger said."""

    def fit(*callbacks):
        torch.manual_seed(0)
        trainer = Trainer(
            max_epochs=4, callbacks=list(callbacks), default_root_dir=tmp_path, **QUIET
        )
        with caplog.at_level(logging.INFO):
            train, val = data(48), data(50)
            trainer.fit(
                Validated(), DataLoader(train, batch_size=8), DataLoader(val, batch_size=10)
            )
        return caplog.text

    return fit


def test_tensorboard_gets_at_most_25_scalars_and_charts_of_them_alone(tmp_path):
    swa, logger = SWA(0), TensorBoardLogger(tmp_path)
    monitors = [AsymmetryMonitor(swa=swa, validation=True), GradientBreakdownMonitor()]
    options = {**QUIET, "logger": logger, "log_every_n_steps": 50}
    trainer = Trainer(max_steps=200, callbacks=[swa, *monitors], **options)
    torch.manual_seed(0)
    train = DataLoader(data(48), batch_size=8)
    trainer.fit(OneMetric(), train, DataLoader(data(50), batch_size=10))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    scalars = set(events.Tags()["scalars"])
    ours = {tag for tag in scalars if tag.startswith(("landscape/", "breakdown/", "swa/"))}
    assert {"landscape/gaussian/rate", "landscape/sign/area_low", "swa/control/val_loss"} <= ours
    assert len(ours) <= 25, sorted(ours)
    charts = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"landscape/sign/area_low" in charts
    shown = {tag for tag in trainer.callback_metrics if re.search(rb"%b\W" % tag.encode(), charts)}
    assert shown <= scalars


def test_the_last_lines_answer_the_four_questions(said):
    swa = SWA(0)
    text = said(
        swa,
        AsymmetryMonitor(swa=swa, n_batches=3, every_n_epochs=4),
        GradientBreakdownMonitor(every_n_steps=8),
    )
    assert [text.count(question) for question in QUESTIONS] == [1, 1, 1, 2]


def test_an_average_that_no_monitor_follows_speaks_for_itself(said):
    assert "Does averaging help?" in said(SWA(0))


@pytest.mark.parametrize(
    "silent",
    [
        lambda: SWA(0, verbose=False),
        lambda: AsymmetryMonitor(n_batches=3, every_n_epochs=4, verbose=False),
        lambda: GradientBreakdownMonitor(every_n_steps=8, verbose=False),
    ],
)
def test_without_verbose_nothing_is_answered(said, silent):
    text = said(silent())
    assert not any(question in text for question in QUESTIONS)


def test_that_nothing_was_written_without_a_logger_is_said_once(said):
    text = said(
        AsymmetryMonitor(n_batches=3, every_n_epochs=4), GradientBreakdownMonitor(every_n_steps=8)
    )
    assert text.count("The Trainer has no logger: no page, figures or `.npz` files") == 1
    assert "use Trainer(logger=True)" in text


@pytest.mark.parametrize(
    "options", [{"verbose": False}, {"every_n_epochs": 40, "max_overhead": 1e-9}]
)
def test_who_is_silent_or_has_measured_nothing_says_nothing_of_files(options, said):
    assert "no logger" not in said(GradientBreakdownMonitor(**options))


def test_with_a_logger_nothing_is_lost(tmp_path, caplog):
    logger = TensorBoardLogger(tmp_path)
    trainer = Trainer(
        max_epochs=1, callbacks=[GradientBreakdownMonitor()], **{**QUIET, "logger": logger}
    )
    with caplog.at_level(logging.INFO):
        train, val = DataLoader(data(48), batch_size=8), DataLoader(data(50), batch_size=10)
        trainer.fit(OneMetric(), train, val)
    assert "no logger" not in caplog.text
    assert list(tmp_path.rglob("report.html"))


class TwoOptimizers(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        for net, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(batch["x"]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.a, self.b)]


def test_a_batch_on_which_two_optimizers_step_is_one_step(caplog):
    monitor = GradientBreakdownMonitor(
        every_n_steps=7, loss_fn=lambda module, batch: module.a(batch["x"]).square().mean()
    )
    trainer = Trainer(max_steps=10, callbacks=[monitor], **QUIET)
    with caplog.at_level(logging.INFO):
        trainer.fit(TwoOptimizers(), DataLoader(Samples(), batch_size=4))
    assert trainer.global_step == 10
    said = "shorter than every 7 steps (5 so far: batches on which an optimizer stepped, each"
    assert said in caplog.text


def test_the_cost_in_a_summary_is_that_of_the_fit_however_late_it_is_asked(said):
    monitor = AsymmetryMonitor(n_batches=3, every_n_epochs=4)
    said(monitor)
    cost, overhead = monitor.summary().splitlines()[-1], monitor.budget.overhead()
    assert monitor.budget.elapsed() == monitor.budget.elapsed()
    assert cost == monitor.summary().splitlines()[-1]
    assert 0 < overhead < 1
