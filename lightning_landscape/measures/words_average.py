"""The sentences about an average's own validation metrics."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from lightning_landscape.measures.averaging import MetricSplit
from lightning_landscape.measures.words import (
    KEEP_THE_AVERAGE,
    LEAST_BATCHES,
    counted,
    error_interval,
    is_resolved,
    number,
    too_few,
)

Verdict: TypeAlias = Literal["better", "worse", "same", "no verdict"]
Answer: TypeAlias = Literal[Verdict, "recalibrate", "statistics hurt"]

_NOTHING = 1e-6  # a smaller difference is what single precision leaves of none


def describe_average(found: MetricSplit) -> str:
    """Split what an average changes in a validation metric, and say whether it helps.

    Returns:
        The difference, its two parts, and what one can do.

    Example:
        >>> found = MetricSplit("val_loss", 0.2454, 0.1582, 0.1582, has_batch_norm=True)
        >>> describe_average(found).split(": ")[1].split(". ")[0]
        '0.0872 from fresh batch-norm statistics, 0 from averaging'
    """
    both_known = math.isfinite(found.current) and math.isfinite(found.average)
    if not both_known or math.isinf(found.control):
        return f"No verdict on {found.name} of the average, because a value is not finite."
    change = f"{found.name} is {_change(found.difference)} with the average"
    if math.isnan(found.control):
        return (
            f"{change}. No verdict on averaging, because no control was run: the difference may be "
            "that of the batch-norm statistics, which are estimated anew for the average only."
        )
    if found.has_batch_norm:
        sign = -1 if found.difference < 0 else 1
        change += (
            f": {_part(sign * found.statistics)} from fresh batch-norm statistics, "
            f"{_part(sign * found.averaging)} from averaging"
        )
    return f"{change}. {_say_averaging(found)}"


def average_verdict(found: MetricSplit) -> Verdict:
    """Say in a word what averaging alone does to a validation metric.

    Example:
        >>> found = MetricSplit("val_loss", 0.9, 0.5, 0.8, True, stderr=0.05, n_batches=6)
        >>> average_verdict(found)
        'better'
    """
    gain = found.averaging
    if abs(gain) < _NOTHING:
        return "same"
    if not is_resolved(gain, found.stderr, found.n_batches):  # also where an error is not known
        return "no verdict"
    return "better" if (gain < 0) == (found.better == "lower") else "worse"


def average_answer(found: MetricSplit) -> Answer:
    """Say in a word which weights to keep, with or without fresh batch-norm statistics.

    It is `average_verdict`, except where the average is worse than the current weights with fresh
    statistics and better than these as they are (`"recalibrate"`), or better than the former and no
    better than the latter (`"statistics hurt"`).

    Example:
        >>> found = MetricSplit(
        ...     "val_loss", 0.9, 0.5, 0.4, True, 0.01, n_batches=6, difference_stderr=0.01
        ... )
        >>> average_answer(found)
        'recalibrate'
    """
    verdict, gain = average_verdict(found), _gain(found, found.difference)
    if found.has_batch_norm and verdict == "better" and gain <= 0:
        return "statistics hurt"
    is_known = is_resolved(gain, found.difference_stderr, found.n_batches)
    if found.has_batch_norm and verdict == "worse" and gain > 0 and is_known:
        return "recalibrate"
    return verdict


def _gain(found: MetricSplit, difference: float) -> float:
    return difference if found.better == "higher" else -difference


def _say_averaging(found: MetricSplit) -> str:
    refreshed = (
        " To have what the statistics give with the current weights too: "
        "recalibrate_batch_norm(module, batches)."
        if _gain(found, found.statistics) > _NOTHING
        else ""
    )
    answer, n = average_answer(found), found.n_batches
    if answer == "same":
        return (
            f"Averaging changes nothing now: it is too early, or the rate has decayed.{refreshed}"
        )
    if 0 < n < LEAST_BATCHES:
        why = f"{too_few(n)} (at least {LEAST_BATCHES})"
        return f"No verdict on averaging, because {why}.{refreshed}"
    if not n or math.isnan(found.stderr):
        why = "the metric is no mean over the validation batches, so that its error is not known"
        return f"No verdict on averaging, because {why}.{refreshed}"
    sign = -1 if found.difference < 0 else 1  # as the parts are written
    between = error_interval(sign * found.averaging, found.stderr, n)
    batches = counted(n, "validation batch")
    if answer == "no verdict":
        return (
            f"No verdict on averaging, because the {between} of its part contains 0 ({batches})."
            f"{refreshed}"
        )
    of = f"({between}, {batches})"
    if answer == "better":
        return f"The average is better because it is an average {of}. {KEEP_THE_AVERAGE}"
    if answer == "statistics hurt":
        return (
            f"The average is better than the current weights with fresh batch-norm statistics {of},"
            " and no better than those as they are: keep the current weights."
        )
    if answer == "recalibrate":
        return (
            f"The average is worse than the current weights with fresh batch-norm statistics {of}: "
            "recalibrate_batch_norm(module, batches) on the current weights gives the best of the "
            "three. Without it the average is better than the current weights as they are."
        )
    fresh = " with fresh batch-norm statistics" if found.has_batch_norm else ""
    return f"The average is worse than the current weights{fresh} {of}: keep those.{refreshed}"


def describe_latest(found: MetricSplit) -> str:
    """Say what a mean of the last few epochs, while the rate is high, tells about decaying it.

    Without batch norm it tells nothing.

    Example:
        >>> describe_latest(MetricSplit("val_loss", 0.5, 0.4, 0.5, has_batch_norm=False))
        'No verdict on decaying the rate, because without batch norm a short average tells nothing.'
    """
    gain = found.averaging
    if not found.has_batch_norm:
        return (
            "No verdict on decaying the rate, because without batch norm a short average tells "
            "nothing."
        )
    if not math.isfinite(gain) or abs(gain) < _NOTHING:
        return "No verdict on decaying the rate, because the short average is no other."
    if (gain < 0) == (found.better == "lower"):
        return (
            f"The average of the last few epochs has the better {found.name}: decaying the rate "
            "now would probably help too (it did in 61 of 82 cases with batch norm). By how much "
            "it does not tell."
        )
    return (
        f"The average of the last few epochs has the worse {found.name}: decaying the rate now "
        "would probably not help (it did in 3 of 14 cases with batch norm)."
    )


def _part(difference: float) -> str:
    return "0" if abs(difference) < _NOTHING else number(difference)


def _change(difference: float) -> str:
    if abs(difference) < _NOTHING:
        return "the same"
    return f"{number(abs(difference))} {'lower' if difference < 0 else 'higher'}"
