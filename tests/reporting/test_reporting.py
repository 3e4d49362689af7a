"""Where results go: tags, every kind of logger, files that are whole or not there."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.line import compare_ends
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.reporting.output import (
    family_scalars,
    line_scalars,
    log_figure,
    log_scalars,
    save_slices,
)

GRID = symmetric_grid(1.0, 5)
RATE = {name: torch.tensor(0.5) for name in ("rate", "low", "high")}


class FakeLogger:
    def __init__(self, experiment=None, **attributes):
        self.experiment = experiment
        self.shown = []
        self.rows = []
        self.__dict__.update(attributes)

    def log_metrics(self, metrics, step):
        self.rows.append((metrics, step))


def trainer(tmp_path, *loggers, **attributes):
    log_dir = attributes.pop("log_dir", str(tmp_path))
    for logger in loggers:
        logger.log_dir = logger.save_dir = log_dir
    defaults = {
        "loggers": list(loggers),
        "fast_dev_run": 0,
        "is_global_zero": True,
        "callback_metrics": {},
    }
    return SimpleNamespace(**{**defaults, **attributes})


def line():
    return Slice(GRID, torch.stack([GRID**2, 2 * GRID**2], dim=1), 1.5, "eval", "gaussian")


def figure():
    made = Figure(figsize=(1, 1))
    made.subplots().plot([0, 1], [0, 1])
    return made


def test_the_scalars_of_a_family_are_medians_over_directions_and_an_interval():
    losses = [torch.tensor([a, 0.0, 0.0, 0.0, 1.0]) for a in (0.0, 0.5, 2.0)]
    scores = [score_asymmetry(Slice(GRID, loss)) for loss in losses]
    scalars = family_scalars("uniform@norm", scores, RATE)
    assert set(scalars) == {
        f"landscape/uniform-norm/{name}"
        for name in (
            "rate",
            "rate_low",
            "rate_high",
            "area",
            "area_corrected",
            "ratio",
            "off_minimum",
        )
    }
    # areas (1 - a) / (1 + a): 1, 1/3, -1/3
    assert scalars["landscape/uniform-norm/area"] == pytest.approx(1 / 3)


def test_from_six_directions_on_the_median_area_has_an_interval():
    losses = [torch.tensor([a, 0.0, 0.0, 0.0, 1.0]) for a in (0.0, 0.0, 1.0, 1.0, 3.0, 3.0)]
    scores = [score_asymmetry(Slice(GRID, loss)) for loss in losses]
    scalars = family_scalars("gaussian", scores, RATE)
    # areas (1 - a) / (1 + a): 1, 1, 0, 0, -1/2, -1/2; of six, the ends are the extremes
    assert scalars["landscape/gaussian/area_low"] == -0.5
    assert scalars["landscape/gaussian/area_high"] == 1.0


def test_a_direction_without_a_score_does_not_spoil_the_median():
    scores = [score_asymmetry(line()), score_asymmetry(Slice(GRID, torch.full((5,), math.nan)))]
    assert family_scalars("gaussian", scores, RATE)["landscape/gaussian/area"] == 0.0
    nothing = family_scalars("gaussian", scores[1:], RATE)
    assert math.isnan(nothing["landscape/gaussian/area"])


def test_the_scalars_of_the_line_have_a_place_for_each_set_of_batches():
    t = line_grid(1.0, 7)
    score = compare_ends(Slice(t, (t - 1) ** 2, 2.0))
    assert line_scalars(score)["landscape/swa/gap"] == -1.0
    assert line_scalars(score, validation=True)["landscape/swa/val/distance"] == 2.0


def test_scalars_reach_every_logger_and_the_callback_metrics(tmp_path):
    loggers = FakeLogger(), FakeLogger()
    there = trainer(tmp_path, *loggers)
    log_scalars(there, {"landscape/seconds": 2.0}, step=7)
    assert [logger.rows for logger in loggers] == [[({"landscape/seconds": 2.0}, 7)]] * 2
    assert there.callback_metrics["landscape/seconds"] == 2.0


def recording(*names):
    calls = []
    methods = {
        name: (lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
        for name in names
    }
    return SimpleNamespace(**methods), calls


def test_tensorboard_gets_an_image(tmp_path):
    experiment, calls = recording("add_image", "add_figure")
    log_figure(trainer(tmp_path, FakeLogger(experiment)), "landscape/x", figure(), 3)
    (name, (tag, image, step), options) = calls[0]
    assert (name, tag, step, options) == ("add_image", "landscape/x", 3, {"dataformats": "HWC"})
    assert image.dtype == np.uint8
    assert image.shape[-1] == 3


def test_a_writer_that_only_takes_figures_gets_one(tmp_path):
    experiment, calls = recording("add_figure")
    log_figure(trainer(tmp_path, FakeLogger(experiment)), "landscape/x", figure(), 3)
    assert calls[0][0] == "add_figure"


def test_a_logger_of_images_gets_a_picture(tmp_path):
    images = []
    logger = FakeLogger(object(), log_image=lambda **options: images.append(options))
    log_figure(trainer(tmp_path, logger), "landscape/x", figure(), 3)
    assert images[0]["key"] == "landscape/x"
    assert images[0]["step"] == 3
    assert images[0]["images"][0].mode == "RGB"


def test_mlflow_and_comet_get_a_figure_each_in_its_way(tmp_path):
    experiment, calls = recording("log_figure")
    mlflow, comet = FakeLogger(experiment, run_id="run"), FakeLogger(experiment)
    log_figure(trainer(tmp_path, mlflow, comet), "landscape/x", figure(), 3)
    assert calls[0][1][0] == "run"
    assert calls[0][1][2] == "landscape/x/step=3.png"
    assert calls[1][1][0] == "landscape/x"
    assert calls[1][2] == {"step": 3}


def test_where_no_logger_shows_figures_there_is_a_file(tmp_path):
    log_figure(trainer(tmp_path, FakeLogger()), "landscape/x", figure(), 3)
    assert (tmp_path / "landscape" / "landscape-x-step=3.png").read_bytes()[1:4] == b"PNG"


def test_raw_slices_come_back_from_their_file(tmp_path):
    save_slices(trainer(tmp_path, FakeLogger()), "uniform@norm", [line(), line()], 12)
    with np.load(tmp_path / "landscape" / "uniform-norm-step=12.npz") as arrays:
        np.testing.assert_array_equal(arrays["alphas"], GRID)
        assert arrays["losses"].shape == (2, 5, 2)
        assert arrays["distance"].tolist() == [1.5, 1.5]
        assert str(arrays["mode"]) == "eval"
        assert int(arrays["step"]) == 12


@pytest.mark.parametrize(
    "attributes",
    [{"loggers": []}, {"fast_dev_run": 1}, {"log_dir": None}, {"is_global_zero": False}],
    ids=str,
)
def test_nothing_is_written_where_nothing_should_be(tmp_path, attributes):
    there = trainer(tmp_path, FakeLogger(), **attributes)
    save_slices(there, "gaussian", [line()], 0)
    log_figure(there, "landscape/x", figure(), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tried("faults", "no way to rename a file or make a folder; Ctrl-C while writing")
def test_a_full_disk_costs_one_warning_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="no space left on device. Training goes on"):
        save_slices(trainer(tmp_path, FakeLogger()), "gaussian", [line()], 0)
    save_slices(
        trainer(tmp_path, FakeLogger()), "gaussian", [line()], 1
    )  # a second one is an error
    assert list((tmp_path / "landscape").iterdir()) == []


@pytest.mark.tried("faults", "no way to rename a file or make a folder; Ctrl-C while writing")
def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path):
    (tmp_path / "landscape").write_text("in the way")
    with pytest.warns(UserWarning, match="File exists.*Training goes on"):
        save_slices(trainer(tmp_path, FakeLogger()), "gaussian", [line()], 0)


@pytest.mark.tried("faults", "no way to rename a file or make a folder; Ctrl-C while writing")
def test_an_interrupt_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(self, content):
        self.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_slices(trainer(tmp_path, FakeLogger()), "gaussian", [line()], 0)
    assert list((tmp_path / "landscape").iterdir()) == []


def test_a_logger_that_raises_is_warned_about_once_and_the_others_get_theirs(tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("offline")

    bad, good = FakeLogger(log_metrics=broken), FakeLogger()
    there = trainer(tmp_path, bad, good)
    with pytest.warns(UserWarning, match="FakeLogger failed to log a landscape result"):
        log_scalars(there, {"a": 1.0}, 0)
    log_scalars(there, {"a": 2.0}, 1)  # a second warning would be an error
    assert len(good.rows) == 2
