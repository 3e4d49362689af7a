"""Rates and medians over directions, and their intervals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from formulas import rises_to
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_sum

from lightning_landscape import AsymmetryRate, score_asymmetry
from lightning_landscape.measures.quantiles import clopper_pearson, median_interval, student

STEEP = score_asymmetry(rises_to([3.0, 6.0], [1.0, 2.0]))
EVEN = score_asymmetry(rises_to([1.0, 2.0], [1.0, 2.0]))


def rate_of(k, n, **options):
    rate = AsymmetryRate(**options)
    for j in range(n):
        rate.update(STEEP if j < k else EVEN)
    return {name: value.item() for name, value in rate.compute().items()}


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # none of n: up to the share p with (1 - p)^n = .025
        (0, 8, 0.0, 1 - 0.025 ** (1 / 8)),
        (10, 10, 0.025 ** (1 / 10), 1.0),
        # one of one: from p = .025; one of two: (1 - p)^2 = .975 and p^2 = .975
        (1, 1, 0.025, 1.0),
        (1, 2, 1 - 0.975**0.5, 0.975**0.5),
    ],
)
def test_the_interval_of_the_rate_is_cloppers_and_pearsons(k, n, low, high):
    result = rate_of(k, n)
    assert (result["rate"], result["n"]) == (k / n, n)
    assert (result["low"], result["high"]) == pytest.approx((low, high), abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(0, 1), st.floats(0.5, 0.99))
def test_at_its_ends_what_was_seen_or_more_has_half_of_the_error(n, share, confidence):
    k = round(share * n)
    result = rate_of(k, n, confidence=confidence)

    def chance(p, counts):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    if k:
        assert chance(result["low"], range(k, n + 1)) == pytest.approx((1 - confidence) / 2)
    if k < n:
        assert chance(result["high"], range(k + 1)) == pytest.approx((1 - confidence) / 2)
    assert 0 <= result["low"] <= k / n <= result["high"] <= 1


@pytest.mark.parametrize("n", [4, 8, 25])
def test_it_covers_every_share_as_often_as_it_says(n):
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    for p in np.linspace(0.001, 0.999, 400):
        covered = [
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k in range(n + 1)
            if intervals[k][0] <= p <= intervals[k][1]
        ]
        assert sum(covered) >= 0.95


def test_none_and_all_give_exact_ends():
    assert rate_of(0, 7)["low"] == 0.0
    assert rate_of(7, 7)["high"] == 1.0


def test_the_rate_is_a_metric_whose_states_are_summed_over_ranks():
    rate = AsymmetryRate()
    assert isinstance(rate, Metric)
    assert rate._reductions == {"asymmetric": dim_zero_sum, "total": dim_zero_sum}
    rate.update(STEEP)
    rate.update(EVEN)
    assert rate.metric_state == {"asymmetric": torch.tensor(1), "total": torch.tensor(2)}


def test_the_values_are_float64_scalars():
    rate = AsymmetryRate()
    rate.update(STEEP)
    result = rate.compute()
    assert list(result) == ["rate", "low", "high", "n"]
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}


@pytest.mark.skipif(not hasattr(AsymmetryRate, "merge_state"), reason="needs torchmetrics 1.5")
def test_merging_two_rates_is_counting_together():
    one, other = AsymmetryRate(), AsymmetryRate()
    for score in (STEEP, EVEN):
        one.update(score)
    for score in (STEEP, STEEP, EVEN):
        other.update(score)
    one.merge_state(other)
    assert {name: value.item() for name, value in one.compute().items()} == rate_of(3, 5)


def test_reset_forgets():
    rate = AsymmetryRate()
    rate.update(STEEP)
    rate.compute()
    rate.reset()
    rate.update(EVEN)
    assert {name: value.item() for name, value in rate.compute().items()} == rate_of(0, 1)


def test_forward_gives_the_value_of_one_and_counts_it():
    rate = AsymmetryRate()
    assert rate(STEEP)["rate"] == 1.0
    assert rate(EVEN)["rate"] == 0.0
    assert rate.compute()["rate"] == 0.5


def test_before_any_direction_nothing_is_known():
    with pytest.warns(UserWarning, match="called before the ``update`` method"):
        result = AsymmetryRate().compute()
    assert math.isnan(result["rate"])
    assert [result[name].item() for name in ("low", "high", "n")] == [0.0, 1.0, 0.0]


def test_a_direction_counts_when_its_ratio_is_above_c():
    for ratio, c, counts in [(2.0, 2.0, 0), (2.1, 2.0, 1), (2.1, 3.0, 0), (math.inf, 3.0, 1)]:
        rate = AsymmetryRate(c=c)
        rate.update(dataclasses.replace(STEEP, ratio=ratio))
        assert rate.compute()["rate"] == counts


@pytest.mark.parametrize("verdict", ["off-minimum", "unresolved"])
def test_a_slice_that_cannot_be_judged_never_counts_as_asymmetric(verdict):
    rate = AsymmetryRate()
    rate.update(dataclasses.replace(STEEP, verdict=verdict, ratio=math.inf))
    result = rate.compute()
    assert (result["rate"], result["n"]) == (0.0, 1.0)


@pytest.mark.parametrize("place", [0, 6])
def test_non_finite_slices_are_counted_in_n(place):
    line = rises_to([3.0 * k for k in range(1, 7)], [1.0 * k for k in range(1, 7)])
    line.losses[6 + place] = math.nan
    rate = AsymmetryRate()
    rate.update(score_asymmetry(line))
    result = rate.compute()
    # without a centre nothing is known; a steep side that blows up is still three times steeper
    assert (result["rate"], result["n"]) == (0.0 if place == 0 else 1.0, 1.0)


@pytest.mark.parametrize("c", [0.9, 0.0, -2.0, math.nan])
def test_a_rate_with_c_below_one_is_an_error(c):
    with pytest.raises(ValueError, match=rf"`c` must be at least 1\. Got {c}\."):
        AsymmetryRate(c=c)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, math.nan])
def test_a_confidence_that_is_no_probability_is_an_error(confidence):
    with pytest.raises(ValueError, match=rf"such as 0\.95\. Got {confidence}\."):
        AsymmetryRate(confidence=confidence)


# -- the median ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k"),
    # the largest k with 2 * P(Binomial(n, 1/2) < k) <= .05: tables of the sign test
    [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8)],
)
def test_the_ends_are_the_order_statistics_of_the_sign_test(n, k):
    middle, low, high = median_interval([float(i) for i in range(1, n + 1)])
    assert (middle, low, high) == ((n + 1) / 2, k, n + 1 - k)


def test_fewer_than_six_values_have_no_interval_at_95_percent():
    middle, low, high = median_interval([1.0, 2.0, 9.0])
    assert middle == 2.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_nothing_known_has_no_median():
    assert all(math.isnan(value) for value in median_interval([math.nan]))


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=40))
def test_the_interval_contains_the_median(values):
    middle, low, high = median_interval([*values, math.nan])
    assert low <= middle <= high


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        _, low, high = median_interval(rng.exponential(size=12).tolist())
        covered += low <= math.log(2) <= high
    assert covered / 2000 >= 0.95  # for n = 12 the exact coverage is .961


# -- Student's quantiles ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "expected"),  # the tables', two-sided 95 %
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042), (1000, 1.962)],
)
def test_students_quantiles_are_those_of_the_tables(freedom, expected):
    assert student(freedom) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_students_quantiles_of_one_and_two_have_closed_forms(confidence):
    # tan(pi c / 2), and 2 (c / 2) sqrt(2 / (1 - c^2))
    assert student(1, confidence) == pytest.approx(math.tan(math.pi * confidence / 2))
    assert student(2, confidence) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)))
