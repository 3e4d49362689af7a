"""Private copies of batches: taken while training goes on, used again and again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_landscape._lightning import prepare_batch

__all__ = ["Batches", "KeptBatch", "bytes_of", "clone_batch", "keep_batch", "prepared"]

_KEPT_ON_DEVICE = 64 * 2**20  # bytes of batches; what is above waits in host memory


@dataclass(frozen=True, eq=False)
class KeptBatch:
    """A private copy of a batch.

    Attributes:
        data: The batch.
        index: The index it came with.
        raw: Whether it still has to go through the module's transfer hooks.
        calibrates: Whether batch-norm statistics may be estimated on it.
    """

    data: Any
    index: int
    raw: bool = False
    calibrates: bool = True


class Batches:
    """The batches of an objective, brought to the device when they are used."""

    def __init__(self, batches: list[KeptBatch], device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self._each(self._batches)

    def calibrating(self) -> Iterator[tuple[int, Any]]:
        """Hand out those that batch-norm statistics may be estimated on."""
        return self._each([kept for kept in self._batches if kept.calibrates])

    def _each(self, batches: list[KeptBatch]) -> Iterator[tuple[int, Any]]:
        if self._device.type == "cpu":
            return iter([(kept.index, kept.data) for kept in batches])
        return ((kept.index, _moved(kept.data, self._device)) for kept in batches)


def clone_batch(batch: Any) -> Any:
    """Copy a batch so that nothing the copy meets can reach the original.

    Tensors are copied as they are seen, not with the whole storage they may be a view of.
    """
    memo: dict[int, Any] = {}

    def copied(tensor: Tensor) -> Tensor:
        twin = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        memo[id(tensor)] = twin
        return twin

    batch = apply_to_collection(batch, Tensor, copied, allow_frozen=True)
    known = {id(twin): twin for twin in memo.values()}
    return copy.deepcopy(batch, known)


def keep_batch(
    kept: list[KeptBatch], batch: Any, index: int, *, calibrates: bool = True
) -> KeptBatch:
    """Return a private copy of a batch, on its device while the kept ones are small in all."""
    with torch.inference_mode(False):
        data = clone_batch(batch)
    total = sum(bytes_of(other.data) for other in kept) + bytes_of(data)
    if total > _KEPT_ON_DEVICE:
        data = apply_to_collection(data, Tensor, lambda t: t.cpu(), allow_frozen=True)
    return KeptBatch(data, index, calibrates=calibrates)


def bytes_of(batch: Any) -> int:
    """Return the bytes that the tensors of a batch take."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor  # some collections are built anew and want their tensors back

    apply_to_collection(batch, Tensor, note, allow_frozen=True)
    return sum(sizes)


def prepared(module: nn.Module, batch: KeptBatch, trainer: Any | None) -> KeptBatch:
    """Send a raw batch through the module's transfer hooks."""
    data = prepare_batch(module, batch.data, trainer) if batch.raw else batch.data
    return replace(batch, data=data, raw=False)


def _moved(batch: Any, device: torch.device) -> Any:
    """Bring a batch that was kept in host memory to the device."""
    return apply_to_collection(
        batch, Tensor, lambda t: t.to(device, non_blocking=True), allow_frozen=True
    )
