"""When: every n steps or epochs, and held to a share of the training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lightning_landscape._lightning import ConfigurationError

__all__ = ["Budget", "Schedule", "check_share", "check_whole", "predicted_cost"]


@dataclass(frozen=True)
class Schedule:
    """Every n epochs or every n optimizer steps; one of the two.

    Steps are counted as batches that advanced the trainer: an accumulation window is one step, and
    so is a batch on which a GAN steps twice.

    Example:
        >>> schedule = Schedule.of(every_n_steps=100)
        >>> schedule.due_after_step(99), schedule.due_after_step(100)
        (False, True)
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None

    @classmethod
    def of(
        cls,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        *,
        default: Schedule | None = None,
    ) -> Schedule:
        """Check what the user gave; neither means the default.

        Raises:
            ConfigurationError: If both are given or one is not a positive whole number.
        """
        if every_n_epochs is not None and every_n_steps is not None:
            raise ConfigurationError(
                "`every_n_epochs` and `every_n_steps` exclude each other. "
                f"Got {every_n_epochs} and {every_n_steps}: leave one of them out."
            )
        if every_n_epochs is not None:
            return cls(every_n_epochs=check_whole("every_n_epochs", every_n_epochs))
        if every_n_steps is not None:
            return cls(every_n_steps=check_whole("every_n_steps", every_n_steps))
        return default or cls(every_n_epochs=1)

    def due_after_step(self, n_steps: int) -> bool:
        """Return whether it is time once `n_steps` optimizer steps were made."""
        return self.every_n_steps is not None and n_steps % self.every_n_steps == 0

    def due_after_epoch(self, epoch: int) -> bool:
        """Return whether it is time at the end of an epoch, 0 being the first."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def __str__(self) -> str:
        n, unit = (
            (self.every_n_epochs, "epoch") if self.every_n_epochs else (self.every_n_steps, "step")
        )
        return f"every {unit}" if n == 1 else f"every {n} {unit}s"


@dataclass
class Budget:
    """Seconds that probes may take, as a share of the time since the start of fit.

    Attributes:
        share: The share, or None for no limit.
        started: When fit started, by the clock the caller uses.
        spent: Seconds that probes have taken.
    """

    share: float | None
    started: float
    spent: float = 0.0

    def affords(self, seconds: float, now: float) -> bool:
        """Return whether a probe of so many seconds would leave the share respected at its end.

        Example:
            >>> Budget(share=0.1, started=0.0).affords(1.0, now=8.0)
            False
            >>> Budget(share=0.1, started=0.0).affords(1.0, now=9.0)
            True
        """
        if self.share is None or math.isnan(seconds):
            return True
        return self.spent + seconds <= self.share * (now - self.started + seconds)

    def left(self, now: float) -> float:
        """Return how long a probe may take that begins now; inf without a limit.

        Example:
            >>> Budget(share=0.1, started=0.0).left(now=9.0)
            1.0
        """
        if self.share is None:
            return math.inf
        return max((self.share * (now - self.started) - self.spent) / (1 - self.share), 0.0)

    def plus(self, seconds: float) -> Budget:
        """Return what this will be when so many seconds more were spent."""
        return replace(self, spent=self.spent + seconds)

    def overhead(self, now: float) -> float:
        """Return the share of the time since the start of fit that went into probes."""
        elapsed = now - self.started
        return self.spent / elapsed if elapsed > 0 else 0.0


def check_whole(name: str, n: int, least: int = 1) -> int:
    """Return a number unless it is not whole or below the least.

    Raises:
        ConfigurationError: If it is not; names the argument.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise ConfigurationError(f"`{name}` must be a whole number from {least} up. Got {n!r}.")
    return n


def check_share(max_overhead: float | None) -> float | None:
    """Return the share unless it is not one.

    Raises:
        ConfigurationError: If it is neither None nor between 0 and 1.
    """
    if max_overhead is not None and not 0 < max_overhead < 1:
        raise ConfigurationError(
            "`max_overhead` must be a share of the training time between 0 and 1, such as 0.05, or "
            f"None for no limit. Got {max_overhead!r}."
        )
    return max_overhead


def predicted_cost(
    n_evaluations: int,
    seconds: float,
    schedule: Schedule,
    period: float,
    *,
    most: int = 0,
    limited: bool = False,
) -> str:
    """Say what probes will cost, before the first.

    Args:
        n_evaluations: Evaluations in one probe.
        seconds: Seconds one evaluation takes.
        schedule: How often.
        period: Seconds of training between two probes.
        most: Evaluations in the longest probe, where they differ.
        limited: Whether a budget holds them to a share anyway.

    Example:
        >>> predicted_cost(312, 0.006, Schedule.of(), 40.0)
        'one probe = 312 evaluations, about 1.9 s, every epoch of about 40 s: 4.5 % of the time'
    """
    numbers = [n_evaluations, most] if most > n_evaluations else [n_evaluations]
    probes = [n * seconds for n in numbers]
    shares = [100 * probe / (probe + period) if period > 0 else 100.0 for probe in probes]
    share = shares[-1]
    heavy = share > 10 and not limited
    remedy = "; probe less often, or set max_overhead=0.05" if heavy else ""
    return (
        f"one probe = {_range(numbers, str)} evaluations, about {_range(probes)} s, {schedule} of "
        f"about {_short(period)} s: {_range(shares)} % of the time{remedy}"
    )


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _range(numbers: Sequence[float], shown: Callable[[float], str] = _short) -> str:
    return " to ".join(map(shown, numbers))
