"""The loss on a plane through weight space, evaluated row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_landscape.analysis.plane_rows import evaluate_rows
from lightning_landscape.analysis.progress import progress_bar
from lightning_landscape.checks import check_whole
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.probing import probing
from lightning_landscape.engine.steps import LossFn
from lightning_landscape.measures.plane import PlaneBasis, plane_through
from lightning_landscape.measures.slices import as_plain
from lightning_landscape.measures.words import counted
from lightning_landscape.objective import Objective, losses_at, mode_of
from lightning_landscape.params import Params, l2_norm
from lightning_landscape.ranks import agree, alone, gather_objects, n_ranks, rank
from lightning_landscape.reporting.arrays import npz_content, read_arrays, written_by
from lightning_landscape.reporting.files import write_whole
from lightning_landscape.reporting.html import frame
from lightning_landscape.reporting.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plane", "evaluate_plane"]


@dataclass(frozen=True, eq=False)
class Plane:
    """Losses on a grid of a plane through weight space; `(0, 0)` is the objective's point.

    Attributes:
        alphas1: The coordinates along the first direction, float64 `[n1]`, ascending.
        alphas2: The coordinates along the second, float64 `[n2]`, ascending.
        losses: The loss on each batch, float64 `[n1, n2, n_batches]`. Non-finite ones are kept.
        mode: How the network was run.
        distances: L2 norms of the two directions: what one unit of each alpha is in weight space.
        point_losses: The loss on each batch at the very weights that the plane goes through,
            float64 `[n_points, n_batches]`; None where only the grid was evaluated.
    """

    alphas1: Tensor
    alphas2: Tensor
    losses: Tensor
    mode: str = "function"
    distances: tuple[float, float] = (1.0, 1.0)
    point_losses: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The loss at each point, averaged over the batches, float64 `[n1, n2]`."""
        return self.losses.mean(dim=2)

    @property
    def n_nonfinite(self) -> int:
        """Number of losses that are infinite or not a number."""
        return int((~self.losses.isfinite()).sum())

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        return as_plain(self, (*(field.name for field in fields(self)), "mean", "n_nonfinite"))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Plane:
        """Return the plane that `to_dict` was called on.

        Example:
            >>> plane = Plane(torch.tensor([0.0]), torch.tensor([0.0, 1.0]), torch.ones(1, 2, 3))
            >>> Plane.from_dict(plane.to_dict()).mean.tolist()
            [[1.0, 1.0]]
        """
        one, two, losses = (
            torch.as_tensor(content[name], dtype=torch.float64)
            for name in ("alphas1", "alphas2", "losses")
        )
        first, second = map(float, content["distances"])
        exact = content.get("point_losses")  # planes of earlier versions lack it
        exact = None if exact is None else torch.as_tensor(exact, dtype=torch.float64)
        return cls(one, two, losses, str(content["mode"]), (first, second), exact)

    def record(
        self, points: Mapping[str, Sequence[float]] | None = None, name: str = "plane"
    ) -> Record:
        """Return what the viewer and the page show of it.

        Args:
            points: Coordinates of the points that it goes through, by name.
            name: The name of the plane.
        """
        data = {
            "alphas1": self.alphas1,
            "alphas2": self.alphas2,
            "mean": self.mean,
            "n_batches": self.losses.shape[2],
            "points": points or {},
            "mode": self.mode,
            "unit": "L2 distance" if self.distances == (1.0, 1.0) else "times the direction",
            "words": self.summary(points),
        }
        return Record("plane", name, 0, data)

    def _repr_html_(self) -> str:
        return frame({"plane": [self.record()]})

    def summary(self, points: Mapping[str, Sequence[float]] | None = None) -> str:
        """Return in words where the least loss of the grid lies, and the points with their loss.

        Args:
            points: Coordinates of the points, by name, in the order of `point_losses`.
        """
        mean = torch.where(self.mean.isfinite(), self.mean, math.inf)
        n1, n2 = mean.shape
        batches = counted(self.losses.shape[2], "batch")
        i, j = divmod(int(mean.argmin()), n2)
        lines = [
            f"The plane has {n1} x {n2} points, {self.mode} mode, {batches}.",
            f"Its least loss is {float(mean[i, j]):.4g}, at ({float(self.alphas1[i]):.3g}, "
            f"{float(self.alphas2[j]):.3g}).",
        ]
        points = points or {}
        exact = [] if self.point_losses is None else self.point_losses.mean(dim=1).tolist()
        said = [f"; the loss there is {loss:.4g}." for loss in exact]
        ends = said if len(said) == len(points) else ["."] * len(points)
        for (name, (x, y)), end in zip(points.items(), ends, strict=True):
            lines.append(f"{name} lies at ({x:.3g}, {y:.3g}){end}")
        if self.n_nonfinite:
            lines.append(f"{self.n_nonfinite} of the losses are not finite.")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write everything to one `.npz` file, without pickle; all of it or nothing."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {name: value for name, value in arrays.items() if value is not None}
        write_whole(Path(path), npz_content(own, compressed=True))

    @classmethod
    def load(cls, path: str | Path) -> Plane:
        """Read a plane that `save` wrote.

        Raises:
            ValueError: If the file is missing, or holds something else.
        """
        with written_by("Plane.save", path):
            return cls.from_dict(read_arrays(path))

    def figure(
        self, basis: PlaneBasis | None = None, names: Iterable[str] = ("a", "b", "c")
    ) -> Figure:
        """Return a contour figure, with the three points of a basis marked and named."""
        from lightning_landscape.reporting.figures_plane import plot_plane

        points = [] if basis is None else basis.points.tolist()
        marks = dict(zip(names, points, strict=False))
        return plot_plane(self.alphas1, self.alphas2, self.mean, marks=marks, mode=self.mode)


def evaluate_plane(
    objective: Objective,
    d1: Params,
    d2: Params,
    alphas1: Tensor,
    alphas2: Tensor,
    *,
    rows: str | Path | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Plane:
    """Evaluate the loss at every `params + alpha1 * d1 + alpha2 * d2`, one row per `alpha1`.

    Costs `n1 * n2` evaluations.

    Args:
        objective: The objective; its point is the origin.
        d1: The first direction.
        d2: The second; if it is orthogonal to the first, the picture is not sheared.
        alphas1: The coordinates along the first, `[n1]`, ascending.
        alphas2: The coordinates along the second, `[n2]`, ascending.
        rows: A folder to keep finished rows in. A later call with the same plane goes on from
            there, so that an interrupt loses at most one row.
        advance: Called after each row with the number of its evaluations.

    Returns:
        The losses.

    Raises:
        ValueError: If an axis is not a sorted grid, or `rows` is a file or holds those of
            another plane.

    Example:
        >>> from lightning_landscape import FunctionObjective, symmetric_grid
        >>> bowl = FunctionObjective(lambda p: (p["x"] ** 2).sum(), {"x": torch.zeros(2)})
        >>> east, north = {"x": torch.tensor([1.0, 0])}, {"x": torch.tensor([0, 2.0])}
        >>> grid = symmetric_grid(1.0, 3)
        >>> evaluate_plane(bowl, east, north, grid, grid).mean.tolist()
        [[5.0, 1.0, 5.0], [4.0, 0.0, 4.0], [5.0, 1.0, 5.0]]
    """
    alphas1, alphas2 = _checked_axis("alphas1", alphas1), _checked_axis("alphas2", alphas2)
    found = evaluate_rows(objective, d1, d2, alphas1, alphas2, folder=rows, advance=advance)
    losses = torch.stack([found[i] for i in range(len(alphas1))])
    return Plane(alphas1, alphas2, losses, mode_of(objective), (l2_norm(d1), l2_norm(d2)))


def measure_plane(
    module: nn.Module,
    batches: Iterable[Any],
    points: Sequence[Params],
    *,
    n: int = 25,
    rows: str | Path | None = None,
    mode: Mode = "train",
    loss_fn: LossFn | None = None,
    trainer: Any | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Plane, PlaneBasis]:
    """Evaluate a module's loss on the plane through three sets of weights.

    Costs `n * n` evaluations, one at each of the three points themselves, which the grid may miss,
    and two to find out what an evaluation writes. Several processes share out the rows, each with
    the same batches: the numbers are those of one process.

    Args:
        module: A LightningModule, or any module when `loss_fn` is given.
        batches: Batches as a dataloader yields them; copied. The same on every process.
        points: Three sets of weights; the first is the origin.
        n: Points per side.
        rows: A folder to keep finished rows in, see `evaluate_plane`.
        mode: How the network is run, see `probing`.
        loss_fn: `loss_fn(module, batch)` instead of `training_step`.
        trainer: The steps run in its precision.
        seed: Seed of the random numbers inside evaluations.
        progress: Whether to print the cost, and a progress bar if standard error is a terminal.

    Returns:
        The plane, and its basis with the coordinates of the three points.

    Raises:
        ValueError: If the points lie on one line or are of another architecture, or `n` is below 2.
    """
    check_whole("n", n, least=2)
    batches = list(batches)
    basis = plane_through(*points)
    xs, ys = _axes(basis, n)
    mine, own = range(rank(), n, n_ranks()), range(rank(), len(points), n_ranks())
    found: dict[int, Tensor] = {}
    exact: dict[int, Tensor] = {}
    failure: Exception | None = None
    total = len(mine) * n + len(own)
    stand: dict[str, Any] = {"trainer": trainer, "loss_fn": loss_fn, "mode": mode, "seed": seed}
    try:
        with (
            alone(),  # the others evaluate other rows
            probing(module, batches, at=basis.origin, **stand) as objective,
            progress_bar(objective, total, len(batches), "plane", shown=progress) as bar,
        ):
            d1, d2 = (_trained(direction, objective) for direction in (basis.d1, basis.d2))
            kept: dict[str, Any] = {"folder": rows, "advance": bar.update, "indices": mine}
            found = evaluate_rows(objective, d1, d2, xs, ys, **kept)
            exact = {k: _losses_of(objective, points[k]) for k in own}
            bar.update(len(own))
    except Exception as error:  # told to the others first: they wait for these rows
        failure = error
    agree(failure, next(module.parameters()).device)
    return Plane(xs, ys, _joined(found), mode, point_losses=_joined(exact)), basis


def _losses_of(objective: Objective, point: Params) -> Tensor:
    """Return the losses at some weights themselves, `[n_batches]`; one evaluation."""
    params = {name: point[name].to(tensor) for name, tensor in objective.params.items()}
    there = objective.at(params)
    return losses_at(objective, there.along({}), [0.0])[0]


def _joined(mine: dict[int, Tensor]) -> Tensor:
    """Return the tensors that all processes hold by index, as one, in the order of the indices."""
    joined = {i: tensor for part in gather_objects(mine) for i, tensor in part.items()}
    return torch.stack([joined[i] for i in sorted(joined)])


def _trained(direction: Params, objective: Objective) -> Params:
    """Return a direction without frozen parameters, which must be the same at all points."""
    frozen = [name for name in direction if name not in objective.params]
    if moved := [name for name in frozen if bool(direction[name].any())]:
        raise ValueError(
            f"`points` must have the same frozen parameters. {moved[0]!r} differs and "
            "is frozen in the module: let it move with requires_grad_()."
        )
    return {name: step for name, step in direction.items() if name in objective.params}


def _axes(basis: PlaneBasis, n: int) -> list[Tensor]:
    """Return the two axes of a plane, which reach beyond its points by .3 of their span."""
    low, high = basis.points.min(dim=0).values, basis.points.max(dim=0).values
    reach = 0.3 * (high - low)
    return [
        torch.linspace(float(a), float(b), n, dtype=torch.float64)
        for a, b in zip(low - reach, high + reach, strict=True)
    ]


def _checked_axis(name: str, alphas: Tensor) -> Tensor:
    alphas = torch.as_tensor(alphas, dtype=torch.float64).detach().cpu()
    if alphas.ndim != 1 or not len(alphas) or not bool((alphas.diff() > 0).all()):
        raise ValueError(
            f"`{name}` must be one-dimensional and strictly ascending. Got {alphas.tolist()}. Use "
            "symmetric_grid(radius, n_points)."
        )
    return alphas
