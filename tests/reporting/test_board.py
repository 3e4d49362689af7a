"""What TensorBoard gets beyond numbers and text, read back from its event files."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_landscape.reporting.board import chart_layout
from lightning_landscape.reporting.output import Output, WarnOnce
from lightning_landscape.reporting.run_records import RunRecords

LAYOUT = "custom_scalars__config__"
RATE = {"sign/rate": 0.5, "sign/rate_low": 0.2, "sign/rate_high": 0.8}


@pytest.fixture
def logger(tmp_path):
    return TensorBoardLogger(tmp_path, name="", version="")


def make_output(logger, name="landscape", metrics=None, warn_once=None):
    metrics = {} if metrics is None else metrics
    trainer = SimpleNamespace(loggers=[logger], is_global_zero=True, callback_metrics=metrics)
    return Output(trainer, name, 3, warn_once or WarnOnce(), RunRecords())


def events(logger):
    logger.experiment.flush()
    return EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()


def layouts(logger):
    found = events(logger)
    rows = found.Tensors(LAYOUT) if LAYOUT in found.Tags()["tensors"] else []
    return [Layout.FromString(row.tensor_proto.string_val[0]) for row in rows]


def test_scalars_have_a_description(logger):
    make_output(logger).scalars({"uniform@norm/area": 0.25})
    found = events(logger)
    [row] = found.Scalars("landscape/uniform-norm/area")
    assert (row.step, row.value) == (3, 0.25)
    text = found.SummaryMetadata("landscape/uniform-norm/area").summary_description
    assert text.startswith("median asymmetry, from -1 to 1")


def test_a_scalar_of_the_user_is_written_as_ever(logger):
    make_output(logger).scalars(RATE)
    logger.log_metrics({"landscape/sign/rate": 1.0, "loss": 2.0}, step=4)
    found = events(logger)
    assert [row.value for row in found.Scalars("landscape/sign/rate")] == [0.5, 1.0]
    assert [row.value for row in found.Scalars("loss")] == [2.0]
    assert "add_summary" not in vars(logger.experiment._get_file_writer())


def test_a_picture_is_stored_as_it_is(logger):
    make_output(logger).figure("sign", lambda: Figure(figsize=(2, 1), dpi=100))
    [row] = events(logger).Images("landscape/sign")
    assert (row.step, row.width, row.height) == (3, 200, 100)
    assert len(row.encoded_image_string) < 1000


def test_charts_of_rates_come_first_and_have_their_interval(logger):
    metrics = {"val_loss": 1.0}
    once = WarnOnce()
    make_output(logger, "swa", metrics, once).scalars({"n_averaged": 2.0, "val_loss": 0.5})
    make_output(logger, "landscape", metrics, once).scalars(RATE)
    make_output(logger, "landscape", metrics, once).scalars(RATE)
    first, last = layouts(logger)  # no third: no chart was new
    assert [category.title for category in first.category] == ["average"]
    assert [category.title for category in last.category] == ["asymmetry", "average"]
    [chart] = last.category[0].chart
    assert chart.title == "landscape/sign: rate"
    margin = chart.margin.series[0]
    assert (margin.lower, margin.value, margin.upper) == (
        "landscape/sign/rate_low",
        "landscape/sign/rate",
        "landscape/sign/rate_high",
    )
    [chart] = last.category[1].chart
    assert list(chart.multiline.tag) == [
        "^val_loss$",
        "^swa/val_loss$",
        "^swa/control/val_loss$",
    ]


def test_a_layout_of_the_user_stays(logger):
    logger.experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})
    make_output(logger).scalars(RATE)
    [layout] = layouts(logger)
    assert layout.category[0].title == "mine"


def test_a_resumed_run_may_change_its_layout(logger):
    make_output(logger).scalars(RATE)
    make_output(logger, metrics={"breakdown/update/descent_limit": 1.0}).scalars(RATE)
    assert [len(layout.category) for layout in layouts(logger)] == [1, 2]


def test_limits_of_the_step_are_in_one_chart():
    names = ("descent_limit", "critical_rate", "learning_rate")
    tags = [f"breakdown/update/{name}" for name in names]
    assert list(chart_layout(tags)["step"]) == [
        "breakdown/update: critical rate",
        "breakdown/update: largest relative steps",
    ]
    assert chart_layout(["loss"]) == {}


def test_a_record_reaches_the_tab(logger):
    make_output(logger).record("cost", "probe", {"seconds": 1.5})
    assert "landscape/record/cost/probe" in events(logger).Tags()["tensors"]
