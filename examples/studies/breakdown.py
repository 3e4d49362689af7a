"""By how much does the gradient's change exceed the model of deep relative trust?

    python examples/studies/breakdown.py        # three minutes on one core

Bernstein, Vahdat, Yue, Liu (2020), figure 1, Lemma 2 and Algorithm 1, and their reviewers: other
optimizers than Fromage, batch norm, a network without breakdown, LARS. All steps are along the
layer-normalised gradient, in relative size. SGD takes a tenth of the rate at which its first step
breaks even, Fromage the depth rule, Adam .001; 240 steps, torch's initial weights, 3 seeds.
The model is exceeded at a step of .01 in every network, with every optimizer, at every moment: 1.6
to 230 times, 2.4 to 8 at the start. There is no network without breakdown here, and batch norm does
not bring it to 1. Lemma 2 promises too little at the start (.26 with 3 layers, .044 with 16; the
loss is back where it was at .46 to 1.8, and .19 to .42) and too much after training (there .013 to
.13, and .003 to .044). The prefactor keeps the norm: the first matrix of networks with batch norm
has 1.00 of its norm at the end, without prefactor what orthogonal steps give (1.66 with 3 layers,
1.01 with 16: the depth rule takes small steps); without batch norm norms grow with it too (1.57).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import torch
from common import (
    bars,
    break_even_rate,
    geometric,
    load,
    loss_fn,
    mlp,
    over_seeds,
    parse,
    publish,
    resnet,
    sgd,
    train,
)

from lightning_landscape import fromage, gradient_direction, measure_breakdown, probing

NETWORKS = {
    "3-layer MLP": partial(mlp, layers=3),
    "16-layer MLP": partial(mlp, layers=16),
    "residual MLP, 16": partial(mlp, layers=16, residual=True),
    "ResNet-16": resnet,
}
ETAS = [10 ** (k / 2 - 4) for k in range(10)]  # to 3.2
AT, SMALL = 4, 7  # the index of .01, and how many are at most .1


def plain_sgd(net, batches):
    """SGD without momentum, at a tenth of the rate at which the first step breaks even."""
    return sgd(net, 0.1 * break_even_rate(net, batches), momentum=0.0, decay=0.0)


OPTIMIZERS = {
    "SGD": plain_sgd,
    "Fromage": lambda net, batches: fromage(net, lr="depth"),
    "no prefactor": lambda net, batches: fromage(net, lr="depth", prefactor=False),
    "Adam": lambda net, batches: torch.optim.Adam(net.parameters(), 1e-3),
}


def run(options, seed: int, network: str, norm: bool, name: str) -> dict:
    """The breakdown at three moments; how the first matrix grew; the last accuracy."""
    data = load(options, seed)
    net, batches = NETWORKS[network](data, seed, norm=norm), data.batches(256, 1)
    optimizer, epochs, found = OPTIMIZERS[name](net, batches), 4 if options.fast else 12, {}

    def measure(when: str) -> None:
        with probing(net, batches, loss_fn=loss_fn) as objective:
            found[when] = measure_breakdown(objective, gradient_direction(objective), ETAS)

    def early(epoch: int) -> None:
        if epoch == 0:
            measure("after an epoch")

    matrix = next(p for p in net.parameters() if p.ndim > 1)
    before = matrix.norm().item()
    measure("at the start")
    train(net, data, optimizer, epochs, seed, after_epoch=early)
    measure("at the end")
    lr = optimizer.param_groups[0]["lr"]
    n_steps = epochs * (len(data.x) // 64)
    with torch.no_grad():
        right = (net(data.x).argmax(1) == data.y).double().mean().item()
    grown = matrix.norm().item() / before
    return {"found": found, "grown": grown, "free": math.sqrt(1 + lr**2) ** n_steps, "right": right}


def excess(found) -> float:
    """The largest breakdown over model of a layer, for a relative step of .01."""
    return found.excess[:, AT].max().item() if len(found.names) else math.nan


def exceeded(found) -> float:
    """The share of steps up to .1 at which some layer exceeds the model."""
    if not found.names:
        return math.nan
    return (found.excess[:, :SMALL].max(dim=0).values > 1).double().mean().item()


def draw(figure, by_time: list[dict]) -> None:
    for axes, norm in zip(figure.subplots(1, 2, sharex=True), (True, False), strict=True):
        chosen = [row for row in by_time if row["batch norm"] == norm]
        when = ["at the start", "after an epoch", "at the end"]
        bars(axes, chosen, lambda row: f"{row['network']}, {row['optimizer']}", when)
        axes.axvline(1, color="#999999", lw=0.8)
        axes.tick_params(axis="y", labelsize=7)
        axes.set(xscale="log", xlabel="breakdown / model, step .01")
        axes.set_title(f"{'with' if norm else 'without'} batch norm")
    figure.axes[1].legend(fontsize=7, frameon=False)


def main() -> None:
    options = parse(__doc__, seeds=3)
    networks = ["3-layer MLP"] if options.fast else list(NETWORKS)
    by_time, limits, growth = [], [], []
    for network, norm, name in product(networks, (True, False), OPTIMIZERS):
        runs = [run(options, seed, network, norm, name) for seed in options.seeds]
        key = {"network": network, "batch norm": norm, "optimizer": name}
        print(*key.values(), flush=True)
        times, limit = dict(key), dict(key)
        for when in runs[0]["found"]:
            found = [r["found"][when] for r in runs]
            times[when] = geometric([excess(f) for f in found])
            limit[f"promised, {when}"] = geometric([f.trust_lr for f in found])
            limit[f"measured, {when}"] = geometric([min(f.break_even, ETAS[-1]) for f in found])
        times["share of steps to .1 above the model"] = over_seeds(
            [exceeded(f) for r in runs for f in r["found"].values()], least=0, most=1
        )
        by_time.append(
            {**times, "training accuracy": over_seeds([r["right"] for r in runs], most=1)}
        )
        limits.append(limit)
        if name in ("Fromage", "no prefactor"):
            grown = geometric([r["grown"] for r in runs])
            free = geometric([r["free"] for r in runs]) if name == "no prefactor" else 1.0
            growth.append({**key, "norm of the first matrix": grown, "if orthogonal": free})

    tables = {
        "largest breakdown / model of a layer, relative step .01": by_time,
        "largest relative step: promised by Lemma 2, and where the loss is back": limits,
        "norm of the first matrix at the end, relative to the start": growth,
    }
    publish(options, "breakdown", tables, lambda figure: draw(figure, by_time))


if __name__ == "__main__":
    main()
