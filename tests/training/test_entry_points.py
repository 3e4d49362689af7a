"""Every way into a Trainer, with all callbacks in it: training is as without them."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hostile import HostileModule, attributes, differences, fit, rng_fingerprint
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from toys import OURS, QUIET, Data

from lightning_landscape import SWA, AsymmetryMonitor, Fromage, GradientBreakdownMonitor

pytestmark = [
    pytest.mark.filterwarnings("ignore:A probe of .* wrote to best"),  # a module's least loss
    pytest.mark.filterwarnings("ignore:.*self.log.*barebones"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled .* shuffling"),
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric"),
]


def everything():
    asymmetry = {"families": ["gaussian"], "n_directions": 2, "n_points": 5, "on_error": "raise"}
    asymmetry |= {"every_n_epochs": 1}
    breakdown = {"directions": ["update"], "on_error": "raise"}
    return [
        AsymmetryMonitor(swa="swa", validation=True, **asymmetry),
        AsymmetryMonitor(name="landscape/eval", mode="eval", **asymmetry),
        SWA(0),
        GradientBreakdownMonitor(every_n_steps=2, **breakdown),
        GradientBreakdownMonitor(name="breakdown/epoch", every_n_epochs=1, **breakdown),
    ]


class Tunable(HostileModule):
    lr = 0.01

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self):
        self.outputs_of_validation = []

    def predict_step(self, batch, batch_idx):
        return self.net(batch["x"])

    def configure_optimizers(self):
        return Fromage(self.parameters(), lr=self.lr)


def outcome(what, callbacks, **options):
    """Do something with a Trainer; return all that could tell two runs apart."""
    seed_everything(0, verbose=False)
    module, data = Tunable(), Data()
    options = {"accelerator": "cpu", "max_epochs": 2, **(options or QUIET)}
    trainer = Trainer(callbacks=list(callbacks), **options)
    answer = what(trainer, module, data)
    own = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(OURS)}
    return {
        "answer": answer,
        "state_dict": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "callback_metrics": own,
        "rng": rng_fingerprint(),
        "attributes": attributes(module),
        "global_step": trainer.global_step,
    }


def steps(callbacks):
    """Return the steps at which each monitor has measured."""
    states = [callback.state_dict() for callback in callbacks]
    histories = [state["history"] for state in states if "history" in state]
    return [next(iter(history.values()), {"steps": []})["steps"] for history in histories]


TWO_EPOCHS = [[5, 11], [5, 11], [1, 3, 5, 7, 9, 11], [5, 11]]


# --- settings of the Trainer --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.tried("configuration", f"Trainer({said})"), id=said)
        for said, options in {
            "fast_dev_run=True": {"fast_dev_run": True},
            "fast_dev_run=3": {"fast_dev_run": 3},
            "limit_train_batches=0.5": {"limit_train_batches": 0.5},
            "limit_train_batches=1": {"limit_train_batches": 1},
            "limit_train_batches=0": {"limit_train_batches": 0},
            "limit_val_batches=0": {"limit_val_batches": 0},
            "overfit_batches=1": {"overfit_batches": 1},
            "num_sanity_val_steps=-1": {"num_sanity_val_steps": -1},
            "val_check_interval=2": {"val_check_interval": 2},
            "check_val_every_n_epoch=2": {"check_val_every_n_epoch": 2},
            "max_steps=5": {"max_steps": 5},
            "max_epochs=0": {"max_epochs": 0},
            "reload_dataloaders_every_n_epochs=1": {"reload_dataloaders_every_n_epochs": 1},
            "detect_anomaly=True": {"detect_anomaly": True},
            "inference_mode=False": {"inference_mode": False},
        }.items()
    ],
)
@pytest.mark.filterwarnings("ignore:.*Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:SWA.* averaged nothing")
@pytest.mark.filterwarnings("ignore:.*No training batches|.*`Trainer.fit` stopped")
def test_training_is_bit_identical_with_these_settings(options):
    assert differences(fit([], **options), fit(everything(), **options)) == []


@pytest.mark.tried("configuration", "Trainer(barebones=True)")
def test_a_barebones_trainer_is_left_bare_and_still_probed():
    def train(trainer, module, data):
        trainer.fit(module, datamodule=data)

    callbacks = everything()
    plain = outcome(train, [], barebones=True)
    assert differences(plain, outcome(train, callbacks, barebones=True)) == []
    assert steps(callbacks) == TWO_EPOCHS
    assert callbacks[2].n_averaged == 2


# --- what a Trainer is asked to do --------------------------------------------------------------


def evaluate(trainer, module, data):
    found = trainer.validate(module, data, verbose=False), trainer.test(module, data, verbose=False)
    return *found, trainer.predict(module, data)


def train_then_evaluate(trainer, module, data):
    trainer.fit(module, data)
    return evaluate(trainer, module, data)


def evaluate_then_train(trainer, module, data):
    found = evaluate(trainer, module, data)
    trainer.fit(module, data)
    return found


def train_twice(trainer, module, data):
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data)


def find_a_rate_and_train(trainer, module, data):
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=30)
    trainer.fit(module, data)
    return found.suggestion(), found.results["loss"]


def find_a_batch_size_and_train(trainer, module, data):
    options = {"mode": "power", "init_val": 3, "max_trials": 2, "steps_per_trial": 2}
    size = Tuner(trainer).scale_batch_size(module, datamodule=data, **options)
    assert data.batch_size == size == 6
    trainer.fit(module, data)


@pytest.mark.filterwarnings("ignore:.*lr_find.*|.*Failed to compute suggestion")
@pytest.mark.filterwarnings("ignore:.*`predict_dataloader`|.*`test_dataloader`")
@pytest.mark.parametrize(
    ("what", "seen", "n_averaged"),
    [
        pytest.param(*row, marks=pytest.mark.tried("configuration", said), id=said)
        for said, row in {
            "Trainer.validate, test and predict alone": (evaluate, [[], [], [], []], 0),
            "Trainer.validate, test and predict after fit": (train_then_evaluate, TWO_EPOCHS, 2),
            "Trainer.validate, test and predict before fit": (evaluate_then_train, TWO_EPOCHS, 2),
            "two fits of one Trainer": (
                train_twice,
                [[5, 11, 17, 23]] * 2 + [list(range(1, 24, 2)), [5, 11, 17, 23]],
                4,
            ),
            "Tuner.lr_find, then fit": (find_a_rate_and_train, TWO_EPOCHS, 2),
            "Tuner.scale_batch_size, then fit": (find_a_batch_size_and_train, TWO_EPOCHS, 2),
        }.items()
    ],
)
def test_probes_come_in_fit_alone_and_leave_no_trace(what, seen, n_averaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the Tuner keeps a checkpoint meanwhile
    callbacks = everything()
    assert differences(outcome(what, []), outcome(what, callbacks)) == []
    assert steps(callbacks) == seen
    assert callbacks[2].n_averaged == n_averaged
    assert list(tmp_path.iterdir()) == []


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.tried(
    "configuration", "checkpoints of all callbacks and of Fromage load `weights_only`"
)
def test_a_checkpoint_is_plain_data_and_the_fit_goes_on_from_it(tmp_path):
    def train(callbacks, max_epochs, **options):
        seed_everything(0, verbose=False)
        checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        settings = {**QUIET, "enable_checkpointing": True, "max_epochs": max_epochs}
        trainer = Trainer(callbacks=[*callbacks, checkpoint], **settings)
        trainer.fit(Tunable(), Data(), **options)
        return trainer

    train(everything(), 2)
    path = tmp_path / "epoch=1.ckpt"
    kept = torch.load(path, weights_only=True)["callbacks"]
    resumed = everything()
    assert {callback.state_key for callback in resumed} < {*kept}
    for callback in resumed:  # nothing but what a person could write down, and tensors
        assert only_data(kept[callback.state_key])
    train(resumed, 3, ckpt_path=path, weights_only=True)
    assert steps(resumed) == [[5, 11, 17]] * 2 + [list(range(1, 18, 2)), [5, 11, 17]]
    assert resumed[2].n_averaged == 3


def only_data(value):
    if isinstance(value, dict):
        return all(map(only_data, [*value.keys(), *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(only_data, value))
    return type(value) in (int, float, str, bool, type(None), torch.Tensor)


# --- both names of Lightning --------------------------------------------------------------------


WITHOUT = """
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {missing!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Missing())
    sys.path.insert(0, {folder!r})
"""
TRAIN = """
    import importlib, warnings
    import torch
    warnings.simplefilter("ignore")
    from lightning_landscape import SWA, AsymmetryMonitor, Fromage, GradientBreakdownMonitor
    for name in {installed!r}:
        pl = importlib.import_module(name)

        class Net(pl.LightningModule):
            def __init__(self):
                super().__init__()
                layers = torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
                self.net = torch.nn.Sequential(*layers)
            def training_step(self, batch, batch_idx):
                loss = self.net(batch).square().mean()
                self.log("loss", loss)
                return loss
            def validation_step(self, batch, batch_idx):
                self.log("val_loss", self.net(batch).square().mean())
            def configure_optimizers(self):
                return Fromage(self.parameters())

        quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
        def train(*callbacks):
            pl.seed_everything(0, verbose=False)
            options = dict.fromkeys(quiet, False)
            trainer = pl.Trainer(
                max_epochs=2, accelerator="cpu", callbacks=list(callbacks), **options
            )
            net = Net()
            loader = torch.utils.data.DataLoader(torch.randn(12, 2), batch_size=4)
            trainer.fit(net, loader, loader)
            return trainer, net
        small = dict(n_directions=2, n_points=5, on_error="raise")
        callbacks = [
            SWA(0), AsymmetryMonitor(swa="swa", **small),
            GradientBreakdownMonitor(every_n_steps=2, on_error="raise"),
        ]
        assert all(isinstance(callback, pl.Callback) for callback in callbacks)
        trainer, net = train(*callbacks)
        found = trainer.callback_metrics
        for tag in ("landscape/gaussian/area", "landscape/swa/gap", "breakdown/update/max"):
            assert tag in found, (name, tag)
        assert "swa/val_loss" in found
        plain = train()[1].state_dict()
        assert all(torch.equal(plain[key], value) for key, value in net.state_dict().items())
        try:
            train(AsymmetryMonitor(swa="other", **small))
        except pl.utilities.exceptions.MisconfigurationException as error:
            assert "must be the name of an SWA" in str(error)
        else:
            raise AssertionError("not refused")
        print("trained with", name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "missing"),
    [
        pytest.param(*row, marks=pytest.mark.tried("names", said), id=said)
        for said, row in {
            "`lightning` alone is installed": (
                ["lightning.pytorch"],
                ["pytorch_lightning", "lightning_fabric"],
            ),
            "`pytorch_lightning` alone is installed": (["pytorch_lightning"], ["lightning"]),
            "both are installed, and both Trainers used in one process": (
                ["lightning.pytorch", "pytorch_lightning"],
                [],
            ),
        }.items()
    ],
)
def test_the_callbacks_work_under_each_name_of_lightning(installed, missing, tmp_path):
    if "pytorch_lightning" in installed:
        pytest.importorskip("pytorch_lightning")
    folder = str(Path(__file__).parent.parent)
    lines = [WITHOUT.format(missing=missing, folder=folder), TRAIN.format(installed=installed)]
    script = tmp_path / "train.py"
    script.write_text("".join(textwrap.dedent(part) for part in lines))
    command = [sys.executable, str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    said = [line for line in result.stdout.splitlines() if line.startswith("trained")]
    assert said == [f"trained with {name}" for name in installed]
