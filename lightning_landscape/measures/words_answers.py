"""The questions that a person asks, each with an answer of a few words; the sentences come after.

An answer says yes or no only where the sentences do: both go by the same verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_landscape.measures.words import family_verdict, is_finite, number, share
from lightning_landscape.measures.words_average import Answer
from lightning_landscape.measures.words_breakdown import loss_returns

if TYPE_CHECKING:
    from lightning_landscape.measures.breakdown import GradientBreakdown
    from lightning_landscape.measures.survey import Survey


def answer_valley(found: Mapping[str, Survey]) -> str:
    """Answer whether these weights lie in an asymmetric valley, family by family.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective, survey
        >>> bowl = lambda p: p["x"].square().sum() / 2 * torch.ones(3)
        >>> still = FunctionObjective(bowl, {"x": torch.zeros(9)})
        >>> answer_valley(survey(still, ["gaussian"], normalize="none"))
        'Is this an asymmetric valley? No along gaussian.'
    """
    if found and not any(map(is_finite, found.values())):
        return "Is this an asymmetric valley? No verdict: the loss is not finite."
    words = {
        "asymmetric": "Yes along",
        "not asymmetric": "No along",
        "no verdict": "No verdict along",
    }
    verdicts = {family: family_verdict(one) for family, one in found.items()}
    return f"Is this an asymmetric valley? {_answers(words, verdicts)}"


def answer_averaging(answers: Mapping[str, Answer]) -> str:
    """Answer whether averaging helps, by the validation metrics.

    Args:
        answers: Of each metric what `average_answer` says.

    Example:
        >>> answer_averaging({"val_loss": "better", "val_acc": "no verdict"})
        'Does averaging help? Yes by val_loss. No verdict by val_acc. (By all validation batches.)'
    """
    words = {
        "better": "Yes by",
        "recalibrate": "Less than fresh batch-norm statistics (recalibrate_batch_norm) do for the "
        "current weights; without them the average is better, by",
        "statistics hurt": "No, its fresh batch-norm statistics cost what it gains, by",
        "worse": "No, it is worse, by",
        "same": "It changes nothing now by",
        "no verdict": "No verdict by",
    }
    by = " (By all validation batches.)" if answers else ""
    return f"Does averaging help? {_answers(words, answers)}{by}"


def answer_step(found: GradientBreakdown) -> str:
    """Answer whether a step was too large for its own batch.

    Args:
        found: What was measured along the step; at `eta = 1` it is whole.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective, measure_breakdown
        >>> bowl = FunctionObjective(lambda p: p["x"].square().sum(), {"x": torch.ones(1, 1)})
        >>> answer_step(measure_breakdown(bowl, {"x": torch.tensor([[-4.0]])}, [0.5, 1.0]))
        'Is the step too large? Yes for its own batch: 0.5 of it would leave the loss as it was.'
        >>> answer_step(measure_breakdown(bowl, {"x": torch.tensor([[0.1]])}, [0.5, 1.0]))
        'Is the step too large? No matter of size: on its own batch it leads uphill from the start.'
    """
    return f"Is the step too large? {judge_step(found)}."


def judge_step(found: GradientBreakdown) -> str:
    """Return the answer of `answer_step` alone, without a full stop."""
    even = found.break_even
    if math.isnan(even):
        return "No verdict: the loss or its slope is not finite before the step"
    if found.slope_start >= 0:
        return "No matter of size: on its own batch it leads uphill from the start"
    if math.isinf(even):
        largest = number(float(found.etas[-1]))
        return f"No for its own batch: {largest} times as much would still lower the loss"
    if not loss_returns(found):  # it is not finite at the next eta
        if even >= 1:
            return f"No for its own batch: beyond {number(even)} times as much it is not finite"
        return f"Yes for its own batch: beyond {number(even)} of it the loss is not finite"
    if even > 1:
        return f"No for its own batch: {number(even)} times as much would leave the loss as it was"
    return f"Yes for its own batch: {number(even)} of it would leave the loss as it was"


def judge_direction(found: GradientBreakdown, relative_update: float = math.nan) -> str:
    """Return how far the loss falls along a direction that is no step itself.

    Args:
        found: What was measured along it.
        relative_update: The largest `||dW|| / ||W||` of a layer in the last step; nan if not known.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective, measure_breakdown
        >>> bowl = FunctionObjective(lambda p: p["x"].square().sum(), {"x": torch.ones(1, 1)})
        >>> found = measure_breakdown(bowl, {"x": torch.tensor([[-1.0]])}, [0.5, 2.0])
        >>> judge_direction(found, 0.25)
        'The loss falls up to a relative step of 1; the last step had 0.25'
    """
    limit = found.descent_limit
    if math.isnan(limit):
        return "No verdict: the loss or its slope is not finite at the start"
    if found.slope_start >= 0:
        return "Nowhere: it leads uphill from the start"
    reached = min(limit, float(found.etas[-1])) * found.relative_step
    beyond = "beyond" if math.isinf(limit) else "up to"
    last = "" if math.isnan(relative_update) else f"; the last step had {number(relative_update)}"
    return f"The loss falls {beyond} a relative step of {number(reached)}{last}"


def answer_cost(seconds: float, overhead: float, limit: float | None) -> str:
    """Say what a monitor took of the fit.

    Args:
        seconds: The time that was spent.
        overhead: The same as a share of the time of the fit until now.
        limit: The share that probes may take, the last one left out; None for no limit.

    Example:
        >>> answer_cost(3.42, 0.048, 0.05)
        'What did this cost? 3.42 s, 5 % of the fit.'
        >>> answer_cost(3.42, 0.17, 0.025)
        'What did this cost? 3.42 s, 17 % of the fit (the limit of 2.5 % is without the last \
probe, its figures and the page).'
    """
    took = f"What did this cost? {number(seconds)} s, {share(overhead)} of the fit"
    if limit is None or overhead <= limit:
        return f"{took}."
    return (
        f"{took} (the limit of {100 * limit:.3g} % is without the last probe, its figures and the "
        "page)."
    )


def _answers(words: Mapping[str, str], verdicts: Mapping[str, str]) -> str:
    """Return a sentence for each verdict, with the names of what it is of."""
    said = []
    for verdict, word in words.items():
        names = [name for name, one in verdicts.items() if one == verdict]
        if names:
            said.append(f"{word} {_listed(names)}.")
    return " ".join(said) or "No verdict."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
