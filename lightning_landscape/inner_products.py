"""Inner products of whole tensors in float64, without whole tensors in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_landscape.params import as_real, widest
from lightning_landscape.sharding import local, sum_over_shards

_Pairs: TypeAlias = Callable[..., Sequence[tuple[Tensor, Tensor]]]
_Rows: TypeAlias = dict[int, list[Tensor]]

_PLAIN = (Tensor, nn.Parameter)
_SMALL = 2**12  # elements: torch is called once for many tensors up to here
_MANY = 2**6  # of them: what is joined shall stay in a cache


def inner_products(rows: Sequence[Sequence[Tensor]], pairs: _Pairs) -> Tensor:
    """Sum the products of some pairs over all entries, those of other ranks' shards included.

    Args:
        rows: Tensors of one shape in each row, such as a layer's weights and its gradient.
        pairs: Takes as many flat tensors as there are in a row, in float64, and returns what to
            multiply. It may be called with a part of a row, and with parts of several, joined.

    Returns:
        The sums, `[n_rows, n_pairs]`, on the device of the first row.

    Example:
        >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> inner_products([(a, b), (b, a)], lambda x, y: ((x, x), (x, y - x))).tolist()
        [[5.0, 6.0], [25.0, -14.0]]
    """
    if not rows:
        return torch.zeros(0, 4)
    found: dict[int, Tensor] = {}
    small: dict[object, _Rows] = {}
    with torch.no_grad():
        for i, row in enumerate(rows):
            flat = [_flat(tensor) for tensor in row]
            if len(flat[0]) > _SMALL or flat[0].device.type not in ("cpu", "cuda"):
                found[i] = torch.stack([_sums(part, pairs) for part in _in_pieces(flat)]).sum(dim=0)
            else:
                kind = flat[0].device, *[tensor.dtype for tensor in flat]
                same = small.setdefault(kind, {})
                same[i] = flat
                if len(same) == _MANY:
                    found |= _joined(small.pop(kind), pairs)
        for same in small.values():
            found |= _joined(same, pairs)
        # layers may live on several devices; these are a few numbers each
        table = torch.stack([found[i].to(found[0].device) for i in range(len(rows))])
    return sum_over_shards(table, [row[0] for row in rows])


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, and as a plain one if it is sparse."""
    tensor = tensor.detach()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def squared(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair whose product is the square."""
    return x, x


def _sums(parts: Sequence[Tensor], pairs: _Pairs) -> Tensor:
    return torch.stack([torch.dot(a, b) for a, b in pairs(*parts)])


def _in_pieces(row: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield flat tensors part by part in a wider type: half precision would overflow."""
    device = row[0].device
    wide = widest(device)
    # within a cache and below what torch gives to several threads, which waited longer than they
    # worked where measured; few launches elsewhere
    size = 2**14 if device.type == "cpu" else 2**22
    pieces = zip(*(flat.split(size) for flat in row), strict=True) if len(row[0]) > size else [row]
    for parts in pieces:
        yield [part.to(wide) for part in parts]


def _joined(rows: _Rows, pairs: _Pairs) -> dict[int, Tensor]:
    """Return the sums of small rows, computed together."""
    columns = [torch.cat(column) for column in zip(*rows.values(), strict=True)]
    products = [a * b for a, b in pairs(*[column.to(widest(column.device)) for column in columns])]
    lengths = torch.tensor([len(row[0]) for row in rows.values()], device=products[0].device)
    sums = torch.segment_reduce(torch.stack(products, dim=1), "sum", lengths=lengths, axis=0)
    return dict(zip(rows, sums.unbind(), strict=True))


def _flat(tensor: Tensor) -> Tensor:
    if type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_complex():
        return tensor.reshape(-1)
    return as_real(dense(local(tensor))).reshape(-1)
