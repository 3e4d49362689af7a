"""Charts as SVG text: what is drawn where."""

import math
import re
from xml.etree import ElementTree

import pytest

from lightning_landscape.svg import Line, line_chart

NAMES = {"x_label": "alpha", "y_label": "loss", "title": "A chart"}


def paths(chart):
    return re.findall(r'<path d="([^"]*)"', chart)


def test_a_chart_is_well_formed_and_its_text_is_escaped():
    chart = line_chart([Line([0, 1], [0, 1], "<b> & more")], x_label="a<b", y_label="y", title="&")
    texts = [node.text for node in ElementTree.fromstring(chart).iter() if node.text]
    assert {"<b> & more", "a<b", "&"} <= set(texts)


def test_the_ends_of_a_line_lie_at_the_ends_of_the_axis():
    (path,) = paths(line_chart([Line([0, 1, 2], [0, 5, 10])], **NAMES))
    points = [tuple(map(float, p.split())) for p in re.findall(r"[\d.]+ [\d.]+", path)]
    assert [x for x, _ in points] == [58, 263, 468]
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.11)


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_gap(hole):
    (path,) = paths(line_chart([Line([0, 1, 2, 3, 4], [0, 1, hole, 1, 0])], **NAMES))
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    (path,) = paths(line_chart([Line([0, 1, 10, 100], [1, 1, 10, 0])], log_x=True, log_y=True,
                               **NAMES))  # fmt: skip
    assert (path.count("M"), path.count("L")) == (1, 1)


@pytest.mark.parametrize("values", [[3.0, 3.0], [math.nan, math.nan], [0.0, 0.0]])
def test_values_without_a_spread_can_be_shown(values):
    ElementTree.fromstring(line_chart([Line([0, 1], values)], **NAMES))


@pytest.mark.parametrize(("values", "log", "said"), [
    ([math.nan, math.inf], False, True), ([0.0, -1.0], True, True), ([math.nan, 1.0], True, False),
])  # fmt: skip
def test_a_chart_says_why_nothing_can_be_seen(values, log, said):
    chart = line_chart([Line([0, 1], values)], log_y=log, **NAMES)
    assert ("Nothing to plot" in chart) == said


@pytest.mark.parametrize(("x", "anchor"), [(0.0, "start"), (0.5, "start"), (1.0, "end")])
def test_the_name_of_a_mark_stands_above_the_chart_and_inside_the_picture(x, anchor):
    chart = line_chart([Line([0, 1], [0, 1])], marks=[(x, "here")], **NAMES)
    (mark,) = [node for node in ElementTree.fromstring(chart).iter() if node.text == "here"]
    highest = min(float(line.get("y1")) for line in ElementTree.fromstring(chart).iter()
                  if line.get("y1"))  # fmt: skip
    assert float(mark.get("y")) < highest
    assert mark.get("text-anchor") == anchor


def test_a_chart_without_lines_is_an_empty_frame():
    assert paths(line_chart([], **NAMES)) == []


def test_a_mark_outside_the_axis_is_left_out():
    line = [Line([0, 1], [0, 1])]
    inside = line_chart(line, marks=[(0.5, "here")], **NAMES)
    assert "here" in inside
    assert "here" not in line_chart(line, marks=[(2, "here")], **NAMES)


def test_a_band_runs_along_its_lower_edge_and_back_along_the_upper():
    chart = line_chart([Line([0, 1], [1, 1], band=([0, math.nan], [2, 2]))], **NAMES)
    points = re.search(r'points="([^"]*)"', chart).group(1).split()
    assert len(points) == 2  # the second place has no lower edge
