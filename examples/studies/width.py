"""Does the average stand in a wider place, and does that depend on how width is measured?

    python examples/studies/width.py        # three minutes on one core

He, Huang, Yuan (2019), section 6: how wide a minimum looks depends on where in the valley one
stands. Width is the radius at which the training loss has risen by half a nat, the median over
random directions, relative to that at the decayed weights; 5 seeds. With a fifth of the labels
wrong and Gaussian directions in filter norm the average is wider, 1.33 times [1.31, 1.36] with
batch norm and 1.87 [1.80, 1.94] without, and half way is between. But in L2 norm it is 1.06 [1.04,
1.07] and 1.40 [1.39, 1.41], and along uniform directions of unit L2 norm it is narrower with batch
norm: .86 [.85, .88]. On clean labels the order of the units is the other way round (1.02 in filter
norm, 1.14 in L2, with batch norm), and without batch norm nothing exceeds 1.04. So width without
its unit says nothing. The area stays where it is along the valley: -.03 to -.02 along
Gaussian directions in filter norm with batch norm, .85 to .94 along uniform ones without.
"""

from __future__ import annotations

from common import (
    bars,
    between,
    geometric,
    load,
    loss_fn,
    mlp,
    over_seeds,
    parse,
    publish,
    scores_on_test,
    sgd,
    train,
    train_and_average,
    weights,
)

from lightning_landscape import probing, survey

RAYS = {
    "gaussian, filter norm": ("gaussian", "filter", 1.5),
    "gaussian, L2 norm": ("gaussian", "none", 24.0),
    "uniform, filter norm": ("uniform", "filter", 1.5),
    "uniform, L2 norm": ("uniform", "none", 24.0),
}


def run(options, seed: int, norm: bool, noise: float) -> dict[str, dict[str, float]]:
    """Width along each kind of ray, area and test loss at five points of one valley."""
    data = load(options, seed, noise)
    lr, epochs = 0.1 if norm else 0.05, 18 if options.fast else 45
    done = train_and_average(mlp(data, seed, norm=norm), data, lr, epochs, seed)
    net = done.net
    net.load_state_dict(dict(done.average), strict=False)
    train(net, data, sgd(net, lr / 10), epochs // 3, seed + 2)
    points = {
        "decayed": done.decayed,
        "last, high rate": done.last,
        "between": between(done.decayed, done.average),
        "average": done.average,
        "SGD from the average": weights(net),
    }
    found = {}
    for name, at in points.items():
        found[name] = {"test loss": scores_on_test(net, at, data)[0]}
        with probing(net, data.batches(128, 8), loss_fn=loss_fn, at=at) as objective:
            for rays, (family, unit, radius) in RAYS.items():
                n, n_points = (4, 13) if options.fast else (8, 25)
                one = survey(
                    objective,
                    [family],
                    n_directions=n,
                    n_points=n_points,
                    radius=radius,
                    normalize=unit,
                )[family]
                found[name][rays] = one.rise_radius[0]
                found[name][f"area, {rays}"] = one.area[0]
    return found


def main() -> None:
    options = parse(__doc__)
    ratios, areas = [], []
    for norm in (True, False):
        for noise in (0.2,) if options.fast else (0.2, 0.0):
            runs = [run(options, seed, norm, noise) for seed in options.seeds]
            for point in runs[0]:
                key = {"batch norm": norm, "noise": noise, "weights": point}
                here, base = [r[point] for r in runs], [r["decayed"] for r in runs]
                relative = {
                    rays: geometric([a[rays] / b[rays] for a, b in zip(here, base, strict=True)])
                    for rays in RAYS
                }
                loss = over_seeds([a["test loss"] for a in here])
                ratios.append({**key, **relative, "test loss": loss})
                area = {
                    r: over_seeds([a[f"area, {r}"] for a in here], least=-1, most=1) for r in RAYS
                }
                areas.append({**key, **area})

    def draw(figure) -> None:
        for axes, norm in zip(figure.subplots(1, 2), (True, False), strict=True):
            chosen = [r for r in ratios if r["batch norm"] == norm and r["noise"]]
            bars(axes, chosen, lambda row: row["weights"], list(RAYS))
            axes.axvline(1, color="#999999", lw=0.8)
            axes.set_title(f"{'with' if norm else 'without'} batch norm")
            axes.set_xlabel("width, relative to the decayed weights")
        figure.axes[0].legend(fontsize=7, frameon=False)

    tables = {"width relative to the decayed weights": ratios, "median area": areas}
    publish(options, "width", tables, draw)


if __name__ == "__main__":
    main()
