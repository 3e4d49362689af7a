"""What an average changes is split into its two parts, and only the second is averaging."""

import math

import pytest
import torch

from lightning_landscape.measures import words_average
from lightning_landscape.measures.averaging import MetricSplit


def describe_average(name, current, average, control=math.nan, batch_norm=True, **found):
    control = control if batch_norm else current
    return words_average.describe_average(
        MetricSplit(name, current, average, control, batch_norm, **found)
    )


def describe_latest(name, gain, batch_norm, **found):
    return words_average.describe_latest(MetricSplit(name, 1.0, gain, 0.0, batch_norm, **found))


def test_what_fresh_statistics_do_is_not_put_down_to_averaging():
    text = describe_average("val_loss", 0.2454, 0.1582, control=0.1582, stderr=0.0, n_batches=9)
    assert "0.0872 lower with the average: 0.0872 from fresh batch-norm statistics, 0 from" in text
    assert "Averaging changes nothing now" in text
    assert "recalibrate_batch_norm(module, batches)" in text
    assert "better because" not in text


def test_parts_of_opposite_sign_are_written_with_their_sign():
    text = describe_average("val_loss", 0.5, 0.4, control=0.2, stderr=0.01, n_batches=9)
    assert "0.1 lower with the average: 0.3 from fresh" in text
    assert "-0.2 from averaging" in text
    assert "The average is worse than the current weights" in text


@pytest.mark.parametrize(
    ("current", "difference_stderr", "says"),
    [
        (0.5, 0.01, "gives the best of the three. Without it the average is better than the"),
        (0.5, 0.2, "keep those. To have what the statistics give with the current weights too"),
        (0.3, 0.01, "keep those. To have"),
        (0.1, 0.01, "(95 % interval 0.177 to 0.223, 9 validation batches): keep those."),
    ],
)
def test_the_best_of_the_three_is_said_first(current, difference_stderr, says):
    found = {"stderr": 0.01, "n_batches": 9, "difference_stderr": difference_stderr}
    text = describe_average("val_loss", current, 0.4, control=0.2, **found)
    assert says in text
    assert ("best of the three" in text) == ("Without it the average is better" in text)


def test_an_average_that_fresh_statistics_spoil_is_not_to_be_kept():
    found = {"stderr": 0.01, "n_batches": 9}
    text = describe_average("val_loss", 0.2, 0.4, control=0.6, **found)
    assert "no better than those as they are: keep the current weights." in text
    assert "To keep it" not in text


def test_an_average_better_beyond_its_error_is_to_be_kept():
    text = describe_average("val_loss", 0.5, 0.3, control=0.5, stderr=0.05, n_batches=9)
    # t of 8 degrees of freedom is 2.306
    of = "(95 % interval 0.0847 to 0.315, 9 validation batches)"
    assert f"better because it is an average {of}" in text
    assert "swa.apply_to(module)" in text


def test_a_higher_accuracy_is_the_better_one():
    found = {"control": 0.5, "stderr": 0.05, "n_batches": 9}
    assert "better because" in describe_average("acc", 0.5, 0.7, better="higher", **found)
    assert "is worse" in describe_average("acc", 0.5, 0.7, better="lower", **found)


def test_without_a_control_the_comparison_is_confounded():
    text = describe_average("val_loss", 0.5, 0.3, stderr=0.01, n_batches=9)
    assert "No verdict on averaging, because no control was run" in text


def test_without_batch_norm_the_current_weights_are_the_control():
    found = {"stderr": 0.01, "n_batches": 9, "batch_norm": False}
    text = describe_average("val_loss", 0.5, 0.3, **found)
    assert text.startswith("val_loss is 0.2 lower with the average. The average is better")
    assert "statistics" not in text


@pytest.mark.parametrize(
    ("stderr", "n", "because"),
    [
        (
            0.1,
            9,
            "the 95 % interval -0.0306 to 0.431 of its part contains 0 (9 validation batches)",
        ),
        (0.01, 2, "2 batches are too few to tell a difference from noise (at least 3)"),
        (math.nan, 1, "1 batch is too few"),
        (math.nan, 0, "the metric is no mean over the validation batches"),
    ],
)
def test_without_a_resolved_part_there_is_no_verdict(stderr, n, because):
    text = describe_average("val_loss", 0.5, 0.3, control=0.5, stderr=stderr, n_batches=n)
    assert f"No verdict on averaging, because {because}" in text


def test_values_that_are_not_finite_have_no_verdict():
    bad = math.nan, math.inf
    for values in [(bad[0], 0.3, 0.5), (bad[1], 0.3, 0.5), (0.3, bad[0], 0.5), (0.3, 0.3, bad[1])]:
        assert "a value is not finite" in describe_average("val_loss", *values)


def test_noise_gets_a_verdict_in_at_most_seven_percent():
    generator, verdicts = torch.Generator().manual_seed(0), 0
    for gaps in torch.randn(2000, 4, generator=generator, dtype=torch.float64):
        stderr, gap = float(gaps.std()) / 2, float(gaps.mean())
        text = describe_average("loss", 1.0, 1 + gap, control=1.0, stderr=stderr, n_batches=4)
        verdicts += "better because" in text or "is worse" in text
    assert verdicts / 2000 <= 0.07


def test_a_short_average_tells_of_decaying_with_batch_norm_only():
    text = describe_latest("val_loss", -0.3, batch_norm=True)
    assert "would probably help too" in text
    assert "0.3" not in text
    assert "probably not help" in describe_latest("val_loss", 0.3, batch_norm=True)
    assert "would probably help" in describe_latest("acc", 0.3, batch_norm=True, better="higher")
    assert "No verdict" in describe_latest("val_loss", -0.3, batch_norm=False)
    assert "No verdict" in describe_latest("val_loss", 0.0, batch_norm=True)
