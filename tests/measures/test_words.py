"""The words say what the numbers support, and no more: a test for each rule."""

import dataclasses
import math

import pytest
import torch
from formulas import ONES, bowl, ramp

from lightning_landscape import (
    AsymmetryRate,
    FunctionObjective,
    LineScore,
    Slice,
    Survey,
    compare_ends,
    line_grid,
    score_asymmetry,
    survey,
    symmetric_grid,
)
from lightning_landscape.measures.words import (
    describe_survey,
    describe_surveys,
    error_interval,
    family_verdict,
    is_resolved,
)
from lightning_landscape.measures.words_breakdown import (
    describe_critical_rate,
    describe_successive_steps,
)
from lightning_landscape.measures.words_line import describe_line, flat_side, gap_verdict


def measured(loss, family="uniform", n_batches=3, **options):
    batches = FunctionObjective(lambda p: torch.stack([loss(p)] * n_batches), ONES)
    return survey(batches, [family], **options)[family]


def with_rate(found, **rate):
    return dataclasses.replace(found, rate={**found.rate, **rate})


def with_areas(found, area, corrected=None):
    corrected = area if corrected is None else corrected
    scores = [dataclasses.replace(s, area=area, area_corrected=corrected) for s in found.scores]
    return dataclasses.replace(found, scores=scores)


# -- families --------------------------------------------------------------------------------------


def test_an_asymmetric_family_is_said_with_number_interval_and_batches():
    text = describe_survey(measured(ramp))
    assert "The median area is 0.6 [0.6, 0.6] (+1: the + side is steep; 8 directions, 3" in text
    assert "Asymmetric along most directions: one side is more than twice as steep" in text
    assert "100 % of the directions (95 % interval 63 % to 100 %)" in text
    assert "The median direction is steeper on the + side." in text
    assert family_verdict(measured(ramp)) == "asymmetric"


def test_a_bowl_is_not_asymmetric():
    found = measured(bowl, "gaussian")
    assert "Not asymmetric along most directions" in describe_survey(found)
    assert "median direction is steeper" not in describe_survey(found)
    assert family_verdict(found) == "not asymmetric"


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_batches_have_no_verdict(n):
    found = measured(ramp, n_batches=n)
    assert f"No verdict, because {n} batch" in describe_survey(found)
    assert "at least 3 (n_batches)" in describe_survey(found)
    assert family_verdict(found) == "no verdict"


def test_fewer_than_six_directions_have_no_verdict():
    found = measured(ramp, n_directions=5)
    assert "No verdict, because 5 directions are too few" in describe_survey(found)
    assert "at least 6 (n_directions)" in describe_survey(found)
    assert family_verdict(found) == "no verdict"


def test_a_constant_loss_is_called_so_and_not_symmetric():
    found = measured(lambda p: torch.ones(()))
    assert describe_survey(found).startswith("Nothing moves")
    assert "ymmetric" not in describe_survey(found)
    assert family_verdict(found) == "no verdict"


def test_a_gaussian_family_off_minimum_is_told_to_train_on():
    found = measured(lambda p: p["x"].sum(), "gaussian")
    text = describe_survey(found)
    assert "No verdict, because along 100 % of the directions the loss falls away" in text
    assert "too early to speak of a valley. Train on, or decay the rate, first." in text
    assert family_verdict(found) == "no verdict"


@pytest.mark.parametrize("family", ["sign", "sign@norm", "uniform@norm"])
def test_families_that_grow_the_weights_are_not_told_to_train_on(family):
    found = measured(lambda p: -p["x"].sum())
    text = describe_survey(dataclasses.replace(found, family=family))
    assert "usual with cross-entropy, which larger outputs lower for ever" in text
    assert "Train on" not in text


def test_unresolved_directions_ask_for_more_batches():
    text = describe_survey(with_rate(measured(bowl), unresolved=0.75))
    assert "No verdict, because along 75 % of the directions the batches differ more" in text
    assert "take more batches (n_batches)" in text


def test_directions_that_do_not_count_are_named_beside_the_rate():
    text = describe_survey(with_rate(measured(ramp), off_minimum=0.25, unresolved=0.125))
    assert (
        "Not counted as asymmetric: along 12 % the batches differ more than the two sides and "
        "along 25 % the loss falls away from these weights."
    ) in text
    assert "Not counted" not in describe_survey(measured(ramp))


def test_an_interval_that_holds_one_half_is_no_verdict():
    found = with_rate(measured(ramp), rate=0.5, low=0.16, high=0.84)
    assert (
        "No verdict on whether most directions are asymmetric, because the interval contains 50 %: "
        "one side is more than twice as steep as the other along 50 %"
    ) in describe_survey(found)
    assert family_verdict(found) == "no verdict"


def test_gains_that_cost_more_to_shrink_are_no_alarm():
    found = with_areas(dataclasses.replace(measured(ramp), family="uniform@norm"), -0.9)
    assert "Shrinking the gains" in describe_survey(found)
    assert "no alarm" in describe_survey(found)


def test_a_slope_along_gaussian_directions_is_told_from_a_valley():
    found = dataclasses.replace(measured(ramp), family="gaussian")
    assert "not at a minimum" in describe_survey(with_areas(found, 0.4, corrected=0.01))
    assert "take more samples before you believe it" in describe_survey(with_areas(found, 0.4))


def test_a_width_has_a_unit_and_is_said_of_gaussian_directions_only():
    wide = measured(lambda p: 9 * bowl(p), "gaussian", radius=2.0, n_points=41)
    assert "(in filter norm)" in describe_survey(wide)
    plain = measured(lambda p: 9 * bowl(p), "gaussian", radius=2.0, n_points=41, normalize="none")
    assert "(in L2 norm)" in describe_survey(plain)
    assert "risen by" not in describe_survey(measured(ramp))


def test_families_stand_in_lines_of_their_own():
    batches = FunctionObjective(lambda p: torch.stack([ramp(p)] * 3), ONES)
    lines = describe_surveys(survey(batches, ["uniform", "gaussian"])).split("\n")
    assert [line.partition(":")[0] for line in lines] == ["uniform", "gaussian"]


# -- the line to an average ------------------------------------------------------------------------


def score(**changes):
    plain = LineScore(
        distance=2.0,
        gap=-0.5,
        gap_stderr=0.05,
        n_batches=4,
        minimum=0.0,
        barrier=0.0,
        rise_behind=3.0,
        rise_beyond=1.0,
        outward_ratio=3.0,
        outward_ratio_near=2.0,
        outward_stderr=0.1,
        sign_agreement=0.97,
    )
    return dataclasses.replace(plain, **changes)


def test_a_gap_beyond_its_error_is_said_with_its_error_and_batches():
    text = describe_line(score(gap=0.4), score(gap=-0.5))
    # t of 3 degrees of freedom is 3.182
    assert "training loss is higher by 0.4 (95 % interval 0.241 to 0.559, 4 batches)." in text
    assert "validation loss is lower by 0.5 (95 % interval 0.341 to 0.659, 4 batches)." in text
    assert "97 % of the weights have the same sign at both" in text


def test_a_gap_within_its_error_is_no_verdict():
    # t of 3 degrees of freedom is 3.18: three standard errors of four batches are not enough
    text = describe_line(score(gap=-0.15))
    because = "which differs by -0.15, because the 95 % interval -0.309 to 0.00912 contains 0"
    assert f"No verdict on its training loss, {because} (4 batches)." in text
    assert "lower by" not in text
    assert "lower by 0.16" in describe_line(score(gap=-0.16))


def test_the_less_clear_of_two_gaps_counts_only_beside_a_clear_one():
    # of three batches 95 % are 4.303 standard errors, 97.5 % are 6.205
    faint, clear = score(gap=0.3, n_batches=3), score(gap=0.4, n_batches=3)
    assert "is lower by 0.3 (95 %" in describe_line(clear, score(gap=-0.3, n_batches=3))
    alone = describe_line(faint, faint)
    assert alone.count("because the 97.5 % interval -0.0103 to 0.61 contains 0 (3 batches)") == 2
    assert [gap_verdict(faint, one) for one in (clear, faint, None)] == [
        "higher",
        "no verdict",
        "higher",
    ]


def test_two_equal_ends_are_said_to_be_the_same():
    text = describe_line(score(gap=0.0, gap_stderr=0.0), score(gap=0.0, gap_stderr=0.0))
    assert "Its training loss is the same (4 batches)." in text
    assert "Its validation loss is the same (4 batches)." in text
    assert gap_verdict(score(gap=0.0, gap_stderr=0.0), None) == "the same"
    same = describe_line(score(distance=0.0, gap=0.0, gap_stderr=0.0))
    assert same == "The average is equal to the current weights: there is no line between them."


def test_an_interval_holds_what_it_promises_and_is_the_one_said():
    for n, t in ((3, 4.302653), (4, 3.182446), (20, 2.093024)):
        between = error_interval(1.0, 0.1, n)
        assert between == f"95 % interval {1 - 0.1 * t:.3g} to {1 + 0.1 * t:.3g}"


@pytest.mark.parametrize(("n", "words"), [(1, "1 batch is too few"), (2, "2 batches are too few")])
def test_fewer_than_three_batches_have_no_gap_and_no_side(n, words):
    stderr = math.nan if n == 1 else 1e-9
    text = describe_line(score(n_batches=n, gap_stderr=stderr, outward_stderr=stderr))
    assert text.count(words) == 2
    assert "lower by" not in text
    assert "on the flat side:" not in text


def test_a_gap_that_is_not_finite_is_no_verdict():
    text = describe_line(score(gap=math.nan, gap_stderr=math.nan))
    assert "No verdict on its training loss, because a loss is not finite." in text


def test_the_flat_side_is_named_where_both_ratios_agree():
    assert flat_side(score()) == 1
    outward = "outward to the ends of the line, the training loss rises"
    assert f"on the flat side: {outward} 3 times as much behind" in describe_line(score())
    assert "outward by the distance between the two, 2 times." in describe_line(score())
    other = score(outward_ratio=0.25, outward_ratio_near=0.5, rise_behind=1.0, rise_beyond=4.0)
    assert flat_side(other) == -1
    assert f"on the steep side: {outward} 4 times as much beyond" in describe_line(other)


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"outward_ratio": math.nan}, "does not rise beyond both ends"),
        ({"outward_ratio": math.inf}, "does not rise beyond both ends"),
        ({"outward_ratio_near": math.nan}, "between the two (t = -1 and 2) the loss does not"),
        ({"outward_ratio_near": 0.5}, "between the two, 0.5 times."),
        ({"outward_stderr": 2.0}, "the two rises differ by 2, and the 99 % interval"),
    ],
)
def test_else_no_side_is_named_and_why(changes, because):
    text = describe_line(score(**changes))
    assert "No verdict on the flat side, because" in text
    assert because in text
    assert flat_side(score(**changes)) == 0


def test_no_side_is_named_where_the_loss_falls_beyond_both_ends():
    grid = line_grid(4.0, 37)
    losses = -(grid - 0.4).square()[:, None] + torch.zeros(4)
    text = describe_line(compare_ends(Slice(grid, losses)))
    assert "No verdict on the flat side" in text


def test_both_minima_are_named_and_edges_are_beyond_the_grid():
    text = describe_line(score(minimum=-0.25), score(minimum=math.nan))
    assert "training loss is least at t = -0.25 and the validation loss beyond the grid" in text


def test_the_picture_of_the_paper_is_named_where_all_of_it_is_there():
    train, validation = score(gap=0.4, minimum=0.25), score(gap=-0.5, minimum=1.0)
    assert "the picture of an asymmetric valley" in describe_line(train, validation)
    for other in (
        (score(gap=-0.4, minimum=0.25), validation),
        (dataclasses.replace(train, minimum=math.nan), validation),
        (dataclasses.replace(train, outward_ratio_near=0.5), validation),
    ):
        assert "the picture of" not in describe_line(*other)
        assert "To keep it: swa.apply_to(module)" in describe_line(*other)
    assert "To keep it" not in describe_line(train, score(gap=0.1))


def test_without_validation_nothing_is_said_of_whether_averaging_helps():
    assert "No verdict on whether averaging helps, because no validation" in describe_line(score())


# -- steps -----------------------------------------------------------------------------------------


def test_a_rate_above_the_critical_one_is_no_reason_to_change_it():
    text = describe_critical_rate(0.3, 0.1, step=200)
    assert "The rate in use is 0.3, the critical rate 0.1: with a larger one" in text
    assert "If the loss goes down over epochs there is nothing to do" in text
    assert "does not predict single steps" in text


def test_a_rate_below_the_critical_one_says_that_it_follows_the_rate():
    assert "follows the rate in use" in describe_critical_rate(0.1, 0.3, step=200)


def test_the_critical_rate_at_the_start_says_what_sgd_bears():
    text = describe_critical_rate(0.1, 0.3, step=0)
    assert "a third of it at most, a tenth in deep networks without batch norm" in text


@pytest.mark.parametrize(
    ("critical", "says"),
    [
        (math.inf, "the critical rate lies beyond"),
        (math.nan, "No verdict on the critical rate, because a loss is not finite"),
        (0.0, "from the start, so that a lower rate would raise the loss of that batch too."),
    ],
)
def test_a_critical_rate_that_is_no_number_is_said_to_be_none(critical, says):
    text = describe_critical_rate(0.1, critical)
    assert says in text
    assert "try a lower rate" not in text


def test_a_rate_whose_loss_is_nowhere_finite_is_too_large():
    text = describe_critical_rate(0.1, 0.0, uphill=False)
    assert "not finite at any part of the step" in text
    assert "uphill" not in text


def test_steps_that_undo_each_other_are_called_so_from_six_cosines_on():
    assert "Successive steps undo each other" in describe_successive_steps([-0.3] * 6)
    assert "5 cosines are too few" in describe_successive_steps([-0.3] * 5 + [math.nan])
    assert "1 cosine is too few" in describe_successive_steps([-0.3])
    assert "neither undo each other nor point" in describe_successive_steps([-0.3, 0.1] * 4)
    assert "with momentum they nearly always do" in describe_successive_steps([0.8] * 6)


# -- noise -----------------------------------------------------------------------------------------


def test_two_batches_resolve_nothing_and_three_do():
    assert not is_resolved(9.0, 0.1, 2)
    assert is_resolved(0.44, 0.1, 3)
    assert not is_resolved(0.42, 0.1, 3)
    assert not is_resolved(math.nan, 0.1, 5)
    assert not is_resolved(0.0, 0.0, 5)


@pytest.mark.parametrize("lines", [1, 2])
def test_pure_noise_on_a_line_gets_a_verdict_in_at_most_seven_percent(lines):
    generator = torch.Generator().manual_seed(lines)
    grid, verdicts = line_grid(4.0, 37), 0
    for _ in range(2000):
        noise = torch.randn(lines, 37, 4, generator=generator, dtype=torch.float64)
        text = describe_line(*(compare_ends(Slice(grid, losses)) for losses in noise))
        verdicts += any(word in text for word in ("higher by", "lower by", "It is on the"))
    assert verdicts / 2000 <= 0.07


def test_pure_noise_gets_a_verdict_in_at_most_seven_percent():
    generator = torch.Generator().manual_seed(0)
    grid, verdicts = symmetric_grid(0.6, 13), 0
    for _ in range(300):
        noise = torch.randn(8, 13, 4, generator=generator, dtype=torch.float64)
        slices = [Slice(grid, losses) for losses in noise]
        scores = [score_asymmetry(line) for line in slices]
        rate = AsymmetryRate()
        for one in scores:
            rate.update(one)
        shares = {name: float(value) for name, value in rate.compute().items()}
        for name, verdict in (("off_minimum", "off-minimum"), ("unresolved", "unresolved")):
            shares[name] = sum(one.verdict == verdict for one in scores) / 8
        found = Survey("gaussian", slices, [], scores, shares)
        text = describe_survey(found)
        verdicts += "Asymmetric along" in text or "median direction is steeper" in text
    assert verdicts / 300 <= 0.07
