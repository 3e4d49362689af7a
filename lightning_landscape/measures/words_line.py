"""The sentences about the line from the current weights to an average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from lightning_landscape.measures.words import (
    KEEP_THE_AVERAGE,
    LEAST_BATCHES,
    counted,
    error_interval,
    is_resolved,
    number,
    share,
    too_few,
)

if TYPE_CHECKING:
    from lightning_landscape.measures.line import LineScore

_ALONE, _FIRST_OF_TWO = 0.95, 0.975  # confidence
_SIDE = 0.99


def describe_line(
    train: LineScore, validation: LineScore | None = None, *, advise: bool = True
) -> str:
    """Say what the line from the current weights to an average shows, and no more.

    A difference of losses counts if its interval excludes 0, see `gap_confidence`.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.
        advise: Whether to say how to keep an average with the lower loss.

    Returns:
        A few sentences, one a line.

    Example:
        >>> import torch
        >>> from lightning_landscape import Slice, compare_ends
        >>> t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        >>> some = [[5.0, 1.0, 1.5, 2.5], [5.1, 1.0, 1.6, 2.5], [5.0, 1.0, 1.4, 2.5]]
        >>> print(describe_line(compare_ends(Slice(t, torch.tensor(some).T, distance=3.0))))
        The average is 3 (L2) from the current weights.
        Its training loss is higher by 0.5 (95 % interval 0.252 to 0.748, 3 batches).
        It is on the flat side: outward to the ends of the line, the training loss rises 4.03 \
times as much behind the current weights as beyond the average; outward by the distance between \
the two, 4.03 times.
        No verdict on whether averaging helps, because no validation batches were measured.
    """
    if train.distance == 0:
        return "The average is equal to the current weights: there is no line between them."
    if not (math.isfinite(train.distance) or math.isfinite(train.gap)):
        return (
            "No verdict on the line to the average, because the current weights or the average "
            "are not finite."
        )
    sentences = [_say_distance(train), _say_gap("training", train, gap_confidence(validation))]
    sentences.append(_say_flat_side(train))
    if validation is None:
        sentences.append(
            "No verdict on whether averaging helps, because no validation batches were measured."
        )
    else:
        sentences += [
            _say_gap("validation", validation, gap_confidence(train)),
            _say_minima(train, validation),
            _say_what_to_do(train, validation, advise=advise),
        ]
    return "\n".join(filter(None, sentences))


def gap_confidence(other: LineScore | None) -> float:
    """Return the confidence with which a gap is judged, given the gap on the other batches.

    95 % for the gaps on train and validation batches together (Holm, 1979): 97.5 % for the clearer
    of the two, and 95 % for the other one if the clearer one counts.

    Args:
        other: The score on the other batches, if there is one.
    """
    if other is None or is_resolved(other.gap, other.gap_stderr, other.n_batches, _FIRST_OF_TWO):
        return _ALONE
    return _FIRST_OF_TWO


def gap_verdict(
    score: LineScore, other: LineScore | None
) -> Literal["lower", "higher", "the same", "no verdict"]:
    """Return what the words say of the loss of the average, for figures and tables.

    Args:
        score: The line on some batches.
        other: The line on the others, if there are any.
    """
    if score.gap == 0 == score.gap_stderr:
        return "the same"
    if not is_resolved(score.gap, score.gap_stderr, score.n_batches, gap_confidence(other)):
        return "no verdict"
    return "lower" if score.gap < 0 else "higher"


def flat_side(score: LineScore) -> int:
    """Return 1 if the average is on the flat side, -1 if the current weights are, 0 if unclear.

    A side is called where the loss rises beyond both ends, the ratios near (t = -1 and 2) and far
    (the ends of the grid) agree, and the 99 % interval of the two rises' difference excludes 0.

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
        return (
            "outward by the distance between the two (t = -1 and 2) the loss does not rise, or was "
            "not measured"
        )
    if score.n_batches < LEAST_BATCHES:
        return f"{too_few(score.n_batches)} (at least {LEAST_BATCHES})"
    if (far > 1) != (near > 1):
        return (
            "it depends on how far one goes: outward to the ends of the line, the loss rises "
            f"{number(far)} times as much behind the current weights as beyond the average; "
            f"outward by the distance between the two, {number(near)} times"
        )
    lean = score.rise_behind - score.rise_beyond
    if not is_resolved(lean, score.outward_stderr, score.n_batches, _SIDE):
        between = error_interval(lean, score.outward_stderr, score.n_batches, _SIDE)
        return (
            f"the two rises differ by {number(lean)}, and the {between} contains 0 "
            f"({counted(score.n_batches, 'batch')})"
        )
    return ""


def _say_distance(score: LineScore) -> str:
    if math.isnan(score.distance):  # not known
        return ""
    signs = score.sign_agreement
    end = "" if math.isnan(signs) else f"; {share(signs)} of the weights have the same sign at both"
    return f"The average is {number(score.distance)} (L2) from the current weights{end}."


def _say_gap(which: str, score: LineScore, confidence: float) -> str:
    gap, error, n = score.gap, score.gap_stderr, score.n_batches
    batches = counted(n, "batch")
    if gap == 0 == error:
        return f"Its {which} loss is the same ({batches})."
    differs = f"No verdict on its {which} loss, which differs by {number(gap)}, because"
    if not math.isfinite(gap):
        return f"No verdict on its {which} loss, because a loss is not finite."
    if n < LEAST_BATCHES:
        return f"{differs} {too_few(n)} (at least {LEAST_BATCHES})."
    if is_resolved(gap, error, n, confidence):
        between = error_interval(abs(gap), error, n, confidence)
        higher = "higher" if gap > 0 else "lower"
        return f"Its {which} loss is {higher} by {number(abs(gap))} ({between}, {batches})."
    between = error_interval(gap, error, n, confidence)
    return f"{differs} the {between} contains 0 ({batches})."


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
        f"It is on the {side} side: outward to the ends of the line, the training loss rises "
        f"{number(far)} times as much {where}; outward by the distance between the two, "
        f"{number(near)} times."
    )


def _say_minima(train: LineScore, validation: LineScore) -> str:
    if not (math.isfinite(train.gap) and math.isfinite(validation.gap)):
        return ""
    return (
        f"Along the line the training loss is least {_where(train)} and the validation loss "
        f"{_where(validation)}."
    )


def _where(score: LineScore) -> str:
    return "beyond the grid" if math.isnan(score.minimum) else f"at t = {number(score.minimum)}"


def _say_what_to_do(train: LineScore, validation: LineScore, *, advise: bool) -> str:
    helps = gap_verdict(validation, train) == "lower"
    costs = gap_verdict(train, validation) == "higher"
    shifted = validation.minimum > train.minimum  # never where one is beyond the grid
    keep = f" {KEEP_THE_AVERAGE}" if advise else ""
    if helps and costs and shifted and flat_side(train) == 1:
        return (
            "This is the picture of an asymmetric valley (He et al., 2019): the current weights "
            f"stand on its steep side.{keep}"
        )
    if helps and advise:
        return f"The average has the lower validation loss on these batches.{keep}"
    return ""
