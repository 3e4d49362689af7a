"""Is it the signs? Directions that agree with the weights in sign, and how batch norm starts.

    python examples/studies/signs.py        # a minute on one core

Li, Tang, Zhang, Li, Zhan (2024), arXiv:2405.12489: noise that has the weights' signs shows a flat
side. A growing share of the entries of Gaussian directions is given the sign of its weight; and
the gains of batch norm start at 1, from U(0, 1) or from N(0, 0.1). Dose and response are monotonous
in every group: area .03, -.08, -.21, -.37, -.63 [-.67, -.59] as 0 to 100 % agree, -.89 for the
gains alone, -.27 [-.33, -.20] without batch norm. Gains that start as N(0, 0.1) end half negative
and train nearly as well (accuracy .98, else .99 to 1). Then `uniform@norm` is nearly symmetric,
-.13 [-.21, -.05] in place of -.93, but `sign@norm` is as lopsided as ever, -.85: a gain is cheaper
to grow than to shrink, whatever its sign. 5 seeds.
"""

from __future__ import annotations

import torch
from common import (
    COLOURS,
    bars,
    load,
    loss_fn,
    mlp,
    over_seeds,
    parse,
    publish,
    sgd,
    to_zero,
    train,
)
from torch import nn

from lightning_landscape import (
    evaluate_slice,
    probing,
    sample_direction,
    score_asymmetry,
    survey,
    symmetric_grid,
)

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)
GROUPS = ("gaussian", "gaussian@norm", "gaussian@other")
STARTS = {
    "ones": nn.init.ones_,
    "U(0, 1)": nn.init.uniform_,
    "N(0, 0.1)": lambda gain: nn.init.normal_(gain, std=0.1),
}


def trained(options, seed: int, norm: bool, start=nn.init.ones_):
    data = load(options, seed, noise=0.2)
    net = mlp(data, seed, norm=norm)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            start(module.weight)
    optimizer = sgd(net, 0.1 if norm else 0.05)
    train(net, data, optimizer, 15 if options.fast else 40, seed, rate=to_zero)
    return net, data


def doses(options, seed: int, norm: bool) -> dict[tuple[str, float], float]:
    """The mean area by group and by the share of signs that agree, on the same noise."""
    net, data = trained(options, seed, norm)
    found: dict[tuple[str, float], list[float]] = {}
    with probing(net, data.batches(128, 8), loss_fn=loss_fn) as objective:
        at = objective.params
        for group in GROUPS if norm else GROUPS[:1]:
            generator = torch.Generator().manual_seed(seed)
            for _ in range(2 if options.fast else 6):
                noise = sample_direction(at, group, module=net, generator=generator)
                lot = {n: torch.rand(d.shape, generator=generator) for n, d in noise.items()}
                for dose in DOSES:
                    direction = {
                        n: torch.where(lot[n] < dose, d.abs() * at[n].sign(), d)
                        for n, d in noise.items()
                    }
                    line = evaluate_slice(objective, direction, symmetric_grid(0.6, 13))
                    found.setdefault((group, dose), []).append(score_asymmetry(line).area)
    return {key: sum(areas) / len(areas) for key, areas in found.items()}


def starts(options) -> list[dict]:
    rows = []
    for name, start in STARTS.items():
        row: dict[str, list] = {}
        for seed in options.seeds:
            net, data = trained(options, seed, True, start)
            with probing(net, data.batches(128, 8), loss_fn=loss_fn) as objective:
                families = ("gaussian@norm", "uniform@norm", "sign@norm")
                n = 4 if options.fast else 8
                for family, one in survey(objective, families, module=net, n_directions=n).items():
                    row.setdefault(family, []).append(one.area[0])
            gains = [m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
            positive = (torch.cat(gains) > 0).double().mean().item()
            row.setdefault("gains above 0", []).append(positive)
            right = (net(data.x).argmax(1) == data.y).double().mean().item()
            row.setdefault("training accuracy", []).append(right)
        rows.append(
            {"gains start as": name, **{k: over_seeds(v, least=-1, most=1) for k, v in row.items()}}
        )
    return rows


def main() -> None:
    options = parse(__doc__)
    rows = []
    for norm in (True, False):
        runs = [doses(options, seed, norm) for seed in options.seeds]
        for group in dict.fromkeys(group for group, _ in runs[0]):
            row = {"batch norm": norm, "noise on": group}
            for dose in DOSES:
                areas = [run[group, dose] for run in runs]
                row[f"{dose:.0%} agree"] = over_seeds(areas, least=-1, most=1)
            rows.append(row)
    initial = starts(options)

    def draw(figure) -> None:
        left, right = figure.subplots(1, 2)
        for colour, row in zip(COLOURS, rows, strict=False):
            found = [row[f"{dose:.0%} agree"] for dose in DOSES]
            ends = [[e.mean - e.low for e in found], [e.high - e.mean for e in found]]
            label = f"{row['noise on']}, {'with' if row['batch norm'] else 'without'} batch norm"
            left.errorbar(DOSES, [e.mean for e in found], yerr=ends, color=colour, label=label)
        left.set(xlabel="share of signs that agree with the weight", ylabel="area")
        left.legend(fontsize=7, frameon=False)
        families = ["gaussian@norm", "uniform@norm", "sign@norm"]
        bars(right, initial, lambda row: row["gains start as"], families)
        right.set(xlabel="median area", title="How the gains of batch norm start")
        right.legend(fontsize=7, frameon=False)

    tables = {"area by the share of signs that agree": rows, "by how the gains start": initial}
    publish(options, "signs", tables, draw)


if __name__ == "__main__":
    main()
