"""Records: the same after a round trip, small, and readable without torch."""

import math
import subprocess
import sys
import zlib
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import records, write_run
from torch.utils.tensorboard import SummaryWriter

from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.measures.survey import Survey
from lightning_landscape.reporting.board import torch_writer
from lightning_landscape.reporting.figures_asymmetry import plot_line
from lightning_landscape.reporting.records import Record, collect, read_events
from lightning_landscape.reporting.results import family_data, line_data

COST = Record("cost", "probe", 3, {"seconds": 1.0})
numbers = st.floats(width=32) | st.integers(-(10**6), 10**6) | st.text() | st.none()
contents = st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(contents)
def test_a_record_is_the_same_after_a_round_trip(content):
    record = Record("cost", "probe", 3, {"seconds": 1.0, "more": content})
    assert Record.from_dict(record.to_dict()) == record
    assert Record.from_bytes(record.to_bytes()) == record


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_seven_digits(value):
    kept = Record("cost", "probe", 0, {"seconds": value}).data["seconds"]
    assert kept == pytest.approx(value, rel=1e-6)


def test_what_is_not_finite_becomes_a_word_that_float_reads():
    values = [math.inf, -math.inf, math.nan]
    words = Record("cost", "probe", 0, {"seconds": values}).data["seconds"]
    assert words == ["Infinity", "-Infinity", "NaN"]
    assert [float(word) for word in words[:2]] == values[:2]
    assert math.isnan(float(words[2]))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": 2}, "version 2; versions up to 1 can be read here"),
        ({"version": None}, "must be a JSON object with a `version`"),
        ({"kind": "poem"}, "`kind` must be one of"),
        ({"data": {}}, r"must have the fields \['seconds'\]"),
        ({"data": 7}, "lacks a field or has a wrong one"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(changes, what):
    with pytest.raises(ValueError, match=what):
        Record.from_dict({**COST.to_dict(), **changes})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        zlib.compress(b"{"),
        zlib.compress(b"[]"),
        zlib.compress(b'{"version": NaN}'),
    ],
)
def test_bytes_that_are_no_record_are_refused(content):
    with pytest.raises(ValueError, match="record"):
        Record.from_bytes(content)


def test_those_that_cannot_be_read_are_named_and_the_rest_is_there():
    found, problems = collect([("a", COST.to_bytes()), ("b", b"nonsense")])
    assert found == [COST]
    assert problems[0].startswith("b: This record cannot be read")


def test_the_last_record_of_a_tag_and_step_counts():
    later = Record("cost", "probe", 3, {"seconds": 2.0})
    assert collect([("a", COST.to_bytes()), ("a", later.to_bytes())])[0] == [later]


def test_records_come_back_from_the_event_file(tmp_path):
    written = records(2)
    write_run(tmp_path, written)
    found, problems = read_events(tmp_path)
    assert (found, problems) == (written, [])


def test_a_default_probe_takes_less_than_ten_kilobytes():
    probe = records(1)
    assert {record.kind for record in probe} >= {"family", "line"}
    assert sum(len(record.to_bytes()) for record in probe) < 10_000


def test_a_writer_that_is_not_torchs_gets_nothing():
    for logger in (SimpleNamespace(), SimpleNamespace(experiment=SimpleNamespace())):
        assert torch_writer(logger) is None


def test_where_torchs_writer_was_never_imported_nothing_is_written(monkeypatch, tmp_path):
    writer = SummaryWriter(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    assert torch_writer(SimpleNamespace(experiment=writer)) is None
    writer.close()


def test_a_tag_has_no_at_sign():
    assert Record("cost", "a@b", 0, {"seconds": 1}).tag == "landscape/record/cost/a-b"


def test_records_can_be_read_where_torch_cannot_be_imported():
    code = """
import sys
for name in ("torch", "lightning", "matplotlib", "numpy"):
    sys.modules[name] = None
from lightning_landscape.reporting.records import Record
print(Record.from_bytes(sys.stdin.buffer.read()).data)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], input=COST.to_bytes(), capture_output=True, check=True
    )
    assert result.stdout.decode().strip() == "{'seconds': 1}"


GRID = symmetric_grid(1.0, 5)
RATE = dict.fromkeys(("rate", "low", "high", "n", "off_minimum", "unresolved"), 0.0)


def test_a_family_has_the_median_direction_and_its_interval():
    slices = [Slice(GRID, k * GRID**2) for k in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    scores = [score_asymmetry(line) for line in slices]
    data = family_data(Survey("gaussian", slices, [], scores, RATE))
    # of six values the ends of the interval are the extremes
    assert (data["median"][-1], data["low"][-1], data["high"][-1]) == (3.5, 1.0, 6.0)
    assert data["area"] == (0.0, 0.0, 0.0)
    assert data["verdicts"] == ["symmetric"] * 6
    assert data["validation"] is None
    assert data["verdict"] == "no verdict"
    assert "1 batch is too few" in data["words"]


def test_a_loss_that_is_not_finite_is_kept_and_counted():
    losses = torch.tensor([math.inf, 1.0, 0.0, 1.0, 2.0])
    line = Slice(GRID, losses)
    data = family_data(Survey("gaussian", [line], [], [score_asymmetry(line)], RATE))
    record = Record("family", "gaussian", 0, data)
    assert record.data["slices"] == [["Infinity", 1, 0, 1, 2]]
    assert record.data["n_nonfinite"] == 1


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([-1.0, -1.1, -0.9], "lower"),
        ([1.0, 1.1, 0.9], "higher"),
        ([-1.0, 1.0, 0.1], "no verdict"),
        ([-1.0, -1.1], "no verdict"),
    ],
)
def test_a_line_says_which_end_is_lower_where_the_batches_agree(gaps, verdict):
    t = line_grid(1.0, 7)
    losses = t[:, None] * torch.tensor(gaps, dtype=torch.float64) + t[:, None] ** 2 - t[:, None]
    line = Slice(t, losses, 2.0)
    data = line_data(line)
    assert data["train"]["verdict"] == verdict
    # mean and standard error at t = 1 are those of the gaps
    expected = torch.tensor(gaps, dtype=torch.float64)
    assert float(data["train"]["mean"][4]) == pytest.approx(float(expected.mean()))
    assert float(data["train"]["stderr"][4]) == pytest.approx(
        float(expected.std() / len(gaps) ** 0.5)
    )


def test_the_error_of_a_rise_is_paired_over_the_batches():
    t = line_grid(1.0, 7)
    levels = torch.tensor([0.0, 5.0, 11.0], dtype=torch.float64)  # batches differ in level alone
    data = line_data(Slice(t, t[:, None] ** 2 + levels, 2.0))["train"]
    assert data["rise_stderr"].tolist() == pytest.approx([0.0] * 7, abs=1e-12)
    assert min(data["stderr"].tolist()) > 1
    axes = plot_line(Slice(t, t[:, None] ** 2 + levels, 2.0)).axes[0]
    band = axes.collections[0].get_paths()[0].get_extents()
    assert band.height == pytest.approx(4.0)  # of the curve itself, from 0 to 2 ** 2


def test_a_broken_event_file_gives_what_stands_before_the_break(tmp_path):
    path = next(write_run(tmp_path, records(2)).glob("*tfevents*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found, _ = read_events(path)
    assert 0 < len(found) < len(records(2))
