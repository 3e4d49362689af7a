"""Undo what was done, in reverse order and each to its end, also when that is interrupted."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_MISSING = object()


class Undo:
    """Actions that undo what was done.

    An action is added before what it undoes is done, and may be called again after it was
    interrupted: it sets things to what they were, whatever they are.
    """

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def add(self, action: Callable[[], object]) -> None:
        """Call this when all is undone, before what was added earlier."""
        self._actions.append(action)

    def keep_items(self, space: dict[str, Any], *names: str) -> None:
        """Put entries of a dict back; entries that were not there are taken out."""
        saved = {name: space.get(name, _MISSING) for name in names}
        self.add(partial(_put_back_items, space, saved))

    def keep_attributes(self, owner: Any, *names: str) -> None:
        """Set attributes back to what they are now."""
        saved = {name: getattr(owner, name) for name in names}
        self.add(partial(_put_back_attributes, owner, saved))

    def keep_all(self, space: dict[str, Any]) -> None:
        """Let a dict have the entries it has now, and no other."""
        self.add(partial(_put_back_all, space, dict(space)))

    def keep_list(self, items: list[Any]) -> None:
        """Let a list have the items it has now."""
        saved = list(items)
        self.add(lambda: operator.setitem(items, slice(None), saved))

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left when all is undone."""
        entered: list[tuple[T, AbstractContextManager[T]]] = []
        self.add(lambda: entered and entered.pop()[1].__exit__(None, None, None))
        entered.append((context.__enter__(), context))
        return entered[0][0]

    def run(self) -> None:
        """Undo all. An action that fails is tried once more, and keeps no other from its turn.

        Raises:
            BaseException: The first that an action raised, when all is undone.
        """
        failures: list[BaseException] = []
        while self._actions:
            for _ in range(2):
                try:
                    self._actions[-1]()
                    break
                except BaseException as error:
                    failures.append(error)
            self._actions.pop()
        if failures:
            raise failures[0]


@contextmanager
def undone() -> Iterator[Undo]:
    """Undo at the end what was done inside, by way of what is yielded."""
    undo = Undo()
    try:
        try:
            yield undo
        finally:
            undo.run()
    finally:
        undo.run()  # what is left of it if that was interrupted


def _put_back_items(space: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if value is _MISSING:
            space.pop(name, None)
        else:
            space[name] = value


def _put_back_attributes(owner: Any, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        setattr(owner, name, value)


def _put_back_all(space: dict[str, Any], saved: dict[str, Any]) -> None:
    for name in [name for name in space if name not in saved]:
        del space[name]
    space.update(saved)
