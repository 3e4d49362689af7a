"""Modules that have a Trainer, need one, or are wrapped by Fabric."""

import pytest
import torch
import torchmetrics
from hostile import differences
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from probed import BatchNorm, Dropout, Step, direction_of, unchanged
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor, probing
from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.engine.batches import clone_batch
from lightning_landscape.measures.slices import evaluate_slice


class Logging(BatchNorm):
    """Uses its trainer in every way a step can."""

    def build(self):
        super().build()
        self.accuracy = torchmetrics.MeanMetric()
        self.stored_log = self.log

    def write(self, loss, batch):
        self.accuracy(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy)
        self.log_dict({"a": 1.0})
        self.stored_log("stored", loss.detach())
        rate = self.optimizers().param_groups[0]["lr"] + self.lr_schedulers().get_last_lr()[0]
        assert self.logger is None or self.logger.experiment is not None
        return loss * (1 + self.trainer.current_epoch + rate)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch).mean())

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def loader(module):
    return DataLoader(torch.cat(module.inputs()), batch_size=6)


@pytest.mark.parametrize("logs", [False, True])
def test_after_fit_the_step_still_has_its_trainer(logs, tmp_path):
    module = Logging()
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1) if logs else False
    trainer = Trainer(max_epochs=2, **{**QUIET, "logger": logger})
    trainer.fit(module, loader(module), loader(module))
    metrics = dict(trainer.callback_metrics)
    rows = [file.read_text() for file in tmp_path.rglob("metrics.csv")]
    assert len(rows) == logs
    with unchanged(module), probing(module, module.inputs()) as objective:
        value = objective.losses(direction_of(module), 0.5)
        objective.gradient(direction_of(module), 1.0)
        assert objective.losses(direction_of(module), 0.5).equal(value)
    assert differences(metrics, dict(trainer.callback_metrics)) == []
    assert "log" not in vars(module)
    if logs:
        trainer.logger.save()
    assert rows == [file.read_text() for file in tmp_path.rglob("metrics.csv")]
    trainer.validate(module, loader(module), verbose=False)


def test_a_probe_inside_a_validation_gives_the_same_numbers():
    class Probing(BatchNorm):
        def validation_step(self, batch, batch_idx):
            assert torch.is_inference_mode_enabled()
            with unchanged(self), probing(self, [batch]) as objective:
                value = objective.gradient(direction_of(self), 0.5)
            VALUES.append(value)

    VALUES = []
    module = Probing()
    with probing(module, module.inputs()[:1]) as objective:
        expected = objective.gradient(direction_of(module), 0.5)
    trainer = Trainer(**QUIET)
    trainer.validate(module, DataLoader(module.inputs()[0], batch_size=6), verbose=False)
    assert differences(VALUES, [expected]) == []


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_numbers_are_those_of_training(precision):
    class Recorded(BatchNorm):
        def on_train_batch_start(self, batch, batch_idx):
            with probing(self, [clone_batch(batch)]) as objective:
                probed = objective.gradient()
            self.probed = probed

        def on_after_backward(self):
            RECORDS.append((self.probed[0].item(), self.probed[1], self.gradients()))

        def write(self, loss, batch):
            self.last = super().write(loss, batch)
            RECORDED_LOSSES.append(self.last.item())
            return self.last

        def gradients(self):
            return {name: p.grad.clone() for name, p in self.named_parameters()}

    RECORDS, RECORDED_LOSSES = [], []
    module = Recorded()
    trainer = Trainer(max_epochs=1, precision=precision, **QUIET)
    data = torch.cat(module.inputs())
    data = data.double() if precision == "64-true" else data
    trainer.fit(module, DataLoader(data, batch_size=6))
    trained = [RECORDED_LOSSES[i] for i in range(3, len(RECORDED_LOSSES), 4)]
    assert len(trained) == len(RECORDS) == 2
    assert [probed for probed, _, _ in RECORDS] == trained
    for _, probed, real in RECORDS:
        assert differences(probed, real) == []


def test_a_measurement_in_fit_can_be_repeated_after_it(tmp_path):
    class Kept(Dropout):
        def write(self, loss, batch):
            return loss * (1 + torch.rand(()))

    monitor = AsymmetryMonitor(
        every_n_epochs=1,
        families=("gaussian",),
        n_directions=1,
        n_points=5,
        n_batches=2,
        on_error="raise",
    )
    slices = []

    class Collect(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            slices.append(monitor.last.surveys["gaussian"].slices[0])

    module = Kept()
    trainer = Trainer(max_epochs=2, callbacks=[monitor, Collect()], **QUIET)
    trainer.fit(module, loader(module))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Kept()
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    direction = monitor_direction(again)
    with probing(again, again.inputs()) as objective:
        line = evaluate_slice(objective, direction, monitor.alphas)
    assert len(slices) == 2
    assert torch.equal(line.losses, slices[1].losses)
    assert not torch.equal(line.losses, slices[0].losses)


def monitor_direction(module):
    from lightning_landscape.measures.directions import direction_generator, sample_direction
    from lightning_landscape.params import trainable

    return sample_direction(
        trainable(module),
        "gaussian",
        module=module,
        generator=direction_generator(0, "gaussian", 0),
    )


class ReadsTrainer(Step):
    def write(self, loss, batch):
        return loss

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.trainer.global_step)


class ReadsTrainerElsewhere(Step):
    def write(self, loss, batch):
        return loss * (1 + self.trainer.global_step)


@pytest.mark.parametrize("module", [ReadsTrainer, ReadsTrainerElsewhere])
def test_a_step_that_reads_its_trainer_can_be_given_one(module):
    module = module()
    trainer = Trainer(**QUIET)
    with unchanged(module), probing(module, module.inputs(), trainer=trainer) as objective:
        assert objective.losses().isfinite().all()
    assert module._trainer is None


def test_a_step_that_reads_its_trainer_is_refused_without_one():
    module = ReadsTrainer()
    with (
        unchanged(module),
        pytest.raises(ConfigurationError, match="Pass trainer=Trainer"),
        probing(module, module.inputs()),
    ):
        raise AssertionError("unreachable")


def test_the_error_of_a_step_that_needs_a_trainer_says_what_to_do():
    module = ReadsTrainerElsewhere()
    with (
        unchanged(module),
        probing(module, module.inputs()) as objective,
        pytest.raises(ConfigurationError, match="Pass trainer=Trainer"),
    ):
        objective.losses()


class Meddles(Step):
    """Sets attributes on its trainer, and reads the folder of its logger."""

    def build(self):
        self.folders = []

    def write(self, loss, batch):
        self.trainer.limit_val_batches = 7
        self.trainer.gradient_clip_val = 3.0
        self.trainer.fit_loop.max_epochs = 99
        self.trainer.callback_metrics["mine"] = loss.detach()
        FOLDERS.append((self.logger.log_dir, self.logger.save_dir, self.logger.version))


FOLDERS = []


def test_a_logger_keeps_its_folder_and_trainer_settings_are_restored(tmp_path):
    module = Meddles()
    logger = CSVLogger(tmp_path, name="mine", version=3)
    trainer = Trainer(max_epochs=1, **{**QUIET, "logger": logger})
    FOLDERS.clear()
    with unchanged(module), probing(module, module.inputs(), trainer=trainer) as objective:
        objective.losses()
    assert set(FOLDERS) == {(logger.log_dir, logger.save_dir, 3)}
    assert (trainer.limit_val_batches, trainer.gradient_clip_val) == (1.0, None)
    assert trainer.fit_loop.max_epochs == 1
    assert "mine" not in trainer.callback_metrics
    assert trainer.loggers == [logger]


@pytest.mark.parametrize("callback", [SWA(), AsymmetryMonitor(), GradientBreakdownMonitor()])
def test_a_callback_given_to_fabric_says_to_use_probing(callback):
    fabric = Fabric(accelerator="cpu", callbacks=[callback])
    with pytest.raises(ConfigurationError, match=r"Got Fabric.*use `with probing"):
        fabric.call("setup", fabric, Step(), "fit")


def test_a_module_that_fabric_wraps_can_be_probed():
    module = Fabric(accelerator="cpu").setup_module(nn.Linear(3, 1))
    with probing(
        module, [torch.ones(2, 3)], loss_fn=lambda module, x: module(x).square().mean()
    ) as objective:
        assert objective.gradient()[0].isfinite().all()
