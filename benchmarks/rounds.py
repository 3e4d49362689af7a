"""Jobs timed beside each other in one process, and what is said about them.

What is compared runs within milliseconds of each other, in an order shuffled anew each time, on the
process's CPU clock. Other people's work still slows it, through caches and shared cores, but both
sides alike: **the ratio that counts is the median over the pairs.** The ratio of the two leasts
stands beside it; it rests on one lucky run of each, which need not have been equally lucky.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Job = Callable[[], object]


class Clock:
    """Seconds by what was done, on the process's CPU clock or another.

    Args:
        now: The clock.

    Example:
        >>> clock = Clock()
        >>> with clock("sum"):
        ...     _ = sum(range(10))
        >>> len(clock.seconds["sum"])
        1
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._now = now
        self._order = random.Random(0)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[what].append(self._now() - began)

    def beside(self, jobs: Mapping[str, Job]) -> None:
        """Time each job once, in an order shuffled anew."""
        for what in self._order.sample(list(jobs), len(jobs)):
            with self(what):
                jobs[what]()

    def ratio(self, what: str, to: str) -> dict[str, float]:
        """Return how many times as long one job took as the one it was timed beside.

        Example:
            >>> clock = Clock()
            >>> clock.seconds |= {"a": [2.0, 3.0, 8.0], "b": [1.0, 1.0, 4.0]}
            >>> clock.ratio("a", to="b")["value"]
            2.0
        """
        a, b = self.seconds[what], self.seconds[to]
        pairs = [x / y for x, y in zip(a, b, strict=True)]
        return {
            "value": statistics.median(pairs),
            "of_leasts": min(a) / min(b),
            "least": min(pairs),
            "n": len(pairs),
            "ms": 1e3 * statistics.median(a),
            "least_ms": 1e3 * min(a),
        }
