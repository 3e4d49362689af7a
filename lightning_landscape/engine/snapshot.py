"""The state of a module at one moment: finds what an evaluation wrote, and restores it bit for bit.

Weights are not part of it: they move on purpose, see `weights`. Everything else that a forward pass
can write to is part of it: buffers, torchmetrics states, plain tensors, arrays, numbers, containers
(their contents and identity), generators, attributes of objects, new keys, hooks on tensors. `walk`
says how far the search goes.

Each object is compared and restored by itself. One that cannot be compared counts as changed. One
that cannot be restored stays as it is, and is named.

`SavedState` has one flat list per kind and few Python objects, so that a network of a thousand
modules is compared in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from operator import is_, itemgetter
from typing import Any

from torch import Tensor

from lightning_landscape.engine.contents import (
    attributes_of,
    differing_keys,
    has_slots,
    same_content,
    set_attribute,
    space_of,
    write,
)
from lightning_landscape.engine.guards import MEMORY, describe_error
from lightning_landscape.engine.held_iterators import Unreadable, without
from lightning_landscape.engine.places import HOOKS_KEY, HOOKS_OF_TENSORS, Places, set_hooks
from lightning_landscape.engine.saved_state import SavedState
from lightning_landscape.engine.tensors import (
    copier,
    differing,
    differs_in_nans_alone,
    put_back,
    set_tracked,
    surely_same,
    version_of,
)


@dataclass
class Changes:
    """What differs from a snapshot, as indices into its lists.

    Attributes:
        tensors: Tensors with other contents or another `requires_grad`.
        values: Containers, arrays, generators and the like with other contents.
        filled: Containers that were empty.
        hooks: Tensors with other hooks.
        classes: Objects of another class.
        keys: Attributes: the index of the owner, and the name.
    """

    tensors: set[int] = field(default_factory=set)
    values: set[int] = field(default_factory=set)
    filled: set[int] = field(default_factory=set)
    hooks: set[int] = field(default_factory=set)
    classes: set[int] = field(default_factory=set)
    keys: set[tuple[int, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def merged(self, other: Changes) -> Changes:
        """Return the changes that are in one of them."""
        return Changes(*(a | b for a, b in _pairs(self, other)))

    def without(self, other: Changes) -> Changes:
        """Return the changes that the other does not have."""
        return Changes(*(a - b for a, b in _pairs(self, other)))


class Snapshot(SavedState):
    """The state reachable from some objects, to be compared and restored; see `SavedState`."""

    def hide_iterators(self) -> None:
        """Make the iterators raise when they are used, until the changes are restored.

        Raises:
            RuntimeError: If one cannot be replaced where it is held.
        """
        stand_ins = {id(iterator): Unreadable(iterator, name) for iterator, name in self.iterators}
        for place, saved in self._values:
            if (content := without(saved, stand_ins)) is not saved:
                write(place, content)
        for owner, saved in self._namespaces:
            content = without(saved, stand_ins)
            for key in differing_keys(content, saved):
                set_attribute(owner, key, content)
        for _, name in Snapshot(self._roots, hooks_only=self._hooks_only.values()).iterators:
            raise RuntimeError(
                f"the module holds `{name}`, an iterator, where a probe cannot replace it "
                "by one that raises. Hold it in an attribute, a list or a dict"
            )

    def leaves(self) -> list[Tensor]:
        """Return the leaf tensors that require gradients."""
        pairs = zip(self._tensors, self._tracked, strict=True)
        return [tensor for tensor, tracked in pairs if tracked and tensor.is_leaf]

    def keeps_graph(self) -> bool:
        """Return whether a tensor has a graph: training may still go backward through it."""
        return any(tensor.grad_fn is not None for tensor in self._tensors)

    def changed(self, *, assume_written: bool = False) -> Changes:
        """Return everything that was written since, by version counter, identity or content.

        Args:
            assume_written: Count all tensors on an accelerator as changed: comparing them needs
                memory. Those in host memory are compared: they may be mapped from a read-only file.
        """
        changes = Changes()
        for tensor, version, name in self._uncopied_tensors:
            if version_of(tensor) != version:
                self.given_up[name] = "it was written to, and is too large to be copied"
        tensors, contents = self._tensors, self._contents
        if assume_written:
            changes.tensors.update(
                i
                for i, (tensor, content) in enumerate(zip(tensors, contents, strict=True))
                if tensor.device.type != "cpu" or _may_differ(tensor, content)
            )
        else:
            changes.tensors.update(differing(tensors, contents))
            versions = enumerate(zip(map(version_of, tensors), self._versions, strict=True))
            changes.tensors.update(i for i, (now, saved) in versions if now != saved)
        tracked = enumerate(zip(tensors, self._tracked, strict=True))
        changes.tensors.update(i for i, (t, saved) in tracked if t.requires_grad is not saved)
        changes.values.update(
            i for i, (place, saved) in enumerate(self._values) if not same_content(place, saved)
        )
        if any(map(len, self._empty)):
            changes.filled.update(i for i, container in enumerate(self._empty) if len(container))
        for name, saved_hooks in zip(HOOKS_OF_TENSORS, self._hooks, strict=True):
            hooks = [getattr(tensor, name) for tensor in self._hooked]
            if not all(map(is_, hooks, saved_hooks)):
                pairs = enumerate(zip(hooks, saved_hooks, strict=True))
                changes.hooks.update(i for i, (now, saved) in pairs if now is not saved)
        for i, (owner, saved) in enumerate(self._namespaces):
            if type(owner) is not self._classes[i]:
                changes.classes.add(i)
            if not _is_as_saved(space_of(owner), saved, self._sizes[i]):
                keys = differing_keys(attributes_of(owner), saved)
                changes.keys.update((i, key) for key in keys)
        return changes

    def restore(self, changes: Changes) -> None:
        """Restore what changed, each by itself; nothing else is written to."""
        for i in changes.classes:
            owner, name = self._namespaces[i][0], self._name("keys", i, "__class__")
            self._attempt(name, object.__setattr__, owner, "__class__", self._classes[i])
        for i, key in changes.keys:
            owner, saved = self._namespaces[i]
            self._attempt(self._name("keys", i, key), set_attribute, owner, key, saved)
        for i in changes.values:
            self._attempt(self._name("values", i), write, *self._values[i])
        for i in changes.filled:
            self._attempt(self._name("filled", i), _empty, self._empty[i])
        for i in changes.hooks:
            saved = [hooks[i] for hooks in self._hooks]
            self._attempt(self._name("hooks", i), set_hooks, self._hooked[i], saved)
        indices = list(changes.tensors)
        self._tensor_restorer(indices)()
        for i in indices:
            self._versions[i] = version_of(self._tensors[i])

    def restorer(self, changes: Changes) -> list[Callable[[], None]]:
        """Return `restore(changes)` as a list of functions, prepared for many calls."""
        calls: list[Callable[[], None]] = []
        rest = replace(changes, tensors=set(), keys=set())
        if rest:
            calls.append(lambda: self.restore(rest))
        if changes.tensors:
            calls.append(self._tensor_restorer(sorted(changes.tensors)))
        if changes.keys:
            calls.append(self._attribute_restorer(changes.keys))
        return calls

    def places(self, changes: Changes) -> Places:
        """Return the places of the changes, for repeated reading and writing."""
        found: dict[tuple[int, str], Any] = {}
        for i, key in changes.keys:
            owner = self._namespaces[i][0]
            found[id(owner), key] = owner
        found.update({(id(t), HOOKS_KEY): t for t in (self._hooked[i] for i in changes.hooks)})
        groups = (
            [self._tensors[i] for i in changes.tensors],
            [self._values[i][0] for i in changes.values],
            [self._empty[i] for i in changes.filled],
        )
        for group in groups:
            found.update({(id(place), ""): place for place in group})
        return Places(found)

    def describe(self, changes: Changes) -> list[str]:
        """Return the names of what changed, before it is restored.

        Tensors that cannot be compared are left out, and those that hold other nans alone.
        """
        names = [self._name("keys", i, key) for i, key in changes.keys]
        tensors = ((i, self._tensors[i], self._contents[i]) for i in changes.tensors)
        names += [
            self._name("tensors", i)
            for i, now, saved in tensors
            if surely_same(saved, saved) and not differs_in_nans_alone(now, saved)
        ]
        names += [self._name("keys", i, "__class__") for i in changes.classes]
        for kind in ("values", "filled", "hooks"):
            names += [self._name(kind, i) for i in getattr(changes, kind)]
        return sorted(set(names))

    def _name(self, kind: str, i: int, key: str = "") -> str:
        return f"{self._names[kind][i]}.{key}".strip(".")

    def _attempt(self, name: str, action: Callable[..., object], *arguments: Any) -> None:
        """Call an action; if it raises, note the name in `given_up`."""
        try:
            action(*arguments)
        except Exception as error:
            self.given_up[name] = describe_error(error)

    def _tensor_restorer(self, indices: list[int]) -> Callable[[], None]:
        """Return a function that restores some tensors."""
        tensors = [self._tensors[i] for i in indices]
        contents = [self._contents[i] for i in indices]
        tracked = [self._tracked[i] for i in indices]
        copy = copier(tensors, contents)

        def copy_each() -> None:
            for i, tensor, content in zip(indices, tensors, contents, strict=True):
                self._attempt(self._name("tensors", i), put_back, [tensor], [content])

        def rewrite() -> None:
            try:
                copy()
            except Exception:  # one by one, to restore the others
                copy_each()
            if [tensor.requires_grad for tensor in tensors] != tracked:
                for i, tensor, requires_grad in zip(indices, tensors, tracked, strict=True):
                    if tensor.requires_grad is not requires_grad:
                        self._attempt(self._name("tensors", i), set_tracked, tensor, requires_grad)

        return rewrite

    def _attribute_restorer(self, keys: set[tuple[int, str]]) -> Callable[[], None]:
        """Return a function that restores attributes, and others of their owners that changed.

        An owner that counts its calls may also keep its best loss, and write that at other weights.
        """
        rows = []
        for i, own in groupby(sorted(keys), key=itemgetter(0)):
            owner, saved = self._namespaces[i]
            space = space_of(owner)
            present = [key for _, key in own if key in space]
            known = {key: saved[key] for key in present if key in saved}
            size = len(space) - len(present) + len(known)  # without keys that were added
            size = -1 if has_slots(type(owner)) else size
            rows.append((i, owner, known, saved, size))

        def reset() -> None:
            for i, owner, known, saved, size in rows:
                space = space_of(owner)  # it may be another dict by then
                if type(space) is dict:  # the `__dict__` of a class is read-only
                    space.update(known)
                if not _is_as_saved(space, saved, size):
                    for key in list(differing_keys(attributes_of(owner), saved)):
                        name = self._name("keys", i, key)
                        self._attempt(name, set_attribute, owner, key, saved)

        return reset


_MISSING = object()


def _is_as_saved(space: dict[str, Any], saved: dict[str, Any], size: int) -> bool:
    """Return whether a `__dict__` is as saved: True is certain, False is not."""
    same = map(is_, map(space.get, saved, repeat(_MISSING)), saved.values())
    return len(space) == size and all(same)


def _may_differ(tensor: Tensor, content: Tensor) -> bool:
    try:
        return not surely_same(tensor, content)
    except MEMORY:
        return True


def _empty(container: Any) -> None:
    container.clear()


def _pairs(a: Changes, b: Changes) -> Iterator[tuple[set[Any], set[Any]]]:
    for name, mine in vars(a).items():
        yield mine, getattr(b, name)
