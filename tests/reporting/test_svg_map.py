"""Maps as SVG text: which cell has which colour, and where points lie."""

import math
import re
from xml.etree import ElementTree

from lightning_landscape.reporting.svg_map import heat_map

NAMES = {"x_label": "first", "y_label": "second", "title": "A <map>"}


def rectangles(chart):
    """Return `(x, y, width, height, fill)` of each rectangle."""
    pattern = r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)" fill="(.*?)"'
    return [(*map(float, found[:4]), found[4]) for found in re.findall(pattern, chart)]


def test_a_map_is_well_formed_and_its_text_is_escaped():
    chart = heat_map([0, 1], [0, 1], [[0, 1], [2, 3]], points={"a & b": (0, 1)}, **NAMES)
    texts = [node.text for node in ElementTree.fromstring(chart).iter() if node.text]
    assert {"A <map>", "a & b", "first", "second"} <= set(texts)


def test_colours_follow_the_rank_and_not_the_size():
    small = heat_map([0, 1], [0, 1], [[0, 1], [2, 3]], **NAMES)
    large = heat_map([0, 1], [0, 1], [[0, 1], [2, 1e9]], **NAMES)
    assert rectangles(small) == rectangles(large)
    assert len({fill for *_, fill in rectangles(small)}) == 4


def test_the_first_row_is_at_the_bottom_and_the_first_column_at_the_left():
    chart = rectangles(heat_map([0, 1], [0, 1], [[0, 1], [2, 3]], **NAMES))
    lowest = min(chart, key=lambda cell: cell[4] != "#440154")
    assert lowest[0] == min(x for x, *_ in chart)
    assert lowest[1] == max(y for _, y, *_ in chart)


def test_what_is_not_finite_is_a_gap():
    chart = heat_map([0, 1], [0, 1, 2], [[math.nan, 1, math.inf], [2, 3, 4]], **NAMES)
    assert len(rectangles(chart)) == 4


def test_neighbours_of_one_colour_share_a_rectangle():
    chart = heat_map([0, 1], [0, 1, 2], [[1, 1, 1], [2, 2, 2]], **NAMES)
    assert len(rectangles(chart)) == 2


def test_a_single_point_is_a_map_too():
    assert len(rectangles(heat_map([0], [0], [[1.0]], **NAMES))) == 1
