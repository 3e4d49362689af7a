"""The questions that a person asks, each with an answer of a few words; the sentences come after.

An answer says yes or no only where the sentences do: both go by the same verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_landscape.measures.words import family_verdict, number, share
from lightning_landscape.measures.words_average import Answer

if TYPE_CHECKING:
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


def answer_step(break_even: float, largest: float) -> str:
    """Answer whether a step was too large for its own batch.

    Args:
        break_even: Where along the step the loss of its batch is back at its start; 1 is the step.
        largest: The largest multiple of the step that was measured.

    Example:
        >>> answer_step(0.6, 4.0)
        'Is the step too large? Yes for its own batch: 0.6 of it would leave the loss as it was.'
        >>> answer_step(float("inf"), 4.0)
        'Is the step too large? No for its own batch: 4 times as much would still lower the loss.'
    """
    return f"Is the step too large? {judge_step(break_even, largest)}."


def judge_step(break_even: float, largest: float) -> str:
    """Return the answer of `answer_step` alone, without a full stop."""
    if math.isnan(break_even):
        return "No verdict"
    if break_even > 1:
        times = number(largest if math.isinf(break_even) else break_even)
        end = "still lower the loss" if math.isinf(break_even) else "leave the loss as it was"
        return f"No for its own batch: {times} times as much would {end}"
    if break_even <= 0:
        return "Yes for its own batch: it leads uphill from the start"
    return f"Yes for its own batch: {number(break_even)} of it would leave the loss as it was"


def answer_cost(seconds: float, overhead: float) -> str:
    """Say what a monitor took of the fit so far.

    Example:
        >>> answer_cost(3.42, 0.048)
        'What did this cost? 3.42 s, 5 % of the fit so far.'
    """
    return f"What did this cost? {number(seconds)} s, {share(overhead)} of the fit so far."


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
