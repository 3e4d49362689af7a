"""What the studies share: data, networks, training, intervals, and the files they write."""

from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from lightning_landscape import (
    SWA,
    Params,
    gradient_direction,
    measure_breakdown,
    probing,
    recalibrate_batch_norm,
)

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


# ---------------------------------------------------------------------------------- intervals
@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and the values it is of."""

    mean: float
    low: float
    high: float
    values: Sequence[float]

    def __str__(self) -> str:
        if math.isnan(self.low):
            return _short(self.mean)
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"


def over_seeds(values: Sequence[float], *, least: float = -math.inf, most: float = math.inf):
    """The mean over seeds with Student's interval, cut to the values that are possible."""
    found = np.array([v for v in values if math.isfinite(v)])
    if len(found) < 2:
        return Estimate(float(found.mean()) if len(found) else math.nan, math.nan, math.nan, values)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    middle = float(found.mean())
    return Estimate(middle, max(middle - half, least), min(middle + half, most), values)


def geometric(values: Sequence[float]) -> Estimate:
    """The geometric mean over seeds, for positive numbers that span orders of magnitude."""
    logs = over_seeds([math.log(v) if v > 0 else math.nan for v in values])
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), values)


def share(flags: Sequence[bool]) -> Estimate:
    """How many of some runs, with the exact interval for independent ones."""
    found = stats.binomtest(sum(flags), len(flags)).proportion_ci()
    values = [float(flag) for flag in flags]
    return Estimate(sum(flags) / len(flags), found.low, found.high, values)


def correlation(x: Sequence[float], y: Sequence[float], n_draws: int = 1000) -> Estimate:
    """Spearman's correlation over runs, with a bootstrap interval over the runs."""
    both = np.array([(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a + b)])
    ranks = stats.rankdata(both, axis=0) if len(both) else both  # infinite ones are the highest
    if len(both) < 4 or not np.ptp(ranks, axis=0).all():
        return Estimate(math.nan, math.nan, math.nan, [])
    draws = np.random.default_rng(0).integers(len(both), size=(n_draws, len(both)))
    drawn = [stats.rankdata(ranks[draw], axis=0) for draw in draws]
    found = [np.corrcoef(r.T)[0, 1] for r in drawn if np.ptp(r, axis=0).all()]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(np.corrcoef(ranks.T)[0, 1]), float(low), float(high), [])


# --------------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class Data:
    """Training and test examples as flat rows, and the shape of one as an image."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    shape: tuple[int, int, int]

    def batches(self, size: int, n: int, *, test: bool = False) -> list[tuple[Tensor, Tensor]]:
        """The first batches of the training or the test examples."""
        x, y = (self.x_test, self.y_test) if test else (self.x, self.y)
        return list(zip(x.split(size)[:n], y.split(size)[:n], strict=True))


def load(options: argparse.Namespace, seed: int, noise: float = 0.0) -> Data:
    """Digits, or the user's CIFAR; a share of the training labels is drawn anew."""
    if options.data:
        x, y, x_test, y_test, shape = *_cifar(options.data), (3, 32, 32)
    else:
        x, y = load_digits(return_X_y=True)
        x, x_test, y, y_test = train_test_split(
            (x / 16 - 0.305) / 0.376, y, test_size=500, stratify=y, random_state=seed
        )
        shape = (1, 8, 8)
    x, x_test = (torch.tensor(a, dtype=torch.float32) for a in (x, x_test))
    y, y_test = torch.tensor(y), torch.tensor(y_test)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(y), generator=generator) < noise
    drawn = torch.randint(int(y.max()) + 1, y.shape, generator=generator)
    return Data(x, torch.where(chosen, drawn, y), x_test, y_test, shape)


def _cifar(folder: Path) -> tuple[np.ndarray, ...]:
    """CIFAR-10 or CIFAR-100, the folder that the archive of the Python version unpacks to."""
    hundred = (folder / "train").exists()
    train = ["train"] if hundred else [f"data_batch_{k}" for k in range(1, 6)]
    label = b"fine_labels" if hundred else b"labels"

    def read(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        x = np.concatenate([part[b"data"] for part in parts]) / 255
        return (x - 0.47) / 0.25, np.concatenate([part[label] for part in parts])

    return *read(train), *read(["test" if hundred else "test_batch"])


# ----------------------------------------------------------------------------------- networks
class Residual(nn.Module):
    """Adds to its input what some layers make of it."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def mlp(
    data: Data,
    seed: int,
    *,
    layers: int = 4,
    width: int = 64,
    norm: bool = True,
    activation: type[nn.Module] = nn.ReLU,
    residual: bool = False,
) -> nn.Sequential:
    """A fully connected network with so many weight matrices."""
    torch.manual_seed(seed)
    sizes = [data.x.shape[1], *[width] * (layers - 1)]
    blocks: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        block = [nn.Linear(n_in, n_out, bias=not norm)]
        block += [nn.BatchNorm1d(n_out), activation()] if norm else [activation()]
        blocks += [Residual(*block)] if residual and n_in == n_out and blocks else block
    return nn.Sequential(*blocks, nn.Linear(sizes[-1], int(data.y.max()) + 1))


def resnet(data: Data, seed: int, *, channels: int = 8, norm: bool = True) -> nn.Sequential:
    """A residual network of 16 layers: a convolution, seven blocks of two, and a linear one."""
    torch.manual_seed(seed)

    def conv(n_in: int) -> list[nn.Module]:
        return [
            nn.Conv2d(n_in, channels, 3, padding=1, bias=not norm),
            nn.BatchNorm2d(channels) if norm else nn.Identity(),
        ]

    blocks = [Residual(*conv(channels), nn.ReLU(), *conv(channels)) for _ in range(7)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, int(data.y.max()) + 1)]
    return nn.Sequential(
        nn.Unflatten(1, data.shape), *conv(data.shape[0]), nn.ReLU(), *blocks, *head
    )


def loss_fn(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights by name: what `at=` takes, and what `SWA.weights` is."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def between(a: Params, b: Params, t: float = 0.5) -> dict[str, Tensor]:
    """The point of the line from `a` (t = 0) to `b` (t = 1)."""
    return {name: a[name] + t * (b[name] - a[name]) for name in a}


# ----------------------------------------------------------------------------------- training
def train(
    net: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    *,
    rate: Callable[[float], float] = lambda done: 1.0,
    batch_size: int = 64,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a network; `rate` of the share that is done multiplies the first learning rate."""
    generator = torch.Generator().manual_seed(seed)
    first = [group["lr"] for group in optimizer.param_groups]
    n_steps = len(data.x) // batch_size
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data.x), generator=generator)
        for k, rows in enumerate(order.split(batch_size)[:n_steps]):
            for group, lr in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = lr * rate((epoch + k / n_steps) / epochs)
            optimizer.zero_grad()
            loss_fn(net, (data.x[rows], data.y[rows])).backward()
            optimizer.step()
            after_step(epoch * n_steps + k)
        after_epoch(epoch)


def to_zero(done: float) -> float:
    """Constant for the first half, then half a cosine to 0."""
    return 1.0 if done < 0.5 else 0.5 + 0.5 * math.cos(2 * math.pi * (done - 0.5))


def sgd(net: nn.Module, lr: float, *, decay: float = 5e-4, momentum: float = 0.9):
    return torch.optim.SGD(net.parameters(), lr, momentum=momentum, weight_decay=decay)


def break_even_rate(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The rate at which a step down the gradient leaves the loss of the batches as it was."""
    with probing(net, batches, loss_fn=loss_fn) as objective:
        losses, gradient = objective.gradient()
        # with it a linear loss would fall to 0; far below it the fall is lost in rounding
        scale = float(losses.mean()) / sum(float(g.square().sum()) for g in gradient.values())
        rates = [scale * 10 ** (k / 4 - 3) for k in range(25)]
        down = gradient_direction(objective, normalize="none")
        return measure_breakdown(objective, down, rates).break_even


@dataclass(frozen=True)
class Averaged:
    """One training: weights at its start, at the end of the constant rate, averaged, decayed."""

    net: nn.Module
    start: Params
    last: Params
    average: Params
    decayed: Params


def train_and_average(
    net: nn.Module, data: Data, lr: float, epochs: int, seed: int, decay: float = 5e-4
) -> Averaged:
    """Two thirds of the epochs at a constant rate, averaged after the first third; then to 0."""
    swa, start, constant = SWA(), weights(net), epochs * 2 // 3

    def update(epoch: int) -> None:
        if epoch >= constant // 3:
            swa.update(net)

    optimizer = sgd(net, lr, decay=decay)
    train(net, data, optimizer, constant, seed, after_epoch=update)
    last = weights(net)

    def cosine(done: float) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * done)

    train(net, data, optimizer, epochs - constant, seed + 1, rate=cosine)
    return Averaged(net, start, last, swa.weights, weights(net))


def scores_on_test(net: nn.Module, params: Params, data: Data) -> tuple[float, float]:
    """Test loss and accuracy at some weights, batch-norm statistics re-estimated for them."""
    twin = copy.deepcopy(net)
    twin.load_state_dict(dict(params), strict=False)
    recalibrate_batch_norm(twin, data.batches(128, 10))
    with torch.no_grad():
        logits = twin.eval()(data.x_test)
    right = (logits.argmax(1) == data.y_test).double().mean().item()
    return F.cross_entropy(logits, data.y_test).item(), right


# -------------------------------------------------------------------------------------- files
def parse(doc: str, *, seeds: int = 5) -> argparse.Namespace:
    """The settings that all studies have; `seeds` of the result are those to run."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="fewer settings, seeds and epochs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, help=f"how many seeds (default: {seeds}; fast: 2)")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 or -100, unpacked (pickles)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    number = options.seeds or (2 if options.fast else seeds)
    options.seeds = range(options.seed, options.seed + number)
    torch.set_num_threads(1)  # networks this small are fastest on one
    return options


Row = Mapping[str, Any]


def publish(
    options: argparse.Namespace,
    name: str,
    tables: Mapping[str, Sequence[Row]],
    draw: Callable[[Figure], None],
) -> None:
    """Print tables; write them as `name.json` and a figure as `name.png`."""
    for title, rows in tables.items():
        print(f"\n{title}\n\n{_markdown(rows)}")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "fast": options.fast,
        "seeds": list(options.seeds),
        "data": str(options.data or "digits"),
    }
    found = {"study": name, "settings": settings, "tables": _plain(tables)}
    (options.out / f"{name}.json").write_text(as_json(found))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    draw(figure)
    figure.savefig(options.out / f"{name}.png", dpi=100)
    print(f"\nwritten: {options.out / name}.json and .png")


def as_json(found: Mapping[str, Any]) -> str:
    """JSON with a line a row, so that two runs can be compared."""
    head = json.dumps({key: found[key] for key in ("study", "settings")})
    tables = [
        json.dumps(title)
        + ": [\n"
        + ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        + "]"
        for title, rows in found["tables"].items()
    ]
    return head[:-1] + ', "tables": {\n' + ",\n".join(tables) + "}}\n"


def bars(
    axes: Any, rows: Sequence[Row], label: Callable[[Row], str], columns: Sequence[str]
) -> None:
    """Plot estimates with their intervals, a line a row and a colour a column."""
    for k, column in enumerate(columns):
        known = [(i, row[column]) for i, row in enumerate(rows) if column in row]
        places = [i + 0.15 * (k - (len(columns) - 1) / 2) for i, _ in known]
        middle = [e.mean for _, e in known]
        ends = [
            [max(e.mean - e.low, 0) for _, e in known],
            [max(e.high - e.mean, 0) for _, e in known],
        ]
        axes.errorbar(middle, places, xerr=ends, fmt="o", ms=4, color=COLOURS[k], label=column)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _markdown(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *[[_cell(row.get(column, "")) for column in columns] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    """Two decimals where they say something, else two or three digits."""
    if value == 0 or 0.095 < abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2g}"


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: null for what is not finite."""
    if isinstance(value, Estimate):
        return {k: _plain(getattr(value, k)) for k in ("mean", "low", "high", "values")}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
