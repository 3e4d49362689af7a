"""The command line: a run of LightningCLI, then its checkpoints measured without its script."""

import json
import logging
import math
import os
import subprocess
import sys

import pytest
import torch

from lightning_landscape import Plane, Report, compare_ends, load_slices, load_swa_weights
from lightning_landscape.cli import main

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import SWA, AsymmetryMonitor, LandscapeCLI


class Net(LightningModule):
    def __init__(self, width: int = 4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), batch_size=8)

    val_dataloader = train_dataloader


if __name__ == "__main__":
    LandscapeCLI(Net, Data, seed_everything_default=0)
"""
LOUD = ["--model", "project.Net", "--data", "project.Data"]  # the cost is said
FEW = ["--n_batches", "2", "--quiet", "--model", "project.Net", "--data", "project.Data"]


MONITOR = {
    "trainer.callbacks+": "lightning_landscape.AsymmetryMonitor",
    "trainer.callbacks.swa": "swa",
    "trainer.callbacks.n_batches": 2,
    "trainer.callbacks.validation": True,
    "trainer.callbacks.n_directions": 2,
    "trainer.callbacks.n_points": 5,
    "trainer.callbacks.every_n_epochs": 1,
}


def fit(folder, width=4, **further):
    """Train in a folder, in this process; return its checkpoint."""
    import project

    from lightning_landscape import LandscapeCLI

    settings = {
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "CSVLogger",
        "trainer.logger.save_dir": folder,
        "trainer.callbacks": "lightning_landscape.SWA",
        "trainer.callbacks.start": 0,
        **further,
        "model.width": width,
    }
    sys.argv = ["main.py", "fit", *(f"--{key}={value}" for key, value in settings.items())]
    LandscapeCLI(project.Net, project.Data, seed_everything_default=0)
    (path,) = folder.rglob("*.ckpt")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "project.py").write_text(PROJECT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "argv", ["main.py"])
        yield folder


@pytest.fixture(scope="module")
def checkpoint(project):
    return fit(project / "run")


def out(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_analyze_prints_the_verdict_and_writes_the_numbers(checkpoint, tmp_path, capsys):
    report = str(tmp_path / "report.npz")
    few = ["--families", "gaussian", "--n_directions", "2", "--n_points", "5"]
    level = logging.getLogger("lightning.pytorch").level
    assert main(["analyze", str(checkpoint), *few, *FEW, "--save", report]) == 0
    assert logging.getLogger("lightning.pytorch").level == level  # in a script that calls `main`
    assert "gaussian" in capsys.readouterr().out
    assert len(Report.load(report).families["gaussian"].slices) == 2


def test_a_line_leads_to_the_average_in_the_checkpoint(checkpoint, project, capsys):
    import project as module

    assert main(["line", str(checkpoint), f"{checkpoint}:swa", *FEW, "--json"]) == 0
    line = out(capsys)["line"]
    net = module.Net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    batches = [batch for batch, _ in zip(module.Data().train_dataloader(), range(2), strict=False)]
    with torch.no_grad():
        before = sum(float(net.training_step(b, 0)) for b in batches) / 2
        load_swa_weights(str(checkpoint), net)
        after = sum(float(net.training_step(b, 0)) for b in batches) / 2
    assert line["gap"] == pytest.approx(after - before, rel=1e-5)


@pytest.fixture(scope="module")
def monitored(project):
    """A checkpoint at the end of a fit, and what AsymmetryMonitor logged there."""
    checkpoint = fit(project / "monitored", **MONITOR)
    logged = max(checkpoint.parents[1].glob("landscape/*.npz"), key=lambda path: path.name)
    return checkpoint, load_slices(logged)


def test_the_line_of_two_checkpoints_is_the_logged_one_bit_for_bit(monitored, capsys):
    checkpoint, logged = monitored
    assert main(["line", str(checkpoint), f"{checkpoint}:swa", *FEW, "--json"]) == 0
    line = out(capsys)["line"]
    train, validation = (one for one in logged if one.label.startswith("swa"))
    assert train.losses.std(dim=0).min() > 0
    assert line["slice"]["losses"] == train.losses.tolist()
    assert line["validation"]["slice"]["losses"] == validation.losses.tolist()
    score = compare_ends(train)
    assert [line[name] for name in ("distance", "gap", "barrier", "sign_agreement")] == [
        score.distance, score.gap, score.barrier, score.sign_agreement,
    ]  # fmt: skip


def test_the_directions_of_a_checkpoint_are_the_logged_ones(monitored, capsys):
    checkpoint, logged = monitored
    few = ["--n_directions", "2", "--n_points", "5", "--families", "gaussian", "sign"]
    assert main(["analyze", str(checkpoint), *few, *FEW, "--json"]) == 0
    families = out(capsys)["families"]
    for family, found in families.items():
        slices = [one.losses.tolist() for one in logged if one.label == family]
        assert [one["losses"] for one in found["slices"]] == slices
        assert len(slices) == 2


def test_the_verb_of_ones_own_script_measures_the_same(checkpoint, capsys, monkeypatch, caplog):
    import project

    from lightning_landscape import LandscapeCLI

    config = checkpoint.parents[1] / "config.yaml"
    monkeypatch.setattr(
        sys,
        "argv",
        ["main.py", "analyze", f"--config={config}", f"--ckpt_path={checkpoint}", "--json=true",
         f"--toward={checkpoint}:swa", "--n_batches=2", "--n_directions=2", "--n_points=5",
         "--quiet=true", "--families=[gaussian]"],
    )  # fmt: skip
    caplog.set_level(logging.INFO)
    LandscapeCLI(project.Net, project.Data, seed_everything_default=0)
    assert not [text for text in caplog.messages if "Seed set to" in text]
    by_script = out(capsys)
    few = ["--families", "gaussian", "--n_directions", "2", "--n_points", "5", "--json"]
    toward = ["--toward", f"{checkpoint}:swa"]
    assert main(["analyze", str(checkpoint), *few, *toward, *FEW]) == 0
    by_command = out(capsys)
    assert by_script["families"] == by_command["families"]
    assert by_script["line"] == by_command["line"]


def test_a_plane_goes_on_from_its_rows(checkpoint, project, tmp_path, capsys):
    other = fit(project / "other")
    zero = torch.load(other, weights_only=True)
    zero["state_dict"] = {name: t * 0 for name, t in zero["state_dict"].items()}
    third = tmp_path / "third.ckpt"
    torch.save({"state_dict": zero["state_dict"]}, third)
    points = [str(checkpoint), f"{checkpoint}:swa", str(third)]
    settings = ["--n", "3", "--rows", str(tmp_path / "rows"), "--json", *FEW]
    assert main(["plane", *points, *settings]) == 0
    plane = out(capsys)
    assert len(plane["losses"]) == 3
    (tmp_path / "rows" / "row-00001.npy").unlink()
    assert main(["plane", *points, *settings]) == 0
    assert out(capsys) == plane


def test_several_checkpoints_have_a_line_each_to_the_last(checkpoint, project, capsys):
    assert (
        main(["line", str(checkpoint), f"{checkpoint}:swa", str(checkpoint), *FEW, "--json"]) == 0
    )
    lines = out(capsys)
    assert lines[str(checkpoint)]["distance"] == 0
    assert lines[f"{checkpoint}:swa"]["distance"] > 0


BAD = {
    "one checkpoint": (["line", "{ckpt}"], "needs two checkpoints or more"),
    "twice": (["line", "{ckpt}", "{ckpt}"], "needs two different checkpoints. Got"),
    "no such file": (["analyze", "none.ckpt"], "must be a checkpoint file. There is no such file"),
    "another architecture": (["line", "{ckpt}", "{wide}"], "checkpoint of another architecture"),
    "no average": (["line", "{ckpt}", "{ckpt}:late"], "must name an average"),
    "truncated": (["line", "{ckpt}", "{broken}"], "must be a checkpoint file"),
    "one line": (["plane", "{ckpt}", "{ckpt}:swa", "{ckpt}"], "must be three different sets"),
    "no config": (["analyze", "{ckpt}", "--config", "none.yaml"], "There is no file none.yaml"),
    "no YAML": (["analyze", "{ckpt}", "--config", "{yaml}"], "list.yaml is no YAML"),
    "one side": (["plane", "{ckpt}", "{ckpt}:swa", "{zero}", "--n", "1"], "`n` must be a whole"),
    "no folder": (["line", "{ckpt}", "{ckpt}:swa", "--html", "none/x.html"], "no folder"),
    "rows in a file": (
        ["plane", "{ckpt}", "{ckpt}:swa", "{zero}", "--rows", "{yaml}"],
        "`rows` must be a folder",
    ),
    "figures in a file": (["analyze", "{ckpt}", "--figures", "{yaml}"], "must be a folder"),
    "diverged": (["line", "{ckpt}", "{nan}"], "must hold finite weights"),
    "on one line": (
        ["plane", "{ckpt}", "{zero}", "{double}"],
        "span no plane: `a`, `b` and `c` must",
    ),
    "bad module": (["analyze", "{ckpt}", "--model", "nowhere.Net"], "cannot be imported"),
    "no module": (["analyze", "{ckpt}", "--model", "Net"], "Got 'Net', which names no module"),
    "no class": (
        ["analyze", "{ckpt}", "--model", "project.Nett"],
        "project has no class 'Nett'; it has ['Net', 'Data']",
    ),
    "no such data": (
        ["analyze", "{ckpt}", "--model", "project.Net", "--data", "project.Net"],
        "project.Net is no LightningDataModule",
    ),
    "negative": (["analyze", "{ckpt}", *FEW, "--n_batches", "-3"], "`n_batches` must be a whole"),
    "points": (["analyze", "{ckpt}", *LOUD, "--n_points", "12"], "must be 4 k + 1"),
    "radius": (["analyze", "{ckpt}", *LOUD, "--radius", "-1"], "`radius` must be positive"),
    "none": (["analyze", "{ckpt}", *LOUD, "--n_directions", "0"], "`n_directions` must be"),
    "seed": (["line", "{ckpt}", "{zero}", *LOUD, "--seed", "-1"], "`seed` must be a whole"),
    "family": (["analyze", "{ckpt}", *LOUD, "--families", "sine"], "`families`: each `family`"),
    "pattern": (["analyze", "{ckpt}", *LOUD, "--families", "sign@a*"], "matches none of"),
}


@pytest.fixture(scope="module")
def files(checkpoint, project):
    wide, broken = fit(project / "wide", width=5), project / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:100])
    (project / "list.yaml").write_text("[1, 2")
    found = {"ckpt": checkpoint, "wide": wide, "broken": broken, "yaml": project / "list.yaml"}
    whole = torch.load(checkpoint, weights_only=True)
    for name, factor in {"nan": math.nan, "zero": 0.0, "double": 2.0}.items():
        found[name] = project / f"{name}.ckpt"
        state = {key: factor * tensor for key, tensor in whole["state_dict"].items()}
        torch.save({**whole, "state_dict": state}, found[name])
    return found


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(case, files, capsys, tmp_path):
    words, sentence = BAD[case]
    options = [] if "--model" in words else FEW
    arguments = [word.format(**files) for word in words]
    assert main([*arguments, *options, "--save", str(tmp_path / "out.npz")]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("which", ["wide", "broken", "nan"])
def test_the_verb_refuses_a_bad_checkpoint_in_one_sentence(which, files, capsys, monkeypatch):
    import project

    from lightning_landscape import LandscapeCLI

    config = files["ckpt"].parents[1] / "config.yaml"
    arguments = ["main.py", "analyze", f"--config={config}", f"--ckpt_path={files[which]}"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--quiet=true"])
    with pytest.raises(SystemExit) as stopped:
        LandscapeCLI(project.Net, project.Data, seed_everything_default=0)
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("analyze: ")]
    assert len(said) == 1
    assert str(files[which]) in said[0]


def test_a_model_without_data_is_asked_for_them(checkpoint, tmp_path, capsys):
    plain = tmp_path / "plain.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True), plain)
    assert main(["line", str(plain), f"{plain}:swa", "--model", "project.Net"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(
        "which has none: give the data, on the command line with --data my_script.MyData."
    )
    assert "`train_dataloader()` must be a method of Net" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("bad", ["n_batches=-3", "n_points=12", "families=[sine]"])
def test_the_verb_refuses_a_bad_setting_in_one_sentence(bad, checkpoint, capsys, monkeypatch):
    import project

    from lightning_landscape import LandscapeCLI

    config = checkpoint.parents[1] / "config.yaml"
    monkeypatch.setattr(sys, "argv", ["main.py", "analyze", f"--config={config}", f"--{bad}"])
    with pytest.raises(SystemExit) as stopped:
        LandscapeCLI(project.Net, project.Data, seed_everything_default=0)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"analyze: `{bad.partition('=')[0]}`")
    assert not [line for line in said if "evaluations of" in line]


def test_a_config_without_a_class_asks_for_it(checkpoint, capsys):
    assert main(["analyze", str(checkpoint), "--quiet"]) == 2
    assert "--model is needed" in capsys.readouterr().err


def test_without_a_config_hyperparameters_are_those_of_the_checkpoint(project, tmp_path, capsys):
    plain = tmp_path / "plain.ckpt"  # as a script with a Trainer of its own writes it
    state = torch.load(fit(project / "wider", width=6))
    state["hyper_parameters"] = {"width": 6}
    state.pop("datamodule_hyper_parameters", None)
    torch.save(state, plain)
    assert main(["line", str(plain), f"{plain}:swa", *FEW]) == 0
    assert "The average is" in capsys.readouterr().out
    assert main(["line", str(plain), f"{plain}:swa", "--quiet"]) == 2
    assert "Without LightningCLI use --model my_script.MyModule" in capsys.readouterr().err


TWO = """
import sys
sys.path.insert(0, {folder!r})
from lightning_landscape.cli import main
if __name__ == "__main__":
    raise SystemExit(main({arguments!r}))
"""


@pytest.mark.slow
def test_a_plane_of_two_processes_is_that_of_one(checkpoint, project, tmp_path, capsys):
    third = torch.load(checkpoint, weights_only=True)
    third["state_dict"] = {name: t * 0 for name, t in third["state_dict"].items()}
    torch.save({"state_dict": third["state_dict"]}, tmp_path / "third.ckpt")
    points = [str(checkpoint), f"{checkpoint}:swa", str(tmp_path / "third.ckpt")]
    one = str(tmp_path / "one.npz")
    assert main(["plane", *points, "--n", "5", *FEW, "--save", one]) == 0
    two = str(tmp_path / "two.npz")
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    script = tmp_path / "two.py"
    arguments = ["plane", *points, "--n", "5", *FEW, "--save", two, *ddp]
    script.write_text(TWO.format(folder=str(project), arguments=arguments))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(script)], cwd=project, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert Plane.load(two).to_dict() == Plane.load(one).to_dict()
