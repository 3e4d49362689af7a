"""What is kept of the batches that lead to an optimizer step, until the step is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

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
        """Forget the weights of layers that the step took away."""
        self.before = {name: w for name, w in self.before.items() if name in weights}


def copy_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a moment."""
    return {name: weight.detach().clone() for name, weight in weights.items()}
