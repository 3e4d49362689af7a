"""Results as numbers: medians over directions, intervals, and a line in the table for every tag."""

import math

import pytest
import torch

from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.line import compare_ends
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.measures.survey import Survey
from lightning_landscape.reporting.scalars import family_scalars, line_scalars
from lightning_landscape.reporting.tags import describe

GRID = symmetric_grid(1.0, 5)
RATE = dict.fromkeys(("rate", "low", "high", "n", "off_minimum", "unresolved"), 0.5)


def found(family, *behind):
    """Survey slices that rise by 1 ahead and by so much behind: areas are (1 - a) / (1 + a)."""
    slices = [Slice(GRID, torch.tensor([a, 0.0, 0.0 * a, 0.0, 1.0])) for a in behind]
    return Survey(family, slices, [], [score_asymmetry(line) for line in slices], RATE)


def test_the_scalars_of_a_family_are_medians_over_directions():
    scalars = family_scalars(found("uniform@norm", 0.0, 0.5, 2.0))
    assert scalars["uniform@norm/area"] == pytest.approx(1 / 3)  # of 1, 1/3, -1/3
    assert scalars["uniform@norm/rate_high"] == 0.5
    assert "uniform@norm/area_low" not in scalars


def test_from_six_directions_on_the_median_area_has_an_interval():
    scalars = family_scalars(found("gaussian", 0.0, 0.0, 1.0, 1.0, 3.0, 3.0))
    # areas 1, 1, 0, 0, -1/2, -1/2; of six, the ends are the extremes
    assert scalars["gaussian/area_low"] == -0.5
    assert scalars["gaussian/area_high"] == 1.0


def test_a_direction_without_a_score_does_not_spoil_the_median():
    assert family_scalars(found("sign", 1.0, math.nan))["sign/area"] == 0.0
    assert math.isnan(family_scalars(found("sign", math.nan))["sign/area"])


def test_the_scalars_of_the_line_have_a_place_for_each_set_of_batches():
    t = line_grid(1.0, 7)
    train = compare_ends(Slice(t, (t - 1) ** 2, 2.0))
    validation = compare_ends(Slice(t, (t - 1.5) ** 2, 2.0))
    scalars = line_scalars(train, validation)
    assert scalars["swa/gap"] == -1.0
    assert scalars["swa/val/distance"] == 2.0
    assert scalars["swa/shift"] == 0.5
    assert not any("val" in tag or "shift" in tag for tag in line_scalars(train))


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("gaussian/rate", "share of directions"),
        ("sign-*conv*.weight/area_low", "lower end"),
        ("swa/gap", "loss of the average minus"),
        ("swa/val/gap", "loss of the average minus"),
        ("update/max", "largest relative change"),
        ("generator/update/max", "largest relative change"),
        ("update/layer/net.0.weight", "this layer's gradient"),
        ("control/val_loss", "current weights"),
        ("n_averaged", "sets of weights"),
        ("val_loss/dataloader_idx_0", ""),
    ],
)
def test_the_table_says_what_a_tag_is(tag, text):
    assert text in describe(tag)
    assert bool(text) == bool(describe(tag))
