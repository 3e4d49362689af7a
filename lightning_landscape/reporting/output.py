"""Where: the one table of tags, and results to every logger and to `.npz` files beside them."""

from __future__ import annotations

import io
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from lightning_landscape._lightning import rank_zero_warn
from lightning_landscape.measures.asymmetry import AsymmetryScore
from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.rates import median_interval
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.reporting.figures_asymmetry import Figure, pixels, png

__all__ = [
    "TAGS",
    "breakdown_scalars",
    "breakdown_text",
    "family_scalars",
    "line_scalars",
    "log_figure",
    "log_scalars",
    "log_text",
    "save_breakdown",
    "save_slices",
    "shown_column",
    "step_scalars",
    "tag",
]

# the first part, `landscape` or `breakdown`, is the name of the monitor where it has another
TAGS = {
    # asymmetry of one family; medians are over directions
    "rate": "landscape/{family}/rate",
    "rate_low": "landscape/{family}/rate_low",
    "rate_high": "landscape/{family}/rate_high",
    "n_directions": "landscape/{family}/n_directions",  # where they draw until they know
    "area": "landscape/{family}/area",
    "area_low": "landscape/{family}/area_low",
    "area_high": "landscape/{family}/area_high",
    "area_corrected": "landscape/{family}/area_corrected",
    "ratio": "landscape/{family}/ratio",
    "off_minimum": "landscape/{family}/off_minimum",
    "slices": "landscape/{family}",
    "history": "landscape/history/{family}",
    # the line from the current weights to the average; `set` is "" or "val/"
    "line": "landscape/swa/{set}{name}",
    "shift": "landscape/swa/shift",
    "line_figure": "landscape/swa/line",
    # the average's own validation metrics; `swa` is the name of the callback
    "swa_metric": "{swa}/{name}",
    "n_averaged": "{swa}/n_averaged",
    # what a probe costs
    "seconds": "landscape/seconds",
    "overhead": "landscape/overhead",
    # gradient breakdown; `who` is "", or "<optimizer>/" where there are several
    "breakdown": "breakdown/{who}{direction}/{name}",
    "breakdown_layer": "breakdown/{who}{direction}/layer/{name}",
    "breakdown_figure": "breakdown/{who}{direction}",
    "breakdown_history": "breakdown/history/{who}{direction}",
    "breakdown_text": "breakdown/{who}{direction}/summary",
    "breakdown_seconds": "breakdown/seconds",
    # the step itself, over its layers
    "step": "breakdown/{who}step/{name}",
}


def tag(key: str, **parts: str) -> str:
    """Return a tag of the table; in a family, `@` is written `-`.

    Example:
        >>> tag("area", family="uniform@norm")
        'landscape/uniform-norm/area'
    """
    return TAGS[key].format(**{name: part.replace("@", "-") for name, part in parts.items()})


def family_scalars(
    family: str, scores: Sequence[AsymmetryScore], rate: Mapping[str, Any]
) -> dict[str, float]:
    """Return the scalars of one family, by tag."""
    medians = {
        name: _median([getattr(score, name) for score in scores])
        for name in ("area", "area_corrected", "ratio")
    }
    shares = {"rate": rate["rate"], "rate_low": rate["low"], "rate_high": rate["high"]}
    _, low, high = median_interval([score.area for score in scores])
    interval = {} if math.isnan(low) else {"area_low": low, "area_high": high}
    off_minimum = [score.verdict == "off-minimum" for score in scores]
    values = {**shares, **medians, **interval, "off_minimum": sum(off_minimum) / len(scores)}
    return {tag(name, family=family): float(value) for name, value in values.items()}


def line_scalars(score: LineScore, *, validation: bool = False) -> dict[str, float]:
    """Return the scalars of the line to the average, by tag."""
    part = "val/" if validation else ""
    names = ("distance", "gap", "minimum", "barrier", "outward_ratio")
    return {tag("line", set=part, name=name): getattr(score, name) for name in names}


def breakdown_scalars(who: str, direction: str, found: GradientBreakdown) -> dict[str, float]:
    """Return the scalars of one direction, by tag.

    `max`, `model`, `excess` and those of the layers are at the whole step, see `shown_column`;
    `descent_limit`, `break_even` and `trust_lr` are relative steps.
    """
    at = shown_column(found)
    breakdown = found.breakdown[:, at].tolist()
    scalars = {
        "max": _largest(breakdown),
        "model": float(found.model[at]),
        "excess": _largest(found.excess[:, at].tolist()),
        "descent_limit": found.descent_limit * found.relative_step,
        "break_even": found.break_even * found.relative_step,
        "trust_lr": found.trust_lr,
    }
    named = {
        tag("breakdown", who=who, direction=direction, name=name): value
        for name, value in scalars.items()
    }
    return named | {
        tag("breakdown_layer", who=who, direction=direction, name=name): value
        for name, value in zip(found.names, breakdown, strict=True)
    }


def step_scalars(who: str, sizes: StepSizes) -> dict[str, float]:
    """Return the scalars of a step, by tag: the largest of its layers; the cosine off 0 most."""
    cosines = [c for c in sizes.weight_gradient_cosine.tolist() if not math.isnan(c)]
    scalars = {
        "relative_update": _largest(sizes.relative_update[~sizes.relative_update.isnan()].tolist()),
        "relative_gradient": _largest(
            sizes.relative_gradient[~sizes.relative_gradient.isnan()].tolist()
        ),
        "weight_gradient_cosine": max(cosines, key=abs, default=math.nan),
        "successive_cosine": sizes.successive_cosine,
    }
    return {tag("step", who=who, name=name): value for name, value in scalars.items()}


def shown_column(found: GradientBreakdown) -> int:
    """Return which eta stands for the whole: 1 if it was measured, else the last."""
    whole = (found.etas == 1).nonzero()
    return int(whole[0]) if len(whole) else len(found.etas) - 1


def breakdown_text(found: GradientBreakdown, sizes: StepSizes) -> str:
    """Return what was measured in words, and the layers in a table, as Markdown."""
    at = shown_column(found)
    eta = float(found.etas[at])
    measured = dict(zip(found.names, found.breakdown[:, at].tolist(), strict=True))
    head = ("layer", f"breakdown at eta = {eta:.3g}", "‖ΔW‖ / ‖W‖", "‖g‖ / ‖W‖", "cos(W, g)")
    columns = (sizes.relative_update, sizes.relative_gradient, sizes.weight_gradient_cosine)
    rows = [
        [f"`{name}`", f"{measured.get(name, math.nan):.3g}", *map("{:.3g}".format, row)]
        for name, row in zip(sizes.names, torch.stack(columns, dim=1).tolist(), strict=True)
    ]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    successive = (
        ""
        if math.isnan(sizes.successive_cosine)
        else f" The cosine between this step and the one before is {sizes.successive_cosine:.2g}."
    )
    return f"{found.summary()}{successive}\n\n{table}"


def log_scalars(trainer: Any, scalars: Mapping[str, float], step: int) -> None:
    """Write scalars to every logger, and where callbacks such as ModelCheckpoint look for them.

    A logger that raises costs one warning, never the training.
    """
    trainer.callback_metrics.update({name: torch.tensor(v) for name, v in scalars.items()})
    for logger in trainer.loggers:
        with _forgiving(logger):
            logger.log_metrics(dict(scalars), step=step)


def log_figure(trainer: Any, name: str, figure: Figure, step: int) -> None:
    """Show a figure in every logger that can, and as a PNG file if none of them can."""
    if not trainer.is_global_zero:
        return
    shown = False
    for logger in trainer.loggers:
        with _forgiving(logger):
            shown |= _show(logger, name, figure, step)
    folder = None if shown else _folder(trainer)
    if folder is not None:
        _write(folder / f"{name.replace('/', '-')}-step={step}.png", png(figure))


def log_text(trainer: Any, name: str, text: str, step: int) -> None:
    """Show Markdown in every logger that has a place for it: TensorBoard's text panel."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        with _forgiving(logger):
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_text"):
                experiment.add_text(name, text, step)


def save_slices(trainer: Any, kind: str, slices: Sequence[Slice], step: int) -> None:
    """Write raw slices to `<log_dir>/landscape/<kind>-step=<step>.npz`, for plots of your own.

    Holds `alphas [n_points]`, `losses [n_slices, n_points, n_batches]`, `distance [n_slices]`,
    `mode` and `label`. Nothing is written without a logger.
    """
    folder = _folder(trainer)
    if folder is None:
        return
    buffer = io.BytesIO()
    np.savez(
        buffer,
        alphas=slices[0].alphas.numpy(),
        losses=np.stack([line.losses.numpy() for line in slices]),
        distance=np.array([line.distance for line in slices]),
        mode=np.array(slices[0].mode),
        label=np.array([line.label for line in slices]),
        step=np.array(step),
    )
    _write(
        folder / f"{kind.replace('@', '-').replace('/', '-')}-step={step}.npz", buffer.getvalue()
    )


def save_breakdown(
    trainer: Any, kind: str, found: GradientBreakdown, sizes: StepSizes, step: int
) -> None:
    """Write all that was measured to `<log_dir>/landscape/<kind>-step=<step>.npz`.

    Holds the fields of `GradientBreakdown` under their names, those of `StepSizes` under
    `step_<name>`, and `step`. Nothing is written without a logger.
    """
    folder = _folder(trainer)
    if folder is None:
        return
    arrays = {name: np.array(value) for name, value in found.to_dict().items()}
    arrays |= {f"step_{name}": np.array(value) for name, value in sizes.to_dict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, step=np.array(step), **arrays)
    _write(folder / f"{kind.replace('/', '-')}-step={step}.npz", buffer.getvalue())


def _folder(trainer: Any) -> Path | None:
    """Return where files go; None if nowhere, as on all ranks but the first."""
    if trainer.fast_dev_run or not trainer.loggers or not trainer.is_global_zero:
        return None
    logger, folder = trainer.loggers[0], None
    with _forgiving(logger):
        folder = _folder_of_run(trainer, logger)
    return None if folder is None else folder / "landscape"


def _folder_of_run(trainer: Any, logger: Any) -> Path | None:
    """Return a folder no other run writes to: the one where its checkpoints are by default."""
    # not `trainer.log_dir`: it is broadcast, and the other ranks may not be here to hear it
    own = getattr(logger, "log_dir", None)  # TensorBoard, CSV
    if own is not None:
        return Path(own)
    root, version = logger.save_dir, getattr(logger, "version", None)
    if isinstance(version, str):  # W&B, MLflow, Comet: `save_dir` is that of all runs, or None
        return Path(root or trainer.default_root_dir, str(logger.name), version)
    return None if root is None else Path(root)


def _show(logger: Any, name: str, figure: Figure, step: int) -> bool:
    experiment: Any = getattr(logger, "experiment", None)  # a plain logger need not have one
    if hasattr(experiment, "add_image"):  # TensorBoard; its add_figure would import pyplot
        experiment.add_image(name, pixels(figure), step, dataformats="HWC")
    elif hasattr(experiment, "add_figure"):
        experiment.add_figure(name, figure, step)
    elif hasattr(logger, "log_image"):  # Weights & Biases
        from PIL import Image

        logger.log_image(key=name, images=[Image.fromarray(pixels(figure))], step=step)
    elif hasattr(logger, "run_id") and hasattr(experiment, "log_figure"):  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{name}/step={step}.png")
    elif hasattr(experiment, "log_figure"):  # Comet
        experiment.log_figure(name, figure, step=step)
    else:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    """Write all or nothing: under another name first, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):  # there may be nothing, or no way, to take it away
                partial.unlink()
            raise
    except OSError as error:
        if path.parent not in _unwritable:
            _unwritable.add(path.parent)
            rank_zero_warn(
                f"Could not write {path}: {error}. Training goes on without this file; further "
                "failures in this folder are not reported."
            )


_unwritable: set[Path] = set()  # folders that were warned about
_failed: WeakSet[Any] = WeakSet()  # loggers that were warned about


@contextmanager
def _forgiving(logger: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if logger not in _failed:
            _failed.add(logger)
            rank_zero_warn(
                f"{type(logger).__name__} failed to log a landscape result: {error!r}. "
                "Training goes on; this logger is not warned about again."
            )


def _largest(values: Sequence[float]) -> float:
    """Return the largest; nan if there is none or one is nan."""
    return max(values) if values and not any(map(math.isnan, values)) else math.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
