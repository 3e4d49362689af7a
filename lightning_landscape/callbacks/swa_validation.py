"""Validation of other weights than the live ones, in between the batches of a live validation.

Each set of weights has a world of its own: weights, batch-norm statistics, torchmetrics states, the
outputs its steps collect, its log. Entering a world and leaving it costs more than a small forward
pass, so batches wait until a handful of them can be run at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_landscape._lightning import (
    collected,
    epoch_metrics,
    has_hook,
    keep_trainer,
    lightning_modules,
    live_results,
    new_results,
    takes_batch_index,
)
from lightning_landscape.callbacks.average import averaged_parameters
from lightning_landscape.engine.batches import bytes_of, clone_batch
from lightning_landscape.engine.checkpoints import compiling_nothing, save_unmoved, state_restored
from lightning_landscape.engine.optimizers import keep_optimizers
from lightning_landscape.engine.rng import set_rng_states, unchanged_rng
from lightning_landscape.engine.roots import roots_of
from lightning_landscape.engine.snapshot import Places, Snapshot, put_back
from lightning_landscape.params import Params
from lightning_landscape.sharding import local, recover, reshard, shard_of, sharded_modules
from lightning_landscape.undo import undone

WAITING_BYTES = 64 * 2**20
_FIRST_WAIT, _LONGEST_WAIT = 32, 128  # batches; each visit lets twice as many wait for the next

_Sums: TypeAlias = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Validated:
    """What a validation found.

    Attributes:
        metrics: The logged metrics over all batches and processes, by name.
        batches: For those that are means of tensors over the batches: the mean over each batch of
            this process and its weight (number of samples), two tensors `[n_batches]`.
    """

    metrics: dict[str, float]
    batches: dict[str, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class _World:
    """One set of weights, and all that belongs to it alone."""

    weights: list[Tensor]
    buffers: Params
    results: Any
    contents: list[Any] = field(default_factory=list)  # of the places that worlds differ in
    sums: list[_Sums] = field(default_factory=list)  # after each batch
    entered: bool = False


class SecondPass:
    """One validation epoch of other weights than the live ones, in between the batches of those.

    Args:
        module: The module, in eval mode and with the live weights.
        trainer: Its trainer, in a validation.
        worlds: Sets to validate, by name: weights by parameter name (those not named are the
            current ones) and buffers that belong to them, such as batch-norm statistics.
        alone: Whether this is the only process. Several run their waiting batches after equal
            numbers of them, whatever their sizes: steps may exchange something.
        most: How many batches may wait, with several processes.
    """

    def __init__(
        self,
        module: Any,
        trainer: Any,
        worlds: Mapping[str, tuple[Params, Params]],
        *,
        alone: bool = True,
        most: int = _LONGEST_WAIT,
    ) -> None:
        self._module = module
        self._trainer = trainer
        self._alone = alone
        self._sharded = sharded_modules(module)
        reshard(self._sharded)
        known = averaged_parameters(module)
        self._tensors = [local(parameter) for parameter in known.values()]
        self._worlds: dict[str, _World] = {}
        for name, (weights, buffers) in worlds.items():
            own = [
                shard_of(weights[n], p).to(t) if n in weights else t.detach().clone()
                for (n, p), t in zip(known.items(), self._tensors, strict=True)
            ]
            self._worlds[name] = _World(own, buffers, new_results(trainer))
        self._modules = lightning_modules(module)
        self._takes_index = takes_batch_index(module.validation_step)
        roots = roots_of(module, trainer)
        self._origin = Snapshot(roots, hooks_only=list(known.values()))  # where worlds part
        self._places = Places()
        self._live_sums: list[_Sums] = []
        self._has_start_hook = has_hook(module, "on_validation_batch_start")
        self._for_hook: Any = None
        self._waiting: list[tuple[Any, Any, int, int | None]] = []
        self._waiting_bytes = 0
        self._most = _LONGEST_WAIT if alone else min(most, _LONGEST_WAIT)
        self._wait = min(_FIRST_WAIT, self._most)
        self._loaders: list[int | None] = [None]
        self.largest = 0  # bytes of a batch
        if not alone:  # a hook that exchanges something must be run by all at once
            self._run_waiting()

    def take_for_hook(self, batch: Any) -> None:
        """Copy a batch as the module's `on_validation_batch_start` gets it."""
        if self._has_start_hook:
            self._for_hook = clone_batch(batch)

    def take(self, batch: Any, index: int, loader: int | None) -> None:
        """Let a copy of a batch wait, before the live step can write to it."""
        batch, for_hook, self._for_hook = clone_batch(batch), self._for_hook, None
        self._waiting.append((batch, for_hook, index, loader))
        size = bytes_of(batch) + bytes_of(for_hook)
        self._waiting_bytes += size
        self.largest = max(self.largest, size)
        if loader not in self._loaders:
            self._loaders.append(loader)

    def catch_up(self) -> None:
        """Run the waiting batches, if they are many."""
        self._live_sums.append(_running_sums(live_results(self._trainer)))
        full = self._alone and self._waiting_bytes >= WAITING_BYTES
        if len(self._waiting) >= self._wait or full:
            self._wait = min(2 * self._wait, self._most)
            self._run_waiting()

    def finish(self) -> tuple[Validated, dict[str, Validated]]:
        """Run what still waits and the end of the epoch.

        Returns:
            The live validation (its means over batches; its metrics are not known yet), and what
            was found in each world, by name.
        """
        self._run_waiting()
        found = {name: self._end(world) for name, world in self._worlds.items()}
        return Validated({}, _batch_means(self._live_sums)), found

    def _end(self, world: _World) -> Validated:
        with self._inside(world):
            world.results.dataloader_idx = None
            with self._logged_in(world, "on_validation_epoch_end", first=None):
                self._module.on_validation_epoch_end()
                metrics = epoch_metrics(world.results, self._loaders)
        return Validated(metrics, _batch_means(world.sums))

    def _run_waiting(self) -> None:
        worlds = list(self._worlds.values())
        for world in worlds:
            with self._inside(world):
                if not world.entered:
                    self._start(world)
                for batch, for_hook, index, loader in self._waiting:
                    if world is not worlds[-1]:  # a step may write to its batch
                        batch, for_hook = clone_batch(batch), clone_batch(for_hook)
                    self._run(world, batch, for_hook, index, loader)
        self._waiting, self._waiting_bytes = [], 0

    def _start(self, world: _World) -> None:
        world.entered = True
        known = dict(self._module.named_buffers())
        put_back([known[name] for name in world.buffers], list(world.buffers.values()))
        with self._logged_in(world, "on_validation_epoch_start", first=None):
            self._module.on_validation_epoch_start()
        put_back(self._tensors, world.weights)  # that hook may swap in weights of its own

    def _run(
        self, world: _World, batch: Any, for_hook: Any, index: int, loader: int | None
    ) -> None:
        module, results = self._module, world.results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, loader
        position = [batch, index, *([] if loader is None else [loader])]
        arguments = position if self._takes_index else [batch, *position[2:]]
        with self._logged_in(world, "validation_step", first=not world.sums):
            if self._has_start_hook:  # what it does to its batch was done to the step's before
                module.on_validation_batch_start(for_hook, *position[1:])
            with self._trainer.precision_plugin.val_step_context():
                output = module.validation_step(*arguments)
            module.on_validation_batch_end(output, *position)
        results.batch = None
        world.sums.append(_running_sums(results))

    def _logged_in(
        self, world: _World, function: str, *, first: bool | None
    ) -> AbstractContextManager[None]:
        return collected(self._modules, self._trainer, world.results, function, first=first)

    @contextmanager
    def _inside(self, world: _World) -> Iterator[None]:
        """Enter a world; leave with the live one as it was.

        What a world has written since they parted is swapped; all else is as it was then.
        """
        reshard(self._sharded)
        # taken now: another callback may have swapped them since the last visit
        weights = [tensor.detach().clone() for tensor in self._tensors]
        drift = self._origin.changed()
        self._places |= self._origin.places(drift)
        live = self._places.read()
        with unchanged_rng() as rng, compiling_nothing(), undone() as undo:
            keep_trainer(self._trainer, undo)
            keep_optimizers(self._trainer, undo)
            save_unmoved(lambda: self._outside(weights, live, rng), self._trainer, undo)
            try:
                put_back(self._tensors, world.weights)
                self._origin.restore(drift)
                self._origin.hide_iterators()
                self._places.write(world.contents)
                yield
                reshard(self._sharded)
                drift = self._origin.changed()
                self._places |= self._origin.places(drift)
                world.contents = self._places.read()
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
        """Show the live world from inside another: to a signal handler that saves a checkpoint."""
        with state_restored(self._module, self._trainer, self._tensors, self._tensors):
            put_back(self._tensors, weights)
            self._origin.restore(self._origin.changed())
            self._places.write(live)
            set_rng_states(rng)
            yield


def _running_sums(results: Any) -> _Sums:
    """Return, for what is logged as a mean over an epoch, its sum and weight so far, by name."""
    sums: _Sums = {}
    for metric in results.values():
        meta = metric.meta
        if metric.is_tensor and meta.is_mean_reduction and meta.on_epoch and not metric.has_reset:
            name, loader = meta.forked_name(on_step=False), meta.dataloader_idx
            if meta.add_dataloader_idx and loader is not None:
                name += results.DATALOADER_SUFFIX.format(loader)
            sums[name] = (metric.value, metric.cumulated_batch_size)
    return sums


def _batch_means(sums: list[_Sums]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean over each batch and its weight, from the sums after each batch."""
    means: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(name for row in sums for name in row):
        rows = [row[name] for row in sums if name in row]
        totals, weights = (
            torch.stack([part.detach().reshape(()) for part in column]).double().cpu()
            for column in zip(*rows, strict=True)
        )
        totals, weights = (p.diff(prepend=p.new_zeros(1)) for p in (totals, weights))
        there = weights > 0  # another dataloader's batches add nothing
        means[name] = totals[there] / weights[there], weights[there]
    return means
