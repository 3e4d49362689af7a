"""What slices through `probing` cost beside the barest loop that moves the weights; and peers."""

from __future__ import annotations

import copy
import statistics
import warnings
from contextlib import ExitStack

import networks
import peers
import pytest
import torch
from networks import NETWORKS
from rounds import Clock

from lightning_landscape import evaluate_slice, probing, sample_direction, symmetric_grid

N_DIRECTIONS, N_POINTS = 10, 21
GRID = symmetric_grid(0.6, N_POINTS)
CASES = [(name, "eval") for name in NETWORKS]
CASES += [(name, "train") for name, network in NETWORKS.items() if network.has_batch_norm]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_slices(benchmark, record, quick, name, mode):
    """210 evaluations; each slice of 21 beside as many bare passes of a twin, moved and not."""
    network = NETWORKS[name]
    module, batch = network.module(), network.batch()
    generator = torch.Generator().manual_seed(0)
    forwards, moves = bare(module, batch, mode), moving(module, batch, mode)
    clock = Clock()

    def one_round(n_directions):
        with ExitStack() as stack:
            with clock("open"):
                objective = stack.enter_context(probing(module, [batch], mode=mode))
            with clock("learn"):
                objective.prepare()
            for k in range(n_directions):
                with clock("draw"):
                    direction = sample_direction(
                        objective.params, "gaussian", module=module, generator=generator
                    )
                walk = lambda d=direction: evaluate_slice(objective, d, GRID)  # noqa: E731
                if k == 0:  # it looks at what its first point that is moved writes
                    with clock("first"):
                        walk()
                else:
                    clock.beside({"bare": forwards, "moving": moves, "slice": walk})
            with clock("close"):
                stack.close()

    one_round(2)  # to warm up
    clock.seconds.clear()
    n_directions, rounds = (3, network.rounds * 3 // 2) if quick else (N_DIRECTIONS, network.rounds)
    benchmark.pedantic(one_round, (n_directions,), rounds=rounds)
    slices = clock.ratio("slice", to="bare")
    parts = in_forwards(clock)
    opening, learning = parts["open"] + parts["close"], parts["learn"] + parts["first slice"]
    n = N_DIRECTIONS * N_POINTS
    every = slices["value"] + (opening + learning + N_DIRECTIONS * parts["draw"]) / n
    key = f"{name}/{mode}"
    record(f"{key}/slices", "x", **slices)
    beside = clock.ratio("slice", to="moving")
    record(f"{key}/beside moving", "x", limit=network.limit, **beside)
    record(f"{key}/open and close", "forwards", opening, 10.0)
    record(f"{key}/learn", "forwards", learning)
    record(f"{key}/draw", "forwards", parts["draw"])
    record(f"{key}/all", "x", every)


def in_forwards(clock):
    """Return the median of each part of a probe, in bare forward passes.

    To learn is two evaluations and a look at what they wrote; "first slice" is what the first takes
    longer than others, which is a third look.
    """
    median = {what: statistics.median(seconds) for what, seconds in clock.seconds.items()}
    median["first slice"] = max(0.0, median["first"] - median["slice"])
    forward = median["bare"] / N_POINTS
    parts = ("open", "learn", "first slice", "close", "draw")
    return {what: median[what] / forward for what in parts}


def bare(module, batch, mode):
    """Return as many forward passes of a copy as a slice has points."""
    twin = copy.deepcopy(module).train(mode == "train")

    def forwards():
        with torch.no_grad():
            for _ in range(N_POINTS):
                twin.training_step(batch, 0)

    return forwards


def moving(module, batch, mode):
    """Return the barest loop along a direction: nothing is kept, and nothing put back."""
    twin = copy.deepcopy(module).train(mode == "train")
    weights = [parameter.data for parameter in twin.parameters()]
    start = [weight.clone() for weight in weights]
    steps = [torch.randn_like(weight) for weight in weights]

    def loop():
        with torch.no_grad():
            for alpha in GRID:
                for weight, origin, step in zip(weights, start, steps, strict=True):
                    torch.add(origin, step, alpha=alpha, out=weight)
                float(twin.training_step(batch, 0))

    return loop


@pytest.mark.parametrize("name", NETWORKS)
def test_peers(benchmark, record, quick, name):
    """A direction drawn and its slice evaluated by each."""
    others = peers.installed()
    if quick or not others:
        pytest.skip("peers are for the full run, with the extra `benchmarks` installed")
    network = NETWORKS[name]
    module, batch = network.module(), network.batch()
    forwards, clock = bare(module, batch, "eval"), Clock()
    net = copy.deepcopy(module.net).eval()
    walks = {peer: lambda walk=walk: walk(net, batch, N_POINTS) for peer, walk in others.items()}

    def one_round():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clock.beside({"bare": forwards, **walks})

    one_round()
    clock.seconds.clear()
    benchmark.pedantic(one_round, rounds=10 * network.rounds // 2)
    for peer in walks:
        record(f"{name}/eval/{peer}", "x", **clock.ratio(peer, to="bare"))


def test_drawing(benchmark, record):
    """A filter-normalised direction of 5.8 million parameters."""
    module = networks.Classifier(networks.mlp(*[512] * 23))
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    clock = Clock()

    def draw():
        with clock("draw"):
            sample_direction(weights, "gaussian", module=module, generator=generator)

    benchmark.pedantic(draw, rounds=15, warmup_rounds=2)
    median, least = (1e3 * of(clock.seconds["draw"]) for of in (statistics.median, min))
    record("5.8M/draw", "ms", least, 25.0, median=median)
