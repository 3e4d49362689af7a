"""How large a rate does plain SGD bear, and does the critical rate predict single steps?

    python examples/studies/learning_rates.py        # three minutes on one core

Asked by a reviewer of Bernstein et al. (2020): rates of their own for each network. The critical
rate is where a step down the gradient of a batch leaves its loss as it was. Training goes 6 epochs
at a multiple of the critical rate at the start; it is lost if it ends below .2 in accuracy. Torch's
initial weights, 3 seeds. It is a limit for shallow networks only: 3 layers are lost at 3 times it
in 6 of 6 runs and at a tenth in none, but at .3 already in 2 of 3 without batch norm. 16 layers
with batch norm or residuals train best at once to 3 times it (0 of 9 lost, accuracy .78 to .99 at
3 times) and are slow at a tenth (.51 to .88); 16 plain layers without batch norm train at no
multiple. With momentum .9, and lr / (1 - .9) in the place of lr, 3 layers bear about three times
more. Nor is it much of a warning for single steps: the loss of all data rose in 19 of 38 cases
after a step beyond the critical rate, and in 256 of 1204 after one within it.
"""

from __future__ import annotations

from functools import partial

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
    sgd,
    share,
    train,
)

from lightning_landscape import critical_rate, gradient_direction, measure_breakdown, probing

NETWORKS = {
    "3 layers": partial(mlp, layers=3, norm=False),
    "3 layers, batch norm": partial(mlp, layers=3),
    "16 layers": partial(mlp, layers=16, norm=False),
    "16 layers, batch norm": partial(mlp, layers=16),
    "16 residual": partial(mlp, layers=16, norm=False, residual=True),
    "16 residual, batch norm": partial(mlp, layers=16, residual=True),
}
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
EVERY = 5


def accuracy(net, data) -> float:
    with torch.no_grad():
        return (net(data.x).argmax(1) == data.y).double().mean().item()


def run(options, network: str, seed: int, factor: float, momentum: float) -> tuple[float, float]:
    """Accuracy after 6 epochs at a multiple of the critical rate at the start, and that rate."""
    data = load(options, seed)
    net = NETWORKS[network](data, seed)
    critical = break_even_rate(net, data.batches(64, 1))
    optimizer = sgd(net, factor * critical * (1 - momentum), momentum=momentum, decay=0.0)
    train(net, data, optimizer, 6, seed)
    return accuracy(net, data), critical


def steps(options, network: str, seed: int, factor: float) -> list[tuple[float, bool]]:
    """Every fifth step in units of its critical rate, and whether the loss then rose."""
    data = load(options, seed)
    net, whole, found = NETWORKS[network](data, seed), data.batches(len(data.x), 1), []
    lr = factor * break_even_rate(net, data.batches(64, 1))
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed + 1))
    before = float("nan")
    for k in range(40 if options.fast else 120):
        rows = order.roll(-64 * k)[:64]
        batch = data.x[rows], data.y[rows]
        if k % EVERY == 0:
            with torch.no_grad():
                now = loss_fn(net, whole[0]).item()
            if found:
                found[-1] = (found[-1][0], now > before)
            before = now
            with probing(net, [batch], loss_fn=loss_fn) as objective:
                gradient = gradient_direction(objective, normalize="none")
                step = {name: lr * g for name, g in gradient.items()}
                along = measure_breakdown(objective, step, [0.25, 0.5, 1, 2, 4, 8])
            found.append((lr / max(critical_rate(lr, along), 1e-12), False))
        gradients = torch.autograd.grad(loss_fn(net, batch), list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p -= lr * g
    return found[:-1]


def main() -> None:
    options = parse(__doc__, seeds=3)
    networks = list(NETWORKS)[:2] if options.fast else list(NETWORKS)
    factors = (0.1, 10.0) if options.fast else FACTORS
    rows, accuracies, single = [], [], []
    for network in networks:
        for momentum in (0.0,) if options.fast else (0.0, 0.9):
            row = {"network": network, "momentum": momentum}
            right = dict(row)
            for factor in factors:
                runs = [run(options, network, seed, factor, momentum) for seed in options.seeds]
                row["critical rate at the start"] = geometric([critical for _, critical in runs])
                row[f"lost at {factor:g}"] = sum(not a >= 0.2 for a, _ in runs)
                right[f"{factor:g}"] = over_seeds([a for a, _ in runs], least=0, most=1)
            rows.append({**row, "of": len(options.seeds)})
            accuracies.append(right)
            print(network, momentum, flush=True)
    for network in networks:
        for factor in (0.3,) if options.fast else (0.1, 0.3, 1.0):
            found = [s for seed in options.seeds for s in steps(options, network, seed, factor)]
            row = {"network": network, "rate, of the critical one at the start": factor}
            for name, inside in (("within", True), ("beyond", False)):
                flags = [rose for size, rose in found if (size <= 1) == inside]
                row[f"steps {name}"] = len(flags)
                if flags:
                    row[f"loss rose after {name}"] = share(flags)
            single.append(row)

    def draw(figure) -> None:
        axes = figure.subplots()
        plain = [row for row in accuracies if not row["momentum"]]
        bars(axes, plain, lambda row: row["network"], [f"{factor:g}" for factor in factors])
        axes.set(xlabel="training accuracy after 6 epochs", xlim=(0, 1.02))
        axes.legend(title="rate / critical rate at the start", fontsize=7, frameon=False)

    tables = {
        "runs lost, by the rate as a multiple of the critical rate at the start": rows,
        "training accuracy, by that multiple": accuracies,
        "single steps of plain SGD: whether the loss of all data rose over the next five": single,
    }
    publish(options, "learning_rates", tables, draw)


if __name__ == "__main__":
    main()
