"""What README and docs show runs as it stands, and so do the examples."""

import re
import runpy
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from toys import QUIET, Classifier, Data

from lightning_landscape import SWA

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SHORT = {"max_epochs": 4, "limit_train_batches": 3, **QUIET}

# every page that shows Python: what it shows is run
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```python" in path.read_text("utf-8")
]

EXAMPLES = {  # with settings that make them quick; from_yaml.py is run by training/test_cli.py
    "fromage_depth": ["--steps=5", "--seeds=1"],
    "noisy_digits": ["--epochs=5"],
    "sgd_after_swa": ["--epochs=3", "--seeds=1"],
    "three_slices": [],
    "too_large_a_step": ["--steps=10"],
}


def given():
    """Return the names that snippets use and do not define."""
    torch.manual_seed(0)
    module, data, swa = Classifier(), Data(), SWA(0)
    swa.update(module)
    nn.init.uniform_(module.net[0].bias)  # away from the average
    last = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    points = {k: {name: tensor + k for name, tensor in last.items()} for k in (0.1, 0.2)}
    return {
        "your_module": module,
        "your_data": data,
        "module": module,
        "dataloader": data.train_dataloader(),
        "batches": list(data.train_dataloader()),
        "val_batches": list(data.val_dataloader()),
        "swa": swa,
        "last": last,
        "average": points[0.1],
        "other_seed": {name: t + torch.randn_like(t) for name, t in points[0.2].items()},
        "xs": torch.linspace(-1, 1, 5),
        "ys": torch.linspace(-1, 1, 5),
    }


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the trainer of a snippet, but short and quiet
    monkeypatch.setattr(lightning.pytorch, "Trainer", lambda **own: Trainer(**{**own, **SHORT}))
    names = given()
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert snippets
    for code in snippets:
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "noisy_digits" else ()) for n in EXAMPLES],
)
@pytest.mark.filterwarnings("ignore")  # advice that a reader of the example sees too
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", [name, *EXAMPLES[name]])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "from_yaml"}


def test_ci_runs_the_test_command_of_the_readme():
    (block,) = re.findall(r"<!-- test command -->(.*?)<!-- end -->", README, re.S)
    (command,) = re.findall(r"^python.*$", block, re.M)
    assert command.endswith(".venv/bin/python -m pytest")
    assert '".[dev]"' in command
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "/<!-- test command -->/,/<!-- end -->/p' README.md" in script
    assert 'bash -euo pipefail -c "$command"' in script
