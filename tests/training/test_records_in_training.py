"""A fit with both monitors leaves records that the tab and the page can show."""

import base64
import json
import re
import shutil
import zlib
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from torch import nn
from torch.nn import functional
from toys import QUIET

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor
from lightning_landscape.reporting import output as output_module
from lightning_landscape.reporting.html import page
from lightning_landscape.reporting.records import Record, read_events
from lightning_landscape.reporting.runs import read_run


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, index):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loaders():
    torch.manual_seed(0)
    data = [(torch.randn(16, 4), torch.randint(0, 3, (16,))) for _ in range(4)]
    return [torch.utils.data.DataLoader(data, batch_size=None) for _ in range(2)]


def trainer_in(folder, callbacks, **options):
    logger = TensorBoardLogger(folder, name="", version="")
    return Trainer(callbacks=callbacks, **{**QUIET, "logger": logger, "max_epochs": 3, **options})


def both_monitors(swa=None):
    return [
        AsymmetryMonitor(every_n_epochs=1, swa=swa, validation=True),
        GradientBreakdownMonitor(every_n_steps=4),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, swa = tmp_path_factory.mktemp("run"), SWA(start=1)
    trainer_in(folder, [swa, *both_monitors(swa)]).fit(Net(), *loaders())
    return folder


def test_every_probe_is_recorded(folder):
    records, problems = read_events(folder)
    assert problems == []
    found = {(record.monitor, record.kind, record.name) for record in records}
    assert found >= {
        ("landscape", "family", "gaussian"),
        ("landscape", "family", "uniform@norm"),
        ("landscape", "line", "swa"),
        ("landscape", "cost", "probe"),
        ("breakdown", "breakdown", "update"),
    }
    steps = {record.step for record in records if record.name == "gaussian"}
    assert len(steps) == 3


def test_a_default_probe_with_validation_takes_less_than_ten_kilobytes(folder):
    records, _ = read_events(folder)
    last = [r for r in records if r.monitor == "landscape" and r.step == records[-1].step]
    assert sum(len(record.to_bytes()) for record in last) < 10_000


def bytes_by_kind(folder):
    """Return the bytes of events by monitor, step and kind of summary."""
    found = Counter()
    for path in folder.glob("*tfevents*"):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            for value in event.summary.value:
                kind = value.metadata.plugin_data.plugin_name or value.WhichOneof("value")
                found[value.tag.split("/")[0], event.step, kind] += len(raw)
    return found


def test_a_default_probe_takes_little_with_and_without_pictures(tmp_path):
    swa = SWA(start=0)
    monitors = [AsymmetryMonitor(swa=swa), GradientBreakdownMonitor(every_n_steps=4)]
    trainer_in(tmp_path, [swa, *monitors], max_epochs=2).fit(Net(), *loaders())
    found = bytes_by_kind(tmp_path)
    for monitor in ("landscape", "breakdown"):
        sizes = {kind: n for (who, step, kind), n in found.items() if (who, step) == (monitor, 7)}
        assert {*sizes} == {"landscape", "scalars", "text", "image"}
        pictures = sizes.pop("image")
        assert 10_000 < pictures < 190_000
        assert sum(sizes.values()) < 10_000


def test_the_run_becomes_a_page(folder):
    made = page({"run": read_run(folder)[0]})
    assert "Directions: uniform@norm" in made
    assert len(made) < 1_000_000


def runs_in(path):
    text = re.search(r'id="records">(.*?)</script>', path.read_text()).group(1)
    return json.loads(zlib.decompress(base64.b64decode(text)))["runs"]


def test_all_monitors_of_a_trainer_write_one_page(folder):
    [run] = runs_in(folder / "landscape" / "report.html")
    shown = [Record.from_dict(one) for one in run["records"]]
    records, _ = read_events(folder)
    assert sorted(shown, key=lambda r: (r.tag, r.step)) == sorted(
        records, key=lambda r: (r.tag, r.step)
    )
    assert run["run"] == folder.name


def test_the_page_says_whether_averaging_helps(tmp_path):
    swa = SWA(0, verbose=False)
    trainer_in(tmp_path, [swa, *both_monitors(swa)]).fit(Net(), *loaders())
    [run] = runs_in(tmp_path / "landscape" / "report.html")
    said = [one["data"]["text"] for one in run["records"] if one["kind"] == "words"]
    assert said[-1] == "\n".join(swa.on_metrics())
    assert said[-1].startswith("Does averaging help? ")
    assert "In the validation at step 11, with 3 sets" in said[-1]
    assert "val_loss" in said[-1]


def test_the_arrays_of_a_run_say_what_its_event_file_says(folder, tmp_path):
    without_events = tmp_path / folder.name
    shutil.copytree(folder / "landscape", without_events / "landscape")
    from_arrays, problems = read_run(without_events)
    assert problems == []
    from_events, _ = read_run(folder)
    known = {(r.tag, r.step): r.data for r in from_events if r.kind not in ("cost", "words")}
    assert {(r.tag, r.step): r.data for r in from_arrays} == known


def test_a_second_fit_of_a_trainer_goes_on_with_its_page(tmp_path):
    trainer, net = trainer_in(tmp_path, both_monitors(), max_epochs=1), Net()
    trainer.fit(net, *loaders())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, *loaders())
    [run] = runs_in(tmp_path / "landscape" / "report.html")
    assert {one["step"] for one in run["records"] if one["kind"] == "family"} == {3, 7}


class Presses(Callback):
    """Presses Ctrl-C in an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_fit_that_a_person_ends_has_its_page_and_its_words(tmp_path, caplog):
    trainer = trainer_in(tmp_path, [*both_monitors(), Presses(epoch=1)])
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        trainer.fit(Net(), *loaders())
    [run] = runs_in(tmp_path / "landscape" / "report.html")
    assert {one["step"] for one in run["records"] if one["kind"] == "family"} == {3}
    assert "Is this an asymmetric valley?" in caplog.text


def test_a_fit_that_a_person_ends_before_a_probe_has_no_page(tmp_path, caplog):
    trainer = trainer_in(tmp_path, [*both_monitors(), Presses(epoch=0)])
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        trainer.fit(Net(), *loaders())
    assert not (tmp_path / "landscape" / "report.html").exists()
    assert "measured nothing" not in caplog.text


def test_a_page_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no template")

    monkeypatch.setattr(output_module, "page", broken)
    trainer = trainer_in(tmp_path, both_monitors(), max_epochs=1)
    with pytest.warns(UserWarning, match="Writing the page of .* failed") as said:
        trainer.fit(Net(), *loaders())
    assert sum("the page" in str(one.message) for one in said) == 1
    assert trainer.state.status == "finished"


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}], ids=str)
def test_no_page_is_written_where_no_file_is(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    trainer_in(tmp_path, both_monitors(), max_epochs=1, **options).fit(Net(), *loaders())
    assert list(tmp_path.rglob("*.html")) == []
