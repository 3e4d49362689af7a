"""Where the results of a probe go: to every logger, to other callbacks, and to files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

import lightning_landscape.reporting.board as board
from lightning_landscape._lightning import rank_zero_info, rank_zero_warn
from lightning_landscape.reporting.arrays import npz_content
from lightning_landscape.reporting.files import folder_of_run, name_of_run, write_into
from lightning_landscape.reporting.html import page
from lightning_landscape.reporting.records import PLUGIN, Record
from lightning_landscape.reporting.run_records import RunRecords
from lightning_landscape.reporting.style import Figure, pixels, png
from lightning_landscape.reporting.tags import describe, written


class WarnOnce:
    """Warn about each kind of failure once, on rank zero.

    Example:
        >>> warn_once = WarnOnce()
        >>> with warn_once.guard("disk", "The file is missing: {error}"):
        ...     pass
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, kind: str, message: str, cause: str | None = None) -> None:
        """Warn, unless there was a warning of this kind, or of another kind with this cause."""
        if kind not in self._warned and (cause is None or self.first(cause)):
            self._warned.add(kind)
            rank_zero_warn(message)

    def first(self, kind: str) -> bool:
        """Return whether this is the first time that this kind of thing is asked about."""
        known = kind in self._warned
        self._warned.add(kind)
        return not known

    @contextmanager
    def guard(self, kind: str, message: str) -> Iterator[None]:
        """Turn an exception into a warning; `{error}` in the message is its type and text."""
        try:
            yield
        except Exception as error:
            self(kind, message.replace("{error}", repr(error)))


@dataclass(frozen=True, eq=False)
class Output:
    """Hands the results of one probe to the loggers, to other callbacks and to files.

    Scalars reach every logger and `trainer.callback_metrics`, where ModelCheckpoint looks for
    them. Figures, texts and files are written by rank zero alone. A logger or a disk that fails
    costs one warning, never the training.

    Attributes:
        trainer: The trainer with these loggers and this folder.
        name: The callback's name: the first part of every tag.
        step: The training step that the results are of.
        warn_once: Remembers which failures were warned about.
        run_records: Keeps the records of the run for its page.
        figures: Which loggers get figures: all, `"tensorboard"`, or all the `"others"`.
    """

    trainer: Any
    name: str
    step: int
    warn_once: WarnOnce
    run_records: RunRecords
    figures: Literal["all", "tensorboard", "others"] = "all"

    @property
    def _loggers(self) -> list[Any]:
        """The loggers for figures, texts and files: rank zero alone has some."""
        return self.trainer.loggers if self.trainer.is_global_zero else []

    @property
    def plots(self) -> bool:
        """Whether anybody would see a figure from this process."""
        return bool(self._plotting())

    def _plotting(self) -> list[Any]:
        """Return the loggers that get figures."""
        if self.figures == "all":
            return self._loggers
        wanted = self.figures == "tensorboard"
        return [one for one in self._loggers if _is_tensorboard(one) == wanted]

    def tag(self, tag: str) -> str:
        """Return a relative tag with the name before it."""
        return f"{self.name}/{written(tag)}"

    def scalars(
        self, scalars: Mapping[str, float], *, logged: Callable[[str], bool] = lambda tag: True
    ) -> None:
        """Write scalars by relative tag.

        Args:
            scalars: All of them reach other callbacks, through `trainer.callback_metrics`.
            logged: Says of a relative tag whether it reaches the loggers; by default all do.
        """
        self.trainer.callback_metrics.update(
            {self.tag(tag): torch.tensor(value) for tag, value in scalars.items()}
        )
        named = {self.tag(tag): value for tag, value in scalars.items() if logged(tag)}
        self.run_records.unlogged |= {self.tag(tag) for tag in scalars} - named.keys()
        about = {self.tag(tag): describe(written(tag)) for tag in scalars}
        for logger in self.trainer.loggers:
            writer = None
            with self._forgiving(logger):
                writer = board.torch_writer(logger)
            with self._forgiving(logger), board.described(writer, about):
                logger.log_metrics(dict(named), step=self.step)
            with self._forgiving(logger):
                self._lay_out(writer)

    def figure(self, tag: str, make: Callable[[], Figure]) -> None:
        """Show a figure in every logger that can, or write a PNG file if none of them can.

        Args:
            tag: Its relative tag.
            make: Makes the figure; not called where nobody would see it.
        """
        if not self.plots:
            return
        figure, tag, shown = make(), self.tag(tag), False
        for logger in self._plotting():
            with self._forgiving(logger):
                shown |= _show(logger, tag, figure, self.step)
        if not shown and not any(map(_is_tensorboard, self._loggers)):
            self._write(f"{tag}-step={self.step}.png", lambda: png(figure))

    def text(self, tag: str, markdown: str) -> None:
        """Show Markdown in every logger that has a place for it: TensorBoard's Text tab."""
        for logger in self._loggers:
            with self._forgiving(logger):
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_text"):
                    experiment.add_text(self.tag(tag), markdown, self.step)

    def arrays(self, kind: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays, and `step`, to `<log_dir>/landscape/<kind>-step=<step>.npz`.

        Nothing is written without a logger.
        """
        content = {"step": self.step, **arrays}
        self._write(f"{kind}-step={self.step}.npz", lambda: npz_content(content))

    def record(self, kind: str, name: str, data: Mapping[str, Any]) -> None:
        """Keep a result for the page, and write it for the Landscape tab of TensorBoard.

        Args:
            kind: What it is, see `reporting.records`.
            name: Which of its kind: a family, a direction, an average.
            data: Its fields, see `reporting.results`.
        """
        if not self._loggers:
            return
        message = (
            "A landscape result could not be recorded: {error}. Training goes on; the tab and the "
            "page lack it, and further ones are not reported."
        )
        with self.warn_once.guard("record", message):
            record = Record(kind, name, self.step, dict(data), self.name)
            self.run_records.add(record)
            for logger in self._loggers:
                with self._forgiving(logger):
                    if (writer := board.torch_writer(logger)) is not None:
                        board.write_record(writer, record)

    def page(self) -> None:
        """Write the records of the run as `report.html`, and hand it to loggers that keep files.

        Nothing is written without a record since the last page, without a logger, and in a fast
        development run.
        """
        kept = self.run_records
        if kept.is_shown or self.trainer.fast_dev_run or not self._loggers:
            return
        kept.is_shown = True
        run = name_of_run(self.trainer)
        content = page({run: kept.all()}, title=f"Loss landscape of {run}")
        self._write("report.html", content.encode)
        for logger in self._loggers:
            with self._forgiving(logger):
                _attach(logger, f"{PLUGIN}/report", content)

    def say_if_lost(self) -> None:
        """Say once that nothing was written, if there is no logger."""
        if self.trainer.loggers or not self.warn_once.first("no logger"):
            return
        rank_zero_info(
            "The Trainer has no logger: no page, figures or `.npz` files of the monitors were "
            "written, and their last numbers are in `trainer.callback_metrics` alone. To keep them "
            "use Trainer(logger=True), the default, or a logger of your own."
        )

    def _write(self, name: str, content: Callable[[], bytes]) -> None:
        folder = None
        for logger in self._loggers[:1]:
            with self._forgiving(logger):
                folder = folder_of_run(self.trainer)
        if folder is None:
            return
        try:
            write_into(folder, written(name).replace("/", "-"), content())
        except OSError as error:
            self.warn_once(
                f"folder {folder}",
                f"Could not write {name} to {folder}: {error}. Training goes on without this file; "
                "further failures in this folder are not reported.",
            )

    def _lay_out(self, writer: Any | None) -> None:
        """Arrange the charts that there are by now in Custom Scalars, unless the user did."""
        if writer is None or not self._loggers:
            return
        shown = self.trainer.callback_metrics.keys() - self.run_records.unlogged
        layout = board.chart_layout(shown)
        if layout and self.warn_once.first(f"{writer.log_dir} {layout}"):
            board.write_layout(writer, layout)

    @contextmanager
    def _forgiving(self, logger: Any) -> Iterator[None]:
        """Warn once about a logger that raises."""
        kind = type(logger).__name__
        which = f"logger {kind} {self.trainer.loggers.index(logger)}"
        message = (
            f"{kind} failed to log a landscape result: {{error}}. Training goes on; this logger is "
            "not warned about again."
        )
        with self.warn_once.guard(which, message):
            yield


def _is_tensorboard(logger: Any) -> bool:
    with suppress(Exception):  # it is warned about when it is written to
        return hasattr(getattr(logger, "experiment", None), "add_image")
    return False


def _show(logger: Any, tag: str, figure: Figure, step: int) -> bool:
    """Show a figure in the way the logger can; return whether it can."""
    experiment: Any = getattr(logger, "experiment", None)  # a plain logger need not have one
    if (writer := board.torch_writer(logger)) is not None:
        board.write_png(writer, tag, png(figure), step)
    elif hasattr(experiment, "add_image"):  # TensorBoard; its add_figure would import pyplot
        experiment.add_image(tag, pixels(figure), step, dataformats="HWC")
    elif hasattr(experiment, "add_figure"):
        experiment.add_figure(tag, figure, step)
    elif hasattr(logger, "log_image"):  # Weights & Biases
        from PIL import Image

        logger.log_image(key=tag, images=[Image.fromarray(pixels(figure))], step=step)
    elif hasattr(logger, "run_id") and hasattr(experiment, "log_figure"):  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{tag}/step={step}.png")
    elif hasattr(experiment, "log_figure"):  # Comet
        experiment.log_figure(tag, figure, step=step)
    else:
        return False
    return True


def _attach(logger: Any, name: str, page: str) -> None:
    """Hand a page to a logger that keeps files, in the way it can."""
    experiment: Any = getattr(logger, "experiment", None)
    wandb: Any = sys.modules.get("wandb")
    if hasattr(logger, "run_id") and hasattr(experiment, "log_text"):  # MLflow
        experiment.log_text(logger.run_id, page, f"{name}.html")
    elif hasattr(experiment, "log_asset_data"):  # Comet
        experiment.log_asset_data(page, name=f"{name}.html", overwrite=True)
    elif hasattr(logger, "log_image") and wandb is not None:  # Weights & Biases
        experiment.log({name: wandb.Html(page)})
