"""Inner products of whole tensors in float64, without whole tensors in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_landscape.params import as_real, widest
from lightning_landscape.sharding import local, sum_over_shards

__all__ = ["dense", "gathered", "in_pieces", "inner_products"]


def inner_products(pieces: Iterable[Sequence[tuple[Tensor, Tensor]]]) -> Tensor:
    """Sum the products of pairs over the pieces, `[n_pairs]`, on their device.

    Example:
        >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> inner_products(((x, x), (x, y)) for x, y in in_pieces(a, b)).tolist()
        [5.0, 11.0]
    """
    return torch.stack([torch.stack([(a * b).sum() for a, b in pairs]) for pairs in pieces]).sum(
        dim=0
    )


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape part by part, flat, in float64: half precision would overflow."""
    device = tensors[0].device
    wide = widest(device)
    # within a cache and below what torch gives to several threads, which waited longer than they
    # worked where measured; few launches elsewhere
    size = 2**14 if device.type == "cpu" else 2**22
    for parts in zip(*(_flat(tensor).split(size) for tensor in tensors), strict=True):
        yield tuple(part.to(wide) for part in parts)


def gathered(products: list[Tensor], tensors: list[Tensor]) -> Tensor:
    """Return the products of all tensors, `[n_tensors, n_pairs]`, those of shards added up."""
    if not products:
        return torch.zeros(0, 4)
    # layers may live on several devices; these are a few numbers each
    device = products[0].device
    return sum_over_shards(torch.stack([some.to(device) for some in products]), tensors)


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, and as a plain one if it is sparse."""
    tensor = tensor.detach()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _flat(tensor: Tensor) -> Tensor:
    return as_real(dense(local(tensor))).reshape(-1)
