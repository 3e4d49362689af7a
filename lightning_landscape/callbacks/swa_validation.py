"""The second pass of every validation batch, through the average.

The average lives in a world of its own: its weights, its batch-norm statistics, its torchmetrics
states, the outputs its steps collect, its log. Entering that world and leaving it costs more than a
small forward pass, so batches wait until a handful of them can be run at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from lightning_landscape._lightning import (
    collected,
    dummy_loggers,
    epoch_metrics,
    has_hook,
    lightning_modules,
    new_results,
    takes_batch_index,
)
from lightning_landscape.engine.batches import bytes_of, clone_batch
from lightning_landscape.engine.checkpoints import checkpoints_unmoved, compiling_nothing
from lightning_landscape.engine.rates import rates_kept
from lightning_landscape.engine.rng import rng_at, unchanged_rng
from lightning_landscape.engine.snapshot import Places, Snapshot, put_back
from lightning_landscape.params import Params
from lightning_landscape.ranks import everybody
from lightning_landscape.sharding import local, recover, reshard, shard_of, sharded_modules

__all__ = ["SecondPass"]

_FIRST_WAIT, _LONGEST_WAIT = 32, 128  # batches; each visit lets twice as many wait for the next
_WAITING_BYTES = 64 * 2**20


class SecondPass:
    """One validation epoch of other weights than the live ones, in between the batches of those.

    Args:
        module: The module, in eval mode and with the live weights.
        trainer: Its trainer, in a validation.
        weights: The weights to validate, by parameter name.
        buffers: Buffers that belong to them, such as batch-norm statistics, by name.
    """

    def __init__(self, module: Any, trainer: Any, *, weights: Params, buffers: Params) -> None:
        self._module = module
        self._trainer = trainer
        self._buffers = buffers
        self._sharded = sharded_modules(module)
        reshard(self._sharded)
        known: dict[str, Tensor] = dict(module.named_parameters())
        parameters = [known[name] for name in weights]
        self._tensors = [local(parameter) for parameter in parameters]
        self._weights = [
            shard_of(value, parameter).to(tensor)
            for value, parameter, tensor in zip(
                weights.values(), parameters, self._tensors, strict=True
            )
        ]
        self._results = new_results(trainer)
        self._modules = lightning_modules(module)
        self._takes_index = takes_batch_index(module.validation_step)
        self._origin = Snapshot([("", module)], besides=parameters)  # where both worlds part
        self._places = Places()
        self._contents: list[Any] = []
        self._has_start_hook = has_hook(module, "on_validation_batch_start")
        self._for_hook: Any = None
        self._waiting: list[tuple[Any, Any, int, int | None]] = []
        self._waiting_bytes = 0
        self._wait = _FIRST_WAIT
        self._loaders: list[int | None] = [None]
        self._began = False

    def take_for_hook(self, batch: Any) -> None:
        """Copy a batch as the module's `on_validation_batch_start` gets it."""
        if self._has_start_hook:
            self._for_hook = clone_batch(batch)

    def take(self, batch: Any, index: int, loader: int | None) -> None:
        """Let a copy of a batch wait, before the live step can write to it."""
        batch, for_hook, self._for_hook = clone_batch(batch), self._for_hook, None
        self._waiting.append((batch, for_hook, index, loader))
        self._waiting_bytes += bytes_of(batch) + bytes_of(for_hook)
        if loader not in self._loaders:
            self._loaders.append(loader)

    def catch_up(self) -> None:
        """Run the waiting batches, if they are many."""
        due = len(self._waiting) >= self._wait or self._waiting_bytes >= _WAITING_BYTES
        if self._sharded:  # passes are collectives: all ranks make the same at the same time
            due = not everybody(not due, self._module.device)
        if due:
            self._wait = min(2 * self._wait, _LONGEST_WAIT)
            with self._inside():
                self._run_waiting()

    def finish(self) -> dict[str, float]:
        """Run what still waits and the end of the epoch; return the metrics by name."""
        with self._inside():
            self._run_waiting()
            self._results.dataloader_idx = None
            with self._logged_in("on_validation_epoch_end", first=None):
                self._module.on_validation_epoch_end()
                return epoch_metrics(self._results, self._loaders)

    def _run_waiting(self) -> None:
        if not self._began:
            known = dict(self._module.named_buffers())
            put_back([known[name] for name in self._buffers], list(self._buffers.values()))
            with self._logged_in("on_validation_epoch_start", first=None):
                self._module.on_validation_epoch_start()
            put_back(self._tensors, self._weights)  # that hook may swap in weights of its own
        for waiting in self._waiting:
            self._run(*waiting)
        self._waiting, self._waiting_bytes = [], 0

    def _run(self, batch: Any, for_hook: Any, index: int, loader: int | None) -> None:
        module, results = self._module, self._results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, loader
        position = [batch, index, *([] if loader is None else [loader])]
        arguments = position if self._takes_index else [batch, *position[2:]]
        with self._logged_in("validation_step", first=not self._began):
            if self._has_start_hook:  # what it does to its batch was done to the step's before
                module.on_validation_batch_start(for_hook, *position[1:])
            with self._trainer.precision_plugin.val_step_context():
                output = module.validation_step(*arguments)
            module.on_validation_batch_end(output, *position)
        results.batch = None
        self._began = True

    def _logged_in(self, function: str, *, first: bool | None) -> AbstractContextManager[None]:
        return collected(self._modules, self._trainer, self._results, function, first=first)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Enter the world of the average; leave with the live one as it was.

        What either world has written since they parted is swapped; all else is as it was then.
        """
        reshard(self._sharded)
        # taken now: another callback may have swapped them since the last visit
        weights = [tensor.detach().clone() for tensor in self._tensors]
        drift = self._origin.changed()
        self._places |= self._origin.places(drift)
        live = self._places.read()
        with (
            unchanged_rng() as rng,
            dummy_loggers(self._trainer),
            rates_kept(self._trainer),
            compiling_nothing(),
            checkpoints_unmoved(lambda: self._outside(weights, live, rng), self._trainer),
        ):
            try:
                put_back(self._tensors, self._weights)
                self._origin.restore(drift)
                self._places.write(self._contents)
                yield
                reshard(self._sharded)
                drift = self._origin.changed()
                self._places |= self._origin.places(drift)
                self._contents = self._places.read()
            except BaseException:
                recover(self._sharded)
                drift = self._origin.changed()
                raise
            finally:
                put_back(self._tensors, weights)
                self._origin.restore(drift)
                self._places.write(live)

    @contextmanager
    def _outside(
        self, weights: list[Tensor], live: list[Any], rng: dict[str, Any]
    ) -> Iterator[None]:
        """Let somebody look at the live world from inside: a signal handler that saves it."""
        average = [tensor.detach().clone() for tensor in self._tensors]
        inside = Snapshot([("", self._module)], besides=self._tensors)
        put_back(self._tensors, weights)
        self._origin.restore(self._origin.changed())
        self._places.write(live)
        try:
            with rng_at(rng):
                yield
        finally:
            put_back(self._tensors, average)
            inside.restore(inside.changed())
