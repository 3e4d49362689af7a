"""The second pass of every validation batch, through the average.

The average lives in a world of its own: its weights, its batch-norm statistics, its torchmetrics
states, the outputs its steps collect, its log. Entering that world and leaving it costs more than a
small forward pass, so batches wait until a handful of them can be run at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_landscape._lightning import (
    collected,
    epoch_metrics,
    new_results,
    validation_arguments,
)
from lightning_landscape.isolation import unchanged_rng
from lightning_landscape.params import Params
from lightning_landscape.probing import bytes_of, clone_batch
from lightning_landscape.snapshot import Places, Snapshot, put_back

__all__ = ["SecondPass"]

_WAITING_BATCHES = 16
_WAITING_BYTES = 32 * 2**20
_LOOKS = 2  # first visits of batches that are looked at, besides both ends of the epoch


class SecondPass:
    """One validation epoch of other weights than the live ones, in between the batches of those.

    Args:
        module: The module, in eval mode and with the live weights.
        trainer: Its trainer, in a validation.
        weights: The weights to validate, by parameter name.
        buffers: Buffers that belong to them, such as batch-norm statistics, by name.
    """

    def __init__(
        self, module: Any, trainer: Any, *, weights: Params, buffers: Params
    ) -> None:
        self._module = module
        self._trainer = trainer
        tensors: dict[str, Tensor] = dict(module.named_parameters())
        self._tensors = [tensors[name] for name in weights]
        self._weights = [value.to(tensors[name]) for name, value in weights.items()]
        self._live = [tensor.detach().clone() for tensor in self._tensors]
        self._results = new_results(trainer)
        self._places = Places()
        self._contents: list[Any] = []
        self._looks = 0
        self._waiting: list[tuple[Any, int, int | None]] = []
        self._waiting_bytes = 0
        self._loaders: list[int | None] = [None]
        self._began = False
        self._origin = self._look()  # where both worlds part
        with self._inside(look=True):
            known = dict(module.named_buffers())
            put_back([known[name] for name in buffers], list(buffers.values()))
            with collected(module, trainer, self._results, "on_validation_epoch_start", first=None):
                module.on_validation_epoch_start()

    def take(self, batch: Any, index: int, loader: int | None) -> None:
        """Let a copy of a batch wait, before the live step can write to it."""
        batch = clone_batch(batch)
        self._waiting.append((batch, index, loader))
        self._waiting_bytes += bytes_of(batch)
        if loader not in self._loaders:
            self._loaders.append(loader)

    def catch_up(self, *, now: bool = False) -> None:
        """Run the waiting batches, if they are many or it has to be now."""
        full = len(self._waiting) >= _WAITING_BATCHES or self._waiting_bytes >= _WAITING_BYTES
        if not self._waiting or not (now or full or self._looks < _LOOKS):
            return
        with self._inside(look=self._looks < _LOOKS):
            for batch, index, loader in self._waiting:
                self._run(batch, index, loader)
        self._looks += 1
        self._waiting, self._waiting_bytes = [], 0

    def finish(self) -> dict[str, float]:
        """Run what still waits and the end of the epoch; return the metrics by name."""
        self.catch_up(now=True)
        function = "on_validation_epoch_end"
        with self._inside(look=True):
            self._results.dataloader_idx = None
            with collected(self._module, self._trainer, self._results, function, first=None):
                self._module.on_validation_epoch_end()
                return epoch_metrics(self._results, self._loaders)

    def _run(self, batch: Any, index: int, loader: int | None) -> None:
        module, results = self._module, self._results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, loader
        position = [batch, index, *([] if loader is None else [loader])]
        arguments = validation_arguments(module, batch, index, loader)
        with collected(
            module, self._trainer, results, "validation_step", first=not self._began
        ), self._trainer.precision_plugin.val_step_context():
            module.on_validation_batch_start(*position)
            output = module.validation_step(*arguments)
            module.on_validation_batch_end(output, *position)
        results.batch = None
        self._began = True

    @contextmanager
    def _inside(self, *, look: bool) -> Iterator[None]:
        """Enter the world of the average; leave with the live one as it was.

        Only what was seen to differ is swapped, unless this is a visit to look for more.
        """
        snapshot = self._look() if look else None
        live = self._places.read()
        with unchanged_rng():
            try:
                put_back(self._tensors, self._weights)
                if snapshot is not None:  # what the live world has written by now is not ours
                    drift = self._origin.changed()
                    self._places |= self._origin.places(drift)
                    self._origin.restore(drift)
                self._places.write(self._contents)
                yield
                if snapshot is not None:
                    self._places |= snapshot.places(snapshot.changed())
                self._contents = self._places.read()
            finally:
                put_back(self._tensors, self._live)
                if snapshot is not None:
                    snapshot.restore(snapshot.changed())
                else:
                    self._places.write(live)

    def _look(self) -> Snapshot:
        return Snapshot([("", self._module)], besides=self._tensors)
