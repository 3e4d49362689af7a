"""The rows of a plane: evaluated one by one, and kept on disk so that a stop loses at most one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_landscape.objective import Objective, gather_losses, losses_at, mode_of
from lightning_landscape.params import Params, l2_norm
from lightning_landscape.reporting.files import write_whole


def evaluate_rows(
    objective: Objective,
    d1: Params,
    d2: Params,
    alphas1: Tensor,
    alphas2: Tensor,
    *,
    folder: str | Path | None,
    advance: Callable[[int], object],
    indices: Iterable[int] | None = None,
) -> dict[int, Tensor]:
    """Return some rows of a plane by index, float64 `[n2, n_batches]` each; all by default.

    Raises:
        ValueError: If the folder is a file, or holds rows of another plane.
    """
    norms = [l2_norm(params) for params in (objective.params, d1, d2)]
    kept = _RowFolder(folder, [mode_of(objective), norms, alphas1.tolist(), alphas2.tolist()])
    rows: dict[int, Tensor] = {}
    for i in range(len(alphas1)) if indices is None else indices:
        row = kept.read(i)
        if row is None:
            row = _evaluate_row(objective, d1, d2, float(alphas1[i]), alphas2)
            kept.write(i, row)
        rows[i] = row
        advance(len(alphas2))
    return rows


class _RowFolder:
    """Rows of a plane on disk, each written whole; nothing is kept without a folder.

    Args:
        folder: Where, or None.
        plane: What plane they are of, as plain numbers and strings.

    Raises:
        ValueError: If it is a file, or the folder holds rows of another plane.
    """

    def __init__(self, folder: str | Path | None, plane: list[object]) -> None:
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"`rows` must be a folder. {folder} is a file: choose another path.")
        self._folder.mkdir(parents=True, exist_ok=True)
        head = self._folder / "plane.json"
        if not head.exists():
            write_whole(head, json.dumps(plane).encode())
        elif json.loads(head.read_text()) != plane:
            raise ValueError(
                f"`rows` must be a folder of its own for each plane. {folder} holds rows of "
                "another one: other weights, axes or mode. Remove it, or choose another."
            )

    def read(self, i: int) -> Tensor | None:
        """Return a row that is already there."""
        path = self._path(i)
        return torch.from_numpy(np.load(path)) if path is not None and path.exists() else None

    def write(self, i: int, row: Tensor) -> None:
        """Keep a row."""
        path = self._path(i)
        if path is not None:
            buffer = io.BytesIO()
            np.save(buffer, row.numpy(), allow_pickle=False)
            write_whole(path, buffer.getvalue())

    def _path(self, i: int) -> Path | None:
        return None if self._folder is None else self._folder / f"row-{i:05d}.npy"


def _evaluate_row(
    objective: Objective, d1: Params, d2: Params, alpha1: float, alphas2: Tensor
) -> Tensor:
    origin = objective.params
    start = {
        name: torch.add(origin[name], step.to(origin[name]), alpha=alpha1)
        for name, step in d1.items()
    }
    along = objective.at({**origin, **start}).along(d2)
    return gather_losses(objective, losses_at(along, alphas2.tolist()))
