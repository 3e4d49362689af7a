"""Weights that live in parts on several processes, as FSDP2's `fully_shard` leaves them.

Such a parameter is a `DTensor`: each rank holds a shard of it, an ordinary tensor. While a layer
runs, the module holds the whole tensor instead of the shard. The outermost module keeps it after a
forward pass without gradients. Writing to a shard then has no effect, and raises no error. So call
`reshard` before you read or move weights.

With ordinary tensors each function returns its input, and sends nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> TypeGuard[Any]:
    """Return whether this process holds only its part of a tensor."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    known = sys.modules.get("torch.distributed.tensor")  # not imported: there is no DTensor
    return known is not None and isinstance(tensor, known.DTensor)


def is_freed(tensor: Tensor) -> bool:
    """Return whether a tensor's memory was released, as FSDP2 does between passes."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return False
    return tensor.numel() > 0 and not tensor.is_meta and not tensor.untyped_storage().nbytes()


def sharded_modules(module: nn.Module) -> list[Any]:
    """Return the modules at or below one whose weights `fully_shard` has sharded."""
    known = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(known, "FSDPModule", None)
    return [] if kind is None else [child for child in module.modules() if isinstance(child, kind)]


def reshard(modules: Iterable[Any]) -> None:
    """Make the modules hold their shards again, so that the next pass uses them."""
    for module in modules:
        module.reshard()


def can_recover() -> bool:
    """Return whether this torch can do what `recover` does; torch 2.13 can."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "reset_iter_state")


def recover(modules: Iterable[Any]) -> None:
    """Make the modules hold their shards again after a pass that failed."""
    for module in modules:
        with suppress(RuntimeError):  # inner ones raise: the outermost resets them too
            module.reset_iter_state()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the same memory."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; one collective if it is sharded."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor sharded as `like` is; sends nothing if every rank has the whole tensor."""
    if is_sharded(tensor):
        return tensor if is_sharded(like) else full(tensor)
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    whole = DTensor.from_local(
        tensor.detach().to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    return whole.redistribute(placements=like.placements)


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor, if it is sharded as `like` is."""
    return local(distribute_like(tensor, like))


def with_local(part: Tensor, like: Tensor) -> Tensor:
    """Return the tensor that is sharded as `like` and has `part` on this rank; sends nothing."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def sum_over_shards(sums: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Add up the numbers that each rank computed on its shards; one collective a process group.

    Args:
        sums: A row for each tensor, `[n_tensors, ...]`.
        tensors: The tensors of the rows. A row of a tensor that is not sharded stays as it is.
    """
    for group, rows in _groups(tensors):
        device = local(tensors[rows[0]]).device
        part = sums[rows].to(device)
        dist.all_reduce(part, group=group)
        sums = sums.index_copy(0, torch.tensor(rows, device=sums.device), part.to(sums.device))
    return sums


def _groups(tensors: Sequence[Tensor]) -> Iterator[tuple[Any, list[int]]]:
    """Yield each process group that tensors are sharded over, and the indices of these tensors."""
    found: dict[int, tuple[Any, list[int]]] = {}
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            for axis, placement in enumerate(tensor.placements):
                if placement.is_shard():
                    group = tensor.device_mesh.get_group(axis)
                    found.setdefault(id(group), (group, []))[1].append(i)
    yield from found.values()
