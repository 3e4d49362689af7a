"""What README shows runs as it stands, and so do the examples."""

import functools
import itertools
import re
import runpy
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from toys import QUIET, Classifier, Data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SHORT = {"max_epochs": 4, "limit_train_batches": 3, **QUIET}

EXAMPLES = {  # with settings that make them quick; from_yaml.py is run by training/test_cli.py
    "fromage_depth": ["--steps=5", "--seeds=1"],
    "noisy_digits": ["--epochs=5"],
    "sgd_after_swa": ["--epochs=3", "--seeds=1"],
    "too_large_a_step": ["--steps=10"],
}


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs_as_it_stands(code, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    trainer = functools.partial(lightning.pytorch.Trainer, **SHORT)  # what the snippet gives wins
    monkeypatch.setattr(lightning.pytorch, "Trainer", trainer)
    module, data = Classifier(), Data()
    given = {"module": module, "your_module": module, "self": module}
    given |= {"dataloader": data.train_dataloader(), "your_data": data}
    exec(compile(code, "README.md", "exec"), given)
    assert list(tmp_path.iterdir()) == []


def test_the_snippets_are_the_callbacks_and_the_measures():
    imported = set(itertools.chain(*(re.findall(r"\w+", code) for code in SNIPPETS)))
    assert imported >= {"SWA", "AsymmetryMonitor", "GradientBreakdownMonitor", "probing"}


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
