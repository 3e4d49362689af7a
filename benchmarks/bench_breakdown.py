"""What a gradient breakdown costs beside its bare gradient passes."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS
from rounds import Clock

from lightning_landscape import gradient_direction, measure_breakdown, probing
from lightning_landscape.measures.breakdown import DEFAULT_ETAS

ETAS = DEFAULT_ETAS["update"]
N_GRADIENTS = 1 + len(ETAS)


@pytest.mark.parametrize("name", NETWORKS)
def test_breakdown(benchmark, record, quick, name):
    """Six gradients in train mode, and what is computed from them."""
    network = NETWORKS[name]
    module, batch = network.module(), network.batch()
    twin, clock = copy.deepcopy(module), Clock()
    weights = list(twin.parameters())

    def gradients():
        for _ in range(N_GRADIENTS):
            torch.autograd.grad(twin.training_step(batch, 0), weights)

    with probing(module, [batch]) as objective:
        direction = gradient_direction(objective)
        jobs = {
            "bare": gradients,
            "breakdown": lambda: measure_breakdown(objective, direction, ETAS),
        }
        clock.beside(jobs)  # the first also looks at what a gradient writes
        clock.seconds.clear()
        rounds = network.rounds * (1 if quick else 5)
        benchmark.pedantic(lambda: clock.beside(jobs), rounds=rounds)
    record(f"{name}/train/breakdown", "x", **clock.ratio("breakdown", to="bare"))
