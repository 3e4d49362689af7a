"""Are the valleys of one neuron with two weights asymmetric, and where in them does one stand?

    python examples/studies/one_neuron.py        # twenty seconds on one core

He, Huang, Yuan (2019), the logistic example, as in the authors' code: 20 points, 30 steps at a rate
of .01, one slice to 7.5 on either side; and the same at the minimum. After the 30 steps the least
loss of the slice is at the weights in 28 % [22, 35] of 200 seeds: much of the picture is slope. At
the minimum itself it is there in 94 %, and 79 % [73, 84] of uniform and 72 % [66, 79] of Gaussian
directions are asymmetric: with two weights that is usual, and needs no all-positive directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import COLOURS, parse, publish, share

from lightning_landscape import (
    FunctionObjective,
    evaluate_slice,
    sample_direction,
    score_asymmetry,
    symmetric_grid,
)

PLACES = {"30 steps": (30, 0.01), "minimum": (500, 1.0)}  # steps and rate
FAMILIES = ("uniform", "gaussian")


def run(seed: int) -> dict[tuple[str, str], object]:
    """The slice along a direction of each family at both places."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(20) % 2
    x = (torch.randn(20, generator=generator) + 2 * y - 1).double()

    def loss(p):
        return F.binary_cross_entropy_with_logits(p["w"] * x + p["b"], y.double())

    start = {n: torch.rand(1, generator=generator).double() for n in "wb"}
    found = {}
    for place, (n_steps, rate) in PLACES.items():
        at = FunctionObjective(loss, start)
        for _ in range(n_steps):
            gradient = at.gradient()[1]
            at = at.at({n: at.params[n] - rate * gradient[n] for n in gradient})
        for family in FAMILIES:
            ahead = sample_direction(at.params, family, generator=generator, normalize="none")
            found[place, family] = evaluate_slice(at, ahead, symmetric_grid(7.5, 61))
    return found


def twice(score) -> bool:
    """Whether both ends rise, and one at least twice as much as the other."""
    low, high = sorted((score.rise_plus, score.rise_minus))
    return low > 0 and high > 2 * low


def main() -> None:
    options = parse(__doc__)
    number = len(options.seeds) * (10 if options.fast else 40)
    runs = [run(seed) for seed in range(options.seed, options.seed + number)]
    rows = []
    for place, family in runs[0]:
        scores = [score_asymmetry(found[place, family]) for found in runs]
        rows.append(
            {
                "weights": place,
                "direction": family,
                "least loss within .25 of 0": share([abs(s.minimum) < 0.3 for s in scores]),
                "one end rises twice as much": share([twice(s) for s in scores]),
                "verdict asymmetric": share([s.verdict == "asymmetric" for s in scores]),
            }
        )

    def draw(figure) -> None:
        for axes, place in zip(figure.subplots(1, 2), PLACES, strict=True):
            for colour, found in zip(COLOURS, runs, strict=False):
                line = found[place, "uniform"]
                axes.plot(line.alphas, line.mean, color=colour)
            axes.axvline(0, color="#999999", lw=0.8)
            axes.set(title=place, xlabel="along a uniform direction", ylabel="loss")

    publish(options, "one_neuron", {f"{number} seeds": rows}, draw)


if __name__ == "__main__":
    main()
