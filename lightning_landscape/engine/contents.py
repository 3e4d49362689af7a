"""What things hold: read, compared and put back, for every kind of thing a module may keep.

Tensors bit by bit and behind their version counters, containers through their base class, plain
objects by their attributes and slots, generators by their states.
"""

from __future__ import annotations

import pickle
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape._lightning import LIGHTNING_ATTRIBUTES
from lightning_landscape.params import as_real

__all__ = [
    "ATOMS",
    "CONTAINERS",
    "GENERATORS",
    "HOOKS",
    "REGISTRIES",
    "SKIPPED",
    "attributes_of",
    "content_of",
    "copier",
    "differing",
    "differing_keys",
    "is_dense",
    "is_plain",
    "overwriter",
    "put_back",
    "refill",
    "rewrite_array",
    "same_bits",
    "same_content",
    "set_attribute",
    "set_state",
    "set_tracked",
    "state_of",
    "version_of",
]

_SMALL = 2**12  # elements: tensors up to here are compared together

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)}
    | {random.SystemRandom}
    | {types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType}
    | {torch.dtype, torch.device, torch.Size}
)
REGISTRIES = ("_parameters", "_buffers", "_modules")
HOOKS = tuple(
    name
    for name, value in nn.Module().__dict__.items()
    if isinstance(value, dict) and name not in REGISTRIES
)
SKIPPED = frozenset({*REGISTRIES, *HOOKS, *LIGHTNING_ATTRIBUTES})
# objects with a life of their own: a probe must not turn their clock back
_FOREIGN = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_landscape"}
    | {"tensorboard", "tensorboardX", "wandb", "mlflow", "comet_ml", "neptune", "clearml", "aim"}
    | {"ray", "enum", "threading", "io", "logging", "multiprocessing"}
)
# of the standard library and torch, those that people keep their own state in
_BOOKKEEPING = frozenset({"types", "argparse", "collections", "torch.quasirandom"})


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits: nan equals nan, 0.0 is not -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    if parts := _parts(a):
        others = _parts(b)
        return len(parts) == len(others) and all(map(same_bits, parts, others))
    return torch.equal(a, b) if a.is_quantized else torch.equal(_bits(a), _bits(b))


def differing(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> list[int]:
    """Return the indices of those tensors that do not hold the same bits as the contents."""
    together: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    one_by_one: list[int] = []
    for i, (tensor, content) in enumerate(zip(tensors, contents, strict=True)):
        fits = tensor.shape == content.shape and tensor.dtype == content.dtype
        if fits and tensor.numel() <= _SMALL and is_dense(tensor) and is_dense(content):
            together.setdefault((tensor.dtype, tensor.device), []).append(i)
        else:
            one_by_one.append(i)
    for indices in together.values():
        flat = [
            torch.cat([c[i].detach().reshape(-1) for i in indices]) for c in (tensors, contents)
        ]
        if not same_bits(*flat):
            one_by_one += indices
    return sorted(i for i in one_by_one if not same_bits(tensors[i], contents[i]))


def put_back(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    """Copy saved contents into tensors, without their version counters taking notice.

    A graph that was kept across batches (truncated backpropagation) would refuse to go backward
    through a tensor whose counter has moved. Frozen tensors in host memory are only written to
    where they differ: they may be mapped from a file that is there to be read.
    """
    places: list[Tensor] = []
    written: list[Tensor] = []
    frozen = [i for i, t in enumerate(tensors) if not t.requires_grad and t.device.type == "cpu"]
    found = differing([tensors[i] for i in frozen], [contents[i] for i in frozen])
    same = set(frozen) - {frozen[i] for i in found}
    for i, (tensor, content) in enumerate(zip(tensors, contents, strict=True)):
        if i in same:
            continue
        data = tensor.data
        if (
            data.shape != content.shape
            or data.dtype != content.dtype
            or data.layout is torch.sparse_coo  # `data` is then a copy that shares its parts
        ):
            tensor.data = content.clone()
        elif is_dense(tensor):
            places.append(data)
            written.append(content)
        elif data.layout is torch.strided and 0 in data.stride():  # expanded: many in one place
            one = tuple(slice(None) if stride else slice(1) for stride in data.stride())
            data[one].copy_(content[one])
        else:
            data.copy_(content)
    if places:
        torch._foreach_copy_(places, written)


def copier(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> Callable[[], None]:
    """Return `put_back(tensors, contents)`, prepared once to be called many times."""
    plain: list[tuple[Tensor, Tensor]] = []
    odd: list[tuple[Tensor, Tensor]] = []
    for tensor, content in zip(tensors, contents, strict=True):
        fits = tensor.shape == content.shape and tensor.dtype == content.dtype
        (plain if fits and is_dense(tensor) else odd).append((tensor, content))
    dense, written = [tensor for tensor, _ in plain], [content for _, content in plain]
    places = _places(dense)
    write = overwriter([t.data for t in dense], written)

    def copy() -> None:
        if _places(dense) == places:
            write()
            if odd:
                put_back([tensor for tensor, _ in odd], [content for _, content in odd])
        else:
            put_back(tensors, contents)

    return copy


def _places(tensors: list[Tensor]) -> tuple[list[object], ...]:
    return (
        [t.data_ptr() for t in tensors],
        [t.shape for t in tensors],
        [t.dtype for t in tensors],
        [t.stride() for t in tensors if t.dim() > 1],  # it may have been transposed in place
    )


def overwriter(places: list[Tensor], contents: list[Tensor]) -> Callable[[], None]:
    """Return what copies dense tensors into dense tensors of the same type, many and often."""
    if not all(place.device.type == "cpu" for place in places):
        return lambda: torch._foreach_copy_(places, contents)
    # a quarter of the time that torch takes for a thousand of them
    pairs = [
        (np.asarray(_Memory(a)), _bits(b).numpy())
        for a, b in zip(places, contents, strict=True)
        if a.numel()
    ]

    def write() -> None:
        for place, content in pairs:
            place[...] = content

    return write


class _Memory:
    """The bits of a dense tensor, for numpy; `Tensor.numpy()` would forbid to resize it ever after.

    Who writes through it has to know that the tensor is still where it was.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._bits = bits = _bits(tensor)
        self.__array_interface__ = {
            "version": 3,
            "data": (bits.data_ptr(), False),
            "typestr": np.dtype(f"i{bits.itemsize}").str,
            "shape": tuple(bits.shape),
            "strides": tuple(stride * bits.itemsize for stride in bits.stride()),
        }


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is plain numbers in memory, each in a place of its own."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_inference())
        and not (tensor.is_conj() or tensor.is_neg())
        and 0 not in tensor.stride()
    )


GENERATORS = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
)


def state_of(generator: Any) -> bytes:
    """Return the state of a generator of torch, numpy or python."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return pickle.dumps(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state())
    return pickle.dumps(_bit_generator(generator).state)


def set_state(generator: Any, state: bytes) -> None:
    """Set a generator to a state that `state_of` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(pickle.loads(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(pickle.loads(state))
    else:
        _bit_generator(generator).state = pickle.loads(state)


def _bit_generator(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


CONTAINERS = (OrderedDict, dict, set, deque, bytearray, list)


@cache
def _kind(cls: type) -> Any:
    # contents go through the base class: `Counter.update` adds, and a subclass may do anything
    return next(kind for kind in CONTAINERS if issubclass(cls, kind))


def content_of(container: Any) -> Any:
    """Return a shallow copy of what a container holds, as a plain container."""
    kind = _kind(type(container))
    if isinstance(container, dict):
        return dict(kind.items(container))
    if kind is bytearray:
        return bytes(container)
    return (set if kind is set else list)(kind.__iter__(container))


def same_content(container: Any, saved: Any) -> bool:
    """Return whether a container still holds the very same things."""
    kind = _kind(type(container))
    if kind.__len__(container) != len(saved):
        return False
    if isinstance(container, dict):
        same_values = all(map(is_, kind.values(container), saved.values()))
        return same_values and list(kind.keys(container)) == list(saved)
    if kind is set or kind is bytearray:
        return kind.__eq__(container, saved)
    return all(map(is_, kind.__iter__(container), saved))


def refill(container: Any, saved: Any) -> None:
    """Let a container hold what it held, and remain the container it is."""
    kind = _kind(type(container))
    if isinstance(container, dict):
        kind.clear(container)
        for key, value in saved.items():
            kind.__setitem__(container, key, value)
    elif kind is set:
        set.clear(container)
        set.update(container, saved)
    elif kind is deque:
        deque.clear(container)
        deque.extend(container, saved)
    else:
        kind.__setitem__(container, slice(None), saved)


def rewrite_array(array: np.ndarray, saved: np.ndarray) -> None:
    """Copy saved numbers into an array, whatever shape it has by now."""
    if array.shape != saved.shape:
        array.resize(saved.shape, refcheck=False)
    array[...] = saved


def set_tracked(tensor: Tensor, requires_grad: bool) -> None:
    """Let a tensor require gradients again, or cut it off from the graph that wrote to it."""
    if requires_grad:
        tensor.requires_grad_()
    elif not tensor._is_view():
        tensor.detach_().grad = None


def attributes_of(owner: Any) -> dict[str, Any]:
    """Return the attributes and filled slots of an object, without what torch keeps on it."""
    if isinstance(owner, nn.Module):
        return {key: value for key, value in owner.__dict__.items() if key not in SKIPPED}
    slots = {slot: getattr(owner, slot) for slot in _slots(type(owner)) if hasattr(owner, slot)}
    return {**slots, **getattr(owner, "__dict__", {})}


def set_attribute(owner: Any, key: str, saved: dict[str, Any]) -> None:
    """Set an attribute or slot to what was saved; delete it if nothing was."""
    space = getattr(owner, "__dict__", {})
    if key in _slots(type(owner)) and not isinstance(owner, nn.Module):
        # past a frozen dataclass's __setattr__
        if key in saved:
            object.__setattr__(owner, key, saved[key])
        else:
            object.__delattr__(owner, key)
    elif key in saved:
        space[key] = saved[key]
    else:
        space.pop(key, None)


def differing_keys(now: dict[str, Any], saved: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that hold another thing than they did."""
    missing = object()
    for key in {**saved, **now}:
        if now.get(key, missing) is not saved.get(key, missing):
            yield key


@cache
def _slots(cls: type) -> tuple[str, ...]:
    # their descriptors, not what `__slots__` says: private names are written differently there
    spaces = [vars(base) for base in cls.__mro__ if "__slots__" in vars(base)]
    return tuple(
        name
        for space in spaces
        for name, value in space.items()
        if isinstance(value, types.MemberDescriptorType)
    )


@cache
def is_plain(cls: type) -> bool:
    """Return whether an object is the user's bookkeeping, such as an average meter."""
    if cls.__module__ in _BOOKKEEPING:
        return True
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    return not roots & _FOREIGN and not issubclass(cls, (BaseException, type))


_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that one is made of, if it is sparse or wraps others."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided:
        return []
    if hasattr(type(tensor), "__tensor_flatten__"):
        names, _ = cast(Any, tensor).__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    return [getattr(tensor, name)() for name in _PARTS.get(tensor.layout, ())]


def version_of(tensor: Tensor) -> int:
    """Return the version counter of a tensor; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return as_real(tensor).resolve_neg().view(_INTEGERS[tensor.itemsize])
