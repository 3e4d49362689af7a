"""The second pass: the user's own validation metrics, of the average, and nothing else moves."""

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from hostile import HostileModule, differences, fit
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from toys import QUIET, Rows, Samples

from lightning_landscape import SWA
from lightning_landscape.callbacks.swa_validation import SecondPass


class Metrics(HostileModule):
    """Logs in every way: weighted means, a metric object, from collected outputs."""

    def __init__(self):
        super().__init__()
        self.summed = torchmetrics.MeanMetric()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        batch["x"].mul_(1.5)  # mutates what the second pass must not see mutated twice
        super().validation_step(batch, batch_idx)
        self.summed.update(batch["x"].sum() * self.net[4].bias.sum())
        self.log("sum", self.net[4].bias.sum(), reduce_fx="max", on_step=True, on_epoch=True)

    def on_validation_epoch_start(self):
        self.started = [torch.zeros(())]

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self.started.append(batch["x"].sum() + self.net[0].bias.sum())

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("by_hand", self.summed.compute())
        self.log("started", torch.stack(self.started).sum())
        self.summed.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def train(swa, *callbacks, module=Metrics, n_validation=40, loaders=1, **options):
    seed_everything(0, verbose=False)
    model = module()
    trainer = Trainer(
        **{**QUIET, "max_epochs": 3, "logger": Rows(), **options},
        callbacks=[*([] if swa is None else [swa]), *callbacks],
    )
    validation = [DataLoader(Samples(n_validation, noise=0), batch_size=3) for _ in range(loaders)]
    train_loader = DataLoader(Samples(), batch_size=6, shuffle=True)
    trainer.fit(model, train_loader, validation[0] if loaders == 1 else validation)
    return model, trainer, validation


@pytest.mark.parametrize("loaders", [1, 2])
@pytest.mark.parametrize("n_validation", [3, 7, 40, 130])
def test_the_values_are_those_of_a_validation_of_the_average(n_validation, loaders):
    swa = SWA(0)
    model, trainer, validation = train(swa, n_validation=n_validation, loaders=loaders)
    ours = {
        name.removeprefix("swa/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("swa/")
    }
    assert ours.pop("n_averaged") == 3
    control = {name: ours.pop(name) for name in list(ours) if name.startswith("control/")}
    assert {name.removeprefix("control/") for name in control} == set(ours)
    judge = Trainer(**QUIET)
    with swa.averaged(model):
        judge.validate(model, validation, verbose=False)
    theirs = {name: float(value) for name, value in judge.callback_metrics.items()}
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert any("val_collected" in name for name in ours)


def test_the_last_validation_includes_the_weights_of_its_epoch():
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            if "swa/n_averaged" in trainer.callback_metrics:
                seen.append(int(trainer.callback_metrics["swa/n_averaged"]))

    train(SWA(1), Look())
    assert seen == [1, 2]


def test_training_is_bit_identical_with_plateau_and_early_stopping():
    def stopping():
        return EarlyStopping("val_loss", patience=1, min_delta=0.5)

    options = {"max_epochs": 6}
    plain = fit([stopping()], **options)
    assert differences(plain, fit([stopping(), SWA(0)], **options)) == []
    assert plain["global_step"] < 36  # it did stop early


@pytest.mark.parametrize(
    "options",
    [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"val_check_interval": 2}],
    ids=str,
)
def test_training_is_bit_identical_in_other_settings(options):
    assert differences(fit([], **options), fit([SWA(0)], **options)) == []


@pytest.mark.tried("configuration", "ModelCheckpoint(monitor=swa/val_loss)")
def test_a_checkpoint_may_follow_the_average(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="swa/val_loss", filename="best")
    train(SWA(1), checkpoint, enable_checkpointing=True)
    assert (tmp_path / "best.ckpt").exists()


def test_a_checkpoint_may_wait_for_an_average_that_never_comes(tmp_path):
    # nan is what ModelCheckpoint takes for "worse than anything"; a missing metric stops the fit
    checkpoint = ModelCheckpoint(tmp_path, monitor="swa/val_loss", filename="best")
    with pytest.warns(UserWarning, match="averaged nothing"):
        train(SWA(9), checkpoint, enable_checkpointing=True)
    assert torch.isinf(checkpoint.best_model_score)


def test_before_the_start_there_are_no_metrics():
    with pytest.warns(UserWarning, match="averaged nothing"):
        _, trainer, _ = train(SWA(9))
    assert not [name for name in trainer.callback_metrics if name.startswith("swa/")]


def test_two_averages_have_metrics_of_their_own():
    _, trainer, _ = train(SWA(0, name="early"), SWA(2, name="late"))
    metrics = trainer.callback_metrics
    assert (metrics["early/n_averaged"], metrics["late/n_averaged"]) == (3, 1)
    assert metrics["early/val_loss"] != metrics["late/val_loss"]


def test_the_logger_gets_them_at_the_step_of_the_users_own():
    class All(Rows):
        def log_metrics(self, metrics, step=None):
            self.rows.append((step, set(metrics)))

    _, trainer, _ = train(SWA(0), logger=All())
    steps = {
        name: [step for step, names in trainer.logger.rows if name in names]
        for name in ("val_loss", "swa/val_loss")
    }
    assert steps["val_loss"] == steps["swa/val_loss"] == [5, 11, 17]


@pytest.mark.tried("faults", "an average that cannot be taken or validated: one warning")
def test_a_failing_pass_costs_one_warning_and_no_training(monkeypatch):
    plain = fit([])
    calls = []

    def broken(self, *args):
        calls.append(1)
        self._module.net[4].bias.data.fill_(7.0)
        raise RuntimeError("no")

    monkeypatch.setattr(SecondPass, "_run", broken)
    with pytest.warns(UserWarning, match="could not run the average: RuntimeError: no") as caught:
        disturbed = fit([SWA(0)])
    assert differences(plain, disturbed) == []
    assert len([w for w in caught if "could not run" in str(w.message)]) == 1
    assert len(calls) == 2  # one a validation


class Swapping(HostileModule):
    """Validates weights of its own: swaps them in at the start of a validation, and out again."""

    def on_validation_epoch_start(self):
        self.live = [p.detach().clone() for p in self.net.parameters()]
        for p in self.net.parameters():
            p.data.mul_(0.5)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        for p, live in zip(self.net.parameters(), self.live, strict=True):
            p.data.copy_(live)


@pytest.mark.parametrize("first", [True, False])
def test_training_is_bit_identical_beside_a_callback_that_swaps_weights(first):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")  # from 2.6

    def callbacks(*ours):
        ema = averaging.EMAWeightAveraging(decay=0.5, use_buffers=False)
        return [*ours, ema] if first else [ema, *ours]

    assert differences(fit(callbacks()), fit(callbacks(SWA(0)))) == []


def test_training_is_bit_identical_in_a_module_that_swaps_its_weights():
    plain = fit([], module=Swapping, limit_val_batches=3)
    assert differences(plain, fit([SWA(0)], module=Swapping, limit_val_batches=3)) == []


class Satisfied(HostileModule):
    """Ends the training once some validation loss, of whatever weights, is low."""

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if self.net[4].bias.sum() != self.stopping_bias:
            self.trainer.should_stop = self.stops
        self.stops = not self.stops

    stops, stopping_bias = False, None


def test_the_average_cannot_end_the_training():
    plain = fit([], module=Satisfied, max_epochs=4)
    assert differences(plain, fit([SWA(0)], module=Satisfied, max_epochs=4)) == []


def test_early_stopping_on_an_average_that_is_not_there_yet_is_refused(tmp_path):
    callbacks = [
        ModelCheckpoint(tmp_path, monitor="swa/val_loss"),
        EarlyStopping("swa/val_loss", strict=False),
    ]
    with pytest.raises(MisconfigurationException, match="`check_finite` of EarlyStopping"):
        train(SWA(2), *callbacks, enable_checkpointing=True)


def test_a_patience_that_ends_before_the_average_begins_is_refused(tmp_path):
    def callbacks(patience):
        stopping = EarlyStopping("swa/val_loss", check_finite=False, patience=patience)
        return [ModelCheckpoint(tmp_path, monitor="swa/val_loss"), stopping]

    with pytest.raises(MisconfigurationException, match=r"`patience` of .* than 2, .* Got 2"):
        train(SWA(2), *callbacks(2), enable_checkpointing=True, max_epochs=4)
    _, trainer, _ = train(SWA(2), *callbacks(3), enable_checkpointing=True, max_epochs=4)
    assert trainer.current_epoch == 4


@pytest.mark.tried("configuration", "Trainer.validate and test: SWA does nothing")
def test_validate_and_test_outside_of_fit_are_left_alone():
    swa = SWA(0)
    model, trainer, validation = train(swa)
    trainer.callback_metrics.clear()
    result = trainer.validate(model, validation, verbose=False)
    assert not [name for row in result for name in row if name.startswith("swa/")]


def test_validation_can_be_switched_off():
    _, trainer, _ = train(SWA(0, validate=False))
    assert not [name for name in trainer.callback_metrics if name.startswith("swa/")]


def test_the_loss_agrees_with_a_forward_pass_at_the_average():
    swa = SWA(0)
    model, trainer, _ = train(swa, n_validation=24)
    data = Samples(24, noise=0)
    with swa.averaged(model.eval()), torch.no_grad():
        expected = F.cross_entropy(model.net(1.5 * data.x), data.y)
    assert float(trainer.callback_metrics["swa/val_loss"]) == pytest.approx(float(expected))
