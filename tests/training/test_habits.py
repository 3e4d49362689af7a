"""Habits of other people's modules that once disturbed a training, each in a module of its own.

They were found with the clients of `tests/clients`.
"""

from contextlib import contextmanager

import pytest
import torch
from hostile import differences, fit
from lightning.pytorch.plugins.precision import Precision
from toys import Plain

from lightning_landscape import SWA, AsymmetryMonitor


class StepsItsScheduler(Plain):
    """As Lightning recommends with manual optimisation, and scvi-tools' TOTALVI does."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def on_validation_epoch_end(self):
        self.lr_schedulers().step(self.trainer.callback_metrics["val_loss"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        # never satisfied: every step of it halves the rate
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs"
        )
        return {"optimizer": optimizer, "lr_scheduler": plateau}


class StepsItsSchedulerInTheStep(Plain):
    def training_step(self, batch, batch_idx):
        self.lr_schedulers().step()
        return self.loss(batch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": decay, "interval": "epoch", "frequency": 1000},
        }


def tensor_rate():
    return StepsItsScheduler(lr=torch.tensor(0.1))


@pytest.mark.tried("clients", "a module that steps its scheduler at the end of validation")
@pytest.mark.parametrize("module", [StepsItsScheduler, tensor_rate])
def test_a_scheduler_stepped_by_a_validation_hook_steps_once(module):
    swa = SWA(start=0)
    options = {"module": module, "max_epochs": 4}
    plain, watched = fit([], **options), fit([swa], **options)
    assert differences(plain, watched) == []
    assert swa.n_averaged == 4
    assert float(plain["optimizers"][0]["param_groups"][0]["lr"]) == pytest.approx(0.1 / 2**4)


@pytest.mark.tried("clients", "a module that steps its scheduler in its training step")
def test_a_scheduler_stepped_by_the_training_step_is_left_alone_by_probes():
    monitor = AsymmetryMonitor(every_n_steps=2, n_directions=1, n_points=5, on_error="raise")
    plain, watched = (fit(c, module=StepsItsSchedulerInTheStep) for c in ([], [monitor]))
    assert differences(plain, watched) == []
    assert monitor.n_steps == 12


class Touchy(torch.optim.lr_scheduler.ExponentialLR):
    """Cannot be loaded: nobody who left it alone may ask it to."""

    def load_state_dict(self, state_dict):
        raise AssertionError("loaded")


def test_a_scheduler_that_nobody_stepped_is_not_loaded():
    class WithTouchy(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [Touchy(optimizer, 0.9)]

    callbacks = [
        SWA(0),
        AsymmetryMonitor(every_n_epochs=1, n_directions=1, n_points=5, on_error="raise"),
    ]
    assert differences(fit([], module=WithTouchy), fit(callbacks, module=WithTouchy)) == []


def assert_invisible(module, **options):
    """Train plainly and with two of our callbacks; compare, and take home the last run."""
    few = {"n_directions": 1, "n_points": 5, "on_error": "raise", "max_overhead": None}
    callbacks = [SWA(0), AsymmetryMonitor(every_n_steps=2, families=("gaussian",), **few)]
    found = [fit(c, module=module, **options) for c in ([], callbacks)]
    assert differences(*found) == []
    assert callbacks[1].last is not None


@pytest.mark.tried("clients", "a step that gives its optimizer the parameters of a new layer")
def test_an_optimizer_has_the_groups_it_had():
    class Grows(Plain):
        def build(self):
            super().build()
            self.n_steps = 0

        def training_step(self, batch, batch_idx):
            self.n_steps += 1
            if self.n_steps == 5:  # a probe gets there before training does
                self.more = torch.nn.Linear(8, 3)
                self.optimizers().add_param_group({"params": list(self.more.parameters())})
            loss = self.loss(batch)
            return loss + self.more(batch["x"]).square().mean() if self.n_steps > 4 else loss

    assert_invisible(Grows)


@pytest.mark.tried("clients", "a validation step that sets something on its trainer")
def test_what_a_validation_step_sets_on_its_trainer_goes_back():
    class Counts(Plain):
        def validation_step(self, batch, batch_idx):
            for owner in (self.trainer, self.trainer.strategy):
                owner.n_validated = getattr(owner, "n_validated", 0) + 1
            super().validation_step(batch, batch_idx)
            metrics = self.trainer.callback_metrics
            metrics["mine"] = metrics["both"] = torch.tensor(float(self.trainer.n_validated))
            self.log("counted", float(self.trainer.strategy.n_validated))

    assert_invisible(Counts)


@pytest.mark.tried("clients", "a precision plugin that counts the steps it is entered for")
def test_a_precision_plugin_keeps_its_attributes():
    counts = []

    class Counting(Precision):
        n_entered = 0

        @contextmanager
        def train_step_context(self):
            self.n_entered += 1
            yield

        def teardown(self):
            counts.append(self.n_entered)

    assert_invisible(Plain, plugins=lambda: [Counting()])
    assert counts == [12, 12]
