"""Intervals: the Wilson one is tested in test_asymmetry, that of the median here."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.measures.rates import median_interval


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
