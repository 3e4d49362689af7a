"""LightningCLI: every setting from YAML, help for each, a config that gives the same run again."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hostile import differences
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import QUIET, Classifier, Data, Samples

from lightning_landscape import SWA, AsymmetryMonitor, Fromage, GradientBreakdownMonitor

jsonargparse = pytest.importorskip("jsonargparse")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's jsonargparse

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])


class Net(Classifier):
    configure_optimizers = LightningModule.configure_optimizers  # the command line gives one


def double_loss(module, batch):
    return 2 * module.loss(batch)


def annotated_loss(module: nn.Module, batch: dict) -> dict[str, Tensor]:
    return {"loss": double_loss(module, batch)}


class TimesLoss:
    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def __call__(self, module, batch):
        return self.factor / 2 * double_loss(module, batch)


def mean(average, new, n):
    return average + (new - average) / (n + 1)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `save_at_end` writes where the run is


# every setting, at a value that is not its default
SETTINGS = {
    SWA: {
        "start": 1,
        "every_n_epochs": None,
        "every_n_steps": 2,
        "average": "ema",
        "decay": 0.5,
        "window": 3,
        "validate": False,
        "bn_batches": 3,
        "device": "cpu",
        "apply_at_end": True,
        "save_at_end": True,
        "name": "late",
        "loss_fn": "test_cli.double_loss",
        "verbose": False,
    },
    AsymmetryMonitor: {
        "every_n_epochs": 2,
        "every_n_steps": None,
        "families": ["rademacher", "gaussian@net.0.*"],
        "n_directions": 3,
        "n_points": 5,
        "radius": 2,
        "normalize": "layer",
        "swa": "late",
        "n_batches": 1,
        "validation": True,
        "mode": "recalibrated",
        "loss_fn": "test_cli.double_loss",
        "max_overhead": 0.999,
        "seed": 7,
        "on_error": "raise",
        "precision": 0.2,
        "details": True,
        "figures": "all",
        "verbose": False,
        "name": "own",
    },
    GradientBreakdownMonitor: {
        "every_n_epochs": None,
        "every_n_steps": 3,
        "directions": ["random", "update"],
        "etas": {"random": [0.01, 0.1], "update": [1]},
        "mode": "eval",
        "loss_fn": "test_cli.double_loss",
        "max_overhead": 0.999,
        "seed": 7,
        "on_error": "raise",
        "layers": True,
        "details": True,
        "figures": "all",
        "verbose": False,
        "name": "steps",
    },
    Fromage: {
        "lr": 0.5,
        "p_bound": 2,
        "prefactor": False,
        "foreach": False,
        "maximize": True,
    },
}


def entry(kind, **settings):
    return {"class_path": f"lightning_landscape.{kind.__name__}", "init_args": settings}


def config(*callbacks, optimizer=None, **trainer):
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 2, **QUIET, **trainer, "callbacks": list(callbacks)},
        "optimizer": optimizer or entry(Fromage, lr=0.05),
    }


def everything(**trainer):
    return config(
        *(entry(kind, **SETTINGS[kind]) for kind in (SWA, AsymmetryMonitor)),
        entry(GradientBreakdownMonitor, **SETTINGS[GradientBreakdownMonitor]),
        optimizer=entry(Fromage, **SETTINGS[Fromage]),
        **trainer,
    )


def command_line(
    tmp_path, configuration, *arguments, subcommand=None, kind=LightningCLI, **options
):
    path = tmp_path / "given.yaml"
    text = configuration if isinstance(configuration, str) else yaml.safe_dump(configuration)
    path.write_text(text)
    options = {"save_config_callback": None, "run": subcommand is not None, **options}
    before = [subcommand] if subcommand else []
    return kind(Net, Data, args=[*before, "--config", str(path), *arguments], **options)


def ours(trainer, kind):
    (found,) = (callback for callback in trainer.callbacks if isinstance(callback, kind))
    return found


def parameters(kind):
    return [name for name in inspect.signature(kind).parameters if name != "params"]


# --- from YAML ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_table_has_every_setting_at_a_value_that_is_not_its_default(kind):
    assert list(SETTINGS[kind]) == parameters(kind)
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    same = [name for name, value in SETTINGS[kind].items() if value == defaults[name]]
    assert [name for name in same if not name.startswith("every_n")] == []


@pytest.mark.tried("configuration", "LightningCLI: every setting of every callback from YAML")
def test_every_setting_of_every_callback_can_be_given_in_yaml(tmp_path):
    trainer = command_line(tmp_path, everything()).trainer
    swa, asymmetry = ours(trainer, SWA), ours(trainer, AsymmetryMonitor)
    breakdown = ours(trainer, GradientBreakdownMonitor)
    for callback, hidden in (
        (swa, {"every_n_epochs", "every_n_steps"}),
        (asymmetry, {"every_n_epochs", "every_n_steps", "n_points", "radius"}),
        (breakdown, {"every_n_epochs", "every_n_steps", "etas"}),
    ):
        for name in set(parameters(type(callback))) - hidden:
            given = SETTINGS[type(callback)][name]
            given = double_loss if name == "loss_fn" else given
            given = tuple(given) if isinstance(given, list) else given
            assert getattr(callback, name) == given, name
    assert str(swa.schedule) == "every 2 steps"
    assert str(asymmetry.schedule) == "every 2 epochs"
    assert asymmetry.alphas.tolist() == [-2, -1, 0, 1, 2]
    assert str(breakdown.schedule) == "every 3 steps"
    assert {name: etas.tolist() for name, etas in breakdown.etas.items()} == {
        "random": [0.01, 0.1],
        "update": [1.0],
    }


@pytest.mark.tried("configuration", "LightningCLI: every setting of Fromage from YAML")
def test_every_setting_of_fromage_can_be_given_in_yaml(tmp_path):
    optimizer = command_line(tmp_path, everything()).model.configure_optimizers()
    assert type(optimizer) is Fromage
    assert SETTINGS[Fromage].items() <= optimizer.param_groups[0].items()


@pytest.mark.tried("configuration", "Fromage as an OptimizerCallable of the user's module")
def test_fromage_may_be_the_default_of_an_optimizer_to_choose(tmp_path):
    class Choosing(Net):
        def __init__(self, optimizer: OptimizerCallable = Fromage):
            super().__init__()
            self.make = optimizer

        def configure_optimizers(self):
            return self.make(self.parameters())

    options = {"run": False, "save_config_callback": None, "auto_configure_optimizers": False}
    cli = LightningCLI(Choosing, Data, args=[], **options)
    assert type(cli.model.configure_optimizers()) is Fromage
    chosen = ["--model.optimizer=lightning_landscape.Fromage", "--model.optimizer.lr=0.5"]
    cli = LightningCLI(Choosing, Data, args=chosen, **options)
    assert cli.model.configure_optimizers().param_groups[0]["lr"] == 0.5


@pytest.mark.tried("configuration", "callbacks on the command line itself, by their short names")
def test_callbacks_can_be_added_on_the_command_line(tmp_path):
    trainer = command_line(
        tmp_path,
        config(),
        "--trainer.callbacks+=SWA",
        "--trainer.callbacks.start=0.5",
        "--trainer.callbacks+=AsymmetryMonitor",
        "--trainer.callbacks.swa=swa",
        "--trainer.callbacks.families=[sign,uniform@norm]",
        "--trainer.callbacks+=GradientBreakdownMonitor",
        "--trainer.callbacks.etas=[0.5,1]",
    ).trainer
    assert ours(trainer, SWA).start == 0.5
    assert ours(trainer, AsymmetryMonitor).families == ("sign", "uniform@norm")
    assert ours(trainer, AsymmetryMonitor).swa == "swa"
    assert ours(trainer, GradientBreakdownMonitor).etas["gradient"].tolist() == [0.5, 1]


@pytest.mark.tried("configuration", "`loss_fn` and `average` by import path, without annotations")
@pytest.mark.parametrize(
    "loss_fn",
    [
        "test_cli.double_loss",
        "test_cli.annotated_loss",
        {"class_path": "test_cli.TimesLoss", "init_args": {"factor": 2}},
    ],
    ids=["a function", "one with annotations", "an object"],
)
@pytest.mark.parametrize("kind", [AsymmetryMonitor, GradientBreakdownMonitor])
def test_a_loss_function_is_given_by_its_import_path(tmp_path, loss_fn, kind):
    settings = {"loss_fn": loss_fn, "on_error": "raise"}
    monitor = ours(command_line(tmp_path, config(entry(kind, **settings))).trainer, kind)
    module, batch = Net().eval(), next(iter(DataLoader(Samples(), batch_size=6)))
    loss = monitor.loss_fn(module, batch)
    loss = loss["loss"] if isinstance(loss, dict) else loss
    assert torch.equal(loss, double_loss(module, batch))


@pytest.mark.tried("configuration", "`average`, the function of SWA, by import path")
def test_the_function_of_an_average_is_given_by_its_import_path(tmp_path):
    given = config(entry(SWA, start=0, average="test_cli.mean"), entry(SWA, start=0, name="equal"))
    trainer = command_line(tmp_path, given, subcommand="fit").trainer
    own, equal = (callback for callback in trainer.callbacks if isinstance(callback, SWA))
    assert own.average is mean
    for name, tensor in equal.weights.items():
        torch.testing.assert_close(own.weights[name], tensor)


def test_a_setting_that_cannot_work_is_named_on_the_command_line(tmp_path, capsys):
    given = config(entry(AsymmetryMonitor, n_points=12))
    with pytest.raises((SystemExit, ValueError)) as caught:
        command_line(tmp_path, given)
    assert "`n_points` must be 4 k + 1" in f"{capsys.readouterr().err} {caught.value}"


@pytest.mark.tried("names", "LightningCLI of `lightning` and of `pytorch_lightning`")
def test_the_command_line_of_the_other_name_takes_the_callbacks_too(tmp_path):
    cli = pytest.importorskip("pytorch_lightning.cli")
    twin = pytest.importorskip("pytorch_lightning")

    class Net(twin.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 3)

    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(everything()))
    options = {"save_config_callback": None, "run": False}
    trainer = cli.LightningCLI(Net, args=["--config", str(path)], **options).trainer
    assert isinstance(trainer, twin.Trainer)
    for kind in (SWA, AsymmetryMonitor, GradientBreakdownMonitor):
        assert isinstance(ours(trainer, kind), twin.Callback)


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.tried("configuration", "`--help` of every callback and of Fromage is complete")
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_help_says_what_every_setting_is(tmp_path, capsys, kind):
    where = "optimizer" if kind is Fromage else "trainer.callbacks"
    with pytest.raises(SystemExit):
        command_line(tmp_path, config(), f"--{where}.help=lightning_landscape.{kind.__name__}")
    text = " ".join(capsys.readouterr().out.split())
    assert inspect.getdoc(kind).splitlines()[0].rstrip(".:") in text
    for name in parameters(kind):
        said = re.search(rf"--{where}\.{name} [^a-z]*(\[ITEM,\.\.\.\]|{{.*?}})?(.+?)\(type:", text)
        assert said, name
        assert len(said[2].split()) >= 3, f"{name}: {said[2]}"
    assert "torch.Tensor" not in text  # where a function is wanted, no subclass of its result is


# --- the same run again -------------------------------------------------------------------------


def outcome(trainer):
    timed = ("seconds", "overhead")
    metrics = {k: v for k, v in trainer.callback_metrics.items() if not k.endswith(timed)}
    return {"weights": trainer.lightning_module.state_dict(), "metrics": metrics}


@pytest.mark.tried(
    "configuration", "config round trip: run from `--print_config`, the same numbers"
)
def test_a_printed_config_prints_itself_and_gives_the_same_run(tmp_path, capsys):
    def printed(given):
        with pytest.raises(SystemExit):
            command_line(tmp_path, given, "--print_config", subcommand="fit")
        return capsys.readouterr().out

    whole = printed(everything())
    assert printed(whole) == whole
    callbacks = yaml.safe_load(whole)["trainer"]["callbacks"]
    assert [callback["init_args"] for callback in callbacks] == [
        SETTINGS[kind] for kind in (SWA, AsymmetryMonitor, GradientBreakdownMonitor)
    ]
    first = outcome(command_line(tmp_path, everything(), subcommand="fit").trainer)
    again = outcome(command_line(tmp_path, whole, subcommand="fit").trainer)
    assert {"own/swa/val/gap", "own/rademacher/area", "steps/random/max"} <= {*first["metrics"]}
    assert differences(first, again) == []


@pytest.mark.slow
@pytest.mark.tried("configuration", "the config.yaml that LightningCLI saves beside the log")
def test_the_config_saved_beside_the_log_gives_the_same_run(tmp_path):
    from lightning.pytorch.cli import SaveConfigCallback

    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "log"}}
    given = everything(logger=logger)
    first = command_line(
        tmp_path, given, subcommand="fit", save_config_callback=SaveConfigCallback
    ).trainer
    saved = (tmp_path / "log" / "version_0" / "config.yaml").read_text()
    again = command_line(tmp_path, saved, subcommand="fit").trainer
    assert differences(outcome(first), outcome(again)) == []


@pytest.mark.tried("configuration", "LightningCLI: training is bit-identical with the callbacks")
def test_training_from_yaml_is_bit_identical(tmp_path):
    calls = []

    class Watching(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            calls.append(float(outputs["loss"]))

    def losses(*callbacks):
        calls.clear()
        options = {"trainer_defaults": {"callbacks": [Watching()]}}
        trainer = command_line(tmp_path, config(*callbacks), subcommand="fit", **options).trainer
        return trainer.lightning_module.state_dict(), list(calls)

    probed = losses(
        entry(SWA, start=0),
        entry(AsymmetryMonitor, n_directions=2, n_points=5, swa="swa"),
        entry(GradientBreakdownMonitor, every_n_steps=2),
    )
    assert len(probed[1]) == 12
    assert differences(losses(), probed) == []


@pytest.mark.slow
@pytest.mark.tried("configuration", "examples/from_yaml.yaml, run as its first line says")
def test_the_example_file_runs_as_it_says(tmp_path):
    pytest.importorskip("sklearn")
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = ROOT / "examples" / "from_yaml.yaml"
    command = re.match(r"# python (.+?)  ", file.read_text())[1].split()
    assert command == ["examples/from_yaml.py", "fit", "--config", "examples/from_yaml.yaml"]
    assert "max_overhead: 0.2" in file.read_text()
    unlimited = tmp_path / file.name  # what a budget affords depends on the machine
    unlimited.write_text(file.read_text().replace("max_overhead: 0.2", "max_overhead: null"))
    command[0], command[-1] = str(ROOT / command[0]), str(unlimited)
    shorter = ["--trainer.max_epochs=10", "--trainer.enable_progress_bar=false"]
    result = subprocess.run(
        [sys.executable, *command, *shorter],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    log = tmp_path / "lightning_logs" / "from_yaml" / "version_0"
    assert (log / "config.yaml").exists()
    assert (log / "checkpoints" / "best-average.ckpt").exists()
    events = tensorboard.EventAccumulator(str(log))
    events.Reload()
    assert {
        "landscape/gaussian/area",
        "landscape/swa/gap",
        "eval/uniform-norm/area",
        "breakdown/update/max",
        "swa/val_loss",
    } <= {*events.Tags()["scalars"]}
