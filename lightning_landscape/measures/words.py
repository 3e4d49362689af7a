"""Results in sentences: what was measured, what it means, what one can do.

Every sentence that a person reads about a result is made here, so that the console, the Text tab,
figures and pages say the same. A verdict needs at least three batches and six directions, and holds
with 95 % confidence; without it the sentence says "No verdict, because ...".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lightning_landscape.measures.quantiles import student

if TYPE_CHECKING:
    from lightning_landscape.measures.survey import Survey

LEAST_BATCHES = 3  # with fewer an error estimated from batches says nothing
LEAST_DIRECTIONS = 6  # with fewer a median has no interval at 95 %

_NOT_FINITE = "The loss at these weights is not finite."

_ISOTROPIC = ("gaussian", "rademacher")  # both signs are alike, so at a minimum both sides are

UNITS = {
    "filter": "in filter norm",
    "layer": "in layer norm",
    "model": "relative to the norm of the group",
    "none": "in L2 norm",
}

KEEP_THE_AVERAGE = (
    "To keep it: swa.apply_to(module), ModelCheckpoint(monitor='swa/...') or load_swa_weights."
)


def number(value: float, digits: int = 3) -> str:
    """Return a number as it is written in sentences.

    Example:
        >>> number(0.08723), number(-0.0), number(float("inf"))
        ('0.0872', '0', 'inf')
    """
    return f"{value + 0.0:.{digits}g}"


def share(value: float) -> str:
    """Return a share in percent.

    Example:
        >>> share(0.625)
        '62 %'
    """
    return f"{100 * value:.0f} %"


def counted(n: int, what: str) -> str:
    """Return a number of things, in the plural where it is not one.

    Example:
        >>> counted(1, "batch"), counted(3, "validation batch"), counted(0, "cosine")
        ('1 batch', '3 validation batches', '0 cosines')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}{'es' if what.endswith('ch') else 's'}"


def too_few(n_batches: int) -> str:
    """Return that so few batches carry no verdict, as a part of a sentence."""
    are = "is" if n_batches == 1 else "are"
    return f"{counted(n_batches, 'batch')} {are} too few to tell a difference from noise"


def error_interval(
    difference: float, stderr: float, n_batches: int, confidence: float = 0.95
) -> str:
    """Return the interval that decides whether a mean over batches differs from 0, in words.

    Its ends are Student's quantile times the standard error away from the mean.

    Example:
        >>> error_interval(0.11, 0.018, 3)
        '95 % interval 0.0326 to 0.187'
    """
    half = student(n_batches - 1, confidence) * stderr
    ends = f"{number(difference - half)} to {number(difference + half)}"
    return f"{100 * confidence:.3g} % interval {ends}"


def is_resolved(difference: float, stderr: float, n_batches: int, confidence: float = 0.95) -> bool:
    """Return whether a mean over batches differs from 0 by more than its error.

    By more than Student's quantile times the standard error, of at least three batches.

    Example:
        >>> is_resolved(0.3, 0.1, 4), is_resolved(0.4, 0.1, 4), is_resolved(9.0, 0.1, 2)
        (False, True, False)
    """
    if n_batches < LEAST_BATCHES:
        return False
    return abs(difference) > student(n_batches - 1, confidence) * stderr


# -- directions of a family ------------------------------------------------------------------------


def describe_surveys(found: Mapping[str, Survey]) -> str:
    """Return a paragraph for each family.

    Args:
        found: What `survey` returns.
    """
    if found and not any(map(is_finite, found.values())):
        return f"{_NOT_FINITE} Nothing else can be said of them."
    return "\n".join(f"{family}: {describe_survey(one)}" for family, one in found.items())


def describe_survey(found: Survey) -> str:
    """Say what the directions of one family show, and no more.

    A family is called asymmetric or not only where the 95 % interval of its rate lies on one side
    of one half, and at least half of the directions could be judged.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective, survey
        >>> still = FunctionObjective(lambda p: torch.ones(3), {"x": torch.ones(9)})
        >>> print(describe_survey(survey(still, ["gaussian"])["gaussian"]))
        Nothing moves: along 8 directions the loss is the same at every point.
    """
    if not is_finite(found):
        return f"No verdict. {_NOT_FINITE}"
    if _is_constant(found):
        n = len(found.slices)
        return (
            f"Nothing moves: along {counted(n, 'direction')} the loss is the same at every point."
        )
    n, n_batches = int(found.rate["n"]), found.slices[0].losses.shape[1]
    of = f"{counted(n, 'direction')}, {counted(n_batches, 'batch')}"
    numbers = f"The median area is {_interval(*found.area)} (+1: the + side is steep; {of})."
    reason = _no_verdict(found)
    if reason:
        return f"{numbers} No verdict, because {reason}"
    sentences = [numbers, _say_rate(found), _say_side(found), _say_radius(found)]
    return " ".join(filter(None, sentences))


def is_finite(found: Survey) -> bool:
    """Return whether the loss is finite at the weights that the directions start from."""
    first = found.slices[0]
    return math.isfinite(first.mean[len(first.alphas) // 2])


def _is_constant(found: Survey) -> bool:
    return all(line.is_constant for line in found.slices)


def _no_verdict(found: Survey) -> str:
    """Return why nothing may be said of a family, and what one can do; empty if something may."""
    n, n_batches = len(found.slices), found.slices[0].losses.shape[1]
    if not is_finite(found):
        return _NOT_FINITE
    if n_batches < LEAST_BATCHES:
        return f"{too_few(n_batches)}: take at least {LEAST_BATCHES} (n_batches)."
    if n < LEAST_DIRECTIONS:
        return (
            f"{n} direction{'s are' if n > 1 else ' is'} too few for an interval: take at least "
            f"{LEAST_DIRECTIONS} (n_directions)."
        )
    if found.rate["off_minimum"] > 0.5:
        return _say_off_minimum(found)
    if found.rate["unresolved"] > 0.5:
        differ = (
            f"along {share(found.rate['unresolved'])} of the directions the batches differ more "
            "than the two sides"
        )
        if found.family.partition("@")[0] in _ISOTROPIC:
            return (
                f"{differ}. Along {found.family} that is usual at a minimum, where both sides are "
                "alike; more batches (n_batches) would show smaller differences."
            )
        return f"{differ}: take more batches (n_batches)."
    return ""


def _say_off_minimum(found: Survey) -> str:
    off, family = share(found.rate["off_minimum"]), found.family
    falls = f"along {off} of the directions the loss falls away from these weights"
    if grows_weights(family):
        return (
            f"{falls}, by more than 2 % of the steeper side's rise. Along {family} that is usual "
            "with cross-entropy, which larger outputs lower for ever, and says nothing against the "
            "valley."
        )
    return f"{falls}: it is too early to speak of a valley. Train on, or decay the rate, first."


def grows_weights(family: str) -> bool:
    """Return whether the + side of a family grows the weights or gains it moves.

    Example:
        >>> [grows_weights(family) for family in ("sign", "uniform@norm", "gaussian")]
        [True, True, False]
    """
    distribution, _, group = family.partition("@")
    return distribution == "sign" or (distribution == "uniform" and group == "norm")


def family_verdict(found: Survey) -> Literal["asymmetric", "not asymmetric", "no verdict"]:
    """Return what the words say of a family, for figures and tables.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective, survey
        >>> ramp = lambda p: (torch.where(p["x"] > 1, 4 * (p["x"] - 1), 1 - p["x"])).sum()
        >>> ramps = FunctionObjective(lambda p: torch.stack([ramp(p)] * 3), {"x": torch.ones(9)})
        >>> family_verdict(survey(ramps, ["uniform"])["uniform"])
        'asymmetric'
    """
    if _is_constant(found) or _no_verdict(found):
        return "no verdict"
    if found.rate["low"] > 0.5:
        return "asymmetric"
    return "not asymmetric" if found.rate["high"] < 0.5 else "no verdict"


def _say_rate(found: Survey) -> str:
    rate = found.rate
    steeper = (
        f"one side is more than twice as steep as the other along {share(rate['rate'])} of the "
        f"directions (95 % interval {share(rate['low'])} to {share(rate['high'])})"
    )
    verdict = {
        "asymmetric": "Asymmetric along most directions",
        "not asymmetric": "Not asymmetric along most directions",
        "no verdict": "No verdict on whether most directions are asymmetric, because the interval "
        "contains 50 %",
    }[family_verdict(found)]
    return f"{verdict}: {steeper}.{_say_not_counted(rate)}"


def _say_not_counted(rate: Mapping[str, float]) -> str:
    why = {
        "unresolved": "the batches differ more than the two sides",
        "off_minimum": "the loss falls away from these weights",
    }
    said = [f"along {share(rate[name])} {reason}" for name, reason in why.items() if rate[name]]
    return f" Not counted as asymmetric: {' and '.join(said)}." if said else ""


def _say_side(found: Survey) -> str:
    """Say which side is steep if the interval of the median area excludes 0, and what it means."""
    area, low, high = found.area
    if math.isnan(low) or low <= 0 <= high:
        return ""
    side = "+" if area > 0 else "-"
    if found.family.endswith("@norm") and grows_weights(found.family) and area < 0:
        return (
            "Shrinking the gains of the normalisation layers costs more than growing them: usual "
            "for networks with batch norm, and no alarm. Compare runs with it."
        )
    if found.family.partition("@")[0] in _ISOTROPIC:
        corrected = found.area_corrected[0]
        if abs(corrected) < abs(area) / 2:
            return (
                f"The median direction is steeper on the {side} side, and without the slope its "
                f"area is {number(corrected)}: these weights are not at a minimum. Train on, or "
                "decay the rate, first."
            )
        return (
            f"The median direction is steeper on the {side} side, which random directions of both "
            "signs seldom show: take more samples before you believe it (batches and directions)."
        )
    return f"The median direction is steeper on the {side} side."


def _say_radius(found: Survey) -> str:
    """Say how wide the valley is, with its unit; only along isotropic directions."""
    if found.family != "gaussian" or not math.isfinite(found.rise_radius[0]):
        return ""
    return (
        f"The loss has risen by 0.5 at alpha = {_interval(*found.rise_radius)} "
        f"({UNITS.get(found.normalize, found.normalize)})."
    )


def _interval(middle: float, low: float, high: float) -> str:
    if math.isnan(low):
        return f"{number(middle)} (no interval)"
    return f"{number(middle)} [{number(low)}, {number(high)}]"
