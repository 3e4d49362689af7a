"""What a module holds, as it was: to see what an evaluation wrote, and to put it back bit for bit.

Weights are not in here (they move on purpose, see `isolation`). Everything else that a forward pass
can write to is: buffers, torchmetrics states, plain tensors, arrays, numbers, containers by content
and identity, generators, the attributes of plain objects, new keys.

One flat list per kind and as few Python objects as possible: a network of a thousand modules is
looked through in milliseconds.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, repeat
from operator import is_, itemgetter
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_landscape.engine.contents import (
    ATOMS,
    CONTAINERS,
    GENERATORS,
    HOOKS,
    REGISTRIES,
    SKIPPED,
    attributes_of,
    content_of,
    copier,
    differing,
    differing_keys,
    is_plain,
    put_back,
    refill,
    rewrite_array,
    same_bits,
    same_content,
    set_attribute,
    set_state,
    set_tracked,
    state_of,
    version_of,
)
from lightning_landscape.sharding import is_freed

__all__ = ["Changes", "Places", "Snapshot", "put_back", "same_bits"]

_LONGEST = 10_000  # elements: what longer containers hold is not looked into


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
        self._sizes: list[int] = []  # of their __dict__
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
            suspect: Take it that all tensors were, and do not compare those on an accelerator: that
                needs memory. Those in host memory may be mapped from a file that is read only.
        """
        changes = Changes()
        versions = [version_of(tensor) for tensor in self._tensors]
        tracked = [tensor.requires_grad for tensor in self._tensors]
        if suspect:
            changes.tensors.update(
                i
                for i, (tensor, content) in enumerate(
                    zip(self._tensors, self._contents, strict=True)
                )
                if tensor.device.type != "cpu" or not same_bits(tensor, content)
            )
        else:
            changes.tensors.update(differing(self._tensors, self._contents))
            changes.tensors.update(
                i for i in range(len(versions)) if versions[i] != self._versions[i]
            )
        changes.tensors.update(
            i for i in range(len(versions)) if tracked[i] is not self._tracked[i]
        )
        for i, (array, saved) in enumerate(self._arrays):
            if array.shape != saved.shape or array.tobytes() != saved.tobytes():
                changes.arrays.add(i)
        for i, (generator, state) in enumerate(self._generators):
            if state_of(generator) != state:
                changes.generators.add(i)
        for i, (container, saved) in enumerate(self._containers):
            if not same_content(container, saved):
                changes.containers.add(i)
        for i, (owner, saved) in enumerate(self._namespaces):
            if _is_as_saved(getattr(owner, "__dict__", {}), saved, self._sizes[i]):
                continue
            keys = differing_keys(attributes_of(owner), saved)
            changes.keys.update((i, key) for key in keys)
        self._adopt_filled(changes)
        return changes

    def restore(self, changes: Changes) -> None:
        """Put back what changed; what did not is not touched."""
        for i, key in changes.keys:
            owner, saved = self._namespaces[i]
            set_attribute(owner, key, saved)
        for i in changes.containers:
            refill(*self._containers[i])
        for i in changes.generators:
            generator, state = self._generators[i]
            set_state(generator, state)
        for i in changes.arrays:
            rewrite_array(*self._arrays[i])
        indices = list(changes.tensors)
        self._rewriter(indices)()
        for i in indices:
            self._versions[i] = version_of(self._tensors[i])

    def restorer(self, changes: Changes) -> list[Callable[[], None]]:
        """Return `restore(changes)` as a list of calls, prepared once to be made many times."""
        calls: list[Callable[[], None]] = []
        if changes.tensors:
            calls.append(self._rewriter(sorted(changes.tensors)))
        if changes.keys:
            calls.append(self._resetter(changes.keys))
        rest = Changes(set(), changes.arrays, changes.generators, changes.containers)
        if rest:
            calls.append(lambda: self.restore(rest))
        return calls

    def _resetter(self, keys: set[tuple[int, str]]) -> Callable[[], None]:
        """Return what sets attributes again, and any other of the same owners.

        Who keeps a count may also keep a best loss, and write to it elsewhere.
        """
        rows = []
        for i, own in groupby(sorted(keys), key=itemgetter(0)):
            owner, saved = self._namespaces[i]
            space = getattr(owner, "__dict__", {})  # which may be another by then
            learned = [key for _, key in own if key in space]
            known = {key: saved[key] for key in learned if key in saved}
            size = len(space) - len(learned) + len(known)  # without what was added
            rows.append((owner, known, saved, size))

        def reset() -> None:
            for owner, known, saved, size in rows:
                space = getattr(owner, "__dict__", {})
                space.update(known)
                if not _is_as_saved(space, saved, size):
                    for key in list(differing_keys(attributes_of(owner), saved)):
                        set_attribute(owner, key, saved)

        return reset

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
        tracked = [self._tracked[i] for i in indices]
        copy = copier(tensors, [self._contents[i] for i in indices])

        def rewrite() -> None:
            copy()
            if [tensor.requires_grad for tensor in tensors] != tracked:
                for tensor, requires_grad in zip(tensors, tracked, strict=True):
                    if tensor.requires_grad is not requires_grad:
                        set_tracked(tensor, requires_grad)

        return rewrite

    def _visit(self, value: Any, name: str) -> None:
        if id(value) in self._seen or type(value) in ATOMS:
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
        elif isinstance(value, GENERATORS):
            self._generators.append((value, state_of(value)))
            self._names["generators"].append(name)
        elif isinstance(value, CONTAINERS):
            self._visit_container(value, name)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_each(value, name)
        elif is_plain(type(value)):
            self._visit_attributes(value, name)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes = module.__dict__
        self._add_namespace(module, attributes_of(module), name)
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
                self._add_container(held, content_of(held), name)
            for key, value in held.items():
                if value is not None:
                    pending.append((value, prefix + key))
        for key, value in attributes.items():
            if type(value) not in ATOMS and key not in SKIPPED:
                pending.append((value, prefix + key))

    def _visit_tensor(self, tensor: Tensor, name: str) -> None:
        if is_lazy(tensor) or is_freed(tensor):  # nothing there
            return
        self._tensors.append(tensor)
        self._versions.append(version_of(tensor))
        self._contents.append(tensor.detach().clone())
        self._tracked.append(tensor.requires_grad)
        self._names["tensors"].append(name)

    def _visit_container(self, container: Any, name: str) -> None:
        content = content_of(container)
        self._add_container(container, content, name)
        self._visit_each(content.values() if isinstance(content, dict) else content, name)
        if is_plain(type(container)):
            self._visit_attributes(container, name)

    def _visit_each(self, values: Any, name: str) -> None:
        if len(values) <= _LONGEST and not ATOMS.issuperset(map(type, values)):
            self._pending.extend((value, name) for value in values)

    def _visit_attributes(self, value: Any, name: str) -> None:
        attributes = dict(attributes_of(value))
        self._add_namespace(value, attributes, name)
        self._pending.extend((child, f"{name}.{key}") for key, child in attributes.items())

    def _add_namespace(self, owner: Any, saved: dict[str, Any], name: str) -> None:
        self._namespaces.append((owner, saved))
        self._sizes.append(len(getattr(owner, "__dict__", {})))
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
                self._containers.append((container, type(content_of(container))()))
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


def _is_as_saved(space: dict[str, Any], saved: dict[str, Any], size: int) -> bool:
    """Return whether a `__dict__` surely holds what it did; quick, and wrong only by saying no."""
    same = map(is_, map(space.get, saved, repeat(_MISSING)), saved.values())
    return len(space) == size and all(same)


def _read(place: Any, key: str) -> Any:
    if key:
        return attributes_of(place).get(key, _MISSING)
    if isinstance(place, Tensor):
        return place.detach().clone()
    if isinstance(place, np.ndarray):
        return place.copy()
    return state_of(place) if isinstance(place, GENERATORS) else content_of(place)


def _write(place: Any, key: str, content: Any) -> None:
    if key:
        set_attribute(place, key, {} if content is _MISSING else {key: content})
    elif isinstance(place, Tensor):
        put_back([place], [content])
    elif isinstance(place, np.ndarray):
        rewrite_array(place, content)
    elif isinstance(place, GENERATORS):
        set_state(place, content)
    else:
        refill(place, content)


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
