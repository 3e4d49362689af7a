"""Iterators that a module holds, such as `iter(loader)`: kept from being read while it is probed.

Nothing sets their position back. What a probe read of one, training would lack.
"""

from __future__ import annotations

import threading
from typing import Any

_PLACES = ("builtins", "itertools", "torch.utils.data.dataloader")  # not files or cursors


class Unreadable:
    """Stands in the place of an iterator, and raises when the thread that made it uses it.

    Other threads, such as one that loads batches ahead, go on with the iterator.

    Args:
        iterator: The iterator.
        name: What it goes by in the message.
    """

    def __init__(self, iterator: Any, name: str) -> None:
        self._iterator = iterator
        self._name = name
        self._thread = threading.get_ident()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # it is being copied
            raise AttributeError(attribute)
        return getattr(self._used(), attribute)

    def __iter__(self) -> Any:
        self._used()
        return self

    def __next__(self) -> Any:
        return next(self._used())

    def __len__(self) -> int:
        return len(self._used())

    def __bool__(self) -> bool:
        return True

    def _used(self) -> Any:
        if threading.get_ident() != self._thread:
            return self._iterator
        raise RuntimeError(
            f"the step reads `{self._name}`, an iterator that the module holds: what a probe took "
            "of it, training would lack. Pass a `loss_fn` that does without"
        )


def is_read_once(value: object) -> bool:
    """Return whether something is an iterator whose position nothing sets back."""
    cls = type(value)
    return cls.__module__ in _PLACES and hasattr(cls, "__next__")


def without(content: Any, stand_ins: dict[int, Unreadable]) -> Any:
    """Return what a container holds with iterators replaced; the same object if it has none."""

    def put(value: Any) -> Any:
        return stand_ins.get(id(value), value)

    children = content.values() if type(content) is dict else content
    if type(content) not in (dict, list, tuple) or stand_ins.keys().isdisjoint(map(id, children)):
        return content
    if type(content) is dict:
        return {key: put(value) for key, value in content.items()}
    return type(content)(map(put, content))
