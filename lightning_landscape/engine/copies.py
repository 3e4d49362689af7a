"""Deep copies of batches of any class, with everything that they carry.

Containers are read and built by the functions of their base class (`dict.items`, `list.append`,
...): a user's subclass may count, check or raise in its own. Attributes of containers, tensors and
arrays are copied with them. A class that has a `__deepcopy__` copies itself.
"""

from __future__ import annotations

import copyreg
import gc
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape.engine.contents import attributes_of, set_attribute, space_of
from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.engine.tensors import is_dense
from lightning_landscape.engine.walk import ATOMS

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_SHARED = (nn.Module, weakref.ref, types.ModuleType, types.CodeType, type, *_FUNCTIONS)
_RUNNING = (types.GeneratorType, types.CoroutineType, types.FrameType)  # they refer to everything
_MAPPINGS: tuple[Any, ...] = (defaultdict, OrderedDict, dict)


def copied(value: Any, tensor: Callable[[Tensor], Tensor] = lambda t: Tensor.clone(t)) -> Any:
    """Return a deep copy: writing to it does not change the original.

    A view is copied without the rest of its storage. Tensors that overlap in memory overlap in the
    copy too. Modules are shared. So are objects that cannot be copied, such as locks.

    Args:
        value: A batch.
        tensor: Makes a new tensor from a detached one: a clone, or one on another device.

    Raises:
        TypeError: If the batch holds an iterator that cannot be copied, such as a generator.
            Reading it would take its items from the step.
    """
    memo: dict[int, Any] = {}
    found = list({id(t): t for t in tensors_in(value)}.values())
    memo[id(memo)] = [value, *found]  # held until the end: ids are keys of the memo
    for overlapping in _overlapping(found):
        memo |= _copied_together(overlapping, tensor)
    for t in found:
        if id(t) not in memo:
            memo[id(t)] = _copied_tensor(t, tensor, memo)
    return _copied(value, memo)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor inside. Reads none, and calls no code of the user's."""
    return (found for found in _reached(value) if isinstance(found, Tensor))


def iterators_in(value: Any) -> Iterator[Any]:
    """Yield every iterator inside."""
    return (found for found in _reached(value) if hasattr(type(found), "__next__"))


def _reached(value: Any) -> Iterator[Any]:
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or type(found) in ATOMS or isinstance(found, _SHARED):
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, _RUNNING):
            continue
        if isinstance(found, Tensor):
            waiting += _own_attributes(found).values()
        elif isinstance(found, np.ndarray):
            waiting += found.ravel().tolist() if found.dtype.hasobject else []
            waiting += getattr(found, "__dict__", {}).values()
        else:
            waiting += gc.get_referents(found)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in ATOMS or isinstance(value, _SHARED):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        twin = _copied_tensor(value, lambda t: Tensor.clone(t), memo)
    elif hasattr(type(value), "__deepcopy__") and not isinstance(value, np.ndarray):
        twin = type(value).__deepcopy__(value, memo)
    else:
        twin = _copied_by_parts(value, memo)
    memo[id(value)] = twin
    memo[id(memo)].append(value)
    return memo[id(value)]


def _copied_by_parts(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of a container, an array or an object, made of copies of its parts."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        return _with_attributes(np.ndarray.__deepcopy__(value, cast(Any, memo)), value, memo)
    for base in _MAPPINGS:
        if isinstance(value, base):
            memo[id(value)] = twin = base.__new__(kind)
            if isinstance(value, defaultdict):
                cast(Any, twin).default_factory = value.default_factory
            for key, child in base.items(value):
                base.__setitem__(cast(Any, twin), _copied(key, memo), _copied(child, memo))
            return _with_attributes(twin, value, memo)
    if isinstance(value, list):
        memo[id(value)] = twin = list.__new__(kind)
        list.extend(twin, (_copied(child, memo) for child in list.__iter__(value)))
        return _with_attributes(twin, value, memo)
    if isinstance(value, deque):
        memo[id(value)] = twin = deque.__new__(kind)
        deque.__init__(
            twin, (_copied(child, memo) for child in deque.__iter__(value)), value.maxlen
        )
        return _with_attributes(twin, value, memo)
    if isinstance(value, set):
        twin = set.__new__(kind)
        set.update(twin, [_copied(child, memo) for child in set.__iter__(value)])
        return _with_attributes(twin, value, memo)
    for base in (tuple, frozenset):
        if isinstance(value, base):
            return _copied_whole(base, value, memo)
    return _copied_object(value, memo)


def _copied_whole(base: Any, value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of a container that is built in one call."""
    parts = [_copied(child, memo) for child in base.__iter__(value)]
    try:
        twin = base.__new__(type(value), parts)
    except TypeError:  # torch.return_types: tuples built by C code
        twin = type(value)(parts)
    return _with_attributes(twin, value, memo)


def _copied_object(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    try:
        return _rebuilt(value, memo)
    except MEMORY:
        raise
    except Exception as error:
        memo.pop(id(value), None)
        if found := next(iterators_in(value), None):
            raise TypeError(
                f"A batch must be one that can be copied. Got one with a {type(found).__name__}, "
                "which cannot: let `collate_fn` return a list or a tuple."
            ) from error
        return value.clone() if callable(getattr(kind, "clone", None)) else value


def _rebuilt(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy as pickle would make one, by the class's own `__reduce__` or `__getstate__`."""
    reduce: Any = copyreg.dispatch_table.get(type(value))
    parts: Any = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(parts, str):  # the name of a global
        return value
    build, arguments, *others = parts
    state, items, pairs = (*others, None, None, None)[:3]
    memo[id(value)] = twin = build(*(_copied(argument, memo) for argument in arguments))
    if twin is value:  # a singleton
        return value
    if state is not None:
        state = _copied(state, memo)
        if hasattr(type(twin), "__setstate__"):
            twin.__setstate__(state)
        else:
            slots = state[1] if isinstance(state, tuple) else {}
            own = {**((state[0] if isinstance(state, tuple) else state) or {}), **slots}
            for name in own:
                set_attribute(twin, name, own)
    for item in items or ():
        twin.append(_copied(item, memo))
    for key, item in pairs or ():
        twin[_copied(key, memo)] = _copied(item, memo)
    return twin


def _with_attributes(twin: Any, value: Any, memo: dict[int, Any]) -> Any:
    attributes = attributes_of(value)
    own = {name: _copied(child, memo) for name, child in attributes.items()}
    for name in own:
        set_attribute(twin, name, own)
    return twin


def _own_attributes(tensor: Tensor) -> dict[str, Any]:
    return {} if type(tensor) in (Tensor, nn.Parameter) else space_of(tensor)


def _copied_tensor(
    tensor: Tensor, make: Callable[[Tensor], Tensor], memo: dict[int, Any]
) -> Tensor:
    """Copy a tensor by the functions of the base class, with the attributes of a subclass."""
    with torch._C.DisableTorchFunctionSubclass():
        twin = make(Tensor.detach(tensor))
        if type(twin) is not type(tensor) and type(tensor) is not nn.Parameter:
            twin = Tensor.as_subclass(twin, type(tensor))
        twin = Tensor.requires_grad_(twin, tensor.requires_grad)
    memo[id(tensor)] = twin
    for name, child in _own_attributes(tensor).items():
        space_of(twin)[name] = _copied(child, memo)
    return twin


def _overlapping(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the groups of plain tensors that share some of their memory."""
    extents = sorted(
        (*_extent(tensor), i)
        for i, tensor in enumerate(tensors)
        if is_dense(tensor) and tensor.numel()
    )
    group: list[int] = []
    end = (-1, -1)
    for storage, start, stop, i in extents:
        if group and (storage, start) < end:
            group.append(i)
            end = max(end, (storage, stop))
            continue
        if len(group) > 1:
            yield [tensors[j] for j in group]
        group, end = [i], (storage, stop)
    if len(group) > 1:
        yield [tensors[j] for j in group]


def _extent(tensor: Tensor) -> tuple[int, int, int]:
    """Return the storage of a tensor, and the bytes there at which it starts and stops."""
    start = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    stop = start + 1 + sum((int(size) - 1) * int(stride) for size, stride in steps)
    return tensor.untyped_storage()._cdata, start * tensor.itemsize, stop * tensor.itemsize


def _copied_together(tensors: list[Tensor], make: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
    """Copy the memory that some tensors share; return the copy of each tensor by its id."""
    extents = [_extent(tensor) for tensor in tensors]
    first, last = min(e[1] for e in extents), max(e[2] for e in extents)
    size = max(tensor.itemsize for tensor in tensors)
    first -= first % size
    memory = torch.empty(0, dtype=torch.uint8, device=tensors[0].device)
    memory.set_(tensors[0].untyped_storage(), first, (last - first,), (1,))
    storage = make(memory).untyped_storage()
    twins = {}
    for tensor, (_, start, _) in zip(tensors, extents, strict=True):
        twin = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        twin.set_(storage, (start - first) // tensor.itemsize, tensor.shape, tensor.stride())
        twins[id(tensor)] = twin.requires_grad_(tensor.requires_grad)
    return twins
