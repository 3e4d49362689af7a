"""Attributes, tensors, containers and generators as places with contents."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_landscape.engine.contents import attributes_of, read, set_attribute, write
from lightning_landscape.engine.tensors import put_back

HOOKS_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")
HOOKS_KEY = "the hooks of a tensor"  # instead of the name of an attribute
_MISSING = object()


class Places:
    """Attributes, tensors, containers and generators, whose contents can be read and written.

    Args:
        found: The objects, by their id and the name of the attribute, "" for the object itself.
    """

    def __init__(self, found: dict[tuple[int, str], Any] | None = None) -> None:
        self._found = found or {}

    def __or__(self, other: Places) -> Places:
        return Places({**self._found, **other._found})

    def read(self) -> list[Any]:
        """Return a copy of the contents."""
        return [_read(place, key) for (_, key), place in self._found.items()]

    def write(self, contents: list[Any]) -> None:
        """Write contents that were read before; places added since are left as they are."""
        for ((_, key), place), content in zip(self._found.items(), contents, strict=False):
            _write(place, key, content)


def _read(place: Any, key: str) -> Any:
    if key == HOOKS_KEY:
        return [getattr(place, name) for name in HOOKS_OF_TENSORS]
    if key:
        return attributes_of(place).get(key, _MISSING)
    return read(place)


def _write(place: Any, key: str, content: Any) -> None:
    if key == HOOKS_KEY:
        set_hooks(place, content)
    elif key:
        set_attribute(place, key, {} if content is _MISSING else {key: content})
    elif issubclass(type(place), Tensor):
        put_back([place], [content])
    else:
        write(place, content)


def set_hooks(tensor: Tensor, saved: list[Any]) -> None:
    """Set the hooks of a tensor to saved ones."""
    for name, hooks in zip(HOOKS_OF_TENSORS, saved, strict=True):
        setattr(tensor, name, hooks)
