"""Private copies of batches, made during training and used many times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_landscape._lightning import prepare_batch
from lightning_landscape.engine.copies import copied, iterators_in, tensors_in

_KEPT_ON_DEVICE = 64 * 2**20  # bytes of batches; further ones are kept in host memory


@dataclass(frozen=True, eq=False)
class KeptBatch:
    """A private copy of a batch.

    Attributes:
        data: The batch.
        index: Its `batch_idx`.
        raw: Whether it must still pass the module's transfer hooks.
        calibrates: Whether batch-norm statistics may be estimated on it.
    """

    data: Any
    index: int
    raw: bool = False
    calibrates: bool = True


class Batches:
    """The batches of an objective, moved to the device when they are used."""

    def __init__(self, batches: list[KeptBatch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        # an evaluation reads an iterator to its end: such batches are copied each time
        self._read_once = {
            id(kept) for kept in batches if any(True for _ in iterators_in(kept.data))
        }
        self._stay = device.type == "cpu" and not self._read_once
        self._pairs = [(kept.index, kept.data) for kept in batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(self._pairs) if self._stay else self._each(self._batches)

    def calibrating(self) -> Iterator[tuple[int, Any]]:
        """Yield index and data of the batches that batch-norm statistics may be estimated on."""
        return self._each([kept for kept in self._batches if kept.calibrates])

    def _each(self, batches: list[KeptBatch]) -> Iterator[tuple[int, Any]]:
        if self._stay:
            return iter([(kept.index, kept.data) for kept in batches])
        return ((kept.index, self._ready(kept)) for kept in batches)

    def _ready(self, kept: KeptBatch) -> Any:
        if id(kept) in self._read_once:
            return copied(kept.data, self._moved)
        away = any(tensor.device != self._device for tensor in tensors_in(kept.data))
        return copied(kept.data, self._moved) if away else kept.data

    def _moved(self, tensor: Tensor) -> Tensor:
        return Tensor.to(tensor, self._device, non_blocking=True)


def clone_batch(batch: Any) -> Any:
    """Return a private copy of a batch, see `copied`."""
    return copied(batch)


def keep_batch(
    kept: list[KeptBatch], batch: Any, index: int, *, calibrates: bool = True
) -> KeptBatch:
    """Return a private copy of a batch; in host memory if the kept ones take much already."""
    with torch.inference_mode(False):
        data = copied(batch)
        if sum(bytes_of(other.data) for other in kept) + bytes_of(data) > _KEPT_ON_DEVICE:
            data = copied(data, lambda tensor: Tensor.cpu(tensor))
    return KeptBatch(data, index, calibrates=calibrates)


def bytes_of(batch: Any) -> int:
    """Return the size of a batch's tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch))


def prepared(module: nn.Module, batch: KeptBatch, trainer: Any | None) -> KeptBatch:
    """Return a batch that has passed the module's transfer hooks."""
    data = prepare_batch(module, batch.data, trainer) if batch.raw else batch.data
    return replace(batch, data=data, raw=False)
