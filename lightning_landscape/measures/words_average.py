"""The sentences about an average's own validation metrics."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from lightning_landscape.measures.words import (
    KEEP_THE_AVERAGE,
    LEAST_BATCHES,
    is_resolved,
    number,
)

Verdict: TypeAlias = Literal["better", "worse", "same", "no verdict"]

_NOTHING = 1e-6  # a smaller difference is what single precision leaves of none


def describe_average(
    metric: str,
    current: float,
    average: float,
    *,
    control: float | None = None,
    stderr: float = math.nan,
    n_batches: int = 0,
    batch_norm: bool = True,
    better: Literal["lower", "higher"] = "lower",
) -> str:
    """Split what an average changes in a validation metric, and say whether it helps.

    Args:
        metric: What the user calls it, such as `"val_loss"`.
        current: Its value for the current weights.
        average: For the average.
        control: For the current weights with batch-norm statistics re-estimated like the average's;
            None if that was not run.
        stderr: Standard error of `average` minus the control over the validation batches, paired.
        n_batches: How many validation batches those are.
        batch_norm: Whether the module has batch norms; without them `current` is the control.
        better: Which values are the better ones.

    Returns:
        The difference, its two parts, and what one can do.

    Example:
        >>> text = describe_average("val_loss", 0.2454, 0.1582, control=0.1582)
        >>> text.split(": ")[1].split(". ")[0]
        '0.0872 from fresh batch-norm statistics, 0 from averaging'
    """
    if not all(map(math.isfinite, (current, average, average if control is None else control))):
        return f"No verdict on {metric} of the average, because a value is not finite."
    control = current if not batch_norm else control
    change = f"{metric} is {_change(average - current)} with the average"
    if control is None:
        return (
            f"{change}. No verdict on averaging, because no control was run: the difference may be "
            "that of the batch-norm statistics, which are estimated anew for the average only."
        )
    gain = average - control
    if batch_norm:
        sign = -1 if average < current else 1
        change += (
            f": {_part(sign * (control - current))} from fresh batch-norm statistics, "
            f"{_part(sign * gain)} from averaging"
        )
    return f"{change}. {_verdict(current, control, gain, stderr, n_batches, better)}"


def average_verdict(
    gain: float, stderr: float, n_batches: int, *, better: Literal["lower", "higher"] = "lower"
) -> Verdict:
    """Say in a word what averaging alone does to a validation metric.

    Args:
        gain: The metric of the average minus that of the control.
        stderr: Its standard error over the validation batches.
        n_batches: How many those are.
        better: Which values are the better ones.

    Example:
        >>> average_verdict(-0.3, 0.05, 6), average_verdict(-0.3, 0.05, 2)
        ('better', 'no verdict')
    """
    if abs(gain) < _NOTHING:
        return "same"
    if not is_resolved(gain, stderr, n_batches):  # also where an error is not known
        return "no verdict"
    return "better" if (gain < 0) == (better == "lower") else "worse"


def _verdict(
    current: float,
    control: float,
    gain: float,
    stderr: float,
    n_batches: int,
    better: Literal["lower", "higher"],
) -> str:
    sign = -1 if better == "lower" else 1
    refreshed = (
        " To have what the statistics give with the last weights too: "
        "recalibrate_batch_norm(module, batches)."
        if sign * (control - current) > _NOTHING
        else ""
    )
    verdict = average_verdict(gain, stderr, n_batches, better=better)
    if verdict == "same":
        return (
            f"Averaging changes nothing now: it is too early, or the rate has decayed.{refreshed}"
        )
    if n_batches < LEAST_BATCHES or math.isnan(stderr):
        return (
            f"No verdict on averaging, because its error is not known from {n_batches} validation "
            f"batches (at least {LEAST_BATCHES}).{refreshed}"
        )
    of = f"± {number(stderr, 2)}, {n_batches} validation batches"
    if verdict == "no verdict":
        return f"No verdict on averaging, because its part is within its error ({of}).{refreshed}"
    if verdict == "better":
        return f"The average is better because it is an average ({of}). {KEEP_THE_AVERAGE}"
    return f"The average is worse than the current weights ({of}): keep those.{refreshed}"


def describe_latest(
    metric: str, gain: float, *, batch_norm: bool, better: Literal["lower", "higher"] = "lower"
) -> str:
    """Say what a mean of the last few epochs, while the rate is high, tells about decaying it.

    Args:
        metric: What the user calls it.
        gain: Its value for the average minus that of the control.
        batch_norm: Whether the module has batch norms; without them it tells nothing.
        better: Which values are the better ones.

    Example:
        >>> describe_latest("val_loss", -0.1, batch_norm=False)
        'No verdict on decaying the rate, because without batch norm a short average tells nothing.'
    """
    if not batch_norm:
        return (
            "No verdict on decaying the rate, because without batch norm a short average tells "
            "nothing."
        )
    if not math.isfinite(gain) or abs(gain) < _NOTHING:
        return "No verdict on decaying the rate, because the short average is no other."
    if (gain < 0) == (better == "lower"):
        return (
            f"The average of the last few epochs has the better {metric}: decaying the rate now "
            "would probably help too (it did in 61 of 82 cases with batch norm). By how much it "
            "does not tell."
        )
    return (
        f"The average of the last few epochs has the worse {metric}: decaying the rate now would "
        "probably not help (it did in 3 of 14 cases with batch norm)."
    )


def _part(difference: float) -> str:
    return "0" if abs(difference) < _NOTHING else number(difference)


def _change(difference: float) -> str:
    if abs(difference) < _NOTHING:
        return "the same"
    return f"{number(abs(difference))} {'lower' if difference < 0 else 'higher'}"
