"""Compare tensors bit by bit, and restore their values without moving version counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.params import as_real

_SMALL = 2**12  # elements: tensors up to here are compared together
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits: nan equals nan, 0.0 is not -0.0."""
    if a.is_nested or b.is_nested or a.layout is not torch.strided:
        return _same_parts(a, b)
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    if _parts(a):
        return _same_parts(a, b)
    return torch.equal(a, b) if a.is_quantized else torch.equal(_bits(a), _bits(b))


def differs_in_nans_alone(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits but for those of their nans.

    The same operation may give a nan of either sign.

    Example:
        >>> nans = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, -float("nan")])
        >>> same_bits(*nans), differs_in_nans_alone(*nans)
        (False, True)
    """
    if not (is_dense(a) and is_dense(b) and a.is_floating_point() and a.dtype == b.dtype):
        return False
    gaps = a.isnan(), b.isnan()
    if a.shape != b.shape or not gaps[0].any() or not torch.equal(*gaps):
        return False
    return same_bits(a.detach().masked_fill(gaps[0], 0), b.detach().masked_fill(gaps[1], 0))


def differing(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> list[int]:
    """Return the indices of tensors that do not hold the bits of the contents.

    A tensor that cannot be compared counts as different.
    """
    together: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    one_by_one: list[int] = []
    for i, (tensor, content) in enumerate(zip(tensors, contents, strict=True)):
        fits = is_dense(tensor) and is_dense(content) and tensor.numel() <= _SMALL
        if fits and tensor.shape == content.shape and tensor.dtype == content.dtype:
            together.setdefault((tensor.dtype, tensor.device), []).append(i)
        else:
            one_by_one.append(i)
    for indices in together.values():
        flat = [
            torch.cat([c[i].detach().reshape(-1) for i in indices]) for c in (tensors, contents)
        ]
        if not same_bits(*flat):
            one_by_one += indices
    return sorted(i for i in one_by_one if not surely_same(tensors[i], contents[i]))


def cloned(tensor: Tensor) -> Tensor:
    """Return a detached copy; a subclass's own `clone` or `detach` is not called."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.detach().clone()
    with torch._C.DisableTorchFunctionSubclass():
        twin = Tensor.clone(Tensor.detach(tensor))
        return twin if type(twin) is type(tensor) else Tensor.as_subclass(twin, type(tensor))


def put_back(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    """Copy saved contents into tensors without moving their version counters.

    A graph that is kept across batches (truncated backpropagation) cannot go backward through a
    tensor whose counter has moved. A frozen tensor in host memory is written to only if it differs:
    it may be mapped from a read-only file.
    """
    places: list[Tensor] = []
    written: list[Tensor] = []
    frozen = [i for i, t in enumerate(tensors) if not t.requires_grad and t.device.type == "cpu"]
    try:
        found = differing([tensors[i] for i in frozen], [contents[i] for i in frozen])
    except MEMORY:
        found = list(range(len(frozen)))
    same = set(frozen) - {frozen[i] for i in found}
    for i, (tensor, content) in enumerate(zip(tensors, contents, strict=True)):
        if i in same:
            continue
        data = tensor.data
        if (
            data.is_nested
            or data.shape != content.shape
            or data.dtype != content.dtype
            or data.layout is torch.sparse_coo  # `data` is then a copy that shares its parts
        ):
            tensor.data = cloned(content)
        elif is_dense(tensor):
            places.append(data)
            written.append(content)
        elif data.layout is torch.strided and 0 in data.stride():  # expanded: entries share memory
            one = tuple(slice(None) if stride else slice(1) for stride in data.stride())
            data[one].copy_(content[one])
        else:
            data.copy_(content)
    if places:
        torch._foreach_copy_(places, written)


def copier(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> Callable[[], None]:
    """Return `put_back(tensors, contents)` as a function, prepared for many calls."""
    plain: list[tuple[Tensor, Tensor]] = []
    odd: list[tuple[Tensor, Tensor]] = []
    for tensor, content in zip(tensors, contents, strict=True):
        fits = is_dense(tensor) and tensor.shape == content.shape and tensor.dtype == content.dtype
        (plain if fits else odd).append((tensor, content))
    dense, written = [tensor for tensor, _ in plain], [content for _, content in plain]
    places, data = _memory_of(dense), [tensor.data for tensor in dense]

    def copy() -> None:
        if _memory_of(dense) != places:
            put_back(tensors, contents)
            return
        if dense:
            torch._foreach_copy_(data, written)
        if odd:
            put_back([tensor for tensor, _ in odd], [content for _, content in odd])

    return copy


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without the methods of its subclass; a wrapper is returned as it is."""
    if type(tensor) is Tensor or hasattr(type(tensor), "__tensor_flatten__"):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.as_subclass(tensor, Tensor)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is plain numbers in memory that do not share a place."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_inference())
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_nested)
        and 0 not in tensor.stride()
    )


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor is one of `torch.func`, which must not leave its function."""
    functions: Any = torch._C
    return functions._functorch.is_functorch_wrapped_tensor(tensor)


def set_tracked(tensor: Tensor, requires_grad: bool) -> None:
    """Restore `requires_grad`; a tensor that had none is detached from its new graph."""
    if requires_grad:
        tensor.requires_grad_()
    elif not tensor._is_view():
        tensor.detach_().grad = None


def version_of(tensor: Tensor) -> int:
    """Return the version counter of a tensor; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version


def surely_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits; False if they cannot be compared."""
    try:
        return same_bits(a, b)
    except MEMORY:
        raise
    except Exception:
        return False


def _same_parts(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.layout != b.layout or a.is_nested != b.is_nested:
        return False
    if not a.is_nested and a.shape != b.shape:
        return False
    parts, others = _parts(a), _parts(b)
    return len(parts) == len(others) and all(map(same_bits, parts, others))


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors inside a sparse, nested or wrapper tensor; [] for another."""
    if hasattr(type(tensor), "__tensor_flatten__"):
        names, _ = cast(Any, tensor).__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is torch.strided:
        return []
    if tensor.layout not in _PARTS:
        return [tensor.to_dense()]
    return [getattr(tensor, name)() for name in _PARTS[tensor.layout]]


def _memory_of(tensors: list[Tensor]) -> tuple[list[object], ...]:
    """Return the addresses, shapes, types and strides of tensors."""
    return (
        [t.data_ptr() for t in tensors],
        [t.shape for t in tensors],
        [t.dtype for t in tensors],
        [t.stride() for t in tensors if t.dim() > 1],  # it may have been transposed in place
    )


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return as_real(tensor).resolve_neg().view(_INTEGERS[tensor.itemsize])
