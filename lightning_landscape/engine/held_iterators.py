"""Iterators that a module holds, such as `iter(loader)`: a probe must not read them.

Their position cannot be restored: training would lack the items that a probe has read.
"""

from __future__ import annotations

import threading
import types
from functools import partial
from operator import is_
from typing import Any

import numpy as np

_ITERATOR_MODULES = (  # not those of files or cursors
    *("builtins", "itertools", "torch.utils.data.dataloader"),
    *("lightning.pytorch.utilities.combined_loader", "pytorch_lightning.utilities.combined_loader"),
)
_METHODS = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)


class Unreadable:
    """Replaces an iterator, and raises when the thread that made it uses it.

    Other threads, such as one that loads batches ahead, read the iterator as before.

    Args:
        iterator: The iterator.
        name: Its name in the message.
    """

    def __init__(self, iterator: Any, name: str) -> None:
        self._iterator = iterator
        self._name = name
        self._thread = threading.get_ident()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # a copy or a pickle asks for these
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

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the iterator; replaces a bound method that was stored."""
        return getattr(self._used(), method)(*args, **kwargs)

    def _used(self) -> Any:
        if threading.get_ident() != self._thread:
            return self._iterator
        raise RuntimeError(
            f"the step reads `{self._name}`, an iterator that the module holds: training would "
            "lack the items that a probe reads. Pass a `loss_fn` that does not read it"
        )


def is_read_once(value: object) -> bool:
    """Return whether an object is an iterator whose position cannot be restored."""
    cls = type(value)
    return cls.__module__ in _ITERATOR_MODULES and hasattr(cls, "__next__")


def without(content: Any, stand_ins: dict[int, Unreadable]) -> Any:
    """Return content with its iterators replaced; the same object if it has none."""
    if type(content) is dict:
        now = {key: _replaced(value, stand_ins) for key, value in content.items()}
        return content if all(map(is_, now.values(), content.values())) else now
    if type(content) is list:
        now = [_replaced(value, stand_ins) for value in content]
        return content if all(map(is_, now, content)) else now
    if type(content) is np.ndarray and content.dtype == object:
        now = np.frompyfunc(lambda value: _replaced(value, stand_ins), 1, 1)(content)
        return content if all(map(is_, now.flat, content.flat)) else now
    return _replaced(content, stand_ins)


def _replaced(value: Any, stand_ins: dict[int, Unreadable]) -> Any:
    """Return the stand-in of an iterator, or a new object if an immutable one holds it."""
    cls = type(value)
    if id(value) in stand_ins:
        return stand_ins[id(value)]
    if cls in _METHODS and id(value.__self__) in stand_ins:
        return partial(stand_ins[id(value.__self__)].call, value.__name__)
    if cls is partial:
        held = (value.func, value.args)
        func, arguments = now = _replaced(held, stand_ins)
        return value if now is held else partial(func, *arguments, **value.keywords)
    if issubclass(cls, tuple):
        parts = [_replaced(part, stand_ins) for part in tuple.__iter__(value)]
        same = all(map(is_, parts, tuple.__iter__(value)))
        return value if same else tuple.__new__(cls, parts)
    return value
