"""The rows of a plane: evaluated one by one, and kept on disk so that a stop loses at most one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_landscape.objective import Objective, losses_at, mode_of
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

    In a folder each row is written whole; one that is already there is read.

    Raises:
        ValueError: If the folder is a file, or holds rows of another plane.
    """
    if folder is not None:
        norms = [l2_norm(params) for params in (objective.params, d1, d2)]
        _claim(Path(folder), [mode_of(objective), norms, alphas1.tolist(), alphas2.tolist()])
    rows: dict[int, Tensor] = {}
    for i in range(len(alphas1)) if indices is None else indices:
        file = None if folder is None else Path(folder, f"row-{i:05d}.npy")
        if file is not None and file.exists():
            rows[i] = torch.from_numpy(np.load(file))
        else:
            rows[i] = _evaluate_row(objective, d1, d2, float(alphas1[i]), alphas2)
            if file is not None:
                _write_row(file, rows[i])
        advance(len(alphas2))
    return rows


def _claim(folder: Path, plane: list[object]) -> None:
    """Make a folder that of a plane, which is described by plain numbers and strings."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`rows` must be a folder. {folder} is a file: choose another path.")
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "plane.json"
    if not head.exists():
        write_whole(head, json.dumps(plane).encode())
    elif json.loads(head.read_text()) != plane:
        raise ValueError(
            f"`rows` must be a folder of its own for each plane. {folder} holds rows of another "
            "one: other weights, axes or mode. Remove it, or choose another."
        )


def _write_row(file: Path, row: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, row.numpy(), allow_pickle=False)
    write_whole(file, buffer.getvalue())


def _evaluate_row(
    objective: Objective, d1: Params, d2: Params, alpha1: float, alphas2: Tensor
) -> Tensor:
    origin = objective.params
    start = {
        name: torch.add(origin[name], step.to(origin[name]), alpha=alpha1)
        for name, step in d1.items()
    }
    along = objective.at({**origin, **start}).along(d2)
    return losses_at(objective, along, alphas2.tolist())
