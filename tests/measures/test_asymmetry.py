"""Asymmetry scores against closed forms, laws, and naive re-computations."""

import dataclasses
import json
import math
from itertools import pairwise

import pytest
import torch
from formulas import rises_to
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_landscape.measures.asymmetry import (
    asymmetry_ratio,
    is_asymmetric,
    score_asymmetry,
)
from lightning_landscape.measures.slices import Slice, evaluate_slice, line_grid, symmetric_grid
from lightning_landscape.objective import FunctionObjective

FEW = settings(max_examples=60, deadline=None)
BAD = [math.nan, math.inf, -math.inf]


def sliced(loss, radius=1.0, n_points=13):
    """A slice of a formula in alpha."""
    grid = symmetric_grid(radius, n_points)
    return Slice(grid, loss(grid))


def scored(loss, radius=1.0, n_points=13):
    return score_asymmetry(sliced(loss, radius, n_points))


# --- the rotated linex valley -------------------------------------------------------------------
# f = (b/a^2) (e^{a x} - a x - 1) + (k/2) y^2, x = u.w, y = v.w, u at angle .6; a = 2, b = k = 1.
# So at distance l f = (e^{al} - al - 1) / 4 on the steep side, (e^{-al} + al - 1) / 4 on the flat.

A, B, K, ANGLE = 2.0, 1.0, 1.0, 0.6
U = torch.tensor([math.cos(ANGLE), math.sin(ANGLE)], dtype=torch.float64)
V = torch.tensor([-math.sin(ANGLE), math.cos(ANGLE)], dtype=torch.float64)


def linex(x):
    return B / A**2 * (torch.exp(A * x) - A * x - 1)


def valley():
    return FunctionObjective(
        lambda p: linex(p["w"] @ U) + K / 2 * (p["w"] @ V) ** 2,
        {"w": torch.zeros(2, dtype=torch.float64)},
    )


def walk(direction, radius, n_points):
    return evaluate_slice(valley(), {"w": direction}, symmetric_grid(radius, n_points))


def linex_area(r, along_v=0.0, along_u=1.0):
    # with x = p l and y = q l, s = a p:
    # int R+ - int R- = (b/a^2) (2 (cosh(s r) - 1) / s - s r^2)
    # int R+ + int R- = (b/a^2) (2 sinh(s r) / s - 2 r) + k q^2 r^3 / 3
    s = A * along_u
    odd = B / A**2 * (2 * (math.cosh(s * r) - 1) / s - s * r**2)
    even = B / A**2 * (2 * math.sinh(s * r) / s - 2 * r) + K * along_v**2 * r**3 / 3
    return odd / even


@pytest.mark.parametrize(("r", "published"), [(0.5, 0.245892), (1, 0.468507), (2, 0.786101)])
def test_the_area_of_the_linex_valley_is_its_closed_form(r, published):
    assert linex_area(r) == pytest.approx(published, abs=5e-7)
    score = score_asymmetry(walk(U, r, 2001))
    assert score.area == pytest.approx(linex_area(r), abs=1e-6)
    assert score_asymmetry(walk(-U, r, 2001)).area == pytest.approx(-linex_area(r), abs=1e-6)


@pytest.mark.parametrize(
    ("r", "published"), [(0.5, 1.952492), (1, 3.865868), (2, 16.432393)], ids=str
)
def test_the_rises_of_the_linex_valley_are_exact(r, published):
    score = score_asymmetry(walk(U, r, 5))
    assert score.rise_plus == pytest.approx((math.exp(A * r) - A * r - 1) / 4, rel=1e-12)
    assert score.rise_minus == pytest.approx((math.exp(-A * r) + A * r - 1) / 4, rel=1e-12)
    assert score.rise_plus / score.rise_minus == pytest.approx(published, abs=5e-7)


def test_along_the_floor_of_the_linex_valley_there_is_no_asymmetry():
    score = score_asymmetry(walk(V, 1.0, 13))
    assert score.area == pytest.approx(0, abs=1e-12)
    assert score.flat_side == 0
    assert score.verdict == "symmetric"


@pytest.mark.parametrize("degrees", [20, 45, 70])
def test_between_the_axes_the_floor_dilutes_the_area(degrees):
    p, q = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    score = score_asymmetry(walk(p * U + q * V, 1.0, 2001))
    assert score.area == pytest.approx(linex_area(1.0, q, p), abs=1e-6)


def linex_ratio(zeta, r, h):
    # slopes grow away from 0, steep and flat alike: the least steep quotient is the first, over
    # [zeta, zeta + h], the greatest flat one the last, over [r - h, r]; both without their 1 / h
    steep = (math.exp(A * zeta) * math.expm1(A * h) - A * h) / 4
    flat = (A * h - math.exp(-A * r) * math.expm1(A * h)) / 4
    return steep / flat


@pytest.mark.parametrize(("zeta", "r"), [(0.5, 1.0), (1.0, 2.0), (0.25, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("n_points", [9, 41, 401])
def test_the_ratio_of_the_linex_valley_is_its_quotients_closed_form(zeta, r, n_points):
    line = sliced(linex, r, n_points)
    expected = linex_ratio(zeta, r, 2 * r / (n_points - 1))
    assert asymmetry_ratio(line, zeta=zeta, r=r) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("zeta", "r", "published"), [(0.5, 1, 1.98722), (1, 2, 6.50826)])
def test_the_ratio_converges_to_definition_1_with_exact_derivatives(zeta, r, published):
    exact = math.expm1(A * zeta) / -math.expm1(-A * r)
    assert exact == pytest.approx(published, abs=5e-6)
    # quotients are first order in the spacing: half of it, half the error
    coarse, fine = (scored(linex, r, n).ratio - exact for n in (2001, 4001))
    assert coarse / fine == pytest.approx(2, rel=5e-3)
    # and a grid that is fine only where the two decisive slopes are is as good as any
    h = 1e-7
    side = torch.tensor([zeta, zeta + h, r - h, r], dtype=torch.float64)
    grid = torch.cat([-side.flip(0), torch.zeros(1, dtype=torch.float64), side])
    local = asymmetry_ratio(Slice(grid, linex(grid)), zeta=zeta, r=r)
    assert local == pytest.approx(exact, abs=3e-6)


def test_the_score_of_the_linex_valley_says_which_side_is_flat():
    score = score_asymmetry(walk(U, 2.0, 41))
    assert (score.flat_side, score.minimum, score.verdict) == (-1, 0.0, "asymmetric")
    assert score.ratio == pytest.approx(linex_ratio(1.0, 2.0, 0.1), rel=1e-9)
    flipped = score_asymmetry(walk(-U, 2.0, 41))
    assert (flipped.flat_side, flipped.ratio) == (1, pytest.approx(score.ratio, rel=1e-9))


def test_the_width_of_the_linex_valley_is_at_half_the_smaller_rise():
    half = float(linex(torch.tensor(-1.0).double())) / 2

    def reach(side):  # bisection
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            reached = float(linex(torch.tensor(side * middle).double())) >= half
            low, high = (low, middle) if reached else (middle, high)
        return high

    plus, minus = reach(1), reach(-1)
    assert scored(linex, 1.0, 4001).width == pytest.approx(
        (plus - minus) / (plus + minus), abs=1e-6
    )


# --- two constant slopes ------------------------------------------------------------------------
# L = c a t on the steep + side, -a t on the flat - side: int R+ / int R- = c at every radius


@pytest.mark.parametrize("c", [1.5, 2.0, 3.0, 8.0])
@pytest.mark.parametrize(("radius", "n_points"), [(1.0, 5), (4.0, 17), (0.5, 9)])
def test_the_scores_of_two_constant_slopes_are_exact(c, radius, n_points):
    a = 0.5
    score = scored(lambda t: torch.where(t > 0, c * a * t, -a * t), radius, n_points)
    assert score.area == (c - 1) / (c + 1)
    assert score.ratio == c
    assert score.flat_side == -1
    assert (score.rise_plus, score.rise_minus) == (c * a * radius, a * radius)
    assert (score.slope, score.minimum) == ((c - 1) * a / 2, 0.0)
    # half the smaller rise is a r / 2: W+ = r / 2c, W- = r / 2
    assert score.width == pytest.approx((1 - c) / (1 + c), rel=1e-12)
    # R+ - s l = R- + s l = (c + 1) a l / 2
    assert score.area_corrected == 0
    assert math.isnan(score.stderr)
    assert score.verdict == ("asymmetric" if c > 2 else "symmetric")


@pytest.mark.parametrize(("zeta", "r"), [(0.0, 1.0), (0.25, 0.5), (0.75, 1.0), (0.5, 0.75)])
def test_two_constant_slopes_have_their_ratio_on_every_interval(zeta, r):
    line = sliced(lambda t: torch.where(t > 0, t, -3 * t), 1.0, 9)
    assert asymmetry_ratio(line, zeta=zeta, r=r) == 3.0


# --- even losses and slopes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "even",
    [lambda t: t**2, lambda t: 3 + t**4 + t**2 / 9, torch.abs, torch.cosh, lambda t: 1 - t.cos()],
    ids=["quadratic", "quartic", "abs", "cosh", "cos"],
)
@pytest.mark.parametrize("n_points", [5, 13, 101])
def test_an_even_loss_scores_zero(even, n_points):
    score = scored(even, 0.6, n_points)
    assert (score.area, score.area_corrected, score.slope) == (0.0, 0.0, 0.0)
    assert (score.flat_side, score.verdict) == (0, "symmetric")
    assert score.ratio <= 1


def test_the_ratio_of_a_quadratic_is_its_least_over_its_greatest_slope():
    # quotients of t^2 over [l, l + h] are 2 l + h: the ratio is (2 zeta + h) / (2 r - h), and here
    # (1 + .25) / (2 - .25)
    assert scored(torch.square, 1.0, 9).ratio == 1.25 / 1.75
    assert scored(torch.square, 1.0, 5).ratio == 1.0  # one interval, and 1 is not above 1
    assert scored(torch.square, 1.0, 5).flat_side == 0


@pytest.mark.parametrize("m", [-0.25, -0.125, 0.0625, 0.125, 0.25])
@pytest.mark.parametrize("n_points", [5, 9, 33])
def test_a_shifted_quadratic_is_lopsided_by_its_slope_alone(m, n_points):
    # (t - m)^2 / 2: R+- = l^2 / 2 -+ m l; the trapezoid rule gives l^2 the integral
    # r^3/3 + r h^2/6, so with r = 1 the area is -m / (1/3 + h^2/6); it holds while |m| < 1/3
    h = 2 / (n_points - 1)
    score = scored(lambda t: (t - m) ** 2 / 2, 1.0, n_points)
    assert score.area == pytest.approx(-m / (1 / 3 + h**2 / 6), rel=1e-12)
    assert score.slope == pytest.approx(-m, rel=1e-12)
    assert score.area_corrected == pytest.approx(0, abs=1e-14)


def test_the_minimum_of_a_shifted_quadratic_is_its_nearest_grid_point():
    score = scored(lambda t: (t - 0.3) ** 2, 1.0, 9)
    assert (score.minimum, score.verdict) == (0.25, "symmetric")  # not *above* a quarter


@pytest.mark.parametrize("s", [0.0, -0.2, 0.3])
def test_the_corrected_area_sees_the_cubic_through_a_slope(s):
    # L = s t + t^2/2 + k t^3/6: without the slope the odd part of the rises is k l^3/6, the even
    # part l^2/2, so the corrected area is (k r^4/24) / (r^3/6) = k r / 4
    k, r = 0.8, 0.6
    score = scored(lambda t: s * t + t**2 / 2 + k * t**3 / 6, r, 4001)
    assert score.area_corrected == pytest.approx(k * r / 4, abs=1e-6)
    # the slope itself adds s r^2/2 to the odd part, while both sides still rise in sum
    if abs(s) * r**2 / 2 < r**3 / 6 - k * r**4 / 24:
        assert score.area == pytest.approx(k * r / 4 + 3 * s / r, abs=1e-6)


@FEW
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.sampled_from([-1, 1]), st.integers(1, 8))
def test_a_linear_loss_is_all_slope_and_nothing_else(size, offset, sign, k):
    score = scored(lambda t: sign * size * t + offset, 1.0, 4 * k + 1)
    assert score.area == sign
    assert score.area_corrected == 0
    assert score.slope == pytest.approx(sign * size, rel=1e-6)
    assert (score.minimum, score.verdict) == (-sign, "off-minimum")
    # the flat side falls all the way, the steep side rises all the way
    assert (score.ratio, score.flat_side) == (math.inf, -sign)
    assert math.isnan(score.width)


@pytest.mark.parametrize("level", [0.0, 2.3, -1e9])
def test_a_flat_loss_scores_zero_everywhere(level):
    score = scored(lambda t: torch.full_like(t, level))
    zeros = ("area", "area_corrected", "slope", "minimum", "ratio", "rise_plus", "rise_minus")
    assert [getattr(score, name) for name in zeros] == [0.0] * 7
    assert (score.flat_side, score.verdict) == (0, "symmetric")
    assert math.isnan(score.width)


def test_area_weighs_the_absolute_integrals():
    # int R+ = 3/2 + (3 + 6)/2 = 6, int R- = -1/2 - (1 + 2)/2 = -2: (6 + 2) / (6 + 2)
    assert score_asymmetry(rises_to([3.0, 6.0], [-1.0, -2.0])).area == 1.0
    # int R- = 2 / 2 + (2 + 0)/2 = 2: (6 - 2) / (6 + 2)
    assert score_asymmetry(rises_to([3.0, 6.0], [2.0, 0.0])).area == 0.5


def test_integrals_that_vanish_by_rounding_alone_count_as_vanished():
    # 0.1 + 0.2 - 0.3 = 5.6e-17: both sides integrate to nothing but rounding
    score = score_asymmetry(rises_to([0.1 + 0.2 - 0.3, 0.0], [0.0, 0.0], centre=1.0))
    assert score.area == 0.0


# --- width, minimum and other parts by hand -----------------------------------------------------


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        # smaller end 2, half 1: W+ = 1/4 (on 0 -> 4), W- = 1 (on 0 -> 1): (1/4 - 1) / (5/4)
        ([4.0, 8.0], [1.0, 2.0], -0.6),
        # half 1: W+ = 1 + 1/2 (on 0 -> 2), W- = 1/2 (on 0 -> 2)
        ([0.0, 2.0], [2.0, 4.0], 0.5),
        # the *first* time: + reaches 1 at 1/4 on its way to 4, though it ends at 2; W- = 1
        ([4.0, 2.0], [1.0, 2.0], -0.6),
        # exactly at a grid point: W+ = 1, W- = 1
        ([1.0, 2.0], [1.0, 2.0], 0.0),
    ],
)
def test_the_width_is_interpolated_between_grid_points(plus, minus, expected):
    assert score_asymmetry(rises_to(plus, minus)).width == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("end", [0.0, -1.0])
def test_the_width_is_unknown_where_an_end_does_not_rise(end):
    assert math.isnan(score_asymmetry(rises_to([1.0, end], [1.0, 2.0])).width)
    assert math.isnan(score_asymmetry(rises_to([1.0, 2.0], [1.0, end])).width)


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        ([1.0, -2.0], [-1.0, 3.0], 2.0),
        ([1.0, 2.0], [1.0, -0.5], -2.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([-1.0, -1.0], [0.0, 0.0], 1.0),
    ],
    ids=["plus end", "minus end", "flat", "nearest of equals"],
)
def test_the_minimum_is_the_grid_alpha_of_the_least_loss(plus, minus, expected):
    assert score_asymmetry(rises_to(plus, minus)).minimum == expected


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        ([1.0, -2.0], [-1.0, 3.0], 2.0),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, math.nan], [-3.0, 1.0], 3.0),
    ],
)
def test_the_fall_is_what_the_least_loss_lies_below_the_centre(plus, minus, expected):
    assert score_asymmetry(rises_to(plus, minus, centre=5.0)).fall == expected


@pytest.mark.parametrize(
    ("plus", "minus", "rise", "expected"),
    [
        ([2.0, 6.0], [0.0, 2.0], 0.5, 0.5),  # mean rises 1 and 4
        ([2.0, 6.0], [0.0, 2.0], 1.0, 1.0),
        ([2.0, 6.0], [0.0, 2.0], 2.5, 1.5),
        ([2.0, 6.0], [0.0, 2.0], 4.5, math.inf),
        ([2.0, 1.0], [0.0, 1.0], 0.5, 0.5),  # the first time
        ([2.0, 6.0], [0.0, math.nan], 2.5, 1.0),  # where it blows up, as for the width
        ([-1.0, -2.0], [1.0, 2.0], 0.5, math.inf),
    ],
)
def test_the_rise_radius_is_where_both_sides_rise_so_far_on_average(plus, minus, rise, expected):
    assert score_asymmetry(rises_to(plus, minus), rise=rise).rise_radius == expected


@pytest.mark.parametrize("a", [0.5, 2.0, 8.0])
def test_the_rise_radius_of_a_bowl_is_its_closed_form(a):
    # a l^2 / 2 = 1/2 at l = 1 / sqrt(a)
    score = scored(lambda t: a * t**2 / 2, 2.0, 4001)
    assert score.rise_radius == pytest.approx(a**-0.5, abs=1e-6)


@pytest.mark.parametrize("rise", [0.0, -1.0, math.inf, math.nan])
def test_a_rise_that_is_not_positive_is_an_error(rise):
    with pytest.raises(ValueError, match="`rise` must be positive and finite"):
        score_asymmetry(sliced(torch.square, 1.0, 5), rise=rise)


def test_the_slope_is_the_central_difference():
    # (5 - 2) / (2 * 1)
    assert score_asymmetry(rises_to([5.0, 9.0], [2.0, 9.0])).slope == 1.5


def test_scores_stand_on_the_mean_over_batches():
    grid = symmetric_grid(1.0, 5)
    batches = torch.stack([grid.exp(), grid**2, -grid], dim=1)
    alone, together = Slice(grid, batches.mean(dim=1)), Slice(grid, batches)
    a, b = score_asymmetry(alone).to_dict(), score_asymmetry(together).to_dict()
    for name in a.keys() - {"stderr", "verdict"}:
        assert a[name] == b[name]


def test_a_score_becomes_plain_numbers():
    score = score_asymmetry(rises_to([4.0, 8.0], [1.0, 2.0]))
    assert json.loads(json.dumps(dataclasses.replace(score, stderr=0.5).to_dict())) == {
        "area": 0.6,
        "area_corrected": 0.0,
        "stderr": 0.5,
        "rise_plus": 8.0,
        "rise_minus": 2.0,
        "slope": 1.5,
        "minimum": 0.0,
        "fall": 0.0,
        "width": -0.6,
        "rise_radius": 0.2,
        "ratio": 4.0,
        "flat_side": -1,
        "verdict": "asymmetric",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.area = 0.0


# --- laws ---------------------------------------------------------------------------------------
# losses in small integers on a grid of integers: no law below is blurred by more than a last bit


@st.composite
def integer_slices(draw, batches=(1, 2), unique_minimum=False):
    k, n_batches = draw(st.integers(1, 4)), draw(st.sampled_from(batches))
    rows = st.lists(st.integers(-20, 20), min_size=n_batches, max_size=n_batches)
    losses = torch.tensor(draw(st.lists(rows, min_size=4 * k + 1, max_size=4 * k + 1)))
    line = Slice(symmetric_grid(2.0 * k, 4 * k + 1), losses)
    if unique_minimum:
        assume(int((line.mean == line.mean.min()).sum()) == 1)
    return line


def assert_agree(a, b, **factors):
    """Every field of `a` is that of `b`, times a factor where one is given; None: not compared."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "verdict":
            assert x == y
        elif factors.get(field.name, 1) is not None:
            expected = y * factors.get(field.name, 1)
            assert x == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), field.name


@FEW
@given(integer_slices(batches=(1, 2, 4), unique_minimum=True))
def test_flipping_the_direction_flips_the_sign(line):
    score, flipped = (
        score_asymmetry(Slice(line.alphas, x)) for x in (line.losses, line.losses.flip(0))
    )
    swapped = dataclasses.replace(
        flipped, rise_plus=flipped.rise_minus, rise_minus=flipped.rise_plus
    )
    signed = ("area", "area_corrected", "slope", "minimum", "width", "flat_side")
    assert_agree(swapped, score, **dict.fromkeys(signed, -1))


@FEW
@given(integer_slices(), st.integers(-6, 6), st.integers(-100, 100))
def test_scaling_and_shifting_the_loss_leaves_scores_alone(line, exponent, shift):
    scale = 2.0**exponent
    moved = score_asymmetry(Slice(line.alphas, scale * (line.losses + shift)))
    in_losses = dict.fromkeys(("rise_plus", "rise_minus", "slope", "fall"), scale)
    assert_agree(moved, score_asymmetry(line, rise=0.5 / scale), **in_losses)


@FEW
@given(integer_slices(), st.integers(-6, 6))
def test_scaling_alpha_leaves_scores_alone(line, exponent):
    scale = 2.0**exponent
    stretched = score_asymmetry(Slice(scale * line.alphas, line.losses))
    assert_agree(
        stretched, score_asymmetry(line), slope=1 / scale, minimum=scale, rise_radius=scale
    )


@FEW
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_any_units_will_do_on_a_smooth_loss(unit, scale, shift):
    plain, other = scored(linex), scored(lambda t: scale * (linex(t / unit) + shift), unit)
    for name in ("area", "area_corrected", "width", "ratio"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-9)
    assert other.verdict == plain.verdict


@FEW
@given(integer_slices(batches=(1, 2), unique_minimum=True))
def test_points_added_on_the_lines_between_points_change_nothing(line):
    def with_midpoints(x):
        fine = torch.empty(2 * len(x) - 1, *x.shape[1:], dtype=torch.float64)
        fine[::2], fine[1::2] = x, (x[1:] + x[:-1]) / 2
        return fine

    fine = Slice(with_midpoints(line.alphas), with_midpoints(line.losses))
    assert_agree(score_asymmetry(fine), score_asymmetry(line))


def test_refining_the_grid_converges_with_the_square_of_the_spacing():
    errors = [scored(linex, 1.0, n).area - linex_area(1.0) for n in (13, 25, 49, 97)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.03)


def test_thirteen_points_are_as_good_as_forty_nine_on_a_smooth_valley():
    assert scored(linex, 0.6, 13).area == pytest.approx(scored(linex, 0.6, 49).area, abs=0.01)


@FEW
@given(integer_slices(batches=(3,)), st.permutations(range(3)))
def test_the_order_of_the_batches_does_not_matter(line, order):
    score, shuffled = (
        score_asymmetry(line),
        score_asymmetry(Slice(line.alphas, line.losses[:, order])),
    )
    assert shuffled.stderr == pytest.approx(score.stderr, abs=1e-9)
    assert shuffled.area == pytest.approx(score.area, abs=1e-9)


ANY_LOSS = st.floats(width=32)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_whatever_the_losses_a_score_stays_in_its_range(k, n_batches, data):
    n = 4 * k + 1
    values = data.draw(st.lists(ANY_LOSS, min_size=n * n_batches, max_size=n * n_batches))
    losses = torch.tensor(values, dtype=torch.float64).view(n, n_batches)
    line = Slice(symmetric_grid(1.0, n), losses)
    score = score_asymmetry(line)
    centre = bool(line.mean[2 * k].isfinite())
    for area in (score.area, score.area_corrected):
        assert -1 <= area <= 1 if centre else math.isnan(area)
    assert score.ratio >= 0 if centre else math.isnan(score.ratio)
    assert math.isnan(score.width) or -1 <= score.width <= 1
    assert math.isnan(score.stderr) or score.stderr >= 0
    assert score.flat_side in (-1, 0, 1)
    assert (score.flat_side != 0) == (score.ratio > 1)
    assert score.verdict in ("asymmetric", "symmetric", "off-minimum", "unresolved")
    assert score.minimum in line.alphas or not line.mean.isfinite().any()


# --- non-finite losses --------------------------------------------------------------------------
# n = 13, so that zeta is the third of six points a side; slopes 3 on the + side and 1 on the - side


def broken(*places, bad=math.nan):
    line = rises_to([3.0 * k for k in range(1, 7)], [1.0 * k for k in range(1, 7)], centre=1.0)
    losses = line.mean.clone()
    for place in places:
        losses[6 + place] = bad
    return Slice(line.alphas, losses)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("side", [1, -1])
def test_a_side_with_a_non_finite_loss_is_infinitely_steep(side, place, bad):
    line = broken(side * place, bad=bad)
    score = score_asymmetry(line)
    assert line.n_nonfinite == 1
    assert (score.area, score.area_corrected) == (side, side)
    assert score.flat_side != side
    assert score.verdict in ("asymmetric", "symmetric")  # resolved, whatever it is


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("places", [(6, -6), (1, -6), (3, -4), (2, 3, -1), (1, -1)], ids=str)
def test_two_sides_with_non_finite_losses_are_unresolved(places, bad):
    score = score_asymmetry(broken(*places, bad=bad))
    assert (score.area, score.area_corrected, score.verdict) == (0.0, 0.0, "unresolved")
    assert (score.ratio, score.flat_side) == (0.0, 0)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("places", [(0,), (0, 2), (0, 1, -1)], ids=str)
def test_without_a_finite_centre_nothing_is_known(places, bad):
    line = broken(*places, bad=bad)
    score = score_asymmetry(line)
    unknown = ("area", "area_corrected", "rise_plus", "rise_minus", "slope", "width", "ratio")
    unknown += ("fall", "rise_radius")
    assert all(math.isnan(getattr(score, name)) for name in unknown)
    assert (score.flat_side, score.verdict) == (0, "unresolved")
    assert math.isnan(asymmetry_ratio(line, zeta=2.0, r=5.0))
    assert not is_asymmetric(line, r=6.0, p=2.0, c=1.25, zeta=3.0)


@pytest.mark.parametrize("bad", BAD)
def test_with_no_finite_loss_at_all_there_is_no_minimum(bad):
    score = score_asymmetry(Slice(symmetric_grid(1.0, 5), torch.full((5,), bad)))
    assert math.isnan(score.minimum)
    assert score.verdict == "unresolved"


@pytest.mark.parametrize("bad", BAD)
def test_the_minimum_is_the_least_finite_loss(bad):
    # -inf does not count as low: the centre does
    assert score_asymmetry(broken(2, bad=bad)).minimum == 0.0


@pytest.mark.parametrize("bad", BAD)
def test_the_rise_of_a_side_that_ends_non_finite_is_infinite(bad):
    score = score_asymmetry(broken(6, bad=bad))
    assert (score.rise_plus, score.rise_minus) == (math.inf, 6.0)
    score = score_asymmetry(broken(-6, bad=bad))
    assert (score.rise_plus, score.rise_minus) == (18.0, math.inf)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", range(1, 7))
def test_a_non_finite_flat_side_does_not_improve_the_ratio(place, bad):
    # the - side was the flat one, with ratio 3; now only the + side can be flat: least slope on the
    # - side over slope on the + side = 1 / 3
    score = score_asymmetry(broken(-place, bad=bad))
    assert score_asymmetry(broken()).ratio == 3.0
    assert score.ratio == pytest.approx(1 / 3)
    assert (score.flat_side, score.verdict) == (0, "symmetric")
    assert not is_asymmetric(broken(-place, bad=bad), r=6.0, p=1.5, c=1.5, zeta=3.0)


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_steep_side_keeps_the_slopes_it_has(bad):
    # steep slopes over [3, 6]: 3, 3, and one without bound; the least is still 3
    score = score_asymmetry(broken(6, bad=bad))
    assert (score.ratio, score.flat_side, score.verdict) == (3.0, -1, "asymmetric")
    # nothing but slopes without bound: the ratio is too
    assert asymmetry_ratio(broken(6, bad=bad), zeta=5.0, r=6.0) == math.inf
    assert is_asymmetric(broken(6, bad=bad), r=6.0, p=1.5, c=1e9, zeta=5.0)


@pytest.mark.parametrize("bad", BAD)
def test_what_lies_beyond_r_does_not_count(bad):
    assert asymmetry_ratio(broken(-6, bad=bad), zeta=3.0, r=5.0) == 3.0
    assert is_asymmetric(broken(-6, bad=bad), r=5.0, p=1.5, c=1.5, zeta=3.0)


@pytest.mark.parametrize("bad", BAD)
def test_the_width_of_a_side_ends_where_it_blows_up(bad):
    # half the smaller end rise is 3: W- = 3; + stands at 0 one step before it blows up
    assert score_asymmetry(broken(1, bad=bad)).width == -1.0
    # or never blows up before it has risen by 3, at W+ = 1: (1 - 3) / (1 + 3)
    assert score_asymmetry(broken(4, bad=bad)).width == -0.5
    # both at once: there is no width
    assert math.isnan(score_asymmetry(broken(1, -1, bad=bad)).width)


@FEW
@given(
    integer_slices(batches=(1,)),
    st.sampled_from([1, -1]),
    st.sampled_from(BAD),
    st.data(),
)
def test_blowing_up_never_makes_a_side_flat(line, side, bad, data):
    half = len(line.alphas) // 2
    places = data.draw(st.sets(st.integers(1, half), min_size=1))
    losses = line.mean.clone()
    for place in places:
        losses[half + side * place] = bad
    score = score_asymmetry(Slice(line.alphas, losses))
    assert (score.area, score.area_corrected) == (side, side)
    assert score.flat_side != side


# --- standard error -----------------------------------------------------------------------------


def naive_area(alphas, losses):
    """The area of one batch or a mean of some, in plain Python."""
    middle = len(alphas) // 2
    integrals = []
    for side in (1, -1):
        total = 0.0
        for k in range(middle):
            here, there = middle + side * k, middle + side * (k + 1)
            rises = losses[here] - losses[middle], losses[there] - losses[middle]
            total += abs(alphas[there] - alphas[here]) * sum(rises) / 2
        integrals.append(total)
    return (integrals[0] - integrals[1]) / (abs(integrals[0]) + abs(integrals[1]))


def naive_jackknife(line):
    alphas, rows = line.alphas.tolist(), line.losses.tolist()
    n = len(rows[0])
    areas = []
    for left_out in range(n):
        kept = [[x for k, x in enumerate(row) if k != left_out] for row in rows]
        areas.append(naive_area(alphas, [sum(row) / len(row) for row in kept]))
    mean = sum(areas) / n
    return math.sqrt((n - 1) / n * sum((area - mean) ** 2 for area in areas))


@FEW
@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**31))
def test_the_standard_error_is_the_delete_one_jackknife(n_batches, k, seed):
    generator = torch.Generator().manual_seed(seed)
    grid = symmetric_grid(0.6, 4 * k + 1)
    noise = torch.randn(len(grid), n_batches, generator=generator, dtype=torch.float64)
    line = Slice(grid, (grid**2)[:, None] + 0.1 * noise)
    assert score_asymmetry(line).area == pytest.approx(
        naive_area(grid.tolist(), line.mean.tolist()), rel=1e-9, abs=1e-12
    )
    assert score_asymmetry(line).stderr == pytest.approx(naive_jackknife(line), rel=1e-6)


def test_the_standard_error_of_two_batches_is_half_their_difference():
    # sqrt(1/2 * 2 * (d/2)^2) = d/2; areas (c - 1) / (c + 1) with c = 3 and 1: 1/2 and 0
    grid = symmetric_grid(1.0, 5)
    losses = torch.stack([torch.where(grid > 0, 3 * grid, -grid), grid.abs()], dim=1)
    assert score_asymmetry(Slice(grid, losses)).stderr == pytest.approx(0.25, rel=1e-12)


def test_the_standard_error_of_equal_batches_is_zero():
    grid = symmetric_grid(1.0, 5)
    line = Slice(grid, linex(grid)[:, None].expand(-1, 4))
    assert score_asymmetry(line).stderr == pytest.approx(0, abs=1e-12)


def test_the_standard_error_of_the_mean_of_many_batches_is_right():
    # batch area, to first order in the noise: a slope e_b N(0, s) adds 3 e_b / r to a quadratic's
    # area (t^2/2), so the area of n batches has sd 3 s / sqrt(n) at r = 1; the trapezoid makes it
    # s / (1/3 + h^2/6) / sqrt(n). An sd estimated from n = 400 has relative sd 1/sqrt(800) = .035
    generator = torch.Generator().manual_seed(0)
    grid, n, s = symmetric_grid(1.0, 5), 400, 0.01
    slopes = s * torch.randn(n, generator=generator, dtype=torch.float64)
    line = Slice(grid, (grid**2 / 2)[:, None] + grid[:, None] * slopes)
    expected = s / (1 / 3 + 0.5**2 / 6) / math.sqrt(n)
    assert score_asymmetry(line).stderr == pytest.approx(expected, rel=5 * 0.035)


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_batch_is_left_out_like_any_other(bad):
    # without the first batch: area 1/2 (slopes 3 and 1); without the second: a side that blew up, 1
    grid = symmetric_grid(1.0, 5)
    losses = torch.stack([grid.abs(), torch.where(grid > 0, 3 * grid, -grid)], dim=1)
    losses[-1, 0] = bad
    score = score_asymmetry(Slice(grid, losses))
    assert (score.area, score.stderr) == (1.0, pytest.approx(0.25, rel=1e-12))


# --- verdict ------------------------------------------------------------------------------------


def two_batches(line, noise):
    """The slice and, with opposite signs in its two batches, a slope."""
    slopes = torch.tensor([noise, -noise], dtype=torch.float64)
    return Slice(line.alphas, line.mean[:, None] + line.alphas[:, None] * slopes)


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (rises_to([3.0, 6.0], [1.0, 2.0]), "asymmetric"),
        (rises_to([1.0, 2.0], [3.0, 6.0]), "asymmetric"),
        (rises_to([2.0, 4.0], [1.0, 2.0]), "symmetric"),  # 2 is not above 2
        (rises_to([1.0, 3.0], [1.0, 3.0]), "symmetric"),
        (rises_to([-1.0, 6.0], [1.0, 2.0]), "off-minimum"),
        (rises_to([1.0, 2.0], [3.0, -1.0]), "off-minimum"),
        # integrals 6 +- 2 e and 2 -+ 2 e: areas 1/2 +- e / 2, standard error e / 2; t is 12.706
        (two_batches(rises_to([3.0, 6.0], [1.0, 2.0]), 0.078), "asymmetric"),
        (two_batches(rises_to([3.0, 6.0], [1.0, 2.0]), 0.079), "unresolved"),
        # a fall of 2 % of the larger end rise is not yet one
        (rises_to([3.0, 6.0], [1.0, -0.12]), "asymmetric"),
        (rises_to([3.0, 6.0], [1.0, -0.13]), "off-minimum"),
        (rises_to([math.inf, math.inf], [1.0, -9.0]), "asymmetric"),
        (two_batches(rises_to([1.0, 2.0], [1.0, 2.0]), 0.0), "symmetric"),
        # far from its minimum, noise or not
        (two_batches(rises_to([-1.0, -2.0], [1.0, 2.0]), 9.0), "off-minimum"),
    ],
)
def test_the_verdict_by_hand(line, verdict):
    assert score_asymmetry(line).verdict == verdict


@pytest.mark.parametrize(("n_batches", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042)])
def test_an_area_is_resolved_from_students_quantile_on(n_batches, t):
    # a batch of slopes c and 1 has the area (c - 1) / (c + 1); here area 1/3, standard error e
    slopes = torch.linspace(-1, 1, n_batches, dtype=torch.float64)
    slopes *= math.sqrt(n_batches * (n_batches - 1) / float(slopes.square().sum()))
    grid = symmetric_grid(1.0, 5)

    def verdict(stderr):  # the tilt e of a batch moves both integrals by e / 2, of 3/2 in sum
        tilt = 1.5 * stderr * slopes
        line = Slice(grid, torch.where(grid > 0, 2 * grid, -grid)[:, None] + grid[:, None] * tilt)
        assert score_asymmetry(line).stderr == pytest.approx(stderr, rel=1e-9)
        return score_asymmetry(line).verdict

    assert verdict(1 / 3 / t * 1.001) == "unresolved"
    assert verdict(1 / 3 / t * 0.999) == "symmetric"  # a ratio of 2 is not above 2


def test_noise_of_four_batches_is_resolved_in_at_most_seven_percent():
    generator = torch.Generator().manual_seed(0)
    grid, resolved = symmetric_grid(0.6, 13), 0
    for _ in range(2000):
        noise = 0.02 * torch.randn(13, 4, generator=generator, dtype=torch.float64)
        resolved += score_asymmetry(Slice(grid, (grid**2)[:, None] + noise)).verdict != "unresolved"
    assert resolved / 2000 <= 0.07


@pytest.mark.parametrize(("n_points", "radius"), [(9, 0.6), (25, 0.23), (25, 0.46), (25, 1.55)])
@pytest.mark.parametrize("side", [1, -1])
def test_a_quarter_of_the_radius_is_not_yet_off_minimum(n_points, radius, side):
    # the grid point at radius / 4 may be rounded to just above it
    grid = symmetric_grid(radius, n_points)
    k = (n_points - 1) // 4
    for step, off in ((k // 2, False), (k // 2 + 1, True)):
        line = Slice(grid, (grid - grid[2 * k + side * step]) ** 2)
        assert (score_asymmetry(line).verdict == "off-minimum") == off


# --- the grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_points", [3, 7, 11, 15])
def test_a_score_needs_4k_plus_1_points(n_points):
    with pytest.raises(ValueError, match=rf"must be 4 \* k \+ 1 .* Got {n_points} points"):
        scored(torch.square, 1.0, n_points)


@pytest.mark.parametrize(
    "alphas",
    [[-1.0, -0.5, 0.0, 0.5, 1.1], [-1.0, 0.0, 0.5, 1.0], [-1.0, -0.5, 0.0, 1.0], [0.0, 1.0], [0.0]],
    ids=str,
)
def test_a_grid_that_is_not_symmetric_is_an_error(alphas):
    line = Slice(torch.tensor(alphas), torch.zeros(len(alphas)))
    for call in (
        lambda: score_asymmetry(line),
        lambda: asymmetry_ratio(line, zeta=0.5, r=1.0),
        lambda: is_asymmetric(line, zeta=0.5, r=1.0, p=1.0, c=2.0),
    ):
        with pytest.raises(ValueError, match="must have a grid symmetric about 0"):
            call()


def test_a_line_grid_is_no_grid_for_a_score():
    grid = line_grid(2.0, 31)
    with pytest.raises(ValueError, match=r"Use symmetric_grid\(radius, n_points\)"):
        score_asymmetry(Slice(grid, grid**2))


def test_a_symmetric_grid_need_not_be_equally_spaced():
    # slopes 3 and 1 on points 1, 2, 4 (half the radius is one): integrals 3 * 8 and 8
    alphas = torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    score = score_asymmetry(Slice(alphas, torch.where(alphas > 0, 3 * alphas, -alphas)))
    assert (score.area, score.ratio) == (0.5, 3.0)


def test_a_grid_may_be_off_by_a_billionth_of_its_radius():
    grid = symmetric_grid(100.0, 5)
    grid[0] += 5e-8
    grid[3] -= 5e-8
    score = score_asymmetry(Slice(grid, grid.abs()))
    assert score.area == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    ("zeta", "r"),
    [
        (0.3, 1.0),
        (0.5, 0.9),
        (0.5, 1.5),
        (1.0, 0.5),
        (0.5, 0.5),
        (0.5, 0.5 + 1e-12),
        (-0.5, 0.5),
        (math.nan, 1.0),
        (0.5, math.inf),
    ],
)
def test_zeta_and_r_must_be_points_of_the_grid_in_order(zeta, r):
    line = sliced(torch.square, 1.0, 5)
    with pytest.raises(ValueError, match="`zeta` and `r` must be alphas of the grid"):
        asymmetry_ratio(line, zeta=zeta, r=r)
    with pytest.raises(ValueError, match="`zeta` and `r` must be alphas of the grid"):
        is_asymmetric(line, zeta=zeta, r=r, p=1.0, c=2.0)


def test_zeta_and_r_may_be_off_by_a_billionth_of_the_radius():
    line = sliced(lambda t: torch.where(t > 0, 3 * t, -t), 1.0, 5)
    assert asymmetry_ratio(line, zeta=0.5 + 9e-10, r=1 - 9e-10) == 3.0


# --- the paper's definition ---------------------------------------------------------------------


def naive_slopes(line, zeta, r):
    """Per side, the difference quotients over the grid intervals inside [zeta, r]."""
    loss = dict(zip(line.alphas.tolist(), line.mean.tolist(), strict=True))
    points = sorted(alpha for alpha in loss if zeta <= alpha <= r)
    return {
        side: [
            (loss[side * far] - loss[side * near]) / (far - near) for near, far in pairwise(points)
        ]
        for side in (1, -1)
    }


def naive_is_asymmetric(line, r, p, c, zeta):
    slopes = naive_slopes(line, zeta, r)
    for flat in (1, -1):
        flat_enough = all(slope < p for slope in slopes[flat])
        steep_enough = all(slope > c * p for slope in slopes[-flat])
        if flat_enough and steep_enough:
            return True
    return False


@st.composite
def monotone_slices(draw):
    """Both sides mostly rise: arbitrary integers would hardly ever be asymmetric."""
    k = draw(st.integers(1, 4))
    base = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    sides = [[b * m + draw(st.integers(-1, 1)) for m in range(1, 2 * k + 1)] for b in base]
    return rises_to(*sides)


def zeta_and_r(data, line):
    points = [alpha for alpha in line.alphas.tolist() if alpha >= 0]
    first = data.draw(st.integers(0, len(points) - 2))
    return points[first], points[data.draw(st.integers(first + 1, len(points) - 1))]


@settings(max_examples=200, deadline=None)
@given(
    monotone_slices() | integer_slices(batches=(1,)),
    st.integers(1, 24),
    st.sampled_from([1.25, 1.5, 2.0, 4.0]),
    st.data(),
)
def test_is_asymmetric_is_the_definition_verbatim(line, quarters, c, data):
    zeta, r = zeta_and_r(data, line)
    p = quarters / 4
    asked = is_asymmetric(line, r=r, p=p, c=c, zeta=zeta)
    assert asked is naive_is_asymmetric(line, r, p, c, zeta)


@settings(max_examples=200, deadline=None)
@given(
    monotone_slices() | integer_slices(batches=(1,)),
    st.sampled_from([1.25, 1.5, 2.0, 4.0]),
    st.data(),
)
def test_the_ratio_exceeds_c_just_when_some_p_makes_the_slice_asymmetric(line, c, data):
    zeta, r = zeta_and_r(data, line)
    ratio = asymmetry_ratio(line, zeta=zeta, r=r)
    slopes = naive_slopes(line, zeta, r)
    # a p that works lies above the greatest flat slope (and 0), below the least steep slope / c;
    # if any does, so does the middle between the two
    middles = [(max(*slopes[flat], 0.0, 0.0) + min(slopes[-flat]) / c) / 2 for flat in (1, -1)]
    found = [is_asymmetric(line, r=r, p=p, c=c, zeta=zeta) for p in middles if p > 0]
    assert (ratio > c) == any(found)


@settings(max_examples=100, deadline=None)
@given(monotone_slices() | integer_slices(batches=(1,)), st.data())
def test_the_ratio_is_the_larger_of_the_two_orientations(line, data):
    zeta, r = zeta_and_r(data, line)
    slopes, ratios = naive_slopes(line, zeta, r), []
    for flat in (1, -1):
        least, greatest = min(slopes[-flat]), max(slopes[flat])
        if least <= 0:
            ratios.append(0.0)
        else:
            ratios.append(least / greatest if greatest > 0 else math.inf)
    assert asymmetry_ratio(line, zeta=zeta, r=r) == max(ratios)


@FEW
@given(integer_slices())
def test_the_ratio_of_the_score_is_of_the_outer_half_of_the_radius(line):
    radius = float(line.alphas[-1])
    assert score_asymmetry(line).ratio == asymmetry_ratio(line, zeta=radius / 2, r=radius)


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        ([1.0, 3.0], [1.0, 2.0], 2.0),  # slopes 2 and 1
        ([1.0, 3.0], [1.0, 1.0], math.inf),  # the flat side does not rise
        ([1.0, 3.0], [1.0, 0.5], math.inf),  # the flat side falls
        ([1.0, 0.5], [1.0, 0.5], 0.0),  # both fall
        ([1.0, 1.0], [1.0, 1.0], 0.0),  # neither rises
    ],
)
def test_the_ratio_by_hand(plus, minus, expected):
    assert asymmetry_ratio(rises_to(plus, minus), zeta=1.0, r=2.0) == expected
    assert asymmetry_ratio(rises_to(minus, plus), zeta=1.0, r=2.0) == expected


def test_a_steep_side_that_falls_somewhere_is_not_steep():
    # + slopes over [2, 4]: 9, -1; - slopes 1, 1: with + steep 0, with - steep 1 / 9
    line = rises_to([1.0, 2.0, 11.0, 10.0], [1.0, 2.0, 3.0, 4.0])
    assert score_asymmetry(line).ratio == pytest.approx(1 / 9)


def test_definition_1_is_strict_in_both_inequalities():
    # slopes 4 on the + side, 1 on the - side; c = 2
    line = rises_to([4.0, 8.0], [1.0, 2.0])

    def holds(p):
        return is_asymmetric(line, r=2.0, p=p, c=2.0, zeta=1.0)

    assert [holds(p) for p in (0.5, 1.0, 1.5, 2.0, 2.5)] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("p", "c"), [(0.0, 2.0), (-1.0, 2.0), (math.nan, 2.0), (1.0, 1.0), (1.0, 0.5), (1.0, math.nan)]
)
def test_p_and_c_out_of_range_are_errors(p, c):
    with pytest.raises(ValueError, match=rf"`p` must be positive and `c` above 1\. Got p={p} and"):
        is_asymmetric(sliced(torch.square, 1.0, 5), r=1.0, p=p, c=c, zeta=0.5)
