"""What does a step to either side cost on test, and what predicts the gain of averaging?

    python examples/studies/which_side.py        # two minutes on one core

He, Huang, Yuan (2019), Theorem 1 and section 5, and their reviewers: what does a biased solution do
in a symmetric valley, and does asymmetry say more than flatness? 64 runs that differ in label
noise, batch norm, width and seed; the gain is the test loss of the decayed weights minus that of
the average, batch-norm statistics re-estimated for both. With batch norm the side that is steep on
train costs more on test too, by .073 [.035, .11] where the area exceeds .6, and by .027 [-.016,
.07] where it is below .1. Without batch norm it is the other way round from .3 to .6: -.16 [-.24,
-.08]. The gain is .003 on clean labels, .36 [.31, .40] with 40 % wrong ones (.20 without batch
norm); .002 of it is in the statistics. Across runs distance (+.91 [.84, .94]) and label noise
(+.84) predict it best; width (-.67 [-.79, -.49]) and the size of Gaussian areas (-.75 [-.83, -.61])
about alike: the more lopsided the less gain, as for `uniform@norm` (+.78), against the paper's
picture. Between seeds of one setting width says a little (-.37 [-.55, -.10]).
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import torch
from common import (
    COLOURS,
    correlation,
    load,
    loss_fn,
    mlp,
    over_seeds,
    parse,
    publish,
    scores_on_test,
    train_and_average,
)
from torch.nn.functional import cross_entropy

from lightning_landscape import compare_ends, difference, evaluate_slice, line_grid, probing, survey

FAMILIES = ("gaussian", "uniform", "sign", "uniform@norm")
BINS = (0.0, 0.1, 0.3, 0.6, 1.0)


def run(options, seed: int, norm: bool, noise: float, width: int) -> dict:
    """What was measured at the decayed weights, and the gain of averaging."""
    data = load(options, seed, noise)
    epochs = 18 if options.fast else 45
    done = train_and_average(
        mlp(data, seed, norm=norm, width=width), data, 0.1 if norm else 0.05, epochs, seed
    )
    with torch.no_grad():
        running = cross_entropy(done.net.eval()(data.x_test), data.y_test).item()
    test, average = (scores_on_test(done.net, at, data)[0] for at in (done.decayed, done.average))
    train_batches, test_batches = data.batches(128, 8), data.batches(128, 4, test=True)
    flags = [False] * len(train_batches) + [True] * len(test_batches)
    found = {"gain": test - average, "gain from statistics": running - test, "label noise": noise}
    sides = []
    with probing(done.net, train_batches + test_batches, loss_fn=loss_fn) as objective:
        n = 4 if options.fast else 8
        surveys = survey(objective, FAMILIES, module=done.net, n_directions=n, validation=flags)
        toward = difference(done.average, done.decayed)
        line = compare_ends(evaluate_slice(objective, toward, line_grid(4.0)))
    for family, one in surveys.items():
        found[f"area, {family}"] = one.area[0]
        for score, line_on_test in zip(one.scores, one.validation, strict=True):
            rise = line_on_test.mean - line_on_test.mean[6]
            steep = 1 if score.area > 0 else -1
            sides.append((abs(score.area), *[float(rise[6 + s * 3 * steep]) for s in (1, -1)]))
    found["width, gaussian"] = surveys["gaussian"].rise_radius[0]
    found["abs area, gaussian"] = sum(abs(s.area) for s in surveys["gaussian"].scores) / n
    ratio = line.outward_ratio
    found["log outward ratio"] = math.log(ratio) if ratio > 0 else math.nan
    found["distance to the average"] = line.distance
    return {**found, "sides": sides}


def cost_by_area(runs: dict, seeds: range) -> list[dict]:
    """The test loss of a step to either side, by how lopsided the direction is on train."""
    rows = []
    for norm, (low, high) in product((True, False), pairwise(BINS)):
        steep, flat, n = [], [], 0
        for seed in seeds:
            mine = [found["sides"] for key, found in runs.items() if key[:2] == (seed, norm)]
            chosen = [side for sides in mine for side in sides if low <= side[0] <= high]
            n += len(chosen)
            if chosen:
                steep.append(sum(side[1] for side in chosen) / len(chosen))
                flat.append(sum(side[2] for side in chosen) / len(chosen))
        rows.append(
            {
                "batch norm": norm,
                "abs area on train": f"{low} to {high}",
                "directions": n,
                "test loss, steep side": over_seeds(steep),
                "flat side": over_seeds(flat),
                "steep minus flat": over_seeds([a - b for a, b in zip(steep, flat, strict=True)]),
            }
        )
    return rows


def predictors(runs: dict) -> list[dict]:
    """Spearman's correlation with the gain: over all runs, and between seeds of one setting."""
    rows = []
    names = [name for name in next(iter(runs.values())) if name not in ("sides", "gain")]
    for name in names:
        row = {"measured on train at the decayed weights": name}
        for title, wanted in {"all": None, "batch norm": True, "no batch norm": False}.items():
            keys = [k for k in runs if wanted in (None, k[1]) and name in runs[k]]
            if keys:
                values = [runs[k][name] for k in keys]
                row[title] = correlation(values, [runs[k]["gain"] for k in keys])
        inside = [
            (inner(runs, key, name), inner(runs, key, "gain")) for key in runs if name in runs[key]
        ]
        row["within a setting"] = correlation(*zip(*inside, strict=True))
        rows.append(row)
    return rows


def inner(runs: dict, key: tuple, name: str) -> float:
    """A value minus its mean over the seeds of the same setting."""
    same = [found[name] for other, found in runs.items() if other[1:] == key[1:]]
    return runs[key][name] - sum(same) / len(same)


def draw(figure, runs: dict, cost: list[dict]) -> None:
    left, right = figure.subplots(1, 2)
    for norm, label in ((True, "batch norm"), (False, "no batch norm")):
        colour = COLOURS[1 - norm]
        found = [found for key, found in runs.items() if key[1] == norm]
        width = [f["width, gaussian"] for f in found]
        left.plot(width, [f["gain"] for f in found], "o", color=colour, ms=4, label=label)
        rows = [row["steep minus flat"] for row in cost if row["batch norm"] == norm]
        ends = [[e.mean - e.low for e in rows], [e.high - e.mean for e in rows]]
        right.errorbar(range(len(rows)), [e.mean for e in rows], yerr=ends, color=colour, fmt="o-")
    left.set(xlabel="width along gaussian directions", ylabel="gain of averaging, test loss")
    right.set_xticks(range(len(BINS) - 1), [row["abs area on train"] for row in cost[:4]])
    right.set(xlabel="abs area on train", ylabel="test loss, steep minus flat side")
    left.legend(frameon=False)


def main() -> None:
    options = parse(__doc__, seeds=4)
    noises, widths = ((0.0, 0.4), (32,)) if options.fast else ((0.0, 0.1, 0.2, 0.4), (32, 128))
    settings = product(options.seeds, (True, False), noises, widths)
    runs = {key: run(options, *key) for key in settings}
    gains = []
    for norm, noise in product((True, False), noises):
        found = [run for key, run in runs.items() if key[1:3] == (norm, noise)]
        row = {"batch norm": norm, "label noise": noise}
        row |= {k: over_seeds([run[k] for run in found]) for k in ("gain", "gain from statistics")}
        gains.append({**row, "gain above 0": sum(r["gain"] > 0 for r in found), "of": len(found)})
    cost = cost_by_area(runs, options.seeds)
    names = ("seed", "batch norm", "noise", "width")
    single = [
        dict(zip(names, key, strict=True)) | {k: v for k, v in found.items() if k != "sides"}
        for key, found in runs.items()
    ]
    tables = {
        "single runs": single,
        "test loss of a step of .3 to either side, minus that at the weights": cost,
        "gain of averaging": gains,
        "correlation with the gain of averaging": predictors(runs),
    }
    publish(options, "which_side", tables, lambda figure: draw(figure, runs, cost))


if __name__ == "__main__":
    main()
