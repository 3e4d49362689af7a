"""Where does averaged SGD end in an asymmetric valley, and is that the better place? Formulas.

    python examples/studies/valleys.py        # ten seconds on one core

He, Huang, Yuan (2019), Definition 1, Theorem 1 and Theorem 2, in valleys of one weight for which
everything can be computed. Averaged SGD ends on the flat side, by what the formulas say: -.010,
-.025 and -.052 in the valley of `linex` at rates .02, .05 and .1 (measured -.011, -.026, -.055: the
formula is the limit of small rates), .05 and .20 where the slopes are 1 and 2 or 5, and 0 in
symmetric valleys. Under random shifts of the loss the best place is on the flat side too: with a
standard deviation of .5 at -.25, measured -.25 [-.26, -.23], where the loss is lower by .037.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from common import COLOURS, over_seeds, parse, publish
from scipy.special import digamma
from torch import Tensor

from lightning_landscape import (
    FunctionObjective,
    asymmetry_ratio,
    evaluate_slice,
    is_asymmetric,
    score_asymmetry,
    symmetric_grid,
)

A, B = 2.0, 1.0  # of the linex valley (B / A**2) (exp(A x) - A x - 1)
GROUPS = 10  # of walks, for the intervals


def linex(x: Tensor) -> Tensor:
    return B / A**2 * (torch.expm1(A * x) - A * x)


def gaussian(rng, n: int):
    return rng.standard_normal(n)


def uniform(rng, n: int):
    return rng.uniform(-1, 1, n)


def averaged_sgd(slope, noise, rate: float, steps: int, seed: int, n: int = 2000) -> list[float]:
    """The mean of the second half of the iterates, for each group of n / 10 walks from 0."""
    rng = np.random.default_rng(seed)
    x, total = np.zeros(n), np.zeros(n)
    for step in range(steps):
        x = x - rate * (slope(x) + noise(rng, n))
        total += x * (step >= steps // 2)
    return (total / (steps - steps // 2)).reshape(GROUPS, -1).mean(axis=1).tolist()


def offsets(options) -> list[dict]:
    """Theorem 2: the offset of averaged SGD from the minimum, computed and measured."""
    cases = []
    for rate in (0.02, 0.05, 0.1):
        kappa = 2 * B / (A**2 * rate)
        offset = (digamma(kappa) - math.log(kappa)) / A
        cases.append(("linex", rate, offset, lambda x: B / A * np.expm1(A * x), gaussian))
    for c in (1, 2, 5):
        slope = lambda x, c=c: np.where(x >= 0, 1.0, -c)  # noqa: E731
        cases.append((f"slopes 1 and {c}", 0.1, 0.1 * (c - 1) / 2, slope, uniform))
    cases.append(("quadratic", 0.1, 0.0, lambda x: x, gaussian))
    steps, rows = 1000 if options.fast else 10_000, []
    for valley, rate, computed, slope, noise in cases:
        found = over_seeds(averaged_sgd(slope, noise, rate, steps, options.seed))
        rows.append({"valley": valley, "rate": rate, "computed": computed, "measured": found})
    return rows


def shifts(options) -> list[dict]:
    """Theorem 1: the loss under random shifts, at the minimum and where it is least."""
    rng, rows = np.random.default_rng(options.seed), []
    for sigma in (0.25, 0.5):
        draws = torch.tensor(rng.normal(0, sigma, (GROUPS, 1000)))
        at = FunctionObjective(
            lambda p, d=draws: linex(p["x"] - d).mean(dim=1), {"x": torch.zeros(1).double()}
        )
        line = evaluate_slice(at, {"x": torch.ones(1).double()}, symmetric_grid(1.0, 201))
        best = line.alphas[line.losses.argmin(dim=0)].tolist()
        here, there = line.losses[100], line.losses.min(dim=0).values
        rows.append(
            {
                "standard deviation of the shift": sigma,
                "least at, computed": -A * sigma**2 / 2,
                "least at, measured": over_seeds(best),
                "loss at the minimum less that, computed": B
                * (math.expm1(A**2 * sigma**2 / 2) / A**2 - sigma**2 / 2),
                "measured": over_seeds((here - there).tolist()),
            }
        )
    return rows


def definition() -> list[dict]:
    """Definition 1 and the score of the linex valley: exact values, and those of the grid."""
    at = FunctionObjective(lambda p: linex(p["x"]).sum(), {"x": torch.zeros(1).double()})
    rows = []
    for zeta, r in ((0.5, 1.0), (1.0, 2.0)):
        exact = math.expm1(A * zeta) / -math.expm1(-A * r)
        line = evaluate_slice(at, {"x": torch.ones(1).double()}, symmetric_grid(r, 401))
        p = 1.01 * B / A * -math.expm1(-A * r)
        below, above = (is_asymmetric(line, r=r, p=p, c=k * exact, zeta=zeta) for k in (0.9, 1.1))
        rows.append(
            {
                "zeta": zeta,
                "r": r,
                "greatest c, exact": exact,
                "greatest c, grid": asymmetry_ratio(line, zeta=zeta, r=r),
                "asymmetric at c = 0.9 of it": below,
                "at 1.1 of it": above,
                "area": score_asymmetry(line).area,
            }
        )
    return rows


def draw(figure, rows) -> None:
    left, right = figure.subplots(1, 2)
    x = torch.linspace(-0.2, 0.15, 200)
    left.plot(x, linex(x), color=COLOURS[6])
    for colour, row in zip(COLOURS, rows[:3], strict=False):
        at = row["measured"].mean
        left.plot(at, linex(torch.tensor(at)), "o", color=colour, label=f"rate {row['rate']}")
    left.set(xlabel="weight", ylabel="loss", title="Averaged SGD lies on the flat side")
    left.legend(frameon=False)
    right.axline((0, 0), slope=1, color="#bbbbbb")
    for colour, kind in zip(COLOURS, ("linex", "slopes", "quadratic"), strict=False):
        chosen = [row for row in rows if row["valley"].startswith(kind)]
        measured = [row["measured"].mean for row in chosen]
        right.plot([row["computed"] for row in chosen], measured, "o", color=colour, label=kind)
    right.set(xlabel="offset, computed", ylabel="offset, measured")
    right.legend(frameon=False)


def main() -> None:
    options = parse(__doc__)
    rows = offsets(options)
    tables = {
        "where averaged SGD lies, the minimum being 0": rows,
        "the linex valley under random shifts": shifts(options),
        "Definition 1 in the linex valley": definition(),
    }
    publish(options, "valleys", tables, lambda figure: draw(figure, rows))


if __name__ == "__main__":
    main()
