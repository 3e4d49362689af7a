"""The measurements of the monitors, once, on weights that are not being trained."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_landscape._lightning import attached_trainer
from lightning_landscape.analysis.progress import Counted, progress_bar
from lightning_landscape.analysis.report import Line, Report
from lightning_landscape.analysis.settings import HESSIAN, check_inputs, check_settings
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.probing import opened
from lightning_landscape.engine.steps import LossFn
from lightning_landscape.measures.breakdown import DEFAULT_ETAS, measure_breakdown
from lightning_landscape.measures.directions import Normalize
from lightning_landscape.measures.gradients import gradient_direction
from lightning_landscape.measures.hessian import top_eigen
from lightning_landscape.measures.line import LINE, compare_ends, evaluate_line
from lightning_landscape.measures.survey import Survey, survey, survey_along
from lightning_landscape.objective import Objective
from lightning_landscape.params import Params, l2_norm


def analyze(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    validation: Iterable[Any] | None = None,
    at: Params | None = None,
    toward: Params | None = None,
    families: Sequence[str] = ("gaussian", "uniform@norm", "sign"),
    n_directions: int = 8,
    n_points: int = 13,
    radius: float = 0.6,
    normalize: Normalize = "filter",
    mode: Mode = "train",
    loss_fn: LossFn | None = None,
    trainer: Any | None = None,
    seed: int = 0,
    breakdown: bool = False,
    progress: bool = False,
) -> Report:
    """Measure asymmetry around a module's weights, the line to other weights, and the breakdown.

    The numbers are those that the monitors log for the same weights, batches, mode and seed, bit
    for bit. The module is bit-identical afterwards.

    Costs `len(families) * n_directions * n_points` evaluations, 31 more with `toward`, two to find
    out what an evaluation writes; an evaluation is a forward pass over each batch. `breakdown`
    costs 8 passes forward and backward over each training batch.

    Args:
        module: A LightningModule, or any module when `loss_fn` is given.
        batches: Training batches as a dataloader yields them; copied.
        validation: Validation batches, measured beside them.
        at: The weights at `alpha = 0`, such as those of a checkpoint; the module's own by default.
        toward: The weights at the other end of a line, such as an average.
        families: How directions are sampled, see `sample_direction`; an empty list measures the
            line alone. A family with a `norm` group that is empty is left out. `"hessian"` is the
            sharpest direction, the top eigenvector of the Hessian, with the norm of the weights; it
            needs scipy, and 20 to 60 passes forward and backward more.
        n_directions: Directions per family.
        n_points: Alphas per direction; 4 k + 1.
        radius: The largest alpha, in the unit of `normalize`.
        normalize: The length of the directions, see `sample_direction`.
        mode: How the network is run, see `probing`.
        loss_fn: `loss_fn(module, batch)` instead of `training_step`.
        trainer: The steps run in its precision; the one the module is attached to by default.
        seed: Seed of the directions and of the random numbers inside evaluations.
        breakdown: Whether to measure how much the gradient changes along itself.
        progress: Whether to print the cost, and a progress bar with the time left if standard error
            is a terminal.

    Returns:
        The report.

    Raises:
        ConfigurationError: If a setting is out of range or does not fit the module, before anything
            is measured.
        ValueError: If `toward` names no parameter of the module, or has other shapes.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> square = lambda module, x: module(x).square().mean()
        >>> report = analyze(net, [torch.ones(4, 1)], loss_fn=square, families=["sign"],
        ...                  n_directions=2)
        >>> round(report.families["sign"].slices[0].mean[-1].item(), 2)  # (1 + 0.6) ** 2
        2.56
    """
    grid: dict[str, Any] = {"n_points": n_points, "radius": radius}
    sampled: dict[str, Any] = {"n_directions": n_directions, "normalize": normalize}
    families = check_settings(
        families, **grid, **sampled, mode=mode, seed=seed, breakdown=breakdown
    )
    check_inputs(module, batches, validation, families, at=at, toward=toward)
    train, others = _kept_batches(batches, validation or ())
    is_validation = [False] * len(train) + [True] * len(others)
    trainer = attached_trainer(module) if trainer is None else trainer
    open_on = partial(opened, module, at=at, trainer=trainer, loss_fn=loss_fn, mode=mode, seed=seed)
    began, total = time.monotonic(), _n_evaluations(families, n_directions, n_points, toward)
    with open_on(train + others) as bare:
        with progress_bar(bare, total, len(is_validation), "slices", shown=progress) as bar:
            objective: Any = Counted(bare, bar.update)
            grid, sampled = grid | {"validation": is_validation}, sampled | {"module": module}
            found = _surveys(objective, families, seed, grid, sampled)
            line = None if toward is None else measure_line(objective, toward, is_validation)
        n_evaluations = bare.n_evaluations
    changed = None
    if breakdown:
        with open_on(train) as bare:
            changed = measure_breakdown(bare, gradient_direction(bare), DEFAULT_ETAS["gradient"])
            n_evaluations += bare.n_evaluations
    settings = {"module": type(module).__name__, "mode": mode, "seed": seed, "normalize": normalize}
    cost = {"n_evaluations": n_evaluations, "seconds": time.monotonic() - began}
    return Report(found, line, changed, **settings, **cost)


def _n_evaluations(
    families: Sequence[str], n_directions: int, n_points: int, toward: Params | None
) -> int:
    """Return how many evaluations the slices and the line take."""
    n_slices = sum(1 if family == HESSIAN else n_directions for family in families)
    return n_slices * n_points + (len(LINE) if toward is not None else 0)


def _surveys(
    objective: Objective,
    families: Sequence[str],
    seed: int,
    grid: dict[str, Any],
    sampled: dict[str, Any],
) -> dict[str, Survey]:
    """Measure the families of random directions, and the sharpest one if it is asked for."""
    random = [family for family in families if family != HESSIAN]
    found = survey(objective, random, seed=seed, **grid, **sampled) if random else {}
    if HESSIAN in families:
        found[HESSIAN] = survey_along(objective, HESSIAN, [_sharpest(objective, seed)], **grid)
    return found


def measure_line(objective: Objective, toward: Params, is_validation: Sequence[bool] = ()) -> Line:
    """Evaluate the line from an objective's point (`t = 0`) to other weights (`t = 1`).

    Costs 31 evaluations.

    Args:
        objective: The objective.
        toward: The weights at the end of the line.
        is_validation: Which batches of the objective are validation batches; none by default.

    Raises:
        ValueError: If `toward` shares no name with the objective, or has other shapes.
    """
    train, *rest = evaluate_line(objective, toward, is_validation, label="line")
    validation = Line.of(compare_ends(rest[0]), rest[0]) if rest else None
    return Line.of(compare_ends(train), train, validation)


def _sharpest(objective: Objective, seed: int) -> Params:
    """Return the top eigenvector of the Hessian, as long as the weights are."""
    length = l2_norm(objective.params)
    direction = top_eigen(objective, seed=seed).direction
    return {name: length * tensor for name, tensor in direction.items()}


def _kept_batches(
    batches: Iterable[Any], validation: Iterable[Any]
) -> tuple[list[KeptBatch], list[KeptBatch]]:
    """Return copies of the training and the validation batches.

    As in the monitors, a validation batch has the index of a training batch: `training_step` may do
    something else at another one.
    """
    with torch.inference_mode(False):
        train = [KeptBatch(clone_batch(batch), i, raw=True) for i, batch in enumerate(batches)]
        n = max(len(train), 1)
        others = [
            KeptBatch(clone_batch(batch), i % n, raw=True, calibrates=False)
            for i, batch in enumerate(validation)
        ]
    return train, others
