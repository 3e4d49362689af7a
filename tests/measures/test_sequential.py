"""Drawing until a share is known: the interval covers as often as it says, whenever one stops."""

import math

import numpy as np
import pytest
import torch

from lightning_landscape import AsymmetryRate, Slice, score_asymmetry
from lightning_landscape.measures.quantiles import clopper_pearson
from lightning_landscape.measures.sequential import FIRST, SequentialDesign, sequential_design

TENTH = sequential_design(0.1)
GRID = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
STEEP = score_asymmetry(Slice(GRID, torch.tensor([2.0, 1.0, 0.0, 3.0, 6.0])))


def ends(stops, n_most, shares=0.5):
    """All ends of a series, and the chance of each at some shares: one draw after another."""
    going_on = {0: np.ones_like(shares)}
    for n in range(1, n_most + 1):
        reached = {}
        for k, chance in going_on.items():
            for more, p in ((0, 1 - shares), (1, shares)):
                reached[k + more] = reached.get(k + more, 0.0) + chance * p
        going_on = {}
        for k, chance in reached.items():
            if n == n_most or stops(k, n):
                yield k, n, chance
            else:
                going_on[k] = chance


def coverage(stops, interval, n_most, shares):
    """The chance that the interval holds each share."""
    covered = np.zeros_like(shares)
    for k, n, chance in ends(stops, n_most, shares):
        low, high = interval(k, n)
        covered += np.where((low <= shares) & (shares <= high), chance, 0.0)
    return covered


def all_shares(design, n_most=None):
    """A fine grid, and what lies just outside of every interval: there the coverage dips."""
    stopped = ends(design.stops, n_most or design.n_most)
    edges = {edge for k, n, _ in stopped for edge in design.interval(k, n)}
    outside = [edge + step for edge in edges for step in (-1e-9, 1e-9)]
    return np.clip([*np.linspace(0, 1, 501), *outside], 0, 1)


@pytest.mark.tried("steps", "stopping after as many directions as the interval needs")
@pytest.mark.parametrize(
    ("precision", "confidence"), [(0.1, 0.95), (0.1, 0.8), (0.2, 0.99), (0.07, 0.9), (0.45, 0.95)]
)
def test_the_interval_covers_every_share_as_often_as_it_says(precision, confidence):
    design = SequentialDesign(precision, confidence)
    covered = coverage(design.stops, design.interval, design.n_most, all_shares(design))
    assert covered.min() >= confidence
    assert covered.min() <= confidence + 0.06  # and not much more: nothing is given away


@pytest.mark.tried("steps", "a budget that ends the drawing of directions early")
@pytest.mark.parametrize("n_most", [1, 8, 12, 17, 18, 40, 71, 100, 103])
def test_it_does_so_when_the_series_is_cut_off_at_a_number_fixed_before(n_most):
    shares = all_shares(TENTH, n_most)
    assert coverage(TENTH.stops, TENTH.interval, n_most, shares).min() >= 0.95


def test_an_interval_of_a_fixed_number_misses_more_where_it_stops_by_it():
    def narrow(k, n):
        low, high = clopper_pearson(k, n)
        return n >= FIRST and high - low <= 0.2

    shares = np.linspace(0.1, 0.9, 1601)
    fixed = coverage(lambda k, n: False, clopper_pearson, 104, shares)
    assert coverage(narrow, clopper_pearson, 104, shares).min() < 0.95 <= fixed.min()


def test_it_stops_as_soon_as_the_interval_is_narrow_and_not_before():
    design = SequentialDesign(0.15)
    for k, n, _ in ends(design.stops, design.n_most):
        low, high = design.interval(k, n)
        assert high - low <= 0.3
    for n in range(FIRST, design.n_most):
        for k in range(n + 1):
            if not design.stops(k, n):
                low, high = design.interval(k, n)
                assert high - low > 0.3


def test_all_of_one_kind_are_known_after_seventeen():
    # no yes in n: up to the p with (1 - p) ** n = .025; .8 ** 16 = .028, .8 ** 17 = .0225
    assert not TENTH.stops(0, 16)
    assert TENTH.stops(0, 17)
    assert TENTH.interval(0, 17) == (0.0, pytest.approx(1 - 0.025 ** (1 / 17)))
    assert TENTH.interval(17, 17) == (pytest.approx(0.025 ** (1 / 17)), 1.0)


def test_the_most_is_what_a_fixed_number_would_take():
    # Clopper and Pearson with half yes: [.4, .6] once .4 gives as many with a chance of .025
    def at_least_half(n):
        return sum(math.comb(n, k) * 0.4**k * 0.6 ** (n - k) for k in range(n // 2, n + 1))

    fixed = next(n for n in range(2, 200, 2) if at_least_half(n) <= 0.025)
    assert TENTH.n_most == fixed == 104


@pytest.mark.parametrize("k", range(9))
def test_a_series_that_could_not_stop_has_clopper_pearsons_interval(k):
    low, high = TENTH.interval(k, 8)

    def at_least(j, p):
        return sum(math.comb(8, i) * p**i * (1 - p) ** (8 - i) for i in range(j, 9))

    assert at_least(k, low) == pytest.approx(0.025 if k else 1.0)
    assert 1 - at_least(k + 1, high) == pytest.approx(0.025 if k < 8 else 1.0)


def test_exchanging_yes_and_no_mirrors_the_interval():
    for k, n, _ in ends(TENTH.stops, TENTH.n_most):
        low, high = TENTH.interval(k, n)
        assert TENTH.stops(n - k, n)
        assert TENTH.interval(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_before_any_draw_nothing_is_known():
    assert TENTH.interval(0, 0) == (0.0, 1.0)


def test_to_go_on_after_the_end_is_an_error():
    with pytest.raises(
        ValueError, match=r"`n` must not go on .* sample until `stops`. Got k=0, n=1"
    ):
        TENTH.interval(0, 18)
    with pytest.raises(ValueError, match=r"Got k=60, n=120"):
        TENTH.interval(60, 120)
    assert TENTH.stops(0, 18)
    assert TENTH.stops(60, 120)


@pytest.mark.parametrize("precision", [0.0, 0.02, 0.5, -0.1, math.nan])
def test_a_precision_out_of_range_is_an_error(precision):
    with pytest.raises(ValueError, match=rf"`precision` must be half .* Got {precision}\."):
        SequentialDesign(precision)


def test_a_confidence_that_is_no_probability_is_an_error():
    with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1.* Got 95\."):
        SequentialDesign(0.1, 95)


# -- the rate --------------------------------------------------------------------------------------


def test_a_rate_with_a_precision_is_precise_when_the_design_stops():
    rate = AsymmetryRate(precision=0.1)
    for n in range(1, 18):
        assert not rate.is_precise
        rate.update(STEEP)
        assert int(rate.total) == n
    assert rate.is_precise
    result = {name: float(value) for name, value in rate.compute().items()}
    low, high = TENTH.interval(17, 17)
    assert result == {"rate": 1.0, "low": low, "high": high, "n": 17.0}


def test_without_a_precision_no_rate_is_precise_whatever_it_has_seen():
    rate = AsymmetryRate()
    for _ in range(200):
        rate.update(STEEP)
    assert not rate.is_precise
    assert rate.compute()["low"] == pytest.approx(0.025 ** (1 / 200), abs=1e-10)


def test_a_direction_without_a_slice_is_one_that_does_not_count():
    rate = AsymmetryRate(precision=0.1)
    for score in (STEEP, None, None, STEEP):
        rate.update(score)
    assert rate.compute()["rate"] == 0.5
    assert rate.compute()["n"] == 4


def test_a_rate_that_went_on_when_it_was_precise_has_no_interval():
    rate = AsymmetryRate(precision=0.1)
    for _ in range(18):
        rate.update(None)
    with pytest.raises(ValueError, match="`n` must not go on"):
        rate.compute()


def test_a_rate_refuses_a_precision_out_of_range():
    with pytest.raises(ValueError, match="`precision` must be half"):
        AsymmetryRate(precision=0.5)
