"""What the defaults of a probe cost in accuracy: the numbers of a few points beside those of many.

python benchmarks/defaults.py                  # measures, about ten minutes; writes defaults.json
python benchmarks/defaults.py --table docs/defaults.md

Three networks are trained on digits: that of `examples/noisy_digits.py`, a convolutional one with
batch norm, and a plain one with tanh. At their last weights the losses along 32 directions a family
are measured at 49 points on 19 batches of 64. A setting takes some of these points, batches and
directions, at random; its area, ratio and rate are compared with those of all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_landscape import (
    AsymmetryRate,
    Slice,
    evaluate_slice,
    probing,
    sample_direction,
    score_asymmetry,
    symmetric_grid,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from noisy_digits import Digits, noisy_digits

HERE = Path(__file__).parent
STORED = HERE / "defaults.json"
FAMILIES = ("gaussian", "uniform@norm", "sign")
N_DIRECTIONS, GRID, DRAWS = 32, symmetric_grid(0.6, 49), 200
SETTINGS = [  # directions, points, batches: about as many forward passes a family
    (8, 13, 2), (8, 9, 3), (6, 9, 4), (4, 13, 4), (8, 5, 5), (5, 5, 8), (3, 9, 8), (16, 13, 1),
    (8, 13, 4), (8, 9, 6), (6, 9, 8), (12, 9, 4), (10, 5, 8), (8, 13, 8), (8, 9, 12),
]  # fmt: skip


class Plain(Digits):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(64, 64), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))


class Convolutional(Digits):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
        for inputs, outputs in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


NETWORKS = {"noisy_digits": Digits, "convolutional": Convolutional, "plain tanh": Plain}


def slices_of(network: type[Digits], seed: int, epochs: int) -> dict[str, list[Slice]]:
    """Train a network and return whole slices of each family at its last weights."""
    seed_everything(seed, verbose=False)
    train, _ = noisy_digits(seed)
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    module = network()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=epochs, enable_model_summary=False, **quiet).fit(module, loader)
    batches = list(loader)[:19]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Slice]] = {}
    step = lambda module, batch: F.cross_entropy(module.net(batch[0]), batch[1])  # noqa: E731
    with probing(module, batches, loss_fn=step) as objective:
        for family in FAMILIES:
            if family.endswith("norm") and network is Plain:
                continue
            found[family] = [
                evaluate_slice(
                    objective,
                    sample_direction(objective.params, family, module=module, generator=generator),
                    GRID,
                )
                for _ in range(N_DIRECTIONS)
            ]
    return found


def numbers(slices: list[Slice]) -> dict[str, float]:
    """Return the median area and ratio, the rate, and the share that is unresolved."""
    scores = [score_asymmetry(line) for line in slices]
    rate = AsymmetryRate(sync_on_compute=False)
    for score in scores:
        rate.update(score)
    verdicts = [score.verdict for score in scores]
    area = torch.tensor([score.area for score in scores]).median()
    ratio = torch.tensor([score.ratio for score in scores]).median()
    return {
        "area": float(area),
        "log ratio": math.log10(min(max(float(ratio), 1e-2), 1e3)),
        "rate": float(rate.compute()["rate"]),
        "unresolved": verdicts.count("unresolved") / len(verdicts),
    }


def part_of(line: Slice, n_points: int, batches: torch.Tensor) -> Slice:
    """Return a slice at fewer points and on fewer batches."""
    every = (len(GRID) - 1) // (n_points - 1)
    return replace(line, alphas=line.alphas[::every], losses=line.losses[::every][:, batches])


def compare(slices: list[Slice], generator: torch.Generator) -> dict[str, dict[str, list[float]]]:
    """Return how far each setting is from the whole, draw by draw."""
    whole = numbers(slices)
    n_batches = slices[0].losses.shape[1]
    found: dict[str, dict[str, list[float]]] = {}
    for n_directions, n_points, n in SETTINGS:
        rows: dict[str, list[float]] = {name: [] for name in whole}
        for _ in range(DRAWS):
            batches = torch.randperm(n_batches, generator=generator)[:n]
            own = torch.randperm(len(slices), generator=generator)[:n_directions].tolist()
            part = numbers([part_of(slices[k], n_points, batches) for k in own])
            for name, value in part.items():
                off = 0.0 if name == "unresolved" else whole[name]
                rows[name].append(value - off)
        found[f"{n_directions} x {n_points} x {n}"] = rows
    return found


def measure(seeds: int, epochs: int) -> dict[str, Any]:
    """Return bias and spread of each setting, over networks, seeds and draws."""
    generator = torch.Generator().manual_seed(0)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, network in NETWORKS.items():
        rows: dict[str, dict[str, list[list[float]]]] = {}
        for seed in range(seeds):
            for family, slices in slices_of(network, seed, epochs).items():
                for setting, columns in compare(slices, generator).items():
                    for what, values in columns.items():
                        key = f"{name}, {family}"
                        rows.setdefault(f"{key}|{setting}", {}).setdefault(what, []).append(values)
        for key, columns in rows.items():
            table[key] = {}
            for what, runs in columns.items():
                values = torch.tensor(runs)
                table[key][what] = round(float(values.mean()), 4)
                table[key][f"{what} spread"] = round(float(values.var(dim=1).mean().sqrt()), 4)
        print(name, "done", flush=True)
    return {"seeds": seeds, "epochs": epochs, "draws": DRAWS, "table": table}


def write_table(path: Path, found: dict[str, Any]) -> None:
    """Replace what stands between the markers of a page by the means over networks and families."""
    rows: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for key, row in found["table"].items():
        where, setting = key.split("|")
        rows.setdefault(setting, []).append((where, row))
    lines = [
        "| directions x points x batches | passes a family | area: bias, spread | ratio: factor "
        "| rate: bias, spread | unresolved along gaussian | along others |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, measured in rows.items():
        passes = math.prod(int(n) for n in setting.split(" x "))
        gaussian = [row["unresolved"] for where, row in measured if where.endswith("gaussian")]
        others = [row["unresolved"] for where, row in measured if not where.endswith("gaussian")]
        mean = {
            name: statistics.fmean(abs(row[name]) for _, row in measured) for name in measured[0][1]
        }
        lines.append(
            f"| {setting} | {passes} | {mean['area']:.3f}, {mean['area spread']:.3f} "
            f"| {10 ** mean['log ratio']:.2f} | {mean['rate']:.2f}, {mean['rate spread']:.2f} "
            f"| {statistics.fmean(gaussian):.0%} | {statistics.fmean(others):.0%} |"
        )
    text = path.read_text()
    before, _, rest = text.partition("<!-- measured -->\n")
    after = rest.partition("<!-- end -->")[2]
    table = "\n".join(lines)
    path.write_text(f"{before}<!-- measured -->\n{table}\n<!-- end -->{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table, measure not")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        write_table(args.table, json.loads(STORED.read_text()))
        return
    STORED.write_text(json.dumps(measure(args.seeds, args.epochs), indent=1) + "\n")


if __name__ == "__main__":
    main()
