"""How likely is an asymmetric direction, in which networks, and when in training?

    python examples/studies/how_likely.py        # four minutes on one core

He, Huang, Yuan (2019), section 3.2 ("with decent probability"), and what its reviewers asked.
Digits with a fifth of the training labels drawn anew, SGD whose rate decays to 0, one change at a
time against a base of four layers of width 64 with batch norm and ReLU; 4 seeds, 8 directions.
Of Gaussian directions none to 3 % are asymmetric at the end, whatever the network, but for networks
of 2 units (12 % with batch norm, 31 % without); areas within .1 of 0. Along `uniform@norm` 88 to
100 % are in 9 of 11 networks with batch norm, 9 % with 2 units and 34 % with softplus (the others
are off-minimum there): area -.92 [-.94, -.90] in the base, from -.63 (width 8) to -1.00, -.31 with
2 units. At the start the same area is +1.00: that is the slope. Over-parameterised networks are
more lopsided along `sign` (-.99 at width 256, -.31 at 16, +.07 at 2), not along Gaussian
directions. Without batch norm most networks have a steep side along the paper's `uniform` (+.40
[.22, .57] in the base, +.98 with 9 layers), but seeds differ: 12 % of the directions in one, 100 %
in another.
"""

from __future__ import annotations

from common import bars, load, loss_fn, mlp, over_seeds, parse, publish, sgd, to_zero, train
from torch import nn

from lightning_landscape import probing, survey

FAMILIES = ("gaussian", "uniform", "sign", "uniform@norm")
NETWORKS = {
    "base": {},
    "width 2": {"width": 2},
    "width 8": {"width": 8},
    "width 16": {"width": 16},
    "width 256": {"width": 256},
    "2 layers": {"layers": 2},
    "9 layers": {"layers": 9},
    "GELU": {"activation": nn.GELU},
    "tanh": {"activation": nn.Tanh},
    "softplus": {"activation": nn.Softplus},
    "clean labels": {"noise": 0.0},
}
WHEN = ("at the start", "after a tenth", "at the end")
FAST = ("base", "width 8")


def measure(net, data, n_directions: int) -> dict:
    with probing(net, data.batches(128, 8), loss_fn=loss_fn) as objective:
        return survey(objective, FAMILIES, module=net, n_directions=n_directions)


def run(
    options, seed: int, norm: bool, noise: float = 0.2, **settings
) -> tuple[dict, float, float]:
    """The surveys at three moments, parameters per example, and the training accuracy."""
    data = load(options, seed, noise)
    net = mlp(data, seed, norm=norm, **settings)
    epochs = 15 if options.fast else 40
    found = {WHEN[0]: measure(net, data, options.directions)}

    def early(epoch: int) -> None:
        if epoch + 1 == epochs // 10:
            found[WHEN[1]] = measure(net, data, options.directions)

    optimizer = sgd(net, 0.1 if norm else 0.05)
    train(net, data, optimizer, epochs, seed, rate=to_zero, after_epoch=early)
    found[WHEN[2]] = measure(net, data, options.directions)
    right = (net(data.x).argmax(1) == data.y).double().mean().item()
    return found, sum(p.numel() for p in net.parameters()) / len(data.x), right


WHAT = {
    "area": ("median area", lambda found: found.area[0], -1.0),
    "rate": ("share of asymmetric directions", lambda found: found.rate["rate"], 0.0),
    "off": ("share off-minimum", lambda found: found.rate["off_minimum"], 0.0),
    "open": ("share unresolved", lambda found: found.rate["unresolved"], 0.0),
}


def row_of(name: str, norm: bool, runs: list, when: str, what: str) -> dict:
    """One network at one moment: an estimate a family."""
    _, value, least = WHAT[what]
    row = {
        "network": name,
        "batch norm": norm,
        "parameters per example": runs[0][1],
        "training accuracy at the end": over_seeds([right for *_, right in runs], most=1.0),
    }
    for family in FAMILIES:
        found = [value(surveys[when][family]) for surveys, *_ in runs if family in surveys[when]]
        if found:
            row[family] = over_seeds(found, least=least, most=1.0)
    return row


def draw(figure, rows: list[dict]) -> None:
    for axes, norm in zip(figure.subplots(1, 2), (True, False), strict=True):
        chosen = [row for row in rows if row["batch norm"] == norm]
        bars(axes, chosen, lambda row: row["network"], FAMILIES)
        axes.set(xlabel="median area at the end of training", xlim=(-1.05, 1.05))
        axes.set_title(f"{'with' if norm else 'without'} batch norm")
    figure.axes[0].legend(fontsize=7, frameon=False)


def main() -> None:
    options = parse(__doc__, seeds=4)
    options.directions = 4 if options.fast else 8
    runs = {}
    for name in FAST if options.fast else NETWORKS:
        for norm in (True, False):
            settings = NETWORKS[name]
            runs[name, norm] = [run(options, seed, norm, **settings) for seed in options.seeds]
            print(f"{name}, {'with' if norm else 'without'} batch norm: done", flush=True)
    tables = {
        f"{title}, {when}": [row_of(*key, found, when, what) for key, found in runs.items()]
        for what, (title, *_) in WHAT.items()
        for when in WHEN
    }
    at_end = tables["median area, at the end"]
    publish(options, "how_likely", tables, lambda figure: draw(figure, at_end))


if __name__ == "__main__":
    main()
