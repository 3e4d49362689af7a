"""One object for a probe's results: every kind of logger, and files that are whole or not there."""

import math
import os
import pickle
import sys
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from made_up_runs import records
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lightning_landscape.reporting.output import Output, WarnOnce
from lightning_landscape.reporting.records import Record, read_events
from lightning_landscape.reporting.run_records import RunRecords

PROBE = records(1)


class FakeLogger:
    def __init__(self, experiment=None, **attributes):
        self.experiment = experiment
        self.rows = []
        self.__dict__.update(attributes)

    def log_metrics(self, metrics, step):
        self.rows.append((metrics, step))


def make_output(folder, *loggers, name="landscape", step=3, **attributes):
    log_dir = attributes.pop("log_dir", str(folder))
    for logger in loggers:
        logger.log_dir = logger.save_dir = log_dir
    defaults = {
        "loggers": list(loggers),
        "fast_dev_run": 0,
        "is_global_zero": True,
        "callback_metrics": {},
    }
    return Output(
        SimpleNamespace(**{**defaults, **attributes}), name, step, WarnOnce(), RunRecords()
    )


def figure():
    made = Figure(figsize=(1, 1))
    made.subplots().plot([0, 1], [0, 1])
    return made


def never():
    raise AssertionError("nobody would see it")


def recording(*names):
    calls = []
    methods = {
        name: (lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
        for name in names
    }
    return SimpleNamespace(**methods), calls


def test_scalars_reach_every_logger_and_the_callback_metrics(tmp_path):
    loggers = FakeLogger(), FakeLogger()
    output = make_output(tmp_path, *loggers)
    output.scalars({"uniform@norm/area": 2.0})
    assert [logger.rows for logger in loggers] == [[({"landscape/uniform-norm/area": 2.0}, 3)]] * 2
    assert output.trainer.callback_metrics["landscape/uniform-norm/area"] == 2.0


def test_tensorboard_gets_an_image(tmp_path):
    experiment, calls = recording("add_image", "add_figure")
    make_output(tmp_path, FakeLogger(experiment)).figure("uniform@norm", figure)
    [(name, (tag, image, step), options)] = calls
    assert (name, tag, step) == ("add_image", "landscape/uniform-norm", 3)
    assert options == {"dataformats": "HWC"}
    assert image.dtype == np.uint8
    assert image.shape[-1] == 3


def test_a_writer_that_only_takes_figures_gets_one(tmp_path):
    experiment, calls = recording("add_figure")
    make_output(tmp_path, FakeLogger(experiment)).figure("x", figure)
    assert calls[0][0] == "add_figure"


def test_a_logger_of_images_gets_a_picture(tmp_path):
    images = []
    logger = FakeLogger(object(), log_image=lambda **options: images.append(options))
    make_output(tmp_path, logger).figure("x", figure)
    assert images[0]["key"] == "landscape/x"
    assert images[0]["step"] == 3
    assert images[0]["images"][0].mode == "RGB"


def test_mlflow_and_comet_get_a_figure_each_in_its_way(tmp_path):
    experiment, calls = recording("log_figure")
    mlflow, comet = FakeLogger(experiment, run_id="run"), FakeLogger(experiment)
    make_output(tmp_path, mlflow, comet).figure("x", figure)
    assert calls[0][1][0] == "run"
    assert calls[0][1][2] == "landscape/x/step=3.png"
    assert calls[1][1][0] == "landscape/x"
    assert calls[1][2] == {"step": 3}


def test_text_reaches_the_loggers_that_have_a_place_for_it(tmp_path):
    experiment, calls = recording("add_text")
    make_output(tmp_path, FakeLogger(), FakeLogger(experiment)).text("summary", "**so**")
    assert calls == [("add_text", ("landscape/summary", "**so**", 3), {})]


def test_where_no_logger_shows_figures_there_is_a_file(tmp_path):
    make_output(tmp_path, FakeLogger()).figure("x", figure)
    assert (tmp_path / "landscape" / "landscape-x-step=3.png").read_bytes()[1:4] == b"PNG"


def test_a_probe_has_one_file_of_named_arrays(tmp_path):
    make_output(tmp_path, FakeLogger()).arrays("my/name", {"sign/losses": np.eye(2)})
    with np.load(tmp_path / "landscape" / "my-name-step=3.npz", allow_pickle=False) as arrays:
        assert arrays["sign/losses"].tolist() == [[1, 0], [0, 1]]
        assert int(arrays["step"]) == 3


@pytest.mark.parametrize(
    "attributes",
    [{"loggers": []}, {"fast_dev_run": 1}, {"log_dir": None}, {"is_global_zero": False}],
    ids=str,
)
def test_nothing_is_written_where_nothing_should_be(tmp_path, attributes):
    output = make_output(tmp_path, FakeLogger(), **attributes)
    output.arrays("landscape", {})
    output.figure("x", figure)
    output.text("summary", "so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("attributes", [{"loggers": []}, {"is_global_zero": False}], ids=str)
def test_a_figure_that_nobody_would_see_is_not_made(tmp_path, attributes):
    output = make_output(tmp_path, FakeLogger(), **attributes)
    assert not output.plots
    output.figure("x", never)


@pytest.mark.tried("loggers", "a remote `save_dir` (memory://): files as fsspec writes them")
def test_files_of_a_remote_run_are_written_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = make_output(tmp_path, FakeLogger(), log_dir="memory://run/version_0")
    output.arrays("landscape", {"a": [1.0]})
    output.figure("x", figure)
    found = fsspec.filesystem("memory")
    with found.open("/run/version_0/landscape/landscape-step=3.npz") as file, np.load(file) as it:
        assert it["a"].tolist() == [1.0]
    assert found.exists("/run/version_0/landscape/landscape-x-step=3.png")
    assert list(tmp_path.iterdir()) == []  # no folder called `memory:`


@pytest.mark.tried("loggers", "a remote `save_dir` without its client: one warning, no file")
def test_a_remote_run_that_cannot_be_reached_costs_one_warning(tmp_path):
    output = make_output(tmp_path, FakeLogger(), log_dir="nowhere://run")
    with pytest.warns(UserWarning, match="nowhere://run.*Training goes on without"):
        output.arrays("landscape", {})
    output.arrays("landscape", {})  # a second warning would be an error


FAULTS = "no way to rename a file or make a folder; Ctrl-C while writing"


@pytest.mark.tried("faults", FAULTS)
def test_a_full_disk_costs_one_warning_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    output = make_output(tmp_path, FakeLogger())
    with pytest.warns(UserWarning, match="no space left on device. Training goes on"):
        output.arrays("landscape", {})
    output.arrays("landscape", {})  # a second warning would be an error
    assert list((tmp_path / "landscape").iterdir()) == []


@pytest.mark.tried("faults", FAULTS)
def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path):
    (tmp_path / "landscape").write_text("in the way")
    with pytest.warns(UserWarning, match="File exists.*Training goes on"):
        make_output(tmp_path, FakeLogger()).arrays("landscape", {})


@pytest.mark.tried("faults", FAULTS)
def test_an_interrupt_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(self, content):
        self.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_output(tmp_path, FakeLogger()).arrays("landscape", {})
    assert list((tmp_path / "landscape").iterdir()) == []


def test_a_logger_that_raises_costs_one_warning_and_no_other_logger(tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("offline")

    bad, good = FakeLogger(log_metrics=broken), FakeLogger()
    output = make_output(tmp_path, bad, good)
    with pytest.warns(UserWarning, match="FakeLogger failed to log a landscape result"):
        output.scalars({"a": 1.0})
    output.scalars({"a": math.nan})  # a second warning would be an error
    assert len(good.rows) == 2
    assert torch.isnan(output.trainer.callback_metrics["landscape/a"])


def test_what_was_warned_about_survives_a_pickle():
    warn_once = WarnOnce()
    with pytest.warns(UserWarning, match="full"):
        warn_once("disk", "full")
    pickle.loads(pickle.dumps(warn_once))("disk", "full")  # a second warning would be an error


def test_a_cause_is_warned_about_once_whatever_the_kind():
    warn_once = WarnOnce()
    with pytest.warns(UserWarning, match="first"):
        warn_once("one", "first", "no memory")
    warn_once("other", "second", "no memory")  # a warning would be an error
    with pytest.warns(UserWarning, match="third"):
        warn_once("other", "third", "no disk")


COST = {"seconds": 1.0}


def test_a_record_reaches_the_event_file_with_its_step_and_name(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    make_output(tmp_path, FakeLogger(writer), FakeLogger()).record("cost", "a@b", COST)
    writer.close()
    assert read_events(tmp_path) == ([Record("cost", "a@b", 3, COST)], [])


def test_a_result_that_is_no_record_costs_one_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"must have the fields \['seconds'\]"):
        make_output(tmp_path, FakeLogger()).record("cost", "probe", {})


def paged(folder, *loggers, **attributes):
    output = make_output(folder, *loggers, **attributes)
    for record in PROBE:
        output.record(record.kind, record.name, record.data)
    output.page()
    return output


def test_the_page_is_written_beside_the_other_files(tmp_path):
    paged(tmp_path / "version_7", FakeLogger())
    content = (tmp_path / "version_7" / "landscape" / "report.html").read_text()
    assert "Loss landscape of version_7" in content
    assert "Directions: uniform@norm, step 3" in content


def test_a_page_is_written_again_only_where_something_was_added(tmp_path):
    output = paged(tmp_path, FakeLogger())
    path = tmp_path / "landscape" / "report.html"
    path.unlink()
    output.page()
    assert not path.exists()
    output.record("cost", "probe", COST)
    output.page()
    assert path.exists()


def test_loggers_that_keep_files_get_the_page(tmp_path, monkeypatch):
    mlflow, kept = recording("log_text")
    comet, assets = recording("log_asset_data")
    wandb, logged = recording("log")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Html=lambda text: ("html", text)))
    loggers = (
        FakeLogger(mlflow, run_id="run"),
        FakeLogger(comet),
        FakeLogger(wandb, log_image=never),
    )
    paged(tmp_path, *loggers)
    assert kept[0][1][::2] == ("run", "landscape/report.html")
    assert assets[0][2] == {"name": "landscape/report.html", "overwrite": True}
    assert logged[0][1][0]["landscape/report"][0] == "html"


@pytest.mark.parametrize(
    "attributes",
    [{"loggers": []}, {"fast_dev_run": 1}, {"log_dir": None}, {"is_global_zero": False}],
    ids=str,
)
def test_no_page_is_written_where_nothing_should_be(tmp_path, attributes):
    paged(tmp_path, FakeLogger(), **attributes)
    make_output(tmp_path, FakeLogger()).page()  # without a record
    assert list(tmp_path.iterdir()) == []
