"""The answers of a few words say yes or no only where the sentences do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape import FunctionObjective, measure_breakdown, survey
from lightning_landscape.measures.averaging import MetricSplit
from lightning_landscape.measures.words import describe_survey, describe_surveys
from lightning_landscape.measures.words_answers import (
    answer_averaging,
    answer_cost,
    answer_step,
    answer_valley,
    judge_direction,
)
from lightning_landscape.measures.words_average import (
    average_answer,
    average_verdict,
    describe_average,
)
from lightning_landscape.reporting.results import breakdown_data


def found(loss, n_batches=3, **options):
    objective = FunctionObjective(
        lambda p: torch.stack([loss(p["x"])] * n_batches), {"x": torch.ones(9)}
    )
    return survey(objective, ["uniform", "gaussian"], **options)


def test_a_family_gets_the_answer_that_its_sentences_give():
    # uniform directions of positive entries all see a side that is four times as steep
    ramp = lambda x: torch.where(x > 1, 4 * (x - 1), 1 - x).sum()  # noqa: E731
    surveys = found(ramp)
    assert "Asymmetric along most directions" in describe_survey(surveys["uniform"])
    assert "Yes along uniform." in answer_valley(surveys)
    assert "Yes along gaussian" not in answer_valley(surveys)


def test_two_batches_get_no_verdict_on_the_valley():
    surveys = found(lambda x: (x - 1).square().sum(), n_batches=2)
    assert answer_valley(surveys) == (
        "Is this an asymmetric valley? No verdict along uniform and gaussian."
    )


def test_a_loss_that_is_not_finite_is_the_only_thing_said():
    surveys = found(lambda x: math.nan * x.sum())
    assert answer_valley(surveys) == (
        "Is this an asymmetric valley? No verdict: the loss is not finite."
    )
    one = "The loss at these weights is not finite."
    assert describe_surveys(surveys) == f"{one} Nothing else can be said of them."
    assert describe_survey(surveys["gaussian"]) == f"No verdict. {one}"


@given(
    values=st.tuples(*[st.floats(-1, 1)] * 3),
    stderr=st.floats(0, 0.5),
    better=st.sampled_from(["lower", "higher"]),
)
def test_the_weights_that_the_answer_names_have_the_best_value(values, stderr, better):
    current, average, control = values
    found = MetricSplit("m", *values, True, stderr, 9, better, stderr)
    best = max if better == "higher" else min
    answer = average_answer(found)
    if answer == "better":
        assert best(values) == average
    if answer == "recalibrate":
        assert best(values) == control
        assert best(current, average) == average
    if answer == "statistics hurt":
        assert best(values) == current
    if answer == "worse":
        assert best(values) != average


@given(
    gain=st.floats(-1, 1),
    stderr=st.floats(0, 1),
    n=st.integers(0, 9),
    better=st.sampled_from(["lower", "higher"]),
)
def test_the_average_is_called_better_where_its_sentence_says_so(gain, stderr, n, better):
    found = MetricSplit("m", 0.0, gain, 0.0, False, stderr, n, better)
    verdict, text = average_verdict(found), describe_average(found)
    assert (verdict == "better") == ("The average is better" in text)
    assert (verdict == "worse") == ("The average is worse" in text)
    assert (verdict == "same") == ("changes nothing" in text)
    assert (verdict == "no verdict") == ("No verdict" in text)


def test_metrics_of_one_verdict_are_named_together():
    verdicts = {"a": "better", "b": "better", "c": "better", "d": "worse", "e": "same"}
    assert answer_averaging(verdicts) == (
        "Does averaging help? Yes by a, b and c. No, it is worse, by d. "
        "It changes nothing now by e. (By all validation batches.)"
    )
    assert "Less than fresh batch-norm statistics" in answer_averaging({"a": "recalibrate"})
    assert "No, its fresh" in answer_averaging({"a": "statistics hurt"})
    assert answer_averaging({}) == "Does averaging help? No verdict."


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda x: math.nan * x, "No verdict: the loss or its slope is not finite before the step"),
        (lambda x: x, "No matter of size: on its own batch it leads uphill from the start"),
        (lambda x: 0 * x, "No matter of size"),
        (lambda x: (x - 0.5) ** 2, "Yes for its own batch: 1 of it would leave the loss as it"),
        (lambda x: (x - 1) ** 2, "No for its own batch: 2 times as much would leave the loss as"),
        (lambda x: (x - 9) ** 2, "No for its own batch: 4 times as much would still lower the"),
        (lambda x: torch.where(x < 0.7, -x, torch.nan), "Yes for its own batch: beyond 0.5 of it"),
        (lambda x: torch.where(x < 0.1, -x, torch.nan), "Yes for its own batch: beyond 0 of it"),
        (lambda x: torch.where(x < 3, -x, torch.nan), "No for its own batch: beyond 2 times as"),
    ],
)
def test_a_step_is_too_large_from_its_break_even_on(loss, says):
    objective = FunctionObjective(lambda p: loss(p["x"]).sum(), {"x": torch.zeros(1, 1)})
    found = measure_breakdown(objective, {"x": torch.ones(1, 1)}, [0.5, 1.0, 2.0, 4.0])
    assert answer_step(found).startswith(f"Is the step too large? {says}")


@pytest.mark.parametrize(
    ("down", "etas", "says"),
    [
        (-1.0, [0.5, 2.0], "The loss falls up to a relative step of 1; the last step had 0.2"),
        (-1.0, [0.5], "The loss falls beyond a relative step of 0.5; the last step had 0.2"),
        (1.0, [0.5], "Nowhere: it leads uphill from the start"),
        (math.nan, [0.5], "No verdict: the loss or its slope is not finite at the start"),
    ],
)
def test_a_direction_that_is_no_step_is_compared_with_the_last_one(down, etas, says):
    bowl = FunctionObjective(lambda p: p["x"].square().sum() / 2, {"x": torch.ones(1, 1)})
    found = measure_breakdown(bowl, {"x": torch.full((1, 1), down)}, etas)
    assert judge_direction(found, 0.2) == says
    assert says.startswith(judge_direction(found))


def test_a_record_of_a_whole_step_holds_the_answer_of_the_console():
    bowl = FunctionObjective(lambda p: p["x"].square().sum() / 2, {"x": torch.ones(1, 1)})
    down = {"x": -torch.ones(1, 1)}
    whole = breakdown_data(measure_breakdown(bowl, down, [0.5, 1.0, 3.0]))
    assert whole["answer"] == "No for its own batch: 2 times as much would leave the loss as it was"
    assert whole["answer"] in answer_step(measure_breakdown(bowl, down, [0.5, 1.0, 3.0]))
    along = breakdown_data(measure_breakdown(bowl, down, [0.5]))["answer"]
    assert along == "The loss falls beyond a relative step of 0.5"


def test_the_cost_is_in_seconds_and_as_a_share_of_the_fit():
    assert answer_cost(12.0, 0.25, None) == "What did this cost? 12 s, 25 % of the fit."
    assert answer_cost(12.0, 0.25, 0.25) == "What did this cost? 12 s, 25 % of the fit."
    beyond = answer_cost(12.0, 0.25, 0.05)
    assert beyond.endswith(
        "25 % of the fit (the limit of 5 % is without the last probe, its figures and the page)."
    )
