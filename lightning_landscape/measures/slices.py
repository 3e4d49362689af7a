"""The loss along a direction: the grids, the slice that holds it, and how one is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import lt

import torch
from torch import Tensor

from lightning_landscape.measures.notebook import slice_html
from lightning_landscape.objective import Objective, losses_at, mode_of
from lightning_landscape.params import Params, l2_norm, sign_agreement

__all__ = ["Slice", "evaluate_slice", "line_grid", "symmetric_grid"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Losses along a line through weight space.

    Attributes:
        alphas: The points along the direction, float64 `[n_points]`, ascending, containing 0. In
            units of the direction: 1 is `params + direction`.
        losses: The loss on each batch at each of them, float64 `[n_points, n_batches]`. Non-finite
            ones are kept.
        distance: L2 norm of the direction: what one unit of alpha is in weight space.
        mode: How the network was run: `"train"`, `"eval"`, `"recalibrated"`, or `"function"`.
        label: The name of the direction in texts.
        sign_agreement: On a line that contains `alpha = 1`, the share of the moved weights that
            have the same sign at 0 and at 1; else nan. `compare_ends` copies it to the score.

    Example:
        >>> line = Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, float("inf")]))
        >>> line.mean, line.n_nonfinite
        (tensor([2., 0., inf], dtype=torch.float64), 1)
    """

    alphas: Tensor
    losses: Tensor
    distance: float = math.nan
    mode: str = "function"
    label: str = ""
    sign_agreement: float = math.nan

    def __post_init__(self) -> None:
        alphas = torch.tensor(_checked(self.alphas), dtype=torch.float64)
        losses = torch.as_tensor(self.losses).detach().cpu().double()
        losses = losses.unsqueeze(1) if losses.ndim == 1 else losses
        if losses.ndim != 2 or len(losses) != len(alphas) or not losses.shape[1]:
            raise ValueError(
                "`losses` must have the shape [n_points, n_batches] with a row per alpha. "
                f"Got {tuple(losses.shape)} for {len(alphas)} alphas."
            )
        object.__setattr__(self, "alphas", alphas)
        object.__setattr__(self, "losses", losses)

    @property
    def mean(self) -> Tensor:
        """The loss at each alpha, averaged over the batches, float64 `[n_points]`."""
        return self.losses.mean(dim=1)

    @property
    def n_nonfinite(self) -> int:
        """Number of losses that are infinite or not a number."""
        return int((~self.losses.isfinite()).sum())

    @property
    def is_constant(self) -> bool:
        """Whether nothing moves, so that every batch has the same finite loss at each alpha."""
        return bool(self.losses[0].isfinite().all() and (self.losses == self.losses[0]).all())

    @property
    def minimum(self) -> float:
        """The alpha of the least finite loss, the nearest to 0 of equals; nan if there is none."""
        loss = self.mean
        if not loss.isfinite().any():
            return math.nan
        candidates = self.alphas[loss == loss[loss.isfinite()].min()]
        return float(candidates[candidates.abs().argmin()])

    def _repr_html_(self) -> str:
        return slice_html(self)

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        names = ("alphas", "losses", "mean", "distance", "mode", "label", "n_nonfinite")
        return as_plain(self, names)


def as_plain(result: object, names: Iterable[str]) -> dict[str, object]:
    """Return attributes of a result by name, tensors and tuples as lists."""
    return {name: _plain(getattr(result, name)) for name in names}


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def evaluate_slice(
    objective: Objective, direction: Params, alphas: Tensor, *, label: str = ""
) -> Slice:
    """Evaluate the loss at every alpha along a direction.

    Costs exactly `n_points` evaluations of the objective. A loss that is not finite is kept. An
    exception of the objective is not caught.

    Args:
        objective: The objective.
        direction: The direction; parameters that it does not name stay as they are.
        alphas: The points, `[n_points]`, ascending, containing 0.
        label: The name of the direction in texts.

    Returns:
        The slice, with the batches of all processes.

    Raises:
        ValueError: If `alphas` is not a sorted grid that contains 0.

    Example:
        >>> from lightning_landscape import FunctionObjective
        >>> bowl = FunctionObjective(lambda p: p["x"] ** 2 / 2, {"x": torch.tensor(0.0)})
        >>> evaluate_slice(bowl, {"x": torch.tensor(1.0)}, symmetric_grid(2.0, 5)).mean.tolist()
        [2.0, 0.5, 0.0, 0.5, 2.0]
    """
    losses = losses_at(objective, objective.along(direction), _checked(alphas))
    return _slice(objective, direction, alphas, losses, label)


def evaluate_pairs(
    objective: Objective,
    direction: Params,
    alphas: Tensor,
    centre: Tensor,
    *,
    enough: Callable[[Slice], bool],
) -> Slice | None:
    """Evaluate `-alpha` and `+alpha` together, from the ends of a slice inwards, until enough.

    Costs two evaluations per pair: `n_points - 1` for a whole slice, the same as `evaluate_slice`
    returns, bit for bit. A slice that was stopped is not there: points that were not evaluated have
    no loss, so that nothing can be computed from them as if they had.

    Args:
        objective: The objective.
        direction: The direction; parameters that it does not name stay as they are.
        alphas: The points, a grid symmetric about 0.
        centre: The losses at 0, the same in every direction: those of a slice, `[n_batches]`.
        enough: Is shown 0 and the pairs so far after each of them, and says whether to stop. Alike
            on all processes, for it sees the batches of all.

    Returns:
        The whole slice, or None if it was stopped.

    Raises:
        ValueError: If the grid is not symmetric about 0.

    Example:
        >>> from lightning_landscape import FunctionObjective
        >>> bowl = FunctionObjective(lambda p: p["x"] ** 2 / 2, {"x": torch.tensor(0.0)})
        >>> ahead, grid, zero = {"x": torch.tensor(1.0)}, symmetric_grid(2.0, 5), torch.zeros(1)
        >>> evaluate_pairs(bowl, ahead, grid, zero, enough=lambda part: False).mean.tolist()
        [2.0, 0.5, 0.0, 0.5, 2.0]
        >>> evaluate_pairs(bowl, ahead, grid, zero, enough=lambda part: True) is None
        True
    """
    grid = _checked(alphas)
    if not is_symmetric(alphas):
        raise ValueError(
            "`alphas` must be a grid symmetric about 0 to be evaluated in pairs. Got "
            f"{grid}. Use symmetric_grid(radius, n_points)."
        )
    loss, last = objective.along(direction), len(grid) - 1
    rows = {last // 2: centre}
    for i in range(last // 2):
        rows[i], rows[last - i] = losses_at(objective, loss, [grid[i], grid[last - i]])
        known = sorted(rows)
        part = Slice(alphas[known], torch.stack([rows[k] for k in known]))
        if len(known) < len(grid) and enough(part):
            return None
    losses = torch.stack([rows[k] for k in range(len(grid))])
    return _slice(objective, direction, alphas, losses)


def split_batches(joint: Slice, validation: Sequence[bool]) -> list[Slice]:
    """Split the validation batches of a slice from the others.

    Args:
        joint: Losses on the batches of all processes, those of each in the same order.
        validation: A flag for each batch of one process: True for a validation batch.

    Returns:
        `[others, validation]`, or the slice alone if no flag is True.

    Raises:
        ValueError: If the flags do not fit the batches, or all of them are True.

    Example:
        >>> of_two_processes = Slice(torch.tensor([0.0]), torch.tensor([[1.0, 5.0, 2.0, 6.0]]))
        >>> [part.losses.tolist() for part in split_batches(of_two_processes, [False, True])]
        [[[1.0, 2.0]], [[5.0, 6.0]]]
    """
    if not any(validation):
        return [joint]
    n_batches = joint.losses.shape[1]
    if all(validation) or n_batches % len(validation):
        raise ValueError(
            "`validation` must have a flag for each batch of a process, and leave one that is "
            f"scored. Got {list(validation)} for {n_batches} batches."
        )
    flags = torch.tensor(list(validation)).repeat(n_batches // len(validation))
    return [replace(joint, losses=joint.losses[:, kind]) for kind in (~flags, flags)]


def _slice(
    objective: Objective, direction: Params, alphas: Tensor, losses: Tensor, label: str = ""
) -> Slice:
    agreement = math.nan
    if joins_two_ends(alphas):
        agreement = sign_agreement(objective.params, direction)
    return Slice(alphas, losses, l2_norm(direction), mode_of(objective), label, agreement)


def symmetric_grid(radius: float, n_points: int) -> Tensor:
    """Return `n_points` equally spaced alphas from `-radius` to `radius`, 0 exactly among them.

    Raises:
        ValueError: If the radius is not positive and finite or the number of points not odd and
            at least 3.

    Example:
        >>> symmetric_grid(0.5, 5)
        tensor([-0.5000, -0.2500,  0.0000,  0.2500,  0.5000], dtype=torch.float64)
    """
    if isinstance(radius, str) or not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"`radius` must be positive and finite. Got {radius!r}.")
    if n_points < 3 or n_points % 2 == 0:
        raise ValueError(
            f"`n_points` must be odd and at least 3, so that 0 is one of them. Got {n_points}: "
            f"try {max(3, n_points + 1)}."
        )
    half = torch.linspace(0, radius, n_points // 2 + 1, dtype=torch.float64)
    return torch.cat([-half[1:].flip(0), half])


def line_grid(overhang: float = 2.0, n_points: int = 31) -> Tensor:
    """Return alphas from `-overhang` to `1 + overhang`, 0 and 1 exactly among them.

    The grid is symmetric about 1/2. Spacing is equal if 0 and 1 then are on the grid, else nearly
    equal.

    Raises:
        ValueError: If the overhang is negative or not finite, or the points too few.

    Example:
        >>> line_grid(1.0, 7)
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000,  1.5000,  2.0000],
               dtype=torch.float64)
    """
    if not (overhang >= 0 and math.isfinite(overhang)):
        raise ValueError(f"`overhang` must be finite and not negative. Got {overhang}.")
    least = 4 if overhang else 2
    if n_points < least:
        raise ValueError(
            f"`n_points` must be at least {least} to hold both ends, 0 and 1. Got {n_points}."
        )
    intervals = n_points - 1
    outside = round(intervals * overhang / (1 + 2 * overhang))
    outside = min(max(outside, 1), (intervals - 1) // 2) if overhang else 0
    before = torch.linspace(-overhang, 0, outside + 1, dtype=torch.float64)
    between = torch.linspace(0, 1, intervals - 2 * outside + 1, dtype=torch.float64)
    return torch.cat([before[:-1], between, 1 - before[:-1].flip(0)])


def is_symmetric(grid: Tensor) -> bool:
    """Return whether a grid is symmetric about 0, within 1e-9 of its radius."""
    return bool((grid + grid.flip(0)).abs().max() <= 1e-9 * float(grid[-1]))


def on_grid(grid: Tensor, value: float) -> bool:
    """Return whether a value is on a grid, within 1e-9 of its radius."""
    return bool((grid - value).abs().min() <= 1e-9 * float(grid.abs().max()))


def joins_two_ends(grid: Tensor) -> bool:
    """Return whether a grid contains 1 and reaches as far beyond 1 as before 0."""
    alphas: list[float] = grid.tolist()
    tolerance = 1e-9 * max(map(abs, alphas))
    reaches = abs(alphas[0] + alphas[-1] - 1) <= tolerance
    return reaches and min(abs(alpha - 1) for alpha in alphas) <= tolerance


def grid_index(grid: Tensor, value: float) -> int:
    """Return where on a grid a value is, or the nearest to it."""
    return int((grid - value).abs().argmin())


def _checked(alphas: Tensor) -> list[float]:
    """Return the alphas of a grid, the one at 0 to the bit."""
    alphas = torch.as_tensor(alphas).detach()
    values: list[float] = alphas.cpu().double().tolist() if alphas.ndim == 1 else [math.nan]
    # what ascends holds no nan, and is finite if its ends are
    ascends = all(map(lt, values, values[1:]))
    if not (ascends and all(map(math.isfinite, values[:1] + values[-1:]))):
        raise ValueError(
            "`alphas` must be one-dimensional, finite and strictly ascending. Got "
            f"{alphas.tolist()}. Use symmetric_grid(radius, n_points) or line_grid(overhang)."
        )
    nearest = min(values, key=abs, default=math.inf)
    if not values or abs(nearest) > 1e-9 * max(abs(values[0]), abs(values[-1])):
        raise ValueError(
            "`alphas` must contain 0, the point the others are compared with. Got "
            f"{values}. Use symmetric_grid(radius, n_points) or line_grid(overhang)."
        )
    if nearest:  # np.linspace may leave 1e-17 there
        values[values.index(nearest)] = 0.0
    return values
