"""Does SGD that continues from the average stay in the valley of the average?

    python examples/studies/same_valley.py        # two minutes on one core

Asked by a reviewer of He, Huang, Yuan (2019, section 5). The barrier is how far the training loss
rises on the line to the average above the straight line between its ends, in nats; at most .05 is
called the same valley. At .2 times and once the rate that was averaged it stays in 20 of 20 runs
each (batch norm or not, a fifth of the labels wrong or none, 5 seeds), with weight decay or none,
and also when the rate then goes to 0: the highest barrier is .010. At 3 times it stays with batch
norm (10 of 10, highest .041 after decaying), without it not always (7 of 10, 4 of 10 after
decaying); at 10 times never on noisy labels, and on clean ones only with batch norm (4 of 5).
Another start is another valley (0 of 20, barrier .30 to 1.5). The same start in another order is
the same valley on clean labels and without batch norm (15 of 15), not with both (.27 [.24, .30]).
"""

from __future__ import annotations

from common import (
    bars,
    load,
    loss_fn,
    mlp,
    over_seeds,
    parse,
    publish,
    sgd,
    share,
    train,
    train_and_average,
    weights,
)

from lightning_landscape import compare_ends, difference, evaluate_slice, line_grid, probing

SAME = 0.05  # nats


def barrier(net, data, at, average) -> float:
    with probing(net, data.batches(128, 8), loss_fn=loss_fn, at=at) as objective:
        line = evaluate_slice(objective, difference(average, at), line_grid(0.5))
    return compare_ends(line).barrier


def run(options, seed: int, norm: bool, noise: float) -> dict[str, float]:
    """The barrier between the average and where each continuation ends."""
    data = load(options, seed, noise)
    lr, epochs = 0.1 if norm else 0.05, 18 if options.fast else 45
    done = train_and_average(mlp(data, seed, norm=norm), data, lr, epochs, seed)
    found = {}
    for factor in (1.0, 10.0) if options.fast else (0.2, 1.0, 3.0, 10.0):
        for decay in (5e-4,) if options.fast else (5e-4, 0.0):
            net = done.net
            net.load_state_dict(dict(done.average), strict=False)
            optimizer = sgd(net, factor * lr, decay=decay)
            train(net, data, optimizer, epochs // 3, seed + 2)
            name = f"{factor:g} times the rate, decay {decay:g}"
            found[name] = barrier(net, data, weights(net), done.average)
            if decay:
                train(net, data, optimizer, 5, seed + 3, rate=lambda done: 1 - done)
                found[f"{name}, then to 0"] = barrier(net, data, weights(net), done.average)
    again = train_and_average(mlp(data, seed, norm=norm), data, lr, epochs, seed + 100)
    found["same start, other order"] = barrier(net, data, again.average, done.average)
    other = train_and_average(mlp(data, seed + 1000, norm=norm), data, lr, epochs, seed)
    found["other start"] = barrier(net, data, other.average, done.average)
    return found


def main() -> None:
    options = parse(__doc__)
    rows = []
    for norm in (True, False):
        for noise in (0.2,) if options.fast else (0.2, 0.0):
            runs = [run(options, seed, norm, noise) for seed in options.seeds]
            for where in runs[0]:
                found = [run[where] for run in runs]
                rows.append(
                    {
                        "batch norm": norm,
                        "noise": noise,
                        "from the average, SGD at": where,
                        "barrier": over_seeds(found, least=0),
                        "highest barrier": max(found),
                        "same valley": share([b <= SAME for b in found]),
                    }
                )

    def draw(figure) -> None:
        for axes, norm in zip(figure.subplots(1, 2, sharex=True), (True, False), strict=True):
            chosen = [r for r in rows if r["batch norm"] == norm and r["noise"]]
            bars(axes, chosen, lambda row: row["from the average, SGD at"], ["barrier"])
            axes.axvline(SAME, color="#999999", lw=0.8)
            axes.set_title(f"{'with' if norm else 'without'} batch norm")
            axes.set(xlabel="barrier to the average, nats", xlim=(-0.05, 2))
            axes.tick_params(axis="y", labelsize=7)

    publish(options, "same_valley", {"barrier to the average": rows}, draw)


if __name__ == "__main__":
    main()
