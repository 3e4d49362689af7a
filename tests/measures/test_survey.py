"""From families to slices, scores and a rate, on formulas whose answers are known."""

import json

import pytest
import torch
from formulas import ONES, bowl, ramp
from torch import nn

from lightning_landscape import (
    AsymmetryRate,
    FunctionObjective,
    Survey,
    evaluate_slice,
    sample_direction,
    score_asymmetry,
    survey,
    symmetric_grid,
)
from lightning_landscape.measures.directions import direction_generator
from lightning_landscape.measures.quantiles import median_interval
from lightning_landscape.measures.sequential import sequential_design


def test_a_ramp_is_asymmetric_along_every_uniform_direction():
    found = survey(FunctionObjective(ramp, ONES), ["uniform"])["uniform"]
    assert isinstance(found, Survey)
    assert [score.ratio for score in found.scores] == pytest.approx([4.0] * 8)
    assert [score.area for score in found.scores] == pytest.approx([0.6] * 8)
    assert (found.rate["rate"], found.rate["n"], found.rate["high"]) == (1.0, 8.0, 1.0)
    assert (found.rate["off_minimum"], found.rate["unresolved"]) == (0.0, 0.0)
    assert found.area == pytest.approx((0.6, 0.6, 0.6))
    assert found.ratio == pytest.approx((4.0, 4.0, 4.0))


def test_a_bowl_is_symmetric_in_every_family():
    for family, found in survey(
        FunctionObjective(bowl, ONES), ["gaussian", "sign", "rademacher"]
    ).items():
        assert found.family == family
        assert found.area == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
        assert found.rate["rate"] == 0.0


def test_a_slope_is_off_minimum_in_every_direction():
    slope = FunctionObjective(lambda p: p["x"].sum(), ONES)
    found = survey(slope, ["gaussian"], n_directions=3)["gaussian"]
    assert (found.rate["rate"], found.rate["off_minimum"]) == (0.0, 1.0)


@pytest.mark.parametrize("normalize", ["filter", "none"])
def test_the_numbers_are_those_of_the_single_steps_bit_for_bit(normalize):
    objective = FunctionObjective(lambda p: p["x"].sin().sum() + p["x"].square().sum(), ONES)
    found = survey(
        objective, ["sign"], n_directions=3, n_points=5, radius=0.4, normalize=normalize, seed=7
    )["sign"]
    rate = AsymmetryRate()
    for k, line in enumerate(found.slices):
        generator = direction_generator(7, "sign", k)
        way = sample_direction(ONES, "sign", generator=generator, normalize=normalize)
        alone = evaluate_slice(objective, way, symmetric_grid(0.4, 5), label="sign")
        assert torch.equal(line.losses, alone.losses)
        assert (line.distance, line.label) == (alone.distance, "sign")
        assert found.scores[k] == score_asymmetry(alone)
        rate.update(found.scores[k])
    for name, value in rate.compute().items():
        assert found.rate[name] == float(value)


def test_a_family_does_not_depend_on_the_others():
    objective = FunctionObjective(ramp, ONES)
    alone = survey(objective, ["sign"])["sign"]
    beside = survey(objective, ["gaussian", "sign"])["sign"]
    assert alone.to_dict() == beside.to_dict()


def test_it_costs_families_times_directions_times_points():
    asked = []
    objective = FunctionObjective(lambda p: (asked.append(p), ramp(p))[1], ONES)
    survey(objective, ["gaussian", "uniform"], n_directions=3, n_points=9)
    assert len(asked) == 2 * 3 * 9


# -- as many directions as the rate needs ----------------------------------------------------------


def mixed(params):
    """Asymmetric along about half of the directions: where the first weight grows."""
    x, y = params["x"][0] - 1, params["x"][1] - 1
    return torch.where(x * y > 0, x.abs() + y.abs() + 9 * (x + y).relu(), x.abs() + y.abs())


def test_auto_stops_where_the_interval_is_as_narrow_as_asked_for():
    objective = FunctionObjective(mixed, ONES)
    auto = survey(objective, ["gaussian"], n_directions="auto", precision=0.2)["gaussian"]
    n = int(auto.rate["n"])
    whole = survey(objective, ["gaussian"], n_directions=n)["gaussian"]
    k = round(n * auto.rate["rate"])
    design = sequential_design(0.2)
    assert 0 < k < n
    assert design.stops(k, n)
    assert auto.rate["rate"] == whole.rate["rate"]
    assert (auto.rate["low"], auto.rate["high"]) == design.interval(k, n)
    assert len(auto.slices) == len(auto.scores) == 8
    assert auto.scores == whole.scores[:8]


@pytest.mark.parametrize(("n_most", "n"), [(3, 3), (8, 8), (9, 9), (500, 17)])
def test_auto_takes_at_most_as_many_as_it_is_allowed(n_most, n):
    objective = FunctionObjective(bowl, ONES)
    found = survey(objective, ["sign"], n_directions="auto", n_most=n_most)["sign"]
    assert (found.rate["n"], len(found.slices)) == (n, min(n, 8))
    assert (found.rate["low"], found.rate["high"]) == sequential_design(0.1).interval(0, n)


def test_a_fixed_number_is_cut_off_too():
    found = survey(FunctionObjective(ramp, ONES), ["sign"], n_directions=8, n_most=3)["sign"]
    assert found.rate["n"] == len(found.slices) == 3


# -- validation batches ----------------------------------------------------------------------------


def two_batches(params):
    return torch.stack([ramp(params), bowl(params)])


@pytest.mark.parametrize("n_directions", [8, "auto"])
def test_validation_batches_are_measured_and_not_scored(n_directions):
    both = survey(
        FunctionObjective(two_batches, ONES),
        ["uniform"],
        n_directions=n_directions,
        validation=[False, True],
    )["uniform"]
    alone = survey(FunctionObjective(ramp, ONES), ["uniform"], n_directions=n_directions)["uniform"]
    assert both.scores == alone.scores
    assert both.rate == alone.rate
    for train, validation in zip(both.slices, both.validation, strict=True):
        assert train.losses.shape == validation.losses.shape == (13, 1)
        assert score_asymmetry(validation).area == pytest.approx(0.0, abs=1e-6)


class TwoRanks(FunctionObjective):
    """Gathers the batches of a second process, which has the same ones."""

    def gather(self, losses):
        return torch.cat([losses, losses], dim=1)


def test_the_mask_is_of_one_process_and_repeated_for_the_others():
    found = survey(TwoRanks(two_batches, ONES), ["uniform"], validation=[False, True])["uniform"]
    assert found.slices[0].losses.shape == found.validation[0].losses.shape == (13, 2)
    assert [score.ratio for score in found.scores] == pytest.approx([4.0] * 8)


@pytest.mark.parametrize("mask", [[], [False, False]])
def test_without_validation_batches_all_are_scored(mask):
    found = survey(FunctionObjective(two_batches, ONES), ["sign"], validation=mask)["sign"]
    assert found.validation == []
    assert found.slices[0].losses.shape == (13, 2)


# -- groups, results, errors -----------------------------------------------------------------------


def test_a_family_whose_group_is_empty_is_left_out():
    net = nn.Linear(2, 1)
    objective = FunctionObjective(lambda p: p["weight"].sum(), dict(net.named_parameters()))
    assert list(survey(objective, ["sign@norm", "sign@other"], module=net)) == ["sign@other"]
    with pytest.raises(ValueError, match="`families` must name one that moves a parameter"):
        survey(objective, ["sign@norm"], module=net)


def test_a_result_is_plain_numbers():
    found = survey(FunctionObjective(ramp, ONES), ["uniform"], n_directions=2)["uniform"]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["family"] == "uniform"
    assert plain["area"][0] == pytest.approx(0.6)
    assert len(plain["slices"]) == len(plain["scores"]) == 2
    assert plain["validation"] == []
    assert plain["rate"] == found.rate


@pytest.mark.parametrize(
    ("families", "options", "message"),
    [
        ([], {}, "`families` must name at least one"),
        (["sign", "sign"], {}, "`families` must not repeat one"),
        (["cauchy"], {}, "`family` must be"),
        (["sign@bn*"], {}, "fnmatch pattern that matches"),
        (["sign"], {"n_points": 11}, "`n_points` must be 4 k [+] 1.*Got 11: try 13"),
        (["sign"], {"radius": 0.0}, "`radius` must be positive"),
        (["sign"], {"n_directions": 0}, "`n_directions` must be a whole number from 1 up"),
        (["sign"], {"n_directions": "many"}, "from 1 up or 'auto'. Got 'many'"),
        (["sign"], {"n_directions": "auto", "precision": 0.7}, "`precision` must be half"),
        (["sign"], {"n_most": 0}, "`n_most` must be a whole number from 1 up"),
        (["sign"], {"seed": -1}, "`seed` must be a whole number from 0 up"),
        (["sign"], {"normalize": "row"}, "`normalize` must be one of"),
        (["sign"], {"validation": [True]}, "leave one that is scored"),
        (["sign"], {"validation": [True, False]}, "a flag for each batch"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_the_way_out(families, options, message):
    with pytest.raises(ValueError, match=message):
        survey(FunctionObjective(ramp, ONES), families, **options)


def test_medians_are_those_of_the_scores():
    objective = FunctionObjective(mixed, ONES)
    found = survey(objective, ["gaussian"], n_directions=9)["gaussian"]
    for name in ("area", "area_corrected", "ratio", "rise_radius"):
        assert getattr(found, name) == median_interval([getattr(s, name) for s in found.scores])
