"""Every public result shows itself in a notebook: a sentence and a picture."""

import math
from xml.etree import ElementTree

import pytest
import torch

from lightning_landscape import (
    FunctionObjective,
    Slice,
    compare_ends,
    line_grid,
    measure_breakdown,
    score_asymmetry,
    survey,
    symmetric_grid,
)

GRID = symmetric_grid(1.0, 5)
LINE = Slice(GRID, torch.stack([GRID**2, 3 * GRID**2], dim=1), label="<gaussian>")
BOWL = FunctionObjective(lambda p: (p["w"] ** 2).sum() * torch.ones(3), {"w": torch.ones(2, 2)})
RESULTS = {
    "slice": (LINE, "The loss along &lt;gaussian&gt; is least at alpha = 0."),
    "score": (score_asymmetry(LINE), "This direction is"),
    "line": (compare_ends(Slice(line_grid(1, 7), line_grid(1, 7) ** 2)), "No verdict"),
    "survey": (survey(BOWL, ["gaussian"], n_directions=2)["gaussian"], "gaussian: "),
    "breakdown": (
        measure_breakdown(BOWL, {"w": -torch.ones(2, 2)}, [0.1, 0.2]),
        "The loss still falls",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_shows_a_sentence_and_a_picture(name):
    result, sentence = RESULTS[name]
    shown = result._repr_html_()
    tree = ElementTree.fromstring(f"<div>{shown}</div>")
    assert sentence in shown
    assert len(tree.findall("{http://www.w3.org/2000/svg}svg")) == 1
    assert "script" not in shown


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_said_to_be_gaps(broken):
    line = Slice(GRID, torch.tensor([broken, 1.0, 0.0, 1.0, 2.0]))
    assert "Losses that are not finite, 1, are gaps." in line._repr_html_()
    assert "<svg" in score_asymmetry(line)._repr_html_()
