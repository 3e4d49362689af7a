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
from functools import lru_cache
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_landscape._lightning import LIGHTNING_ATTRIBUTES

__all__ = ["Changes", "Places", "Snapshot", "put_back", "same_bits"]

_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)}
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
    "torch lightning pytorch_lightning lightning_fabric lightning_landscape tensorboard "
    "tensorboardX wandb mlflow comet_ml neptune clearml aim ray enum threading io logging "
    "multiprocessing".split()
)
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
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._generators: list[tuple[Any, bytes]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._namespaces: list[tuple[Any, dict[str, Any]]] = []
        self._empty: list[Any] = []
        self._names: dict[str, list[str]] = {kind: [] for kind in vars(Changes())}
        with _collector_paused():
            for name, root in roots:
                self._visit(root, name)

    def changed(self) -> Changes:
        """Return everything that was written since: by version counter, identity or content."""
        changes = Changes()
        for i, (tensor, saved) in enumerate(zip(self._tensors, self._contents, strict=True)):
            if _version(tensor) != self._versions[i] or not same_bits(tensor, saved):
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
        if any(map(len, self._empty)):
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
            array, saved = self._arrays[i]
            array[...] = saved
        indices = list(changes.tensors)
        put_back([self._tensors[i] for i in indices], [self._contents[i] for i in indices])
        for i in indices:
            self._versions[i] = _version(self._tensors[i])

    def restorer(self, changes: Changes) -> list[Callable[[], None]]:
        """Return `restore(changes)` as a list of calls, prepared once to be made many times."""
        calls: list[Callable[[], None]] = []
        if changes.tensors:
            indices = sorted(changes.tensors)
            tensors = [self._tensors[i] for i in indices]
            contents = [self._contents[i] for i in indices]
            calls.append(lambda: put_back(tensors, contents))
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
        elif isinstance(value, _GENERATORS):
            self._generators.append((value, _state_of(value)))
            self._names["generators"].append(name)
        elif isinstance(value, (list, dict, set, deque, bytearray)):
            self._visit_container(value, name)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_each(value, name)
        elif _is_plain(type(value)):
            self._visit_attributes(value, name)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes = module.__dict__
        self._add_namespace(module, {k: v for k, v in attributes.items() if k not in _SKIPPED}, name)
        for registry in _REGISTRIES:
            self._add_container(attributes[registry], name)
        for hooks in map(attributes.get, _HOOKS):
            if hooks:
                self._visit(hooks, name)
            elif hooks is not None:
                self._empty.append(hooks)
        prefix = f"{name}." if name else ""
        for registry in _REGISTRIES:
            for key, value in attributes[registry].items():
                if value is not None:
                    self._visit(value, prefix + key)
        for key, value in attributes.items():
            if type(value) not in _ATOMS and key not in _SKIPPED:
                self._visit(value, prefix + key)

    def _visit_tensor(self, tensor: Tensor, name: str) -> None:
        if is_lazy(tensor):  # nothing there yet
            return
        self._tensors.append(tensor)
        self._versions.append(_version(tensor))
        self._contents.append(tensor.detach().clone())
        self._names["tensors"].append(name)

    def _visit_container(self, container: Any, name: str) -> None:
        self._add_container(container, name)
        if not isinstance(container, bytearray):
            self._visit_each(container.values() if isinstance(container, dict) else container, name)

    def _visit_each(self, values: Any, name: str) -> None:
        if len(values) <= _LONGEST and not _ATOMS.issuperset(map(type, values)):
            for value in list(values):
                self._visit(value, name)

    def _visit_attributes(self, value: Any, name: str) -> None:
        attributes = dict(_attributes(value))
        self._add_namespace(value, attributes, name)
        for key, child in attributes.items():
            self._visit(child, f"{name}.{key}")

    def _add_namespace(self, owner: Any, saved: dict[str, Any], name: str) -> None:
        self._namespaces.append((owner, saved))
        self._names["keys"].append(name)

    def _add_container(self, container: Any, name: str) -> None:
        if not len(container):
            self._empty.append(container)
        else:
            self._containers.append((container, _content(container)))
            self._names["containers"].append(name)

    def _adopt_filled(self, changes: Changes) -> None:
        """Count the containers that were empty and no longer are among the others."""
        for container in [container for container in self._empty if len(container)]:
            changes.containers.add(len(self._containers))
            self._containers.append((container, type(_content(container))()))
            self._names["containers"].append(f"an empty {type(container).__name__}")
        self._empty = [container for container in self._empty if not len(container)]


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
        """Set the contents to what was read before; places found since then are left as they are."""
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
        place[...] = content
    elif isinstance(place, _GENERATORS):
        _set_state(place, content)
    else:
        _refill(place, content)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits: nan equals nan, 0.0 is not -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout != torch.strided or a.is_quantized or not _is_ordinary(a):
        return torch.equal(a, b)
    return torch.equal(_bytes(a), _bytes(b))


def put_back(tensors: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    """Copy saved contents into tensors, without their version counters taking notice.

    A graph that was kept across batches (truncated backpropagation) would refuse to go backward
    through a tensor whose counter has moved.
    """
    for tensor, content in zip(tensors, contents, strict=True):
        data = tensor.data
        if data.shape == content.shape:
            data.copy_(content)
        else:
            tensor.data = content.clone()


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


def _content(container: Any) -> Any:
    if isinstance(container, dict):
        return dict(container.items())
    if isinstance(container, bytearray):
        return bytes(container)
    return set(container) if isinstance(container, set) else list(container)


def _same_content(container: Any, saved: Any) -> bool:
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        same_values = all(map(is_, container.values(), saved.values()))
        return same_values and list(container) == list(saved)
    if isinstance(container, (set, bytearray)):
        return container == saved
    return all(map(is_, container, saved))


def _refill(container: Any, saved: Any) -> None:
    # through the base class: `Counter.update` adds, and a subclass may do anything
    if isinstance(container, OrderedDict):
        OrderedDict.clear(container)
        OrderedDict.update(container, saved)
    elif isinstance(container, dict):
        dict.clear(container)
        dict.update(container, saved)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, saved)
    elif isinstance(container, deque):
        deque.clear(container)
        deque.extend(container, saved)
    elif isinstance(container, bytearray):
        container[:] = saved
    else:
        list.__setitem__(container, slice(None), saved)


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


@lru_cache(maxsize=None)
def _slots(cls: type) -> tuple[str, ...]:
    slots: list[str] = []
    for base in cls.__mro__:
        declared = base.__dict__.get("__slots__", ())
        slots += [declared] if isinstance(declared, str) else list(declared)
    return tuple(slot for slot in slots if slot not in ("__dict__", "__weakref__"))


@lru_cache(maxsize=None)
def _is_plain(cls: type) -> bool:
    """Return whether an object is the user's bookkeeping, such as an average meter."""
    if cls is types.SimpleNamespace:
        return True
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    return not roots & _FOREIGN and not issubclass(cls, (BaseException, type))


def _is_ordinary(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.contiguous().reshape(-1).view(torch.uint8)


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
