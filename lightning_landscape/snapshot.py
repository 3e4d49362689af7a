"""What a module holds, as it was: to see what an evaluation wrote, and to put it back bit for bit.

Weights are not in here (they move on purpose, see `isolation`). Everything else that a forward pass
can write to is: buffers, torchmetrics states, plain tensors, arrays, numbers, containers by content
and identity, generators, the attributes of plain objects, new keys.

One flat list per kind and as few Python objects as possible: a network of a thousand modules is
looked through in milliseconds.
"""

from __future__ import annotations

import gc
import pickle
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_landscape._lightning import LIGHTNING_ATTRIBUTES

__all__ = ["Changes", "Places", "Snapshot", "put_back", "same_bits"]

_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)}
    | {random.SystemRandom}
    | {types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType}
    | {torch.dtype, torch.device, torch.Size}
)
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(
    name
    for name, value in nn.Module().__dict__.items()
    if isinstance(value, dict) and name not in _REGISTRIES
)
_SKIPPED = frozenset({*_REGISTRIES, *_HOOKS, *LIGHTNING_ATTRIBUTES})
# objects with a life of their own: a probe must not turn their clock back
_FOREIGN = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_landscape"}
    | {"tensorboard", "tensorboardX", "wandb", "mlflow", "comet_ml", "neptune", "clearml", "aim"}
    | {"ray", "enum", "threading", "io", "logging", "multiprocessing"}
)
# of the standard library and torch, those that people keep their own state in
_BOOKKEEPING = frozenset({"types", "argparse", "collections", "torch.quasirandom"})
_LONGEST = 10_000


@dataclass
class Changes:
    """What differs from a snapshot: indices into its lists, and keys of its namespaces."""

    tensors: set[int] = field(default_factory=set)
    arrays: set[int] = field(default_factory=set)
    generators: set[int] = field(default_factory=set)
    containers: set[int] = field(default_factory=set)
    keys: set[tuple[int, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def merged(self, other: Changes) -> Changes:
        """Return what is in either."""
        return Changes(*(a | b for a, b in _pairs(self, other)))

    def without(self, other: Changes) -> Changes:
        """Return what the other does not have."""
        return Changes(*(a - b for a, b in _pairs(self, other)))


class Snapshot:
    """The state reachable from some objects; parameters named in `besides` are left out.

    Args:
        roots: Modules, or anything else, with the names they go by in messages.
        besides: Tensors that somebody else looks after.
    """

    def __init__(self, roots: Iterable[tuple[str, Any]], besides: Iterable[Tensor] = ()) -> None:
        self._seen = {id(tensor) for tensor in besides}
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._contents: list[Tensor] = []
        self._tracked: list[bool] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._generators: list[tuple[Any, bytes]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._namespaces: list[tuple[Any, dict[str, Any]]] = []
        self._empty: list[Any] = []
        self._names_of_empty: list[str] = []
        self._names: dict[str, list[str]] = {kind: [] for kind in vars(Changes())}
        self._pending: deque[tuple[Any, str]] = deque()
        self.include(roots)

    def include(self, roots: Iterable[tuple[str, Any]]) -> None:
        """Take in what is reachable from more objects, as they are now."""
        with _collector_paused():
            self._pending.extend((root, name) for name, root in roots)
            while self._pending:  # not by recursion: a linked list may be long
                self._visit(*self._pending.popleft())

    def leaves(self) -> list[Tensor]:
        """Return the tensors a backward pass would leave gradients in."""
        pairs = zip(self._tensors, self._tracked, strict=True)
        return [tensor for tensor, tracked in pairs if tracked and tensor.is_leaf]

    def keeps_graph(self) -> bool:
        """Return whether some tensor is a result that somebody may yet go backward from."""
        return any(tensor.grad_fn is not None for tensor in self._tensors)

    def changed(self, *, suspect: bool = False) -> Changes:
        """Return everything that was written since: by version counter, identity or content.

        Args:
            suspect: Take it that all tensors were, and do not compare them: that needs memory.
        """
        changes = Changes()
        for i, (tensor, saved) in enumerate(zip(self._tensors, self._contents, strict=True)):
            if (
                suspect
                or _version(tensor) != self._versions[i]
                or tensor.requires_grad is not self._tracked[i]
                or not same_bits(tensor, saved)
            ):
                changes.tensors.add(i)
        for i, (array, saved) in enumerate(self._arrays):
            if array.shape != saved.shape or array.tobytes() != saved.tobytes():
                changes.arrays.add(i)
        for i, (generator, state) in enumerate(self._generators):
            if _state_of(generator) != state:
                changes.generators.add(i)
        for i, (container, saved) in enumerate(self._containers):
            if not _same_content(container, saved):
                changes.containers.add(i)
        for i, (owner, saved) in enumerate(self._namespaces):
            now = _attributes(owner)
            if not (len(now) == len(saved) and all(map(is_, now.values(), saved.values()))):
                changes.keys.update((i, key) for key in _differing_keys(now, saved))
        self._adopt_filled(changes)
        return changes

    def restore(self, changes: Changes) -> None:
        """Put back what changed; what did not is not touched."""
        for i, key in changes.keys:
            owner, saved = self._namespaces[i]
            _set_attribute(owner, key, saved)
        for i in changes.containers:
            _refill(*self._containers[i])
        for i in changes.generators:
            generator, state = self._generators[i]
            _set_state(generator, state)
        for i in changes.arrays:
            _rewrite_array(*self._arrays[i])
        indices = list(changes.tensors)
        self._rewriter(indices)()
        for i in indices:
            self._versions[i] = _version(self._tensors[i])

    def restorer(self, changes: Changes) -> list[Callable[[], None]]:
        """Return `restore(changes)` as a list of calls, prepared once to be made many times."""
        calls: list[Callable[[], None]] = []
        if changes.tensors:
            calls.append(self._rewriter(sorted(changes.tensors)))
        rest = Changes(set(), changes.arrays, changes.generators, changes.containers, changes.keys)
        if rest:
            calls.append(lambda: self.restore(rest))
        return calls

    def places(self, changes: Changes) -> Places:
        """Return where the changes are, to be read and written again and again."""
        found: dict[tuple[int, str], Any] = {}
        for i, key in changes.keys:
            owner = self._namespaces[i][0]
            found[id(owner), key] = owner
        groups = (
            [self._tensors[i] for i in changes.tensors],
            [self._arrays[i][0] for i in changes.arrays],
            [self._generators[i][0] for i in changes.generators],
            [self._containers[i][0] for i in changes.containers],
        )
        for group in groups:
            found.update({(id(place), ""): place for place in group})
        return Places(found)

    def describe(self, changes: Changes) -> list[str]:
        """Return the names of what changed, as a person would write them."""
        names = [f"{self._names['keys'][i]}.{key}".lstrip(".") for i, key in changes.keys]
        for kind in ("tensors", "arrays", "generators", "containers"):
            names += [self._names[kind][i] for i in getattr(changes, kind)]
        return sorted(set(names))

    def _rewriter(self, indices: list[int]) -> Callable[[], None]:
        tensors = [self._tensors[i] for i in indices]
        contents = [self._contents[i] for i in indices]
        tracked = [self._tracked[i] for i in indices]

        def rewrite() -> None:
            put_back(tensors, contents)
            for tensor, requires_grad in zip(tensors, tracked, strict=True):
                if tensor.requires_grad is not requires_grad:
                    _track(tensor, requires_grad)

        return rewrite

    def _visit(self, value: Any, name: str) -> None:
        if id(value) in self._seen or type(value) in _ATOMS:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._visit_module(value, name)
        elif isinstance(value, Tensor):
            self._visit_tensor(value, name)
        elif isinstance(value, np.ndarray):
            if not value.flags.writeable:
                return
            self._arrays.append((value, value.copy()))
            self._names["arrays"].append(name)
            if value.dtype == object:
                self._visit_each(value.ravel().tolist(), name)
        elif isinstance(value, _GENERATORS):
            self._generators.append((value, _state_of(value)))
            self._names["generators"].append(name)
        elif isinstance(value, _CONTAINERS):
            self._visit_container(value, name)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_each(value, name)
        elif _is_plain(type(value)):
            self._visit_attributes(value, name)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes = module.__dict__
        self._add_namespace(module, _attributes(module), name)
        pending = self._pending
        for hooks in map(attributes.get, _HOOKS):
            if hooks:
                pending.append((hooks, name))
            elif hooks is not None:
                self._add_empty(hooks, name)
        prefix = f"{name}." if name else ""
        for registry in _REGISTRIES:
            held = getattr(module, registry)
            if isinstance(held, dict):  # else a scripted module, which holds them in C++
                self._add_container(held, _content(held), name)
            for key, value in held.items():
                if value is not None:
                    pending.append((value, prefix + key))
        for key, value in attributes.items():
            if type(value) not in _ATOMS and key not in _SKIPPED:
                pending.append((value, prefix + key))

    def _visit_tensor(self, tensor: Tensor, name: str) -> None:
        if is_lazy(tensor):  # nothing there yet
            return
        self._tensors.append(tensor)
        self._versions.append(_version(tensor))
        self._contents.append(tensor.detach().clone())
        self._tracked.append(tensor.requires_grad)
        self._names["tensors"].append(name)

    def _visit_container(self, container: Any, name: str) -> None:
        content = _content(container)
        self._add_container(container, content, name)
        self._visit_each(content.values() if isinstance(content, dict) else content, name)
        if _is_plain(type(container)):
            self._visit_attributes(container, name)

    def _visit_each(self, values: Any, name: str) -> None:
        if len(values) <= _LONGEST and not _ATOMS.issuperset(map(type, values)):
            self._pending.extend((value, name) for value in values)

    def _visit_attributes(self, value: Any, name: str) -> None:
        attributes = dict(_attributes(value))
        self._add_namespace(value, attributes, name)
        self._pending.extend((child, f"{name}.{key}") for key, child in attributes.items())

    def _add_namespace(self, owner: Any, saved: dict[str, Any], name: str) -> None:
        self._namespaces.append((owner, saved))
        self._names["keys"].append(name)

    def _add_container(self, container: Any, content: Any, name: str) -> None:
        if content:
            self._containers.append((container, content))
            self._names["containers"].append(name)
        else:
            self._add_empty(container, name)

    def _add_empty(self, container: Any, name: str) -> None:
        self._empty.append(container)
        self._names_of_empty.append(name)

    def _adopt_filled(self, changes: Changes) -> None:
        """Count the containers that were empty and no longer are among the others."""
        if not any(map(len, self._empty)):
            return
        places = list(zip(self._empty, self._names_of_empty, strict=True))
        self._empty, self._names_of_empty = [], []
        for container, name in places:
            if len(container):
                changes.containers.add(len(self._containers))
                self._containers.append((container, type(_content(container))()))
                self._names["containers"].append(name or f"an empty {type(container).__name__}")
            else:
                self._add_empty(container, name)


class Places:
    """Attributes, tensors, containers and generators, whose contents can be taken and set.

    Args:
        found: What holds the contents, by its identity and, for an attribute, the name of it.
    """

    def __init__(self, found: dict[tuple[int, str], Any] | None = None) -> None:
        self._found = found or {}

    def __or__(self, other: Places) -> Places:
        return Places({**self._found, **other._found})

    def read(self) -> list[Any]:
        """Return a copy of the contents."""
        return [_read(place, key) for (_, key), place in self._found.items()]

    def write(self, contents: list[Any]) -> None:
        """Set the contents to what was read before; places found since are left as they are."""
        for ((_, key), place), content in zip(self._found.items(), contents, strict=False):
            _write(place, key, content)


_MISSING = object()


def _read(place: Any, key: str) -> Any:
    if key:
        return _attributes(place).get(key, _MISSING)
    if isinstance(place, Tensor):
        return place.detach().clone()
    if isinstance(place, np.ndarray):
        return place.copy()
    return _state_of(place) if isinstance(place, _GENERATORS) else _content(place)


def _write(place: Any, key: str, content: Any) -> None:
    if key:
        _set_attribute(place, key, {} if content is _MISSING else {key: content})
    elif isinstance(place, Tensor):
        put_back([place], [content])
    elif isinstance(place, np.ndarray):
        _rewrite_array(place, content)
    elif isinstance(place, _GENERATORS):
        _set_state(place, content)
    else:
        _refill(place, content)


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


def put_back(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    """Copy saved contents into tensors, without their version counters taking notice.

    A graph that was kept across batches (truncated backpropagation) would refuse to go backward
    through a tensor whose counter has moved.
    """
    for tensor, content in zip(tensors, contents, strict=True):
        data = tensor.data
        if (
            data.shape != content.shape
            or data.dtype != content.dtype
            or data.layout is torch.sparse_coo  # `data` is then a copy that shares its parts
        ):
            tensor.data = content.clone()
        elif data.layout is torch.strided and 0 in data.stride():  # expanded: many in one place
            one = tuple(slice(None) if stride else slice(1) for stride in data.stride())
            data[one].copy_(content[one])
        else:
            data.copy_(content)


_GENERATORS = (
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
)


def _state_of(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return pickle.dumps(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state())
    return pickle.dumps(_bit_generator(generator).state)


def _set_state(generator: Any, state: bytes) -> None:
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


_CONTAINERS = (OrderedDict, dict, set, deque, bytearray, list)


@cache
def _kind(cls: type) -> Any:
    # contents go through the base class: `Counter.update` adds, and a subclass may do anything
    return next(kind for kind in _CONTAINERS if issubclass(cls, kind))


def _content(container: Any) -> Any:
    kind = _kind(type(container))
    if isinstance(container, dict):
        return dict(kind.items(container))
    if kind is bytearray:
        return bytes(container)
    return (set if kind is set else list)(kind.__iter__(container))


def _same_content(container: Any, saved: Any) -> bool:
    kind = _kind(type(container))
    if kind.__len__(container) != len(saved):
        return False
    if isinstance(container, dict):
        same_values = all(map(is_, kind.values(container), saved.values()))
        return same_values and list(kind.keys(container)) == list(saved)
    if kind is set or kind is bytearray:
        return kind.__eq__(container, saved)
    return all(map(is_, kind.__iter__(container), saved))


def _refill(container: Any, saved: Any) -> None:
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


def _rewrite_array(array: np.ndarray, saved: np.ndarray) -> None:
    if array.shape != saved.shape:
        array.resize(saved.shape, refcheck=False)
    array[...] = saved


def _track(tensor: Tensor, requires_grad: bool) -> None:
    """Let a tensor require gradients again, or cut it off from the graph that wrote to it."""
    if requires_grad:
        tensor.requires_grad_()
    elif not tensor._is_view():
        tensor.detach_().grad = None


def _attributes(owner: Any) -> dict[str, Any]:
    if isinstance(owner, nn.Module):
        return {key: value for key, value in owner.__dict__.items() if key not in _SKIPPED}
    slots = {slot: getattr(owner, slot) for slot in _slots(type(owner)) if hasattr(owner, slot)}
    return {**slots, **getattr(owner, "__dict__", {})}


def _set_attribute(owner: Any, key: str, saved: dict[str, Any]) -> None:
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


def _differing_keys(now: dict[str, Any], saved: dict[str, Any]) -> Iterator[str]:
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
def _is_plain(cls: type) -> bool:
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


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_INTEGERS[tensor.itemsize])


def _pairs(a: Changes, b: Changes) -> Iterator[tuple[set[Any], set[Any]]]:
    for name, mine in vars(a).items():
        yield mine, getattr(b, name)


@contextmanager
def _collector_paused() -> Iterator[None]:
    # most of the time of a large snapshot went into the collector walking it half built
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
