"""The roots of the search for state: a module, and what its code names of its trainer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from lightning_landscape._lightning import lightning_modules
from lightning_landscape.engine.contents import read_cell
from lightning_landscape.engine.walk import boundary, is_installed

_STEPS = ("training_step", "validation_step", "on_validation_epoch_end")
_STEPS += ("on_validation_batch_start", "on_validation_batch_end")
_COMPUTED = ("train_dataloader", "val_dataloaders", "callback_metrics")
_LIBRARIES = ("lightning", "pytorch_lightning", "lightning_landscape")


def roots_of(module: nn.Module, trainer: Any | None) -> list[tuple[str, Any]]:
    """Return the module, and what the code of its steps names of the trainer, each with a name.

    These are the data module, data sets and samplers, callbacks, the user's attributes on the
    trainer, and the state of the optimizers. What no step names is not searched: it may be large.
    """
    roots: list[tuple[str, Any]] = [("", module)]
    if trainer is None:
        return roots
    names = frozenset[str]().union(*(_names(type(child)) for child in lightning_modules(module)))
    if "trainer" in names:
        for name in sorted(names & {*vars(trainer), *_COMPUTED}):
            roots += _parts(f"trainer.{name}", getattr(trainer, name))
    if "state" in names and names & {"optimizer", "optimizers"}:
        roots += [(f"the state of {type(o).__name__}", o.state) for o in trainer.optimizers]
    return roots


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of an object on a trainer that are searched."""
    if issubclass(type(value), DataLoader):
        yield from ((f"{name}.{part}", getattr(value, part)) for part in ("dataset", "sampler"))
        yield f"{name}.batch_sampler", value.batch_sampler
    elif type(value) in (list, tuple, dict):
        items = value.values() if type(value) is dict else value
        for part in items:
            yield from _parts(name, part)
        if type(value) is not tuple and not any(map(_is_of_a_library, items)):
            yield name, value
    elif not _is_of_a_library(value) and boundary(value) is None:
        yield name, value


def _is_of_a_library(value: Any) -> bool:
    return _package(type(value)) in _LIBRARIES


@cache
def _names(cls: type) -> frozenset[str]:
    """Return the names in the code of a class's steps, and of the functions that they name."""
    own = {_package(base) for base in cls.__mro__}.difference(_LIBRARIES, ["torch"])
    waiting: list[Any] = [_member(cls, step) for step in _STEPS]
    names: set[str] = set()
    seen: set[Any] = set()
    while waiting:
        found = waiting.pop()
        found = getattr(found, "fget", getattr(found, "__func__", found))
        if type(found) is not FunctionType or found in seen:
            continue
        if _package(found) not in own and is_installed(_package(found)):
            continue
        seen.add(found)
        used = set(_names_in(found.__code__))
        names |= used
        waiting += [cell for held in found.__closure__ or () for cell in read_cell(held)]
        waiting += [
            thing for name in used for thing in (_member(cls, name), found.__globals__.get(name))
        ]
    return frozenset(names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():  # for `getattr`
            yield constant


def _member(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _package(thing: Any) -> str:
    return (thing.__module__ or "").partition(".")[0]
