"""Does the asymmetry come from weight decay, or from a loss without its penalty?

    python examples/studies/weight_decay.py        # a minute or two on one core

Asked by a reviewer of He, Huang, Yuan (2019). Every network is trained with and without weight
decay, and scored twice: by the loss of the data, and by that loss plus half the decay times the
squared norm of the weights. Neither: trained without decay `uniform@norm` has area -.92 [-.94,
-.90], with it -.93 [-.95, -.91]. The penalty in the loss weakens it by .12 [.10, .13] (`sign` by
.18 [.16, .20]) and flips no area; Gaussian directions change by .003 at most. 5 seeds.
"""

from __future__ import annotations

from common import bars, load, loss_fn, mlp, over_seeds, parse, publish, sgd, to_zero, train

from lightning_landscape import probing, survey

DECAY = 5e-4
FAMILIES = ("gaussian", "uniform", "sign", "uniform@norm")


def penalised(module, batch):
    """The loss of the data plus the penalty whose gradient weight decay is."""
    return loss_fn(module, batch) + DECAY / 2 * sum(p.square().sum() for p in module.parameters())


def run(options, seed: int, norm: bool, decay: float) -> dict[str, dict]:
    """The surveys of one trained network, without and with the penalty."""
    data = load(options, seed, noise=0.2)
    net = mlp(data, seed, norm=norm)
    optimizer = sgd(net, 0.1 if norm else 0.05, decay=decay)
    train(net, data, optimizer, 15 if options.fast else 40, seed, rate=to_zero)
    found = {}
    for name, step in (("data", loss_fn), ("data + penalty", penalised)):
        with probing(net, data.batches(128, 8), loss_fn=step) as objective:
            n = 4 if options.fast else 8
            found[name] = survey(objective, FAMILIES, module=net, n_directions=n)
    return found


def main() -> None:
    options = parse(__doc__)
    areas, rates, changes = [], [], []
    for norm in (True, False):
        for decay in (DECAY, 0.0):
            runs = [run(options, seed, norm, decay) for seed in options.seeds]
            key = {"batch norm": norm, "decay in training": decay}
            change = {}
            for scored in runs[0]:
                area, rate = {}, {}
                for family in runs[0][scored]:
                    found = [run[scored][family] for run in runs]
                    area[family] = over_seeds([s.area[0] for s in found], least=-1, most=1)
                    rate[family] = over_seeds([s.rate["rate"] for s in found], least=0, most=1)
                    plain = [run["data"][family].area[0] for run in runs]
                    moved = [s.area[0] - a for s, a in zip(found, plain, strict=True)]
                    change[family] = over_seeds(moved)
                areas.append({**key, "scored loss": scored, **area})
                rates.append({**key, "scored loss": scored, **rate})
            changes.append({**key, **change})
    tables = {
        "median area": areas,
        "share of asymmetric directions": rates,
        "change of the median area by the penalty": changes,
    }

    def draw(figure) -> None:
        def label(row) -> str:
            norm = "batch norm" if row["batch norm"] else "no batch norm"
            return f"{norm}, decay {row['decay in training']:g}\nscored: {row['scored loss']}"

        axes = figure.subplots()
        bars(axes, areas, label, FAMILIES)
        axes.set(xlabel="median area, mean over seeds", xlim=(-1.05, 1.05))
        axes.legend(fontsize=7, frameon=False)

    publish(options, "weight_decay", tables, draw)


if __name__ == "__main__":
    main()
