"""The line between two sets of weights, against closed forms."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_landscape import (
    FunctionObjective,
    Slice,
    compare_ends,
    difference,
    evaluate_slice,
    line_grid,
    symmetric_grid,
)

FEW = settings(max_examples=60, deadline=None)
BAD = [math.nan, math.inf, -math.inf]


def test_the_line_by_hand():
    t = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])
    score = compare_ends(Slice(t, torch.tensor([5.0, 1.0, 2.0, 0.5, 1.5]), distance=7.0))
    assert score.distance == 7.0
    assert score.gap == -0.5
    assert score.minimum == 1.0
    assert score.barrier == 2.0 - 0.75  # above the chord's (1 + .5) / 2
    assert score.outward_ratio == (5.0 - 1.0) / (1.5 - 0.5)
    assert math.isnan(score.gap_stderr)


def test_the_barrier_is_the_highest_point_above_the_chord():
    # chord from 0 to 4; at t = 1/4, 1/2, 3/4 it is 1, 2, 3, and the losses stand 2, 1, -3 above it
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert compare_ends(Slice(t, torch.tensor([0.0, 3.0, 3.0, 0.0, 4.0]))).barrier == 2.0


@pytest.mark.parametrize(
    "loss", [torch.square, torch.abs, lambda t: 3 - 2 * t], ids=["square", "abs", "line"]
)
def test_a_convex_line_has_no_barrier(loss):
    grid = line_grid(1.0, 13)
    assert compare_ends(Slice(grid, loss(grid))).barrier == 0.0


def test_what_lies_outside_the_ends_is_no_barrier():
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    assert compare_ends(Slice(t, torch.tensor([100.0, 1.0, 2.0, 100.0]))).barrier == 0.0


@pytest.mark.parametrize("k", [1.0, 2.0, 4.0])
def test_the_average_on_the_flat_side_has_an_outward_ratio_above_one(k):
    # slopes -4 before 1/4 and 1 after: from 0 outward it rises by 4 k, from 1 by k
    grid = line_grid(k, 31)
    valley_loss = torch.where(grid < 0.25, 4 * (0.25 - grid), grid - 0.25)
    assert compare_ends(Slice(grid, valley_loss)).outward_ratio == pytest.approx(4, rel=1e-12)
    assert compare_ends(Slice(grid, valley_loss.flip(0))).outward_ratio == pytest.approx(0.25)


def test_the_line_from_weights_to_their_average_measured_in_weight_space():
    # |w - m|^2 from w = (0, 0) to (3, 4), m at t = 3/4: L(t) = 25 (t - 3/4)^2, so the gap is
    # 25 (1/16 - 9/16), and with overhang 4 the ratio is (16 + 8 * 3/4) / (16 + 8 * 1/4)
    current = {"w": torch.zeros(2, dtype=torch.float64)}
    average = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    objective = FunctionObjective(lambda p: (p["w"] - 0.75 * average["w"]).square().sum(), current)
    line = evaluate_slice(objective, difference(average, current), line_grid(4.0, 37))
    score = compare_ends(line)
    assert (score.distance, score.minimum, score.barrier) == (5.0, 0.75, 0.0)
    assert score.gap == pytest.approx(-12.5)
    assert (score.rise_behind, score.rise_beyond) == pytest.approx((25 * 22, 25 * 18))
    assert score.outward_ratio == pytest.approx(22 / 18)
    assert score.outward_ratio_near == pytest.approx((1 + 1.5) / (1 + 0.5))
    assert score.sign_agreement == 0.0  # 0 has no sign, 3 and 4 have


def test_without_overhang_there_is_nothing_outward():
    t = line_grid(0.0, 5)
    score = compare_ends(Slice(t, t**2))
    assert math.isnan(score.outward_ratio)
    assert math.isnan(score.outward_ratio_near)
    assert score.gap == 1.0
    assert math.isnan(score.minimum)  # at an end of the grid


@FEW
@given(st.lists(st.integers(-20, 20), min_size=7, max_size=7))
def test_swapping_the_ends_turns_the_line_around(values):
    losses = torch.tensor(values, dtype=torch.float64)
    assume(int((losses == losses.min()).sum()) == 1)
    grid = line_grid(1.0, 7)  # -1, -1/2, ..., 2
    there, back = compare_ends(Slice(grid, losses)), compare_ends(Slice(grid, losses.flip(0)))
    assert back.gap == -there.gap
    assert back.minimum == pytest.approx(1 - there.minimum, nan_ok=True)
    assert back.barrier == there.barrier >= 0
    assert (back.rise_behind, back.rise_beyond) == (there.rise_beyond, there.rise_behind)
    assert back.outward_ratio == pytest.approx(1 / there.outward_ratio, nan_ok=True)
    assert back.outward_ratio_near == pytest.approx(there.outward_ratio**-1, nan_ok=True)


def test_the_gap_is_paired_over_batches():
    # L(1) - L(0) per batch: 1, 2, 6; mean 3, sample variance (4 + 1 + 9) / 2 = 7, so stderr
    # sqrt(7 / 3); the batches' own level, which differs a thousandfold, cancels
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    level = torch.tensor([1.0, 100.0, 1000.0])
    losses = torch.stack([level + 9, level, level + torch.tensor([1.0, 2.0, 6.0]), level + 9])
    score = compare_ends(Slice(t, losses))
    assert score.gap == pytest.approx(3.0)
    assert score.gap_stderr == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_loss_on_the_line_is_no_minimum(bad):
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    score = compare_ends(Slice(t, torch.tensor([bad, 1.0, 0.5, 1.5])))
    assert (score.minimum, score.gap) == (1.0, -0.5)
    assert not math.isfinite(score.outward_ratio)
    assert not math.isfinite(score.rise_behind)


def test_a_line_score_becomes_plain_numbers():
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    losses = torch.tensor([[5.0, 5.0], [1.0, 1.0], [0.5, 0.5], [1.5, 1.5]])
    score = compare_ends(Slice(t, losses, distance=3.0))
    score = dataclasses.replace(score, sign_agreement=1.0)
    assert json.loads(json.dumps(score.to_dict())) == {
        "distance": 3.0,
        "gap": -0.5,
        "gap_stderr": 0.0,
        "n_batches": 2,
        "minimum": 1.0,
        "barrier": 0.0,
        "rise_behind": 4.0,
        "rise_beyond": 1.0,
        "outward_ratio": 4.0,
        "outward_ratio_near": 4.0,
        "outward_stderr": 0.0,
        "sign_agreement": 1.0,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.gap = 0.0


@pytest.mark.parametrize(
    "alphas",
    [
        [-1.0, 0.0, 0.9, 2.0],  # no 1
        [-1.0, 0.0, 1.0, 3.0],  # further beyond 1
        [-1.0, 0.0, 1.0],  # nothing beyond 1
        [0.0, 1.0, 2.0],  # nothing before 0
        [0.0],
    ],
    ids=str,
)
def test_a_grid_that_is_no_line_between_two_ends_is_an_error(alphas):
    with pytest.raises(ValueError, match=r"contains 1 and reaches .* Use line_grid\(overhang\)"):
        compare_ends(Slice(torch.tensor(alphas), torch.zeros(len(alphas))))


@pytest.mark.parametrize("side", ["behind", "beyond", "both"])
def test_a_ratio_of_a_rise_that_is_not_positive_is_nan(side):
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    start, end = {"behind": (0.5, 3.0), "beyond": (2.0, 1.0), "both": (0.0, 0.0)}[side]
    score = compare_ends(Slice(t, torch.tensor([start, 1.0, 2.0, end])))
    assert (score.rise_behind, score.rise_beyond) == (start - 1.0, end - 2.0)
    assert math.isnan(score.outward_ratio)
    assert math.isnan(score.outward_ratio_near)


@pytest.mark.parametrize("edge", [0, -1])
def test_a_minimum_at_the_edge_of_the_grid_is_no_minimum(edge):
    grid = line_grid(2.0, 11)
    losses = (grid - grid[edge]).abs()
    assert math.isnan(compare_ends(Slice(grid, losses)).minimum)
    inner = grid[1 if edge == 0 else -2]
    assert compare_ends(Slice(grid, (grid - inner).abs())).minimum == float(inner)


@pytest.mark.parametrize("n_points", [31, 37, 46])
def test_the_near_ratio_is_that_of_overhang_one(n_points):
    # piecewise linear with kinks at 0 and 1, grid points both: interpolation is exact
    grid = line_grid(4.0, n_points)
    losses = torch.where(grid < 0, -3 * grid, torch.where(grid > 1, 2 * (grid - 1), 0.0))
    losses = losses + torch.where(grid > 3, 9 * (grid - 3), 0.0)
    score = compare_ends(Slice(grid, losses))
    assert score.outward_ratio_near == pytest.approx(1.5)
    assert score.outward_ratio == pytest.approx(12 / 26)
    assert score.outward_ratio < 1 < score.outward_ratio_near


def test_within_an_overhang_below_one_there_is_no_near_ratio():
    grid = line_grid(0.5, 9)
    score = compare_ends(Slice(grid, (grid - 0.5).abs()))
    assert score.outward_ratio == pytest.approx(1.0)
    assert math.isnan(score.outward_ratio_near)


def test_the_error_of_the_side_is_paired_over_batches():
    # rise behind minus rise beyond per batch: 1, 2, 6, at levels that differ a thousandfold
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    level = torch.tensor([1.0, 100.0, 1000.0])
    losses = torch.stack([level + 3 + torch.tensor([1.0, 2.0, 6.0]), level, level, level + 3])
    score = compare_ends(Slice(t, losses))
    assert score.rise_behind - score.rise_beyond == pytest.approx(3.0)
    assert score.outward_stderr == pytest.approx(math.sqrt(7 / 3))


def test_the_sign_agreement_is_the_share_of_weights_that_keep_their_sign():
    current = {"w": torch.tensor([[1.0, -1.0], [2.0, 0.0]]), "b": torch.tensor([1.0])}
    average = {"w": torch.tensor([[2.0, 1.0], [0.0, 0.0]]), "b": torch.tensor([3.0])}
    objective = FunctionObjective(lambda p: p["w"].square().sum() + p["b"].sum(), current)
    line = evaluate_slice(objective, difference(average, current), line_grid(1.0, 7))
    assert compare_ends(line).sign_agreement == 3 / 5  # 1 -> 2, 0 -> 0, 1 -> 3
    only = evaluate_slice(objective, {"b": torch.tensor([-2.0])}, line_grid(1.0, 7))
    assert compare_ends(only).sign_agreement == 0.0


def test_a_slice_of_no_line_knows_no_signs():
    objective = FunctionObjective(lambda p: p["w"].sum(), {"w": torch.ones(2)})
    line = evaluate_slice(objective, {"w": torch.ones(2)}, symmetric_grid(0.6, 5))
    assert math.isnan(line.sign_agreement)
