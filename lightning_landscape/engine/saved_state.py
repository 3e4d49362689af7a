"""Search everything reachable from some objects, and save what it holds."""

from __future__ import annotations

import gc
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from lightning_landscape.engine.contents import (
    HOOKS,
    REGISTRIES,
    attributes_of,
    has_attributes,
    has_slots,
    kind_of,
    read,
    space_of,
)
from lightning_landscape.engine.guards import MEMORY, describe_error
from lightning_landscape.engine.held_iterators import is_read_once
from lightning_landscape.engine.places import HOOKS_OF_TENSORS
from lightning_landscape.engine.tensors import cloned, is_dense, version_of
from lightning_landscape.engine.walk import ATOMS, MOST_BYTES, boundary, children, is_opaque
from lightning_landscape.sharding import is_freed

_PLAIN_CONTAINERS = (dict, list, set, deque, OrderedDict, defaultdict)


class SavedState:
    """Objects and their saved contents: one flat list per kind.

    Args:
        roots: Modules or other objects, each with its name in messages.
        hooks_only: Tensors of which only the hooks are saved.

    Attributes:
        given_up: What could not be read or restored, by name, and why.
        outside: What is not searched, by name, and why.
        iterators: Iterators whose position cannot be restored, with their names.
        uncopied: Arrays that are too large to be copied.
    """

    def __init__(self, roots: Iterable[tuple[str, Any]], hooks_only: Iterable[Tensor] = ()) -> None:
        self.given_up: dict[str, str] = {}
        self.outside: dict[str, str] = {}
        self.iterators: list[tuple[Any, str]] = []
        self.uncopied: list[np.ndarray] = []
        self._uncopied_tensors: list[tuple[Tensor, int, str]] = []  # with their versions
        self._buffers: set[int] = set()
        self._bytes = 0
        self._hooks_only = {id(tensor): tensor for tensor in hooks_only}
        self._seen: dict[int, Any] = {}  # by id; held, so that no id is reused
        # of each tensor: the version counter, a copy, `requires_grad`
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._contents: list[Tensor] = []
        self._tracked: list[bool] = []
        # containers, arrays, generators and the like, each with its contents
        self._values: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # containers: most are, and quickly compared
        # tensors with hooks, and their hooks, a list per kind of hook
        self._hooked: list[Tensor] = []
        self._hooks: tuple[list[Any], ...] = tuple([] for _ in HOOKS_OF_TENSORS)
        # objects with their attributes; of each object: the class, the size of its `__dict__`
        self._namespaces: list[tuple[Any, dict[str, Any]]] = []
        self._classes: list[type] = []
        self._sizes: list[int] = []  # -1 for an object with slots
        self._names: dict[str, list[str]] = {
            kind: [] for kind in ("tensors", "values", "filled", "hooks", "keys")
        }
        self._pending: deque[tuple[Any, str]] = deque()
        self._roots = list(roots)
        self.include(self._roots)

    def include(self, roots: Iterable[tuple[str, Any]]) -> None:
        """Save what is reachable from more objects, as they are now."""
        try:
            with _collector_paused():
                self._pending.extend((root, name) for name, root in roots)
                while self._pending:  # not by recursion: a linked list may be long
                    self._visit(*self._pending.popleft())
        finally:
            self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Remove the object that was being saved when an interrupt came."""
        names = self._names
        for lists in (
            (self._tensors, self._versions, self._contents, self._tracked, names["tensors"]),
            (self._values, names["values"]),
            (self._empty, names["filled"]),
            (self._hooked, *self._hooks, names["hooks"]),
            (self._namespaces, self._sizes, names["keys"]),
        ):
            finished = min(map(len, lists))
            for one in lists:
                del one[finished:]

    def _visit(self, value: Any, name: str) -> None:
        if type(value) in ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        cls = type(value)  # not `isinstance`: a proxy's `__class__` is that of another object
        if issubclass(cls, nn.Module):
            self._visit_module(value, name)
        elif issubclass(cls, Tensor):
            self._visit_tensor(value, name)
        elif kind_of(cls) is not None:
            self._visit_value(value, name)
        else:
            self._visit_object(value, name)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes = module.__dict__
        self._seen[id(attributes)] = attributes
        own = attributes_of(module)
        self._add_namespace(module, own, name)
        if "parametrizations" in module._modules:  # torch makes a class for this layer alone
            self._add_namespace(type(module), attributes_of(type(module)), f"{name}.__class__")
        pending = self._pending
        for hooks in map(attributes.get, HOOKS):
            if hooks:
                pending.append((hooks, name))
            elif hooks is not None:
                self._add_empty(hooks, name)
        prefix = f"{name}." if name else ""
        for registry in REGISTRIES:
            held = getattr(module, registry)
            if isinstance(held, dict):  # else a scripted module, which holds them in C++
                self._seen[id(held)] = held
                self._add_value(held, name)
            if registry == "_buffers":
                self._buffers.update(map(id, held.values()))
            for key, value in held.items():
                if value is not None:
                    pending.append((value, prefix + key))
        for key, value in own.items():
            if type(value) not in ATOMS:
                pending.append((value, prefix + key))

    def _visit_tensor(self, tensor: Tensor, name: str) -> None:
        if is_lazy(tensor) or is_freed(tensor):  # it has no contents
            return
        space = space_of(tensor)
        self._seen[id(space)] = space
        self._add_value(space, name)
        self._pending.extend((value, name) for value in space.values())
        if tensor.requires_grad or id(tensor) in self._hooks_only:
            self._hooked.append(tensor)
            self._names["hooks"].append(f"the hooks of {name}")
            for key, hooks in zip(HOOKS_OF_TENSORS, self._hooks, strict=True):
                hooks.append(getattr(tensor, key))
                self._pending.append((hooks[-1], f"the hooks of {name}"))
        if id(tensor) in self._hooks_only:
            return
        if id(tensor) not in self._buffers and not self._fits(tensor, name):
            self._uncopied_tensors.append((tensor, version_of(tensor), name))
            return
        try:
            content = cloned(tensor)
        except MEMORY:
            raise
        except Exception as error:
            self.given_up[name] = describe_error(error)
            return
        self._tensors.append(tensor)
        self._versions.append(version_of(tensor))
        self._contents.append(content)
        self._tracked.append(tensor.requires_grad)
        self._names["tensors"].append(name)

    def _visit_value(self, value: Any, name: str) -> None:
        """Save a container, an array, a generator or the like, and visit what it holds."""
        if reason := boundary(value) if type(value) is dict else None:
            self.outside[name] = reason
            return
        if not isinstance(value, np.ndarray) or (value.flags.writeable and self._fits(value, name)):
            self._add_value(value, name)
        elif value.flags.writeable:
            self.uncopied.append(value)
        self._visit_attributes(value, name)
        self._visit_children(value, name)

    def _fits(self, values: Any, name: str) -> bool:
        """Return whether there is room to copy a tensor or array: those near the module first."""
        known = isinstance(values, np.ndarray) or is_dense(values)
        size = values.nbytes if known else 0
        if self._bytes + size > MOST_BYTES:
            self.outside[name] = f"too large to be copied: {size / 2**20:.0f} MiB"
            return False
        self._bytes += size
        return True

    def _visit_object(self, value: Any, name: str) -> None:
        if reason := boundary(value):
            self.outside[name] = reason
            if is_read_once(value):
                self.iterators.append((value, name))
            if issubclass(type(value), DataLoader):  # each new iteration draws from them
                for owner in (value, value.sampler):
                    self._pending.append((getattr(owner, "generator", None), f"{name}.generator"))
        elif is_opaque(value):
            self.outside[name] = f"a {type(value).__name__}: of no kind that is known"
        else:
            self._visit_attributes(value, name)
            self._visit_children(value, name)

    def _visit_attributes(self, value: Any, name: str) -> None:
        if not has_attributes(type(value)):
            return
        space = space_of(value)
        self._seen[id(space)] = space
        attributes = attributes_of(value)
        self._add_namespace(value, attributes, name)
        self._pending.extend((child, f"{name}.{key}") for key, child in attributes.items())

    def _visit_children(self, value: Any, name: str) -> None:
        pending = self._pending
        for child in children(value):
            if type(child) not in ATOMS:
                pending.append((child, name))

    def _add_namespace(self, owner: Any, saved: dict[str, Any], name: str) -> None:
        self._namespaces.append((owner, saved))
        self._classes.append(type(owner))
        self._sizes.append(-1 if has_slots(type(owner)) else len(space_of(owner)))
        self._names["keys"].append(name)

    def _add_value(self, value: Any, name: str) -> None:
        if type(value) in _PLAIN_CONTAINERS and not value:
            self._add_empty(value, name)
            return
        try:
            content = read(value)
        except MEMORY:
            raise
        except Exception as error:
            self.given_up[name] = describe_error(error)
            return
        self._values.append((value, content))
        self._names["values"].append(name)

    def _add_empty(self, container: Any, name: str) -> None:
        self._empty.append(container)
        self._names["filled"].append(name or f"an empty {type(container).__name__}")


@contextmanager
def _collector_paused() -> Iterator[None]:
    # the garbage collector would walk the growing snapshot again and again
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
