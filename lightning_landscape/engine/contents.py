"""Read, compare and restore what is not a tensor: containers, arrays, generators, attributes.

Containers are compared by the identity of what they hold, in order. They are never compared by
`==`: a user's class may define it in any way, or raise.
"""

from __future__ import annotations

import array
import ctypes
import io
import pickle
import random
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter, eq, is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape._lightning import LIGHTNING_ATTRIBUTES
from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.engine.tensors import cloned

REGISTRIES = ("_parameters", "_buffers", "_modules")
HOOKS = tuple(
    name
    for name, value in nn.Module().__dict__.items()
    if isinstance(value, dict) and name not in REGISTRIES
)
SKIPPED = frozenset({*REGISTRIES, *HOOKS, *LIGHTNING_ATTRIBUTES})


class Kind(NamedTuple):
    """How objects of a kind are read, compared with saved contents, and restored."""

    read: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    write: Callable[[Any, Any], object]


@cache
def kind_of(cls: type) -> Kind | None:
    """Return the kind of a class; None if its objects are not saved as a whole."""
    return next((kind for types_, kind in _KINDS if issubclass(cls, types_)), None)


# Methods are those of the base class: a subclass may change them, as `Counter` does `update`.


def _of_dict(base: Any) -> Kind:
    def same(place: Any, saved: Any) -> bool:
        return (
            base.__len__(place) == len(saved)
            and all(map(is_, base.values(place), saved.values()))
            and all(map(is_, base.keys(place), saved))
        )

    def write(place: Any, saved: Any) -> None:
        if len(saved) != base.__len__(place) or not all(map(is_, base.keys(place), saved)):
            base.clear(place)
        now = dict(base.items(place))
        for key, value in saved.items():  # the others stay: a loop over the dict goes on
            if key not in now or now[key] is not value:
                base.__setitem__(place, key, value)

    return Kind(lambda place: dict(base.items(place)), same, write)


def _of_list() -> Kind:
    def same(place: Any, saved: Any) -> bool:
        return list.__len__(place) == len(saved) and all(map(is_, list.__iter__(place), saved))

    return Kind(
        lambda place: list(list.__iter__(place)),
        same,
        lambda place, saved: list.__setitem__(place, slice(None), saved),
    )


def _of_deque() -> Kind:
    def same(place: Any, saved: Any) -> bool:
        return deque.__len__(place) == len(saved) and all(map(is_, deque.__iter__(place), saved))

    def write(place: Any, saved: Any) -> None:
        if deque.__len__(place) != len(saved):
            deque.clear(place)
            deque.extend(place, saved)
        for i, (now, value) in enumerate(zip(list(deque.__iter__(place)), saved, strict=True)):
            if now is not value:  # the others stay: a loop over the deque goes on
                deque.__setitem__(place, i, value)

    return Kind(lambda place: list(deque.__iter__(place)), same, write)


def _of_set() -> Kind:
    def same(place: Any, saved: Any) -> bool:
        return set(map(id, set.__iter__(place))) == set(map(id, saved))

    def write(place: Any, saved: Any) -> None:
        kept, now = set(map(id, saved)), list(set.__iter__(place))
        for value in now:
            if id(value) not in kept:
                set.discard(place, value)
        set.update(place, saved)
        if not all(map(is_, set.__iter__(place), saved)):  # the order differs
            set.clear(place)
            set.update(place, saved)

    return Kind(lambda place: list(set.__iter__(place)), same, write)


def _of_bytearray() -> Kind:
    return Kind(
        bytes,
        bytearray.__eq__,
        lambda place, saved: bytearray.__setitem__(place, slice(None), saved),
    )


def _of_array() -> Kind:
    def same(place: Any, saved: Any) -> bool:
        return place.shape == saved.shape and _raw(place) == _raw(saved)

    def write(place: Any, saved: Any) -> None:
        if not same(place, saved):  # it may be mapped from a read-only file
            if place.shape != saved.shape:
                place.resize(saved.shape, refcheck=False)
            place.view(np.ndarray)[...] = saved

    return Kind(lambda place: np.array(place.view(np.ndarray)), same, write)


def _raw(values: Any) -> bytes:
    return values.view(np.ndarray).tobytes()  # a masked array would replace masked values


def _state(read: Callable[[Any], Any], write: Callable[[Any, Any], object]) -> Kind:
    return Kind(read, lambda place, saved: eq(read(place), saved), write)


def read_cell(cell: types.CellType) -> tuple[Any, ...]:
    """Return what a cell of a closure holds; an empty tuple if it holds nothing yet."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _write_cell(cell: types.CellType, saved: tuple[Any, ...]) -> None:
    if saved:
        cell.cell_contents = saved[0]
    else:
        del cell.cell_contents


def _same_cell(cell: types.CellType, saved: tuple[Any, ...]) -> bool:
    now = read_cell(cell)
    return len(now) == len(saved) and all(map(is_, now, saved))


def _read_generator(generator: np.random.Generator) -> Any:
    bits: Any = generator.bit_generator
    return _read_bits(bits)


def _read_bits(bits: Any) -> Any:
    return pickle.dumps(bits.state), _read_seeds(bits.seed_seq)


def _write_bits(bits: Any, saved: Any) -> None:
    bits.state = pickle.loads(saved[0])
    _write_seeds(bits.seed_seq, saved[1])


def _read_seeds(seeds: Any) -> bytes:
    """Return the state of a seed sequence, whose `spawn` counts its children."""
    return pickle.dumps(seeds.__reduce__()[2]) if type(seeds) is np.random.SeedSequence else b""


def _write_seeds(seeds: Any, saved: bytes) -> None:
    if saved and saved != _read_seeds(seeds):
        seeds.__setstate__(pickle.loads(saved))


def _write_torch(generator: torch.Generator, saved: bytes) -> None:
    generator.set_state(torch.frombuffer(bytearray(saved), dtype=torch.uint8))


def _write_stream(stream: Any, saved: Any) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(saved[0])
    stream.seek(saved[1])


def _write_bytes(place: Any, saved: bytes) -> None:
    memoryview(place).cast("B")[:] = saved


def _write_numbers(place: array.array[Any], saved: bytes) -> None:
    del place[:]
    place.frombytes(saved)


_KINDS: list[tuple[Any, Kind]] = [
    (OrderedDict, _of_dict(OrderedDict)),
    (dict, _of_dict(dict)),
    (list, _of_list()),
    (set, _of_set()),
    (deque, _of_deque()),
    (bytearray, _of_bytearray()),
    (np.ndarray, _of_array()),
    (types.CellType, Kind(read_cell, _same_cell, _write_cell)),
    (torch.Generator, _state(lambda g: g.get_state().numpy().tobytes(), _write_torch)),
    (np.random.Generator, _state(_read_generator, lambda g, s: _write_bits(g.bit_generator, s))),
    (np.random.BitGenerator, _state(_read_bits, _write_bits)),
    (np.random.SeedSequence, _state(_read_seeds, _write_seeds)),
    (
        np.random.RandomState,
        _state(lambda g: pickle.dumps(g.get_state()), lambda g, s: g.set_state(pickle.loads(s))),
    ),
    (random.SystemRandom, Kind(lambda g: None, is_, lambda g, s: None)),  # it has no state
    (
        random.Random,
        _state(lambda g: pickle.dumps(g.getstate()), lambda g, s: g.setstate(pickle.loads(s))),
    ),
    ((io.BytesIO, io.StringIO), _state(lambda f: (f.getvalue(), f.tell()), _write_stream)),
    (array.array, _state(lambda a: a.tobytes(), _write_numbers)),
    (
        (memoryview, ctypes.Array, ctypes.Structure, ctypes.Union, ctypes._SimpleCData),
        _state(lambda c: bytes(memoryview(c).cast("B")), _write_bytes),
    ),
]


def attributes_of(owner: Any) -> dict[str, Any]:
    """Return the attributes and filled slots of an object that belong to the user."""
    space = space_of(owner)
    if skipped := _skipped(type(owner)):
        space = {key: value for key, value in space.items() if key not in skipped}
    slots = _slots(type(owner))
    return {**_filled(owner, slots), **space} if slots else dict(space)


@cache
def _skipped(cls: type) -> frozenset[str]:
    """Return the names of attributes that belong to torch, Lightning or Python."""
    if issubclass(cls, nn.Module):
        return SKIPPED
    return frozenset(vars(threading.Thread()) if issubclass(cls, threading.Thread) else ())


def set_attribute(owner: Any, key: str, saved: dict[str, Any]) -> None:
    """Set an attribute or slot to its saved value; delete it if there is none.

    The object's own `__setattr__` is not called: that of a frozen dataclass would raise.
    """
    slot = _slots(type(owner)).get(key)
    if slot is not None:
        if key in saved:
            slot.__set__(owner, saved[key])
        elif key in _filled(owner, {key: slot}):
            slot.__delete__(owner)
    elif issubclass(type(owner), type):  # its `__dict__` is read-only
        if key in saved:
            setattr(owner, key, saved[key])
        else:
            delattr(owner, key)
    elif key in saved:
        space_of(owner)[key] = saved[key]
    else:
        space_of(owner).pop(key, None)


def differing_keys(now: dict[str, Any], saved: dict[str, Any]) -> Iterator[str]:
    """Yield the keys whose values are not the same object in both."""
    missing = object()
    for key in {**saved, **now}:
        if now.get(key, missing) is not saved.get(key, missing):
            yield key


def has_slots(cls: type) -> bool:
    """Return whether objects of a class have slots of their own."""
    return bool(_slots(cls))


def has_attributes(cls: type) -> bool:
    """Return whether objects of a class have a `__dict__` or slots of their own."""
    return _space_getter(cls) is not None or has_slots(cls)


def space_of(owner: Any) -> dict[str, Any]:
    """Return the `__dict__` of an object, not a property of that name; {} if it has none."""
    getter = _space_getter(type(owner))
    return {} if getter is None else getter(owner)


@cache
def _space_getter(cls: type) -> Callable[[Any], dict[str, Any]] | None:
    if issubclass(cls, threading.local):  # of this thread
        return attrgetter("__dict__")
    for base in cls.__mro__:
        getter = vars(base).get("__dict__")
        if isinstance(getter, (types.GetSetDescriptorType, types.MemberDescriptorType)):
            return getter.__get__
    return None


@cache
def _slots(cls: type) -> dict[str, Any]:
    # by descriptors, not by `__slots__`, where private names are not mangled
    return {
        name: value
        for base in reversed(cls.__mro__)
        if "__slots__" in vars(base)
        for name, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType) and name != "__dict__"
    }


def _filled(owner: Any, slots: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, slot in slots.items():
        try:
            found[name] = slot.__get__(owner)
        except AttributeError:  # not filled
            continue
    return found


def read(place: Any) -> Any:
    """Return a copy of the contents of a tensor or an object of a known kind."""
    if issubclass(type(place), Tensor):
        return cloned(place)
    return _known(place).read(place)


def same_content(place: Any, saved: Any) -> bool:
    """Return whether an object has the saved contents; False if it cannot be compared."""
    try:
        return _known(place).same(place, saved)
    except MEMORY:
        raise
    except Exception:
        return False


def write(place: Any, saved: Any) -> None:
    """Write saved contents into an object, which remains the same object."""
    _known(place).write(place, saved)


def _known(place: Any) -> Kind:
    kind = kind_of(type(place))
    if kind is None:
        raise TypeError(f"{type(place).__name__} is of no kind that is saved as a whole.")
    return kind
