"""What a plane costs beside the barest loop of its evaluations: opening and closing included."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import Classifier
from rounds import Clock
from torch import nn

from lightning_landscape import evaluate_plane, probing, symmetric_grid
from lightning_landscape.measures.plane import plane_through

N = 25
N_BATCHES, SIZE = 8, 64
LIMIT = 1.10
GRID = symmetric_grid(1.0, N)


def example() -> Classifier:
    """Return the network of `examples/noisy_digits.py`."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return Classifier(nn.Sequential(*layers, nn.Linear(64, 10)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_plane(benchmark, record, quick, mode):
    """25 x 25 points on 8 batches of 64, in one process, beside the loop on a twin."""
    module, clock = example(), Clock()
    x = torch.randn(N_BATCHES, SIZE, 64)
    batches = [(one, torch.randint(10, (SIZE,))) for one in x]
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    others = [{name: w + torch.randn_like(w) for name, w in weights.items()} for _ in range(2)]
    basis = plane_through(weights, *others)
    twin = copy.deepcopy(module).train(mode == "train")

    def plane():
        with probing(module, batches, mode=mode) as objective:
            evaluate_plane(objective, basis.d1, basis.d2, GRID, GRID)

    def loop():
        moved = [
            (p.data, weights[name], basis.d1[name], basis.d2[name])
            for name, p in twin.named_parameters()
        ]
        with torch.no_grad():
            for alpha1 in GRID.tolist():
                starts = [torch.add(start, d1, alpha=alpha1) for _, start, d1, _ in moved]
                for alpha2 in GRID.tolist():
                    for (weight, _, _, d2), start in zip(moved, starts, strict=True):
                        torch.add(start, d2, alpha=alpha2, out=weight)
                    for batch in batches:
                        float(twin.training_step(batch, 0))

    def one_round():
        clock.beside({"loop": loop, "plane": plane})

    one_round()  # to warm up
    clock.seconds.clear()
    benchmark.pedantic(one_round, rounds=3 if quick else 9)
    record(f"plane/{mode}", "x", limit=LIMIT, **clock.ratio("plane", to="loop"))
