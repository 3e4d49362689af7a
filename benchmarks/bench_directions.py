"""How many directions and evaluations a rate to ±0.1 takes: drawing until it is known, or fixed.

    python benchmarks/bench_directions.py  # a minute; with --exact the first table only

The first table is exact: chances of all series of directions, no simulation. The second evaluates:
a plane of which the share of asymmetric directions is known, and the net of
`examples/noisy_digits.py` after some epochs.
"""

import argparse
import logging
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader

from lightning_landscape import (
    AsymmetryRate,
    FunctionObjective,
    evaluate_slice,
    probing,
    sample_direction,
    score_asymmetry,
    symmetric_grid,
)
from lightning_landscape.measures.asymmetry import cannot_count
from lightning_landscape.measures.directions import direction_generator
from lightning_landscape.measures.sequential import FIRST, sequential_design
from lightning_landscape.measures.slices import evaluate_pairs

PRECISION, N_POINTS = 0.1, 13
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5)


def outcomes(stops, n_most, shares):
    """The chance of each end (k, n) of a series, for each share."""
    going_on, ends = {0: np.ones_like(shares)}, {}
    for n in range(1, n_most + 1):
        reached = {}
        for k, chance in going_on.items():
            reached[k] = reached.get(k, 0.0) + chance * (1 - shares)
            reached[k + 1] = reached.get(k + 1, 0.0) + chance * shares
        ended = {k: n == n_most or stops(k, n) for k in reached}
        ends |= {(k, n): chance for k, chance in reached.items() if ended[k]}
        going_on = {k: chance for k, chance in reached.items() if not ended[k]}
    return ends


def wilson(k, n):
    """Wilson's 95 % interval."""
    z = 1.959964
    centre, half = (k + z**2 / 2) / (n + z**2), math.sqrt(k * (n - k) / n + z**2 / 4)
    return centre - half * z / (n + z**2), centre + half * z / (n + z**2)


def mixture(k, n):
    """Where a Beta(1/2, 1/2) mixture martingale stays below 20: valid whenever one looks."""

    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    level = log_beta(k + 0.5, n - k + 0.5) - log_beta(0.5, 0.5) - math.log(20)

    def likelihood(p):
        return (k * math.log(p) if k else 0) + ((n - k) * math.log1p(-p) if n > k else 0)

    def root(inside, outside):
        for _ in range(50):
            p = (inside + outside) / 2
            inside, outside = (p, outside) if likelihood(p) > level else (inside, p)
        return outside

    best = k / n
    return (root(best, 0.0) if k else 0.0), (root(best, 1.0) if k < n else 1.0)


def narrow(interval):
    def stops(k, n):
        low, high = interval(k, n)
        return n >= FIRST and high - low <= 2 * PRECISION

    return stops


def fixed_number(interval):
    """The least number with which even half of the directions reach the precision."""
    return next(n for n in range(2, 999) if narrow(interval)(n // 2, n))


def clopper_pearson(k, n):
    def tail(p, at_least):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(at_least, n + 1))

    def root(function):
        low, high = 0.0, 1.0
        for _ in range(50):
            p = (low + high) / 2
            low, high = (p, high) if function(p) else (low, p)
        return low

    low = root(lambda p: tail(p, k) < 0.025) if k else 0.0
    return low, root(lambda p: 1 - tail(p, k + 1) > 0.025) if k < n else 1.0


def exact_table():
    design = sequential_design(PRECISION)

    rules = {
        "fixed, Wilson": (lambda k, n: False, fixed_number(wilson), wilson),
        "fixed, Clopper-Pearson": (
            lambda k, n: False,
            fixed_number(clopper_pearson),
            clopper_pearson,
        ),
        "stopped, Wilson": (narrow(wilson), fixed_number(wilson), wilson),
        "stopped, Beta mixture": (narrow(mixture), fixed_number(mixture), mixture),
        "auto": (design.stops, design.n_most, design.interval),
    }
    shares = np.array(SHARES)
    print("directions expected at a share of")
    print(f"{'':<24}" + "".join(f"{share:>7}" for share in SHARES) + "   most  least coverage")
    for name, (stops, n_most, interval) in rules.items():
        intervals = {end: interval(*end) for end in outcomes(stops, n_most, shares)}
        # coverage dips just outside of the ends of intervals
        dips = [e + step for ends in intervals.values() for e in ends for step in (-1e-9, 1e-9)]
        fine = np.clip([*np.linspace(0, 1, 1001), *dips], 0, 1)
        covered = np.zeros_like(fine)
        for end, chance in outcomes(stops, n_most, fine).items():
            low, high = intervals[end]
            covered += np.where((fine >= low) & (fine <= high), chance, 0)
        ends = outcomes(stops, n_most, shares)
        expected = sum(n * chance for (_, n), chance in ends.items())
        row = "".join(f"{n:>7.1f}" for n in expected)
        print(f"{name:<24}{row}{n_most:>7}{covered.min():>16.3f}")
    expected = sum(
        n * chance for (_, n), chance in outcomes(design.stops, design.n_most, shares).items()
    )
    print(f"\nevaluations, {N_POINTS} points a direction")
    for name, cheap in (("auto, at most", N_POINTS - 1), ("auto, at least", 4)):
        # Wald: of the n - 8 further directions, a share of them counts and is evaluated whole
        further = shares * (N_POINTS - 1) + (1 - shares) * cheap
        row = FIRST * N_POINTS + (expected - FIRST) * further
        print(f"{name:<24}" + "".join(f"{n:>7.0f}" for n in row))
    for name in ("fixed, Wilson", "fixed, Clopper-Pearson"):
        print(f"{name:<24}" + f"{rules[name][1] * N_POINTS:>7}" * len(SHARES))


def auto(objective, module=None, family="gaussian", seed=0, normalize="none"):
    """Draw as the monitor does; the rate, and the evaluations it took."""
    grid, rate, spent = symmetric_grid(0.6, N_POINTS), AsymmetryRate(precision=PRECISION), 0
    centre = objective.losses()
    while not rate.is_precise:
        k = int(rate.total)
        direction = sample_direction(
            objective.params,
            family,
            module=module,
            generator=direction_generator(seed, family, k),
            normalize=normalize,
        )
        looks = []
        if k < FIRST:
            line = evaluate_slice(objective, direction, grid)
            spent += N_POINTS
        else:
            line = evaluate_pairs(
                objective,
                direction,
                grid,
                centre,
                enough=lambda part, looks=looks: looks.append(part) or cannot_count(part),
            )
            spent += 2 * (len(looks) + (line is not None))
        rate.update(None if line is None else score_asymmetry(line))
    return rate, spent


def plane(odds):
    """A kink and a wall: of the directions, 2/π atan(2 / odds) are more than twice as steep."""

    def loss(p):
        x, y = p["x"]
        return torch.where(x > 0, 4 * x, -x) + odds * y.abs()

    return FunctionObjective(loss, {"x": torch.zeros(2, dtype=torch.float64)})


def show(name, rate, spent):
    found = {key: float(value) for key, value in rate.compute().items()}
    fixed = N_POINTS * fixed_number(lambda k, n: wilson(k, n))
    print(
        f"{name:<34}{found['rate']:>6.0%} [{found['low']:.0%}, {found['high']:.0%}]"
        f"{found['n']:>5.0f}{spent:>7}{fixed:>8}{fixed / spent:>8.1f}x"
    )


def evaluated_table():
    head = ("directions", "rate, interval", "n", "auto", "fixed")
    print("\n" + "{:<34}{:<18}{:>5}{:>7}{:>8}".format(*head))
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        objective = plane(2 / math.tan(math.pi / 2 * share))
        show(f"plane, share {share}", *auto(objective))
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import noisy_digits

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for epochs in (5, 20):
        train, _ = noisy_digits.noisy_digits(seed_everything(0, verbose=False))
        loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
        module = noisy_digits.Digits()
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        Trainer(
            max_epochs=epochs, logger=False, enable_checkpointing=False, accelerator="cpu", **quiet
        ).fit(module, loader)
        batches = [train[i : i + 64] for i in range(0, 512, 64)]
        with probing(module, batches) as objective:
            for family in ("gaussian", "uniform@norm", "sign"):
                show(
                    f"digits, {epochs} epochs, {family}",
                    *auto(objective, module, family, normalize="filter"),
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exact", action="store_true", help="the first table only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact_table()
    if not args.exact:
        evaluated_table()
