"""One learning rate rule, four depths
===================================

`fromage(net, lr="depth")` on the digits::

    python examples/fromage_depth.py            # a minute or two on one core

Plain ReLU networks of width 64 and depth 2 to 16, Kaiming weights and zero biases, 500 steps of 128
digits, every rate decayed to 0 along half a cosine, 3 seeds. Each optimizer keeps one setting for
all depths: Fromage the rule `lr="depth"`, a quarter of `2 ** (1 / depth) - 1`; SGD and Adam a usual
rate. The table shows the least and the greatest accuracy over the seeds.
"""

import argparse
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_landscape.fromage import fromage

DEPTHS = (2, 4, 8, 16)
OPTIMIZERS = {
    "Fromage, depth rule": lambda net: fromage(net, lr="depth"),
    "  without prefactor": lambda net: fromage(net, lr="depth", prefactor=False),
    "SGD .1, momentum .9": lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
    "Adam .001": lambda net: torch.optim.Adam(net.parameters(), 1e-3),
    "Adam .01": lambda net: torch.optim.Adam(net.parameters(), 1e-2),
}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1297 digits to train on and 500 to test, standardised."""
    data = load_digits()
    x = (torch.tensor(data.data, dtype=torch.float32) / 16 - 0.305) / 0.376
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return x[train], y[train], x[test], y[test]


def network(depth: int, width: int = 64) -> nn.Sequential:
    sizes = [64, *[width] * (depth - 1), 10]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(depth, name, seed, steps, data) -> tuple[float, float]:
    """Train one network; return its accuracy on the training and on the test digits."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    net = network(depth)
    optimizer = OPTIMIZERS[name](net)
    schedule = CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = [
            (net(a).argmax(1) == b).double().mean().item() for a, b in ((x, y), (x_test, y_test))
        ]
    return right[0], right[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    print("accuracy, least-greatest over seeds: train | test")
    print(" " * 20 + "".join(f"{f'depth {depth}':^24}" for depth in DEPTHS))
    for name in OPTIMIZERS:
        cells = []
        for depth in DEPTHS:
            runs = [train(depth, name, s, arguments.steps, data) for s in range(arguments.seeds)]
            columns = zip(*runs, strict=True)
            cells.append(" | ".join(f"{min(c):.2f}-{max(c):.2f}" for c in columns))
        print(f"{name:20}" + "".join(f"{cell:^24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = 'pictures/11-undoing.png'
