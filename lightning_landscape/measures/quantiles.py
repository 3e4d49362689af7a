"""Standard errors, and quantiles for intervals: Clopper's and Pearson's, and Student's.

References:
    Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of
    the binomial. Abramowitz, Stegun (1964), Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median

import numpy as np
import torch
from torch import Tensor


def standard_error(losses: Tensor) -> Tensor:
    """Return the standard error of the mean over the batches, the last dimension; nan for one.

    Example:
        >>> standard_error(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
        tensor([1., 0.])
    """
    n = losses.shape[-1]
    return losses.std(dim=-1) / math.sqrt(n) if n > 1 else torch.full_like(losses[..., 0], math.nan)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval for the share of successes, of which there were `k` in `n` trials.

    It covers every share at least as often as it says. Its ends are the shares under which `k` or
    more, or `k` or fewer, have half of the allowed error.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 8)]  # 1 - .025 ** (1 / 8)
        [0.0, 0.3694]
    """
    return 1 - _upper_end(n - k, n, confidence), _upper_end(k, n, confidence)


@lru_cache(maxsize=256)
def _upper_end(k: int, n: int, confidence: float) -> float:
    yes = np.arange(k + 1)
    series = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)
    ]
    return greatest_share(yes, np.full(k + 1, n), np.array(series), (1 - confidence) / 2)


def greatest_share(yes: np.ndarray, trials: np.ndarray, series: np.ndarray, chance: float) -> float:
    """Return the share under which some ends of a series of trials have a given chance together.

    Args:
        yes: The successes of each end.
        trials: The trials of each end.
        series: The log of the number of series with that end.
        chance: The chance of all of them, which falls from 1 to 0 as the share grows.

    Returns:
        The share, to 1e-12; 1 where the ends are all there are.
    """
    if (yes == trials).any():
        return 1.0

    def exceeds(share: float) -> bool:
        chances = series + yes * math.log(share) + (trials - yes) * math.log1p(-share)
        return bool(np.exp(chances).sum() > chance)

    return _bisected(exceeds, 1.0)


@lru_cache(maxsize=256)
def student(freedom: int, confidence: float = 0.95) -> float:
    """Return how many standard errors hold a share of Student's distribution, on both sides of 0.

    Args:
        freedom: Degrees of freedom: one less than the number of batches, at least 1.
        confidence: The share inside.

    Example:
        >>> [round(student(freedom), 3) for freedom in (1, 3, 30)]
        [12.706, 3.182, 2.042]
    """
    # P(|T| <= t) with t = sqrt(freedom) tan(angle) is a finite sum of powers of cos(angle)
    first = 2 if freedom % 2 else 1
    k = np.arange(first, freedom - 1, 2)
    factors = np.cumprod(np.concatenate([[1.0], k / (k + 1)]))[: freedom // 2]
    powers = np.arange(freedom % 2, freedom - 1, 2)

    def falls_short(angle: float) -> bool:
        total = math.sin(angle) * float((factors * math.cos(angle) ** powers).sum())
        inside = 2 / math.pi * (angle + total) if freedom % 2 else total
        return inside < confidence

    return math.sqrt(freedom) * math.tan(_bisected(falls_short, math.pi / 2))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval from order statistics, whatever the distribution.

    The k-th smallest and k-th largest value, with the largest k for which the binomial chance that
    the median of independent trials lies outside is at most 5 %. Values that are nan are left out;
    with fewer than 6 others no such interval exists and the ends are nan.

    Args:
        values: One value per direction.

    Returns:
        The median, the lower end and the upper end.

    Example:
        >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        (4.5, 1.0, 8.0)
    """
    known = sorted(value for value in values if not math.isnan(value))
    n = len(known)
    outside, k = 0.0, 0
    while k < n // 2:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - 0.95:
            break
        k += 1
    middle = median(known) if known else math.nan
    return (middle, known[k - 1], known[n - k]) if k else (middle, math.nan, math.nan)


def _bisected(is_below: Callable[[float], bool], high: float) -> float:
    low = 0.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if is_below(middle):
            low = middle
        else:
            high = middle
    return high
