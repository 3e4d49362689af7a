"""What is kept of the batches that lead to an optimizer step, until the step is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_landscape.engine.batches import KeptBatch
from lightning_landscape.params import Params


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
