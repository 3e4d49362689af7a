"""When to probe: a schedule, and a budget that holds probes to a share of the time of a fit."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lightning_landscape._lightning import ConfigurationError, as_configuration
from lightning_landscape.checks import check_whole

AUTO_SHARE = 0.05  # of the fit's wall time, for all monitors with max_overhead="auto" together
_ASKED_EVERY = 50  # steps between two questions to the budget where no frequency is given


@dataclass(frozen=True)
class Schedule:
    """Every n epochs, every n optimizer steps, or as often as the budget affords.

    Steps are counted as batches that advanced the trainer: an accumulation window is one step, and
    so is a batch on which a GAN steps twice. Without a frequency the budget is asked after each
    epoch and every 50 steps.

    Example:
        >>> schedule = Schedule.of(every_n_steps=100)
        >>> schedule.due_after_step(99), schedule.due_after_step(100)
        (False, True)
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    is_given: bool = field(default=True, compare=False)  # by the user, and not the default

    @classmethod
    def of(
        cls,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        *,
        default: Schedule | None = None,
    ) -> Schedule:
        """Check what the user gave; neither means the default, which is every epoch.

        Raises:
            ConfigurationError: If both are given or one is not a positive whole number.
        """
        periods = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}
        given = {name: n for name, n in periods.items() if n is not None}
        if len(given) > 1:
            raise ConfigurationError(
                "`every_n_epochs` and `every_n_steps` exclude each other. "
                f"Got {every_n_epochs} and {every_n_steps}: leave one of them out."
            )
        with as_configuration():
            for name, n in given.items():
                check_whole(name, n)
        if given:
            return cls(every_n_epochs, every_n_steps)
        return replace(default or cls(every_n_epochs=1), is_given=False)

    @property
    def is_fixed(self) -> bool:
        """Whether there is a frequency."""
        return self.every_n_epochs is not None or self.every_n_steps is not None

    def due_after_step(self, n_steps: int) -> bool:
        """Return whether it is time once `n_steps` optimizer steps were made."""
        period = self.every_n_steps if self.is_fixed else _ASKED_EVERY
        return period is not None and n_steps % period == 0

    def due_after_epoch(self, epoch: int) -> bool:
        """Return whether it is time at the end of an epoch, 0 being the first."""
        period = self.every_n_epochs if self.is_fixed else 1
        return period is not None and (epoch + 1) % period == 0

    def __str__(self) -> str:
        if not self.is_fixed:
            return "as often as the budget affords"
        unit = "epoch" if self.every_n_epochs else "step"
        n = self.every_n_epochs or self.every_n_steps
        return f"every {unit}" if n == 1 else f"every {n} {unit}s"


class Budget:
    """A share of the time since the start of fit, and what was spent of it.

    It has a clock of its own: `with budget.spending("probe")` measures what a probe takes, and an
    inner `with budget.spending("figures")` is counted as figures alone.

    Args:
        share: The share of the time, between 0 and 1; None for no limit.

    Attributes:
        spent: Seconds spent since the start of fit, by kind.
        expected: Seconds that the next of a kind will take, as far as that is known.
        announced: Seconds that the first probe was said to take; None before, nan after it.
        n_left_out: How many of a kind were left out, by kind.

    Example:
        >>> budget = Budget(share=0.5)
        >>> with budget.spending("probe"):
        ...     pass
        >>> budget.affords("probe", at_least=1e6), Budget(None).affords("probe", at_least=1e6)
        (False, True)
    """

    def __init__(self, share: float | None = None) -> None:
        self.share = share
        self.forget()
        self._kind: str | None = None  # what the time is spent on at present
        self._step_began = math.nan
        self.start()

    def forget(self) -> None:
        """Forget what is known of costs: they are of another module."""
        self.expected: dict[str, float] = {}
        self.announced: float | None = None

    def start(self) -> None:
        """Start the clock of a fit; what is known of costs stays known."""
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.n_left_out: Counter[str] = Counter()
        self._ended: dict[str, float] = {}  # when the last of a kind ended
        self._began = self._since = time.monotonic()
        self._stopped = math.inf

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time inside as spent on this kind, and on no other around it."""
        outer = self._count_as(kind)
        try:
            yield
        finally:
            self._count_as(outer)
            self._ended[kind] = self._since

    def step_begins(self) -> None:
        """Start to time a training step, which tells what a probe takes before the first one."""
        self._step_began = time.monotonic()

    def step_ended(self) -> None:
        """Expect of the next training step what this one took."""
        if not math.isnan(self._step_began):
            self.expect("step", time.monotonic() - self._step_began)

    def spent_on(self, kind: str) -> float:
        """Return the seconds spent on a kind so far, also while it is being spent."""
        self._count_as(self._kind)
        return self.spent[kind]

    def expect(self, kind: str, seconds: float) -> None:
        """Update what the next will take: rise at once, fall by half of the difference."""
        before = self.expected.get(kind, seconds)
        self.expected[kind] = max(seconds, (seconds + before) / 2)

    def affords(self, kind: str, at_least: float = 0.0, *, evenly: bool = False) -> bool:
        """Return whether the share would still be kept after one more of this kind.

        Figures may besides take as much time as probes have taken, and no more.

        Args:
            kind: What the time would be spent on.
            at_least: Seconds that it will certainly take, whatever is expected.
            evenly: Whether the time since the last of this kind must afford it alone, so that what
                was not spent earlier is not spent at once.
        """
        if self.share is None:
            return True
        seconds = max(self.expected.get(kind, 0.0), at_least)
        since = time.monotonic() - self._ended.get(kind, self._began)
        if evenly and seconds > self.share * (since + seconds):
            return False
        if kind == "figures" and self.spent_on("figures") > self.spent_on("probe"):
            return False
        return seconds <= self.left()

    def left(self) -> float:
        """Return how many seconds something that begins now may take; inf without a limit.

        `s` seconds keep the share if `total + s <= share * (elapsed + s)`.
        """
        if self.share is None:
            return math.inf
        spare = self.share * self.elapsed() - self.total()
        return max(spare / (1 - self.share), 0.0)

    def total(self) -> float:
        """Return the seconds spent on all kinds together."""
        self._count_as(self._kind)
        return sum(self.spent.values())

    def stop(self) -> None:
        """Stop the clock at the end of a fit."""
        self._count_as(None)
        self._stopped = time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since the start of fit, up to its end."""
        return min(time.monotonic(), self._stopped) - self._began

    def overhead(self) -> float:
        """Return the share of the time since the start of fit that was spent."""
        elapsed = self.elapsed()
        return self.total() / elapsed if elapsed > 0 else 0.0

    def _count_as(self, kind: str | None) -> str | None:
        """Add the time since the last call to what it was spent on; return what that was."""
        now, before = time.monotonic(), self._kind
        if before is not None:
            self.spent[before] += now - self._since
        self._kind, self._since = kind, now
        return before


def describe_cost(
    evaluations: Sequence[int],
    passes_each: int,
    seconds: float,
    schedule: Schedule,
    *,
    period: float = math.nan,
    share: float | None = None,
) -> str:
    """Say what probes will cost.

    Args:
        evaluations: Evaluations in one probe; where they differ the least and the most.
        passes_each: Forward passes in one evaluation.
        seconds: Seconds that the shortest probe takes, figures left out.
        schedule: How often.
        period: Seconds of training between two probes, where there is a frequency.
        share: The share of the time that probes may take, if there is a limit.

    Example:
        >>> describe_cost([312], 2, 1.87, Schedule.of(), period=40.0)
        'one probe = 312 evaluations, about 1.9 s (624 forward passes), every epoch of about \
40 s: 4.5 % of the time'
        >>> describe_cost([312], 2, 1.87, Schedule(), share=0.05)
        'one probe = 312 evaluations, about 1.9 s (624 forward passes): one about every 37 s, \
at most 5 % of the fit, and that of the last weights on top'
    """
    costs = [seconds * n / evaluations[0] for n in evaluations]
    one = (
        f"one probe = {_range(evaluations)} evaluations, about {_range(costs)} s "
        f"({_range([n * passes_each for n in evaluations])} forward passes)"
    )
    if not schedule.is_fixed and share is not None:
        return (
            f"{one}: one about every {short(costs[0] / share)} s, at most {100 * share:.3g} % of "
            "the fit, and that of the last weights on top"
        )
    percents = [100 * cost / (cost + period) if period > 0 else 100.0 for cost in costs]
    if share is not None and percents[0] > 100 * share:
        return f"{one}: at most {schedule}, and at most {100 * share:.3g} % of the fit"
    remedy = "; probe less often, or set max_overhead=0.05" if percents[-1] > 10 else ""
    often = f"{schedule} of about {short(period)} s" if period > 0 else str(schedule)
    return f"{one}, {often}: {_range(percents)} % of the time{remedy}"


def short(number: float) -> str:
    """Return a number as a person would say it: two digits, or all of a larger one."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _range(numbers: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(map(short, numbers)))
