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
    from lightning_landscape.measures.line import LineScore
    from lightning_landscape.measures.survey import Survey

LEAST_BATCHES = 3  # with fewer an error estimated from batches says nothing
LEAST_DIRECTIONS = 6  # with fewer a median has no interval at 95 %

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
        Nothing moves: along all 8 directions the loss is the same at every point.
    """
    if _is_constant(found):
        n = len(found.slices)
        return f"Nothing moves: along all {n} directions the loss is the same at every point."
    of = f"{int(found.rate['n'])} directions, {found.slices[0].losses.shape[1]} batches"
    numbers = f"The median area is {_interval(*found.area)} (+1: the + side is steep; {of})."
    reason = _no_verdict(found)
    if reason:
        return f"{numbers} No verdict, because {reason}"
    sentences = [numbers, _say_rate(found), _say_side(found), _say_radius(found)]
    return " ".join(filter(None, sentences))


def _is_constant(found: Survey) -> bool:
    return all(line.is_constant for line in found.slices)


def _no_verdict(found: Survey) -> str:
    """Return why nothing may be said of a family, and what one can do; empty if something may."""
    n, n_batches = len(found.slices), found.slices[0].losses.shape[1]
    if n_batches < LEAST_BATCHES:
        return f"{_too_few(n_batches)}: take at least {LEAST_BATCHES} (n_batches)."
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
    counted = (
        f"one side is more than twice as steep as the other along {share(rate['rate'])} of the "
        f"directions (95 % interval {share(rate['low'])} to {share(rate['high'])})"
    )
    if rate["off_minimum"] + rate["unresolved"]:
        counted += (
            f"; {share(rate['off_minimum'])} fall away from these weights and "
            f"{share(rate['unresolved'])} are unresolved, neither counts"
        )
    verdict = {
        "asymmetric": "Asymmetric along most directions",
        "not asymmetric": "Not asymmetric along most directions",
        "no verdict": "No verdict on most directions, because the interval holds one half",
    }[family_verdict(found)]
    return f"{verdict}: {counted}."


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
                f"The {side} side is the steep one, and without the slope the median area is "
                f"{number(corrected)}: these weights are not at a minimum. Train on, or decay the "
                "rate, first."
            )
        return (
            f"The {side} side is the steep one, which random directions of both signs seldom show: "
            "take more samples before you believe it (batches and directions)."
        )
    return f"The {side} side is the steep one."


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


# -- the line to an average ------------------------------------------------------------------------


def flat_side(score: LineScore) -> int:
    """Return 1 if the average is on the flat side, -1 if the current weights are, 0 if unclear.

    A side is called where the loss rises beyond both ends, the ratios near (t = -1 and 2) and far
    (the ends of the grid) agree, and the two rises differ by more than their error.

    Example:
        >>> import torch
        >>> from lightning_landscape import Slice, compare_ends
        >>> t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        >>> batch = torch.tensor([5.0, 1.0, 0.5, 1.5])
        >>> flat_side(compare_ends(Slice(t, torch.stack([batch, batch + 1, batch - 1], dim=1))))
        1
    """
    return 0 if _no_side(score) else 1 if score.outward_ratio > 1 else -1


def _no_side(score: LineScore) -> str:
    """Return why no side may be called flat; empty if one may."""
    far, near = score.outward_ratio, score.outward_ratio_near
    if not 0 < far < math.inf:
        return "the loss does not rise beyond both ends of the line, or not to a finite value"
    if math.isnan(near):
        return "near the ends, at t = -1 and 2, the loss does not rise or was not measured"
    if score.n_batches < LEAST_BATCHES:
        return f"{_too_few(score.n_batches)} (at least {LEAST_BATCHES})"
    if (far > 1) != (near > 1):
        return (
            f"it depends on how far one goes: the ratio is {number(near)} at t = -1 and 2, and "
            f"{number(far)} at the ends of the grid"
        )
    lean = score.rise_behind - score.rise_beyond
    if not is_resolved(lean, score.outward_stderr, score.n_batches, 0.99):
        return "the two rises differ by less than their error over the batches"
    return ""


def describe_line(train: LineScore, validation: LineScore | None = None) -> str:
    """Say what the line from the current weights to an average shows, and no more.

    A difference of losses counts from Student's quantile of standard errors on, with 95 %
    confidence for all of them together.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.

    Returns:
        A few sentences, one a line.

    Example:
        >>> import torch
        >>> from lightning_landscape import Slice, compare_ends
        >>> t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        >>> some = [[5.0, 1.0, 1.5, 2.5], [5.1, 1.0, 1.6, 2.5], [5.0, 1.0, 1.4, 2.5]]
        >>> print(describe_line(compare_ends(Slice(t, torch.tensor(some).T, distance=3.0))))
        The average is 3 (L2) from the current weights.
        Its training loss is higher by 0.5 ± 0.058 (3 batches).
        It is on the flat side: outward, the training loss rises 4.03 times as much behind the \
current weights as beyond the average (4.03 times at t = -1 and 2).
        No verdict on whether averaging helps, because no validation batches were measured.
    """
    confidence = 0.95 if validation is None else 0.975
    signs = (
        ""
        if math.isnan(train.sign_agreement)
        else f"; {share(train.sign_agreement)} of the weights have the same sign at both"
    )
    sentences = [
        f"The average is {number(train.distance)} (L2) from the current weights{signs}.",
        _say_gap("training", train, confidence),
        _say_flat_side(train),
    ]
    if validation is None:
        sentences.append(
            "No verdict on whether averaging helps, because no validation batches were measured."
        )
    else:
        sentences += [
            _say_gap("validation", validation, confidence),
            f"Along the line the training loss is least {_where(train)} and the validation loss "
            f"{_where(validation)}.",
            _say_what_to_do(train, validation, confidence),
        ]
    return "\n".join(filter(None, sentences))


def _too_few(n_batches: int) -> str:
    batches = "1 batch is" if n_batches == 1 else f"{n_batches} batches are"
    return f"{batches} too few to tell a difference from noise"


def _say_gap(which: str, score: LineScore, confidence: float) -> str:
    gap = f"{number(abs(score.gap))} ± {number(score.gap_stderr, 2)} ({score.n_batches} batches)"
    if is_resolved(score.gap, score.gap_stderr, score.n_batches, confidence):
        return f"Its {which} loss is {'higher' if score.gap > 0 else 'lower'} by {gap}."
    differs = f"No verdict on its {which} loss, which differs by {number(score.gap)}, because"
    if not math.isfinite(score.gap):
        return f"{differs} a loss is not finite."
    if score.n_batches < LEAST_BATCHES:
        return f"{differs} {_too_few(score.n_batches)} (at least {LEAST_BATCHES})."
    error = number(score.gap_stderr, 2)
    return (
        f"{differs} that is within its error ({error} a standard error, {score.n_batches} batches)."
    )


def _say_flat_side(score: LineScore) -> str:
    reason = _no_side(score)
    if reason:
        return f"No verdict on the flat side, because {reason}."
    far, near = score.outward_ratio, score.outward_ratio_near
    if far > 1:
        side, where = "flat", "behind the current weights as beyond the average"
    else:
        side, where = "steep", "beyond the average as behind the current weights"
        far, near = 1 / far, 1 / near
    return (
        f"It is on the {side} side: outward, the training loss rises {number(far)} times as much "
        f"{where} ({number(near)} times at t = -1 and 2)."
    )


def _where(score: LineScore) -> str:
    return "beyond the grid" if math.isnan(score.minimum) else f"at t = {number(score.minimum)}"


def _say_what_to_do(train: LineScore, validation: LineScore, confidence: float) -> str:
    helps, costs = (
        is_resolved(score.gap, score.gap_stderr, score.n_batches, confidence)
        and math.copysign(1, score.gap) == sign
        for score, sign in ((validation, -1), (train, 1))
    )
    shifted = validation.minimum > train.minimum  # never where one is beyond the grid
    if helps and costs and shifted and flat_side(train) == 1:
        return (
            "This is the picture of an asymmetric valley (He et al., 2019): the current weights "
            f"stand on its steep side. {KEEP_THE_AVERAGE}"
        )
    if helps:
        return f"The average has the lower validation loss on these batches. {KEEP_THE_AVERAGE}"
    return ""
