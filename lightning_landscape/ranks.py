"""Processes that probe in lockstep: the same directions, each on its own batches.

A rank that fails must not leave the others waiting. So before each exchange all ranks say whether
they have failed, and raise together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_landscape.sharding import is_sharded

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Treat this process as the only one.

    For work that is divided: each process evaluates other points, on its own batches.
    """
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if n_ranks() > 1 else 0


def gather_objects(value: T) -> list[T]:
    """Return the value of every process, in the order of ranks; one collective."""
    if n_ranks() == 1:
        return [value]
    found: list[T] = [value] * n_ranks()
    dist.all_gather_object(found, value)
    return found


def n_ranks() -> int:
    """Return the number of processes; 1 without distributed training, and inside `alone`."""
    if _ALONE.get():
        return 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def agree(failure: Exception | None, device: torch.device) -> None:
    """Raise on every rank if one has failed; one small collective, none on a single rank.

    Args:
        failure: The exception of this rank, if it has failed.
        device: The device of this process's tensors.

    Raises:
        Exception: `failure`, on a rank that has failed.
        RuntimeError: On the other ranks.
    """
    if not everybody(failure is None, device):
        messages = gather_objects("" if failure is None else repr(failure))
        if failure is None:
            who = "; ".join(f"rank {rank}: {what}" for rank, what in enumerate(messages) if what)
            raise RuntimeError(f"the probe failed on {who}")
    if failure is not None:
        raise failure


def everybody(ready: bool, device: torch.device) -> bool:
    """Return whether `ready` is true on all ranks; one small collective, none on a single rank."""
    return bool(lowest(int(ready), device))


def lowest(number: int, device: torch.device) -> int:
    """Return the lowest of the ranks' numbers; one small collective, none on a single rank."""
    return lowest_of_each([number], device)[0]


def lowest_of_each(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the lowest over all ranks of each number; one small collective for all numbers."""
    if n_ranks() == 1:
        return list(numbers)
    found = torch.tensor(numbers, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return [int(number) for number in found]


def gather_batches(losses: Tensor) -> Tensor:
    """Return the losses of all ranks: `[n_points, n_batches]`, joined along the batches."""
    if n_ranks() == 1:
        return losses
    ranks = [torch.empty_like(losses) for _ in range(n_ranks())]
    dist.all_gather(ranks, losses.contiguous())
    return torch.cat(ranks, dim=1)


def average_over_ranks(gradients: list[Tensor]) -> list[Tensor]:
    """Average gradients over ranks in place, and return them; sharded ones are averaged already."""
    if n_ranks() > 1:
        for gradient in gradients:
            if not is_sharded(gradient):
                dist.all_reduce(gradient)
                gradient.div_(n_ranks())
    return gradients
