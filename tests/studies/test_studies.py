"""Every study runs, and what the docs call robust holds on seeds that the docs did not use."""

import argparse
import importlib
import json
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "studies"
SEED = os.environ.get("STUDIES_SEED", "1000")


def rows(found, table, **wanted):
    """Return the rows of a table that have the given cells."""
    chosen = [r for r in found["tables"][table] if all(r[k] == v for k, v in wanted.items())]
    assert chosen, f"no row of {table!r} has {wanted}"
    return chosen


def row(found, table, **wanted):
    (only,) = rows(found, table, **wanted)
    return only


def averaged_sgd_lies_where_the_formula_says(found):
    for valley in rows(found, "where averaged SGD lies, the minimum being 0"):
        error = abs(valley["measured"]["mean"] - valley["computed"])
        assert error < 0.006, valley
    for shifted in rows(found, "the linex valley under random shifts"):
        best, computed = shifted["least at, measured"]["mean"], shifted["least at, computed"]
        assert best == pytest.approx(computed, abs=0.04)
        assert shifted["measured"]["mean"] > 0
    for line in rows(found, "Definition 1 in the linex valley"):
        assert line["greatest c, grid"] == pytest.approx(line["greatest c, exact"], rel=0.03)
        assert line["asymmetric at c = 0.9 of it"] is True
        assert line["at 1.1 of it"] is False


def the_slice_of_a_neuron_is_centred_at_the_minimum_only(found):
    (table,) = found["tables"]
    for direction in ("uniform", "gaussian"):
        early, minimum = rows(found, table, direction=direction)
        centred = "least loss within .25 of 0"
        assert early[centred]["mean"] < 0.7 < minimum[centred]["mean"]
        assert minimum["verdict asymmetric"]["mean"] > 0.4


def gaussian_is_symmetric_and_gains_are_lopsided(found):
    for network in rows(found, "median area, at the end"):
        assert abs(network["gaussian"]["mean"]) < 0.4
    for network in rows(found, "share of asymmetric directions, at the end"):
        assert network["gaussian"]["mean"] <= 0.25
    for network in rows(found, "median area, at the end", **{"batch norm": True}):
        assert network["uniform@norm"]["mean"] < -0.4
        assert network["uniform@norm"]["mean"] < -2 * abs(network["gaussian"]["mean"])
    for network in rows(found, "median area, at the start", **{"batch norm": True}):
        assert network["uniform@norm"]["mean"] > 0.5  # the slope, at the start


def the_penalty_weakens_asymmetry_and_never_flips_it(found):
    for network in rows(found, "change of the median area by the penalty"):
        assert all(abs(network[f]["mean"]) < 0.1 for f in ("gaussian", "uniform"))
    for scored in rows(found, "median area", **{"batch norm": True}):
        assert scored["uniform@norm"]["mean"] < -0.4
    for network in rows(found, "change of the median area by the penalty", **{"batch norm": True}):
        assert 0 < network["uniform@norm"]["mean"] < 0.4
        assert 0 < network["sign"]["mean"] < 0.4


def sgd_at_the_rate_of_the_average_stays_in_its_valley(found):
    table = "barrier to the average"
    at_the_rate = "1 times the rate, decay 0.0005"
    for where in (at_the_rate, f"{at_the_rate}, then to 0"):
        for line in rows(found, table, **{"from the average, SGD at": where}):
            assert line["highest barrier"] <= 0.05
    for line in rows(found, table, **{"from the average, SGD at": "other start"}):
        assert min(line["barrier"]["values"]) > 0.05


def the_average_is_wider_in_filter_norm(found):
    table, rays = "width relative to the decayed weights", "gaussian, filter norm"
    for line in rows(found, table, weights="average"):
        assert line[rays]["mean"] > 1
        assert line[rays]["mean"] > line["gaussian, L2 norm"]["mean"]


def more_signs_that_agree_more_asymmetry(found):
    table = "area by the share of signs that agree"
    for line in rows(found, table, **{"batch norm": True}):
        assert line["100% agree"]["mean"] < line["50% agree"]["mean"] < line["0% agree"]["mean"]
        assert line["100% agree"]["mean"] < -0.4
    table = "by how the gains start"
    signed = row(found, table, **{"gains start as": "N(0, 0.1)"})
    positive = row(found, table, **{"gains start as": "ones"})
    assert positive["uniform@norm"]["mean"] < -0.5 < -0.3 < signed["uniform@norm"]["mean"]
    assert signed["sign@norm"]["mean"] < -0.5


def the_steep_side_costs_more_on_test_too(found):
    table = "test loss of a step of .3 to either side, minus that at the weights"
    for line in rows(found, table, **{"abs area on train": "0.6 to 1.0", "batch norm": True}):
        assert line["steep minus flat"]["mean"] > 0
    for line in rows(found, "gain of averaging"):
        assert abs(line["gain from statistics"]["mean"]) < 0.05


def the_model_is_exceeded_and_the_prefactor_keeps_the_norm(found):
    for line in rows(found, "largest breakdown / model of a layer, relative step .01"):
        assert min(line["at the start"]["values"]) > 1
        assert min(line["at the end"]["values"]) > 1
    table = "largest relative step: promised by Lemma 2, and where the loss is back"
    for line in rows(found, table):
        promised = line["promised, at the start"]["mean"]
        assert line["measured, at the start"]["mean"] > promised
    table = "norm of the first matrix at the end, relative to the start"
    for kept in rows(found, table, optimizer="Fromage"):
        same = {key: kept[key] for key in ("network", "batch norm")}
        grown = row(found, table, optimizer="no prefactor", **same)
        assert grown["norm of the first matrix"]["mean"] > kept["norm of the first matrix"]["mean"]
        if kept["batch norm"]:  # scale-invariant: the gradient is orthogonal to the weights
            assert kept["norm of the first matrix"]["mean"] == pytest.approx(1, abs=0.02)
            free = grown["if orthogonal"]["mean"]
            assert grown["norm of the first matrix"]["mean"] == pytest.approx(free, rel=0.02)


def ten_times_the_critical_rate_is_lost_and_a_tenth_is_not(found):
    for line in rows(
        found, "runs lost, by the rate as a multiple of the critical rate at the start"
    ):
        assert line["lost at 10"] == line["of"]
        assert line["lost at 0.1"] == 0


def annealed_weights_gain_nothing_and_momentum_hides_the_hovering(found):
    table = "what was seen at a high rate, and what decaying did"
    for line in rows(found, table):
        assert all(abs(v) < 0.01 for v in line["average of annealed weights"]["values"])
        assert (line["cosine"]["mean"] > 0.5) == (line["optimizer"] != "Fromage")
    for line in rows(found, table, optimizer="Fromage"):
        assert line["training loss, decayed / now"]["mean"] < 1


STUDIES = {
    "valleys": averaged_sgd_lies_where_the_formula_says,
    "one_neuron": the_slice_of_a_neuron_is_centred_at_the_minimum_only,
    "how_likely": gaussian_is_symmetric_and_gains_are_lopsided,
    "weight_decay": the_penalty_weakens_asymmetry_and_never_flips_it,
    "same_valley": sgd_at_the_rate_of_the_average_stays_in_its_valley,
    "width": the_average_is_wider_in_filter_norm,
    "signs": more_signs_that_agree_more_asymmetry,
    "breakdown": the_model_is_exceeded_and_the_prefactor_keeps_the_norm,
    "learning_rates": ten_times_the_critical_rate_is_lost_and_a_tenth_is_not,
    "decay_or_average": annealed_weights_gain_nothing_and_momentum_hides_the_hovering,
    "which_side": the_steep_side_costs_more_on_test_too,
}


def run(name, out, monkeypatch, *options):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name, "--fast", "--seed", SEED, "--out", str(out), *options])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert (out / f"{name}.png").stat().st_size > 5000
    return json.loads((out / f"{name}.json").read_text())


def test_cifar_is_read_from_the_folder_that_its_archive_unpacks_to(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("common")
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = {b"data": np.full((2, 3072), 50 * k, np.uint8), b"labels": [k, k + 1]}
        (tmp_path / name).write_bytes(pickle.dumps(part))
    data = common.load(argparse.Namespace(data=tmp_path), seed=0)
    assert data.x.shape == (10, 3072)
    assert data.y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data.x_test[0, 0].item() == pytest.approx((250 / 255 - 0.47) / 0.25)
    assert common.resnet(data, 0)(data.x_test).shape == (2, 6)


def test_intervals_are_those_of_student_and_of_clopper_and_pearson(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("common")
    found = common.over_seeds([1.0, 2.0, 3.0])  # 4.303 standard errors of 1 / sqrt(3)
    assert (found.mean, found.high - found.mean) == pytest.approx((2, 4.3027 / 3**0.5), rel=1e-4)
    assert common.share([False] * 8).high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert common.correlation([1, 2, 3, 4, 5], [1, 8, 27, 64, 125]).mean == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_calls_robust_holds_on_fresh_seeds(name, tmp_path, monkeypatch):
    found = run(name, tmp_path, monkeypatch)
    assert found["settings"]["fast"] is True
    STUDIES[name](found)


def test_every_study_is_run_and_has_a_row_in_the_docs():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"common"}
    assert files == set(STUDIES)
    page = (ROOT / "docs" / "studies.md").read_text("utf-8")
    assert all(f"examples/studies/{name}.py" in page for name in files)
