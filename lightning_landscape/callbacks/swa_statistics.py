"""An average of weights with the batch-norm statistics that belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_landscape._lightning import attached_trainer, rank_zero_warn
from lightning_landscape.callbacks.average import WeightAverage
from lightning_landscape.engine.batch_norm import batch_norms, estimate_batch_norm, runner
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.steps import LossFn, loss_step
from lightning_landscape.params import Params


class NormedAverage:
    """An average, and batch-norm statistics that are estimated for it on kept batches.

    Args:
        who: Whose average it is, for warnings.
        mean: The average.
        loss_fn: Runs a batch, where `training_step` cannot.

    Attributes:
        statistics: By buffer name.
        kept: Training batches by their place in the epoch.
    """

    def __init__(self, who: str, mean: WeightAverage, loss_fn: LossFn | None) -> None:
        self.mean = mean
        self.loss_fn = loss_fn
        self.statistics: Params = {}
        self.kept: dict[int, KeptBatch] = {}
        self._who = who
        self._estimated_at = 0  # how many sets were averaged then

    @contextmanager
    def held(self, module: nn.Module, batches: Iterable[Any] | None = None) -> Iterator[None]:
        """Hold the average in a module, with statistics on these batches or on the kept ones."""
        self.mean.check(module)
        with self.mean.swapped(module, self._statistics_for(module, batches)):
            yield

    def apply_to(self, module: nn.Module) -> None:
        """Leave the average in a module, with its statistics."""
        self.mean.check(module)
        self.mean.apply_to(module, self._statistics_for(module))

    def refresh(self, module: nn.Module) -> None:
        """Estimate the statistics again, if the average has moved on since."""
        if self.is_stale(module):
            self.adopt(self.estimate(module, list(self.kept.values())))

    def is_stale(self, module: nn.Module) -> bool:
        """Return whether there are statistics to estimate."""
        return self._estimated_at != self.mean.n_averaged and bool(batch_norms(module))

    def estimate(self, module: nn.Module, batches: Sequence[KeptBatch]) -> Params:
        """Return the statistics at the average on some batches."""
        return estimated(module, batches, at=self.mean.weights, loss_fn=self.loss_fn)

    def adopt(self, statistics: Params) -> None:
        """Take these for the statistics of the average as it is."""
        self.statistics, self._estimated_at = statistics, self.mean.n_averaged

    def state_dict(self) -> dict[str, Any]:
        """Return all that another needs to go on from here, but the batches."""
        return {**self.mean.state_dict(), **self.statistics_state()}

    def statistics_state(self) -> dict[str, Any]:
        """Return the part of the state that belongs to the statistics."""
        return {"statistics": dict(self.statistics), "statistics_of": self._estimated_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.mean.load_state_dict(state)
        self.statistics = dict(state["statistics"])
        self._estimated_at = state["statistics_of"]

    def _statistics_for(self, module: nn.Module, batches: Iterable[Any] | None = None) -> Params:
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
                return self.estimate(module, own)
            self.refresh(module)
            return self.statistics
        except Exception as error:
            rank_zero_warn(
                f"{self._who} handed out its average without batch-norm statistics of its own: "
                f"{describe_error(error)}. Those in the module are of other weights and wrong for "
                "it. Use swa.averaged(module, batches), or recalibrate_batch_norm(module, batches)."
            )
            return {}


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
