"""Estimate a share to a given precision: sample one by one, stop once the interval is narrow.

An interval made for a fixed number of trials misses more often than it says where the trials decide
when to stop. The interval here accounts for the stopping rule. Outcomes `(k, n)`, `k` successes in
`n` trials, are ordered: early stops with few successes lowest, early stops with many highest, all
others between them by `k`. The interval inverts the tail probabilities in that order: its ends are
the shares under which the outcome that was found, or one further out, has half of the allowed
error. With a fixed number of trials that is the interval of Clopper and Pearson.

It covers every share as often as it says. More successes never lower the place of a series in the
order, so the chance of an outcome this low or lower falls as the share grows. A share lies above
the interval only if its outcome is among the lowest, whose chance under that share is half of the
error; and likewise below. The argument does not need the length of the series: it may be cut off
after a number of trials that was fixed before the first. The interval is then wider, and as valid.

References:
    Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of
    the binomial. Jennison, Turnbull (1983), Confidence intervals for a binomial parameter following
    a multistage test.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from lightning_landscape.checks import is_number
from lightning_landscape.measures.quantiles import greatest_share

FIRST = 8  # trials before the interval is first computed


class SequentialDesign:
    """When to stop a series of trials, and the interval for the share of successes.

    Args:
        precision: Half of the width that the interval shall have.
        confidence: Its least coverage over all shares.

    Attributes:
        n_most: The most trials of a series: by then all have stopped.

    Raises:
        ValueError: If the precision is not between 0.03 and 0.5 or the confidence not between 0
            and 1.

    Example:
        >>> design = SequentialDesign(precision=0.1)
        >>> design.n_most
        104
        >>> design.stops(0, 16), design.stops(0, 17), design.stops(1, 17)
        (False, True, False)
        >>> [round(end, 3) for end in design.interval(0, 17)]
        [0.0, 0.195]
    """

    def __init__(self, precision: float = 0.1, confidence: float = 0.95) -> None:
        check_precision(precision)
        check_confidence(confidence)
        self.precision = precision
        self.confidence = confidence
        # log of the number of series of n trials and k successes that had not stopped before
        self._series = [np.zeros(1)]
        # after n trials, stop where the rarer outcome came so often or less
        self._rarest = [-1]
        # the ends for few successes so far: k, n and the log of the number of series
        self._low_ends = np.empty((0, 3))
        self.n_most = 0
        while 2 * self._rarest[-1] < self.n_most - 1:
            self._extend()

    def stops(self, k: int, n: int) -> bool:
        """Return whether to stop after `n` trials, `k` of them successes."""
        return n >= self.n_most or min(k, n - k) <= self._rarest[n]

    def interval(self, k: int, n: int) -> tuple[float, float]:
        """Return the interval for the share of successes after `n` trials, `k` of them successes.

        Raises:
            ValueError: If all series with these numbers have stopped before.
        """
        if n > self.n_most or np.isneginf(self._series[n][k]):
            raise ValueError(
                "`n` must not go on once the interval is narrow enough, which it is only for those "
                f"who stop then: sample until `stops`. Got k={k}, n={n} at {self.precision=}."
            )
        return 1 - self._high(n - k, n), self._high(k, n)

    def _extend(self) -> None:
        """Add one trial, and find the outcomes to stop at after it."""
        n, rarest = self.n_most + 1, self._rarest[-1]
        going_on = self._series[-1].copy()
        going_on[: rarest + 1] = going_on[n - 1 - rarest :] = -math.inf
        none = [-math.inf]
        series = np.logaddexp(np.append(going_on, none), np.append(none, going_on))
        self._series.append(series)
        self._rarest.append(rarest)
        self.n_most = n
        if n < FIRST:
            return
        for k in range(int(np.isfinite(series).argmax()), n // 2 + 1):
            low, high = self.interval(k, n)
            if high - low > 2 * self.precision:
                break
            self._rarest[n] = k
            self._low_ends = np.concatenate([self._low_ends, np.array([[k, n, series[k]]])])

    def _high(self, k: int, n: int) -> float:
        """Return the share under which an end as low or lower has half of the error."""
        sooner = self._low_ends[self._low_ends[:, 1] < n]
        here = np.stack([np.arange(k + 1), np.full(k + 1, n), self._series[n][: k + 1]], axis=1)
        yes, trials, series = np.concatenate([sooner, here]).T
        return greatest_share(yes, trials, series, (1 - self.confidence) / 2)


def check_precision(precision: float) -> None:
    """Raise a `ValueError` unless a precision is between 0.03 and 0.5."""
    if not (is_number(precision) and 0.03 <= precision < 0.5):
        raise ValueError(
            "`precision` must be half of the width of an interval for a share, from 0.03, which "
            f"may take 1098 trials, to below 0.5. Got {precision!r}."
        )


def check_confidence(confidence: float) -> None:
    """Raise a `ValueError` unless a confidence is between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95. Got {confidence}.")


@lru_cache(maxsize=8)
def sequential_design(precision: float, confidence: float = 0.95) -> SequentialDesign:
    """Return a `SequentialDesign`, made once."""
    return SequentialDesign(precision, confidence)
