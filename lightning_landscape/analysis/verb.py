"""`LandscapeCLI`: one verb more for a script that uses LightningCLI."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_landscape._lightning import import_cli, overrides, seed_quietly
from lightning_landscape.analysis.checkpoints import read_checkpoint
from lightning_landscape.analysis.in_trainer import Stage
from lightning_landscape.analysis.report import Report
from lightning_landscape.analysis.settings import check_settings
from lightning_landscape.analysis.show import Outputs, check_outputs, one_line, show_report

_CLI: Any
_Trainer: Any
_CLI, _Trainer = import_cli()

__all__ = ["LandscapeCLI"]


class Analyzes:
    """The verb `analyze` of a Trainer."""

    def analyze(
        self: Any,
        model: Any = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        toward: str | None = None,
        families: tuple[str, ...] = ("gaussian", "uniform@norm", "sign"),
        n_directions: int = 8,
        n_points: int = 13,
        radius: float = 0.6,
        normalize: Literal["filter", "layer", "model", "none"] = "filter",
        mode: Literal["train", "eval", "recalibrated"] = "train",
        n_batches: int = 8,
        breakdown: bool = False,
        seed: int = 0,
        json: bool = False,
        html: str | None = None,
        save: str | None = None,
        figures: str | None = None,
        quiet: bool = False,
    ) -> Report:
        """Measure the loss landscape around the weights of a checkpoint.

        Args:
            model: The module.
            datamodule: Its data; without one the loaders of the module are used.
            ckpt_path: The checkpoint with the weights; without one the initial weights.
            weights_only: Whether torch refuses everything but tensors in a checkpoint.
            toward: A second checkpoint to measure the line to, or ``CKPT:swa``, its average.
            families: How random directions are sampled.
            n_directions: Directions per family.
            n_points: Points per direction, 4 k + 1.
            radius: The largest alpha, in the unit of ``normalize``.
            normalize: The length of the directions.
            mode: How the network is run.
            n_batches: Batches of the training and of the validation data to measure on.
            breakdown: Whether to measure how much the gradient changes along itself.
            seed: Seed of the directions.
            json: Whether to print all numbers as JSON instead of the words.
            html: A file to write a page for the browser to.
            save: A file to write all numbers to.
            figures: A folder to write PNG figures to.
            quiet: Whether to show neither cost nor progress.
        """
        measured: dict[str, Any] = {
            "families": families, "n_directions": n_directions, "n_points": n_points, "seed": seed,
            "radius": radius, "normalize": normalize, "mode": mode, "breakdown": breakdown,
        }  # fmt: skip
        with _one_sentence():
            check_settings(**measured)
            stage = Stage(self, model, datamodule, n_batches=n_batches, weights_only=weights_only)

        def measure() -> Report:
            weights = None if toward is None else stage.weights(toward)
            return stage.analyze(toward=weights, progress=not quiet, **measured)

        with _one_sentence():
            if ckpt_path and Path(ckpt_path).is_file() and not overrides(model, "configure_model"):
                stage.weights(ckpt_path)
            report = stage.run(measure, ckpt_path)
        if self.is_global_zero:
            show_report(report, Outputs(json, html, save, figures))
        return report


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what is wrong with the input into one sentence and the exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"analyze: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


class LandscapeCLI(_CLI):
    """A LightningCLI with the verb `analyze` beside `fit`, `validate`, `test` and `predict`.

    Use it in your script instead of `LightningCLI(MyModule, MyData)`, then run
    `python main.py analyze --config <the one that fit saved> --ckpt_path last.ckpt`. It takes the
    arguments of `LightningCLI`.

    Raises:
        TypeError: If `trainer_class` is no class.
    """

    def __init__(self, *args: Any, trainer_class: type = _Trainer, **kwargs: Any) -> None:
        if not isinstance(trainer_class, type):
            raise TypeError(
                "`trainer_class` must be a class, to which the verb `analyze` is added. Got "
                f"{trainer_class!r}: make a subclass of Trainer of the function."
            )
        analyzing = type(trainer_class.__name__, (Analyzes, trainer_class), {})
        super().__init__(*args, trainer_class=analyzing, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, and the arguments of each that the command line does not take."""
        return {**_CLI.subcommands(), "analyze": {"model", "datamodule"}}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the arguments; for `analyze` refuse a broken checkpoint, and seed quietly."""
        super().parse_arguments(parser, args)
        if self.config.get("subcommand") == "analyze":
            own = self.config["analyze"]
            path = own.get("ckpt_path")
            with _one_sentence():
                check_outputs(**{name: own.get(name) for name in ("save", "html", "figures")})
                if path and Path(path).is_file():
                    read_checkpoint(path, weights_only=own.get("weights_only") is not False)
            seed = own.get("seed_everything", False)
            if seed is not False:
                seed_quietly(None if seed is True else seed)
                own["seed_everything"] = False  # LightningCLI would do it again, and say so
