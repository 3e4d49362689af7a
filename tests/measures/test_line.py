"""The words for a line say what the numbers support. (Its numbers are tested in test_asymmetry.)"""

import math

import pytest
from torch import nn

from lightning_landscape import SWA
from lightning_landscape.measures.line import LineScore, describe_line


def score(gap=-0.5, gap_stderr=0.1, minimum=0.0, outward_ratio=3.0):
    return LineScore(2.0, gap, gap_stderr, minimum, 0.0, outward_ratio)


def test_a_gap_of_two_standard_errors_counts():
    text = describe_line(score(gap=0.2), score(gap=-0.5))
    assert "training loss is higher by 0.2 ± 0.1" in text
    assert "validation loss is lower by 0.5 ± 0.1" in text


def test_a_gap_within_its_error_is_no_verdict():
    assert "within two standard errors, no verdict: -0.1 ± 0.1" in describe_line(
        score(), score(gap=-0.1)
    )


@pytest.mark.parametrize("gap", [-0.5, math.nan])
def test_one_batch_has_no_standard_error_and_no_verdict(gap):
    assert "no verdict" in describe_line(score(gap=gap, gap_stderr=math.nan))


def test_the_flat_side_is_named_by_the_outward_ratio():
    assert "on the flat side: outward, the loss rises 3 times" in describe_line(score())
    steep = describe_line(score(outward_ratio=0.25))
    assert "on the steep side: outward, the loss rises 4 times" in steep


@pytest.mark.parametrize("ratio", [-2.0, 0.0, math.inf, math.nan])
def test_without_a_rise_beyond_both_ends_no_side_is_named(ratio):
    assert "No verdict on the flat side" in describe_line(score(outward_ratio=ratio))


def test_both_minima_are_named():
    text = describe_line(score(minimum=-0.25), score(minimum=1.0))
    assert "training is best at t = -0.25 and validation at t = 1." in text


def test_the_summary_of_an_average_grows_with_what_is_known():
    swa = SWA(0)
    assert "averaged nothing yet" in swa.summary()
    swa.update(nn.Linear(1, 1))
    assert "No verdict: the line to the average was not measured" in swa.summary()
    swa.remember_line([score()], step=9)
    swa.update(nn.Linear(1, 1))  # the line stays that of its own step
    assert "At step 9, with 1 sets of weights averaged:\nThe average was 2" in swa.summary()
    assert "no validation batches were measured" in swa.summary()
