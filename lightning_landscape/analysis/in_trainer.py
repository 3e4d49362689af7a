"""Let a Trainer set a module up, and do something with it in the place of a run."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from lightning_landscape._lightning import Callback, all_batches, overrides
from lightning_landscape.analysis.analyze import analyze
from lightning_landscape.analysis.checkpoints import load_weights
from lightning_landscape.analysis.report import Report
from lightning_landscape.checks import check_whole
from lightning_landscape.params import Params
from lightning_landscape.undo import undone

T = TypeVar("T")


class Stage:
    """A trainer, a module and its data: what a measurement after training stands on.

    Args:
        trainer: A Lightning Trainer.
        module: The module.
        data: Its data module, or None if the module makes its loaders.
        n_batches: Batches to take of each loader.
        weights_only: Whether torch refuses everything but tensors in a checkpoint; None is True for
            `weights`, and the Trainer's default for `run`.

    Raises:
        ValueError: If `n_batches` is not positive.
    """

    def __init__(
        self, trainer: Any, module: Any, data: Any, *, n_batches: int, weights_only: bool | None
    ) -> None:
        self.trainer, self.module, self._data = trainer, module, data
        self._n_batches = check_whole("n_batches", n_batches)
        self._weights_only = weights_only

    def run(self, measure: Callable[[], T], ckpt_path: str | None) -> T:
        """Return what was measured while the trainer has set the module and the data up.

        The trainer moves the module to its device, starts the other processes, loads the checkpoint
        and runs the hooks of a prediction without batches; its callbacks and loggers have no part
        in it. Every process measures.
        """

        def prepared() -> T:
            if self._data is not None:
                self._data.trainer = self.trainer
                self._data.prepare_data()
                self._data.setup("fit")
            else:
                self.module.setup("fit")
            return measure()

        runs = _Runs(prepared)
        with undone() as undo, warnings.catch_warnings():
            undo.keep_attributes(self.trainer, "callbacks", "loggers")
            self.trainer.callbacks, self.trainer.loggers = [runs], []
            undo.add(partial(_take_forward_away, self.module))
            if not overrides(self.module, "forward"):  # a prediction asks for one at its start
                self.module.forward = _no_forward
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
            self.trainer.predict(
                self.module,
                dataloaders=DataLoader(_Nothing()),
                return_predictions=False,
                ckpt_path=ckpt_path,
                weights_only=self._weights_only,
            )
        return runs.result

    def weights(self, path: str) -> Params:
        """Return the weights of a checkpoint, see `load_weights`."""
        return load_weights(path, self.module, weights_only=self._weights_only is not False)

    def analyze(self, *, validation: bool = True, **settings: Any) -> Report:
        """Return what `analyze` finds on the batches of the data."""
        train, others = self.batches("train"), self.batches("val") if validation else []
        return analyze(self.module, train, validation=others, trainer=self.trainer, **settings)

    def batches(self, kind: str) -> list[Any]:
        """Return the first batches of the `"train"` or `"val"` data; none without validation.

        Raises:
            ValueError: If there is no such loader, or it is empty.
        """
        owner = self.module if self._data is None else self._data
        if kind == "val" and not overrides(owner, "val_dataloader"):
            return []
        if not overrides(owner, f"{kind}_dataloader"):
            raise ValueError(
                f"`{kind}_dataloader()` must be a method of {type(owner).__name__}, which has "
                "none: give the data, on the command line with --data my_script.MyData."
            )
        loader = getattr(owner, f"{kind}_dataloader")()
        found = () if loader is None else all_batches(loader, train=kind == "train")
        batches = list(itertools.islice(found, self._n_batches))
        if not batches:
            raise ValueError(
                f"`{kind}_dataloader()` of {type(owner).__name__} must give at least one batch."
            )
        return batches


class _Runs(Callback):
    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__()
        self._action = action
        self.result: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _take_forward_away(pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self.result = self._action()


class _Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def _take_forward_away(module: Any) -> None:
    if vars(module).get("forward") is _no_forward:
        del module.forward


def _no_forward(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("A prediction without batches must not run the module.")
