"""An average of a module's weights: taken step by step, held in the module for a while, saved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lightning_landscape._lightning import attached_trainer, rank_zero_warn
from lightning_landscape.engine.batch_norm import batch_norms, estimate_batch_norm, runner
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.snapshot import put_back
from lightning_landscape.engine.steps import LossFn, loss_step
from lightning_landscape.params import Params
from lightning_landscape.sharding import (
    distribute_like,
    full,
    local,
    reshard,
    shard_of,
    sharded_modules,
)

# it returns a Tensor; a LightningCLI would refuse functions that are not annotated to
Average: TypeAlias = Literal["equal", "ema", "latest"] | Callable[[Tensor, Tensor, int], Any]
_Update: TypeAlias = Callable[[Any, Any, int], Any]


class WeightAverage:
    """The average of the weights that a module had at some moments, with batch-norm statistics.

    Parameters are averaged in float32 or wider. Each is averaged over the updates it was there
    for: a layer that is added later has the mean of its own values, and one that is gone is
    forgotten. The statistics are estimated for the average on kept batches.

    Args:
        average: `"equal"`, the mean of all; `"ema"`, an exponential moving average; `"latest"`, the
            mean of the last `window`; or a function of the average so far, the new weights and the
            number of sets so far that returns the new average.
        decay: Weight of the past in an exponential moving average.
        window: How many sets `"latest"` keeps. With their mean it holds one copy more.
        device: The device of the average; that of the weights if None.
        who: The owner of the average, for warnings.
        loss_fn: Runs a batch to estimate statistics on, where `training_step` cannot.

    Attributes:
        n_averaged: Number of updates.
        statistics: Batch-norm statistics, by buffer name.
        kept: Training batches to estimate them on.
    """

    def __init__(
        self,
        average: Average = "equal",
        *,
        decay: float = 0.999,
        window: int = 5,
        device: str | None = None,
        who: str = "",
        loss_fn: LossFn | None = None,
    ) -> None:
        self.n_averaged = 0
        self.statistics: Params = {}
        self.kept: list[KeptBatch] = []
        self._estimated_at = 0  # how many sets were averaged then
        self._who = who
        self._loss_fn = loss_fn
        self._window = window if average == "latest" else 0
        self._device = device
        self._average: Average = average
        self._decay = decay
        self._weights: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # in how many updates each was there
        self._sets: deque[dict[str, Tensor]] = deque()  # the last ones, of "latest"; never written

    def update(self, module: nn.Module) -> None:
        """Take the module's present weights into the average; one pass over them."""
        reshard(sharded_modules(module))
        live = {name: tensor.detach() for name, tensor in averaged_parameters(module).items()}
        if self._window:
            self._weights = {}  # before another set is copied: never more than `window` + 1 copies
            if len(self._sets) == self._window:
                self._sets.popleft()
            self._sets.append({n: _wide_copy(t, self._device) for n, t in live.items()})
        else:
            self._take_in(live)
        self.n_averaged += 1

    @property
    def weights(self) -> Params:
        """The average by parameter name; not a copy."""
        if self._window and not self._weights:
            mean = WeightAverage()
            for weights in self._sets:
                mean._take_in(weights)
            self._weights = mean._weights
        return self._weights

    def refresh(
        self,
        module: nn.Module,
        batches: Sequence[KeptBatch] | None = None,
        *,
        over_ranks: Callable[[Params], Params] = dict,
    ) -> None:
        """Estimate the statistics again, if the average has moved on since.

        Args:
            module: The module.
            batches: Batches to estimate them on; by default all that were kept.
            over_ranks: Returns the mean of what the processes have estimated.
        """
        if self._estimated_at != self.n_averaged and batch_norms(module):
            batches = self.kept if batches is None else batches
            found = estimated(module, batches, at=self.weights, loss_fn=self._loss_fn)
            self.statistics, self._estimated_at = over_ranks(found), self.n_averaged

    @contextmanager
    def held(self, module: nn.Module, batches: Iterable[Any] | None = None) -> Iterator[None]:
        """Put the average into a module; restore its weights and buffers at the end.

        Args:
            module: A module with the parameters that were averaged.
            batches: Batches to estimate statistics on; by default those that were kept.
        """
        pairs = self._pairs(module, batches)
        registered = [(child._buffers, dict(child._buffers)) for child in module.modules()]
        buffers = [local(t) for _, own in registered for t in own.values() if t is not None]
        before = {tensor: tensor.detach().clone() for tensor in [*pairs, *buffers]}
        try:
            put_back(list(pairs), list(pairs.values()))
            yield
        finally:
            reshard(sharded_modules(module))
            for registry, own in registered:  # the very tensors, and what they held
                registry.clear()
                registry.update(own)
            put_back(list(before), list(before.values()))

    def apply_to(self, module: nn.Module) -> None:
        """Set a module to the average and its statistics."""
        pairs = self._pairs(module)
        put_back(list(pairs), list(pairs.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return all that another average needs to go on from here."""
        state: dict[str, Any] = {
            "n_averaged": self.n_averaged,
            "weights": {name: full(tensor).clone() for name, tensor in self.weights.items()},
            "counts": dict(self._counts),
            **self.statistics_state(),
        }
        if self._window:
            state["sets"] = [{n: full(t) for n, t in weights.items()} for weights in self._sets]
        return state

    def statistics_state(self) -> dict[str, Any]:
        """Return the part of the state that belongs to the statistics."""
        return {"statistics": dict(self.statistics), "statistics_of": self._estimated_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state; tensors move to their device at the next update.

        What an older one lacks starts anew: without weights or their number, everything.
        """
        if not state.keys() >= {"n_averaged", "weights"}:
            state = {}
        weights = dict(state.get("weights", {}))
        self.n_averaged = state.get("n_averaged", 0)
        self.statistics = dict(state.get("statistics", {}))
        self._estimated_at = state.get("statistics_of", 0)
        counts = dict.fromkeys(weights, self.n_averaged) | state.get("counts", {})
        self._counts = {name: int(counts[name]) for name in weights}
        self._weights = {name: tensor.clone() for name, tensor in weights.items()}
        if self._window:
            sets = state.get("sets") or ([weights] if weights else [])
            self._weights, self._sets = {}, deque(map(dict, sets[-self._window :]))

    def _take_in(self, live: Params) -> None:
        for name, tensor in live.items():
            known = self._weights.get(name)
            if known is None or known.shape != tensor.shape:
                self._weights[name] = _wide_copy(tensor, self._device)
                self._counts[name] = 0
            else:  # one from a checkpoint is whole, and in host memory
                home = self._device or tensor.device
                self._weights[name] = distribute_like(known, tensor).to(home)
        for gone in self._weights.keys() - live.keys():
            del self._weights[gone], self._counts[gone]
        update = _update_rule(self._average, self._decay)
        by_count: dict[int, list[str]] = {}
        for name in live:
            by_count.setdefault(self._counts[name], []).append(name)
            self._counts[name] += 1
        for count, names in by_count.items():
            if count:
                averages = [self._weights[name] for name in names]
                news = [
                    live[name].to(device=known.device, dtype=known.dtype)
                    for name, known in zip(names, averages, strict=True)
                ]
                update(averages, news, count)

    def _pairs(
        self, module: nn.Module, batches: Iterable[Any] | None = None
    ) -> dict[Tensor, Tensor]:
        """Return the module's tensors and what the average has for them."""
        self._check(module, {})
        buffers = self._statistics_for(module, batches)
        self._check(module, buffers)
        reshard(sharded_modules(module))
        live, known = averaged_parameters(module), dict(module.named_buffers())
        with torch.no_grad():
            pairs = {
                local(live[name]): shard_of(value, live[name]).to(local(live[name]))
                for name, value in self.weights.items()
            }
            return pairs | {known[n]: value.to(known[n]) for n, value in buffers.items()}

    def _check(self, module: nn.Module, buffers: Params) -> None:
        """Compare the average, and buffers that belong to it, with a module.

        Raises:
            ValueError: If the names or the shapes are others.
        """
        live = averaged_parameters(module)
        known = {**live, **dict(module.named_buffers())}
        rule = "`module` must have the parameters that were averaged, and no others."
        hint = f"Is {type(module).__name__} the module that was trained?"
        expected = {**self.weights, **buffers}
        if missing := [name for name in expected if name not in known]:
            raise ValueError(f"{rule} It lacks {_some(missing)}. {hint}")
        if further := [name for name in live if name not in expected]:
            raise ValueError(f"{rule} The average lacks {_some(further)}. {hint}")
        for name, value in expected.items():
            shape = known[name].shape
            if value.shape != shape:
                raise ValueError(
                    f"{rule} {name!r} has the shape {tuple(shape)}, in the average it has "
                    f"{tuple(value.shape)}. {hint}"
                )

    def _statistics_for(self, module: nn.Module, batches: Iterable[Any] | None) -> Params:
        """Return statistics for a module; with a warning, none if they cannot be estimated."""
        own = None
        if batches is not None:
            own = [KeptBatch(clone_batch(b), i, raw=True) for i, b in enumerate(batches)]
            if not own:
                raise ValueError("`batches` must hold at least one batch. Got none.")
        if not batch_norms(module):
            return {}
        try:
            if own is not None:
                return estimated(module, own, at=self.weights, loss_fn=self._loss_fn)
            self.refresh(module)
            return self.statistics
        except Exception as error:
            rank_zero_warn(
                f"{self._who} handed out its average without batch-norm statistics of its own: "
                f"{describe_error(error)}. Those in the module are of other weights and wrong for "
                "it. Use swa.averaged(module, batches), or recalibrate_batch_norm(module, batches)."
            )
            return {}


def averaged_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that can be averaged, by name; frozen ones too."""
    named = module.named_parameters()
    return {name: p for name, p in named if p.is_floating_point() or p.is_complex()}


def _update_rule(average: Average, decay: float) -> _Update:
    """Return what takes new tensors into averages, given their number so far."""
    if average == "ema":
        return get_ema_multi_avg_fn(decay)
    if not callable(average):
        return get_swa_multi_avg_fn()

    def update(averages: list[Tensor], news: list[Tensor], count: int) -> None:
        for so_far, new in zip(averages, news, strict=True):
            so_far.copy_(average(so_far, new, count))

    return update


def _wide_copy(tensor: Tensor, device: str | None) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(device=device or tensor.device, dtype=dtype, copy=True)


def estimated(
    module: nn.Module, kept: Sequence[KeptBatch], *, at: Params | None, loss_fn: LossFn | None
) -> Params:
    """Return batch-norm statistics on kept batches, by buffer name.

    Raises:
        ValueError: If there are no batches.
    """
    if not kept:
        raise ValueError("no training batches were kept to estimate batch-norm statistics on")
    step = loss_step(module, loss_fn) if loss_fn else runner(module)
    trainer = attached_trainer(module)
    return estimate_batch_norm(module, list(kept), at=at, step=step, trainer=trainer)


def _some(names: list[str]) -> str:
    return f"{names[:3]}{' and others' if len(names) > 3 else ''}"
