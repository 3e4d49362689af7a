"""Train somebody else's module twice, plain and watched by everything we have, and compare."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hostile import Ledger, differences, rng_fingerprint
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from toys import OURS, QUIET, Rows

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor
from lightning_landscape.reporting import output
from lightning_landscape.reporting.style import png

# clients bring checkpoint callbacks of their own
KEEPS_FILES = {**QUIET, "enable_checkpointing": True}
PIXEL = png(Figure(figsize=(0.1, 0.1), dpi=20))
DIRECTIONS = ("update", "gradient", "random")
OUR_WARNINGS = re.compile(r"SWA\(|AsymmetryMonitor|GradientBreakdownMonitor|A probe of|landscape")


def compare(train: Callable[..., Any], folder: Path, **options: Any) -> Any:
    """Fit from one seed, plain and watched; fail if a bit differs or a probe gave no number.

    Args:
        train: Builds the module and the data, and fits them with a Trainer of the options it is
            given (callbacks, logger, ...). Returns the trainer and the module.
        folder: An empty folder to write to.
        **options: What `watchers` takes.

    Returns:
        How many probes each monitor made, in words.
    """
    plain, _, _ = _run(train, folder / "plain", [])
    again, _, _ = _run(train, folder / "again", [])
    assert differences(plain, again) == [], "the client itself is not deterministic"
    ours = watchers(**options)
    watched, trainer, said = _run(train, folder / "watched", ours)
    different = differences(plain, watched)
    assert different == [], different
    assert said == [], said
    return _counted(folder / "watched" / "landscape", ours[1], trainer)


def watchers(
    *, every_n_steps: int | None = 3, mode: str = "train", swa: SWA | None = None, **options: Any
) -> list[Any]:
    """Return all three callbacks; what fails inside a probe is raised."""
    swa = swa or SWA(start=0, every_n_steps=1, loss_fn=options.get("loss_fn"))
    options = {"every_n_steps": every_n_steps, "mode": mode, "on_error": "raise", **options}
    asymmetry = AsymmetryMonitor(n_directions=1, n_points=5, swa=swa, validation=True, **options)
    breakdown = GradientBreakdownMonitor(directions=DIRECTIONS, etas=(0.5, 1.0), **options)
    return [swa, asymmetry, breakdown]


def _counted(folder: Path, monitor: AsymmetryMonitor, trainer: Any) -> str:
    """Return how many probes were made; fail if fewer than were asked for, or without numbers."""
    _assert_measured(folder)
    every = monitor.schedule.every_n_steps
    asked = monitor.n_steps // every if every else trainer.current_epoch
    kinds = ("gaussian/losses", "gradient/breakdown")
    counts = [sum(_holds(file, kind) for file in folder.glob("*.npz")) for kind in kinds]
    assert min(counts) >= asked, (counts, asked)
    return f"{counts[0]} probes of slices, {counts[1]} of steps"


def _holds(file: Path, kind: str) -> bool:
    with np.load(file) as arrays:
        return any(name.endswith(kind) for name in arrays.files)


def _assert_measured(folder: Path) -> None:
    found: dict[str, bool] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            for name in arrays.files:
                kind, _, measured = name.rpartition("/")
                if measured in ("losses", "breakdown"):
                    found[kind] = bool(np.isfinite(arrays[name]).any())
    assert all(found.values()), found
    for kind in ("gaussian", "sign", "swa", *(f"(.*/)?{d}" for d in DIRECTIONS)):
        assert any(re.fullmatch(kind, name) for name in found), (kind, found)


class Board(Rows):
    """Remembers every row, and has a TensorBoard writer for those who write to it directly."""

    save_dir = None  # where our files go; a property in the base class

    def __init__(self, folder):
        super().__init__()
        self.save_dir = str(folder)
        self.experiment = SummaryWriter(str(folder))

    def __deepcopy__(self, memo):
        return self  # some modules copy all they are given


def _run(train, folder, callbacks):
    logger, ledger = Board(folder), Ledger()
    # drawing takes longer than all else, and has tests of its own
    undrawn = patch.object(output, "png", lambda figure: PIXEL)
    with warnings.catch_warnings(record=True) as said, undrawn:
        warnings.simplefilter("always")
        seed_everything(0, verbose=False)
        trainer, module = train(
            callbacks=[ledger, *callbacks],
            **{**KEEPS_FILES, "logger": logger},
            devices=1,
            default_root_dir=str(folder),
        )
    logger.experiment.close()
    assert trainer.global_step >= 6
    evidence = {
        "state_dict": module.state_dict(),
        "optimizers": [described(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [
            described(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs
        ],
        "rows": logger.rows,
        "board": written_to(folder),
        "callback_metrics": described(dict(trainer.callback_metrics)),
        "ledger": ledger.entries,
        "rng": rng_fingerprint(),
        "held": described(module),
        "global_step": trainer.global_step,
    }
    messages = [str(warning.message) for warning in said]
    return evidence, trainer, [text for text in messages if OUR_WARNINGS.search(text)]


KINDS = {"scalars": "Scalars", "images": "Images", "histograms": "Histograms", "tensors": "Tensors"}


def written_to(folder: Path) -> dict[str, Any]:
    """Return what reached TensorBoard, besides our own: by tag, without the time of day."""
    events = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0)).Reload()
    return {
        f"{kind}/{tag}": [_timeless(event) for event in getattr(events, read)(tag)]
        for kind, read in KINDS.items()
        for tag in events.Tags()[kind]
        if not tag.startswith(OURS) and tag != "custom_scalars__config__"
    }


def _timeless(event):
    fields = event._asdict() if hasattr(event, "_asdict") else vars(event)
    return {name: value for name, value in fields.items() if name != "wall_time"}


# the trainer's own, and what it was built with: our callbacks and the folder are in there
UNSEEN = {"_trainer", "_fabric", "_hparams", "_hparams_initial", "trainer_kwargs"}


def described(value: Any, depth: int = 12, seen: set[int] | None = None) -> Any:
    """Turn whatever a module holds into numbers, words and tensors that can be compared."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.copy() if value.dtype.kind in "biufc" else str(value)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return hash(value.getstate())
    seen = set() if seen is None else seen
    if id(value) in seen or depth == 0:
        return type(value).__name__
    seen.add(id(value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [described(child, depth - 1, seen) for child in value]
    foreign = type(value).__module__.partition(".")[0] in ("pandas", "logging", "threading")
    if isinstance(value, type) or foreign:
        return type(value).__name__
    held = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return {
        "": type(value).__name__,
        **{
            str(key): described(child, depth - 1, seen)
            for key, child in held.items()
            if key not in UNSEEN and not str(key).startswith(OURS)
        },
    }
