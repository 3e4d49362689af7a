"""What monitors keep of a training until they measure: batches, and the weights before a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from lightning_landscape.engine.batches import KeptBatch, keep_batch
from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.params import Params
from lightning_landscape.ranks import lowest_of_each

T = TypeVar("T")


@dataclass
class KeptBatches:
    """Copies of the first batches of a fit: the same ones for all probes, so that these compare.

    Attributes:
        n: How many to keep of each kind.
        train: Training batches.
        validation: Validation batches.
        leaves_out_validation: Whether the step was found to fail on validation batches.
    """

    n: int
    train: list[KeptBatch] = field(default_factory=list)
    validation: list[KeptBatch] = field(default_factory=list)
    leaves_out_validation: bool = False
    _trained_in: int = field(default=-1, repr=False)  # the epoch that training batches are from
    _validated_at: int = field(default=-1, repr=False)  # the step of the pass they are from

    @property
    def all(self) -> list[KeptBatch]:
        """The training batches, then the validation batches."""
        return [*self.train, *self.validation]

    @property
    def is_validation(self) -> list[bool]:
        """Of each of `all` whether it is a validation batch."""
        return [False] * len(self.train) + [True] * len(self.validation)

    def on_every_rank(self, device: torch.device) -> KeptBatches:
        """Return as many of each kind as every rank has: their losses are gathered together."""
        n_train, n_validation = lowest_of_each([len(self.train), len(self.validation)], device)
        return KeptBatches(self.n, self.train[:n_train], self.validation[:n_validation])

    def keep(self, kind: list[KeptBatch], batch: Any, index: int) -> None:
        """Keep a copy of a batch; only training batches have batch-norm statistics to estimate.

        A validation batch gets the index of a training batch: `training_step` is run on it, which
        may do something else, or skip the batch, at an index of 0.
        """
        if kind is self.validation and self.train:
            index = self.train[len(kind) % len(self.train)].index
        kind.append(keep_batch(self.all, batch, index, calibrates=kind is self.train))

    def wants_training(self, epoch: int) -> bool:
        """Return whether to keep a training batch: of one epoch alone, for no sample to come twice.

        Batches of the same samples would agree, whatever they are of, and have no error.
        """
        if not self.train:
            self._trained_in = epoch
        return len(self.train) < self.n and epoch == self._trained_in

    def wants_validation(self, step: int) -> bool:
        """Return whether to keep a validation batch: of one pass alone, for none to come twice."""
        if self.leaves_out_validation:
            return False
        if not self.validation:
            self._validated_at = step
        return len(self.validation) < self.n and step == self._validated_at

    def let_go(self, index: int) -> None:
        """Let go of the last training batch, if it had this index: the step gave no loss for it."""
        if self.train and self.train[-1].index == index:
            self.train.pop()

    def attempt(
        self,
        measure: Callable[[KeptBatches], T],
        kept: KeptBatches,
        tell: Callable[[Exception], None],
    ) -> T:
        """Measure on batches; without those of validation if it succeeds only without them.

        Validation batches may be of another structure than `training_step` expects.

        Args:
            measure: Measures on batches; fails on all ranks if it does on one.
            kept: The batches of every rank.
            tell: Called with the failure, once validation batches are left out.
        """
        try:
            return measure(kept)
        except MEMORY:
            raise
        except Exception as error:
            if not kept.validation:
                raise
            found = measure(replace(kept, validation=[]))
            self.validation.clear()
            self.leaves_out_validation = True
            tell(error)
            return found

    @contextmanager
    def replaced_on_failure(self, tell: Callable[[], None]) -> Iterator[None]:
        """Let the next batches take the place of those that a probe fails on.

        A step may expect what only later batches have.
        """
        try:
            yield
        except MEMORY:
            raise
        except Exception:
            self.train.clear()
            self.validation.clear()
            tell()
            raise


@dataclass
class Window:
    """What is kept of one accumulation window.

    Attributes:
        before: The weights before the step.
        rates: The learning rate that moves each parameter, see `rates_in_use`.
        batch: The last batch of the window, if the step will be measured.
    """

    before: Params
    rates: Mapping[str, float] = field(default_factory=dict)
    batch: KeptBatch | None = None

    def forget_missing(self, weights: Params) -> None:
        """Forget the weights of layers that the step took away or gave another shape."""
        self.before = {
            name: w
            for name, w in self.before.items()
            if name in weights and weights[name].shape == w.shape
        }


def ends_epoch(trainer: Any, batch_idx: int, ahead: int) -> bool:
    """Return whether an epoch ends with the window of a batch, or with one that is `ahead`."""
    window = trainer.accumulate_grad_batches
    return batch_idx + ahead * window >= trainer.num_training_batches - window


def ends_fit(trainer: Any, ahead: int) -> bool:
    """Return whether `max_steps` ends the fit with the next step, or with one that is `ahead`."""
    return 0 < trainer.max_steps <= trainer.global_step + 1 + ahead
