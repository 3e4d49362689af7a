"""Undo changes in reverse order, and finish after an interrupt."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_MISSING = object()


class Undo:
    """Actions that undo changes.

    Add an action before you make the change. An interrupted action runs again, so it must set the
    earlier state whatever the present state is.
    """

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def add(self, action: Callable[[], object]) -> None:
        """Add an action. The last one added runs first."""
        self._actions.append(action)

    def keep_items(self, space: dict[str, Any], *names: str) -> None:
        """Restore these entries of a dict; delete those that are absent now."""
        saved = {name: space.get(name, _MISSING) for name in names}
        self.add(partial(_put_back_items, space, saved))

    def keep_attributes(self, owner: Any, *names: str) -> None:
        """Restore these attributes."""
        saved = {name: getattr(owner, name) for name in names}
        self.add(partial(_put_back_attributes, owner, saved))

    def keep_all(self, space: dict[str, Any]) -> None:
        """Restore all entries of a dict, and delete new ones."""
        self.add(partial(_put_back_all, space, dict(space)))

    def keep_list(self, items: list[Any]) -> None:
        """Restore the items of a list."""
        saved = list(items)
        self.add(lambda: operator.setitem(items, slice(None), saved))

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context, and exit it when the actions run."""
        entered: list[tuple[T, AbstractContextManager[T]]] = []
        self.add(lambda: entered and entered.pop()[1].__exit__(None, None, None))
        entered.append((context.__enter__(), context))
        return entered[0][0]

    def run(self) -> None:
        """Run all actions. One that fails runs once more, and does not stop the others.

        Raises:
            BaseException: The first exception of an action, after all have run.
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
    """Yield an `Undo`, and run its actions at the end."""
    undo = Undo()
    try:
        try:
            yield undo
        finally:
            undo.run()
    finally:
        undo.run()  # the rest, if the first run was interrupted


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
