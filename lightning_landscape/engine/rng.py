"""Read, seed and restore the global random streams of torch, its accelerators, numpy and python."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def unchanged_rng() -> Iterator[dict[str, Any]]:
    """Yield the states of all global random streams, and restore them at the end."""
    before = rng_states()
    try:
        yield before
    finally:
        set_rng_states(before)


def seed_all(seed: int) -> dict[str, Any]:
    """Seed every global random stream; return their states."""
    of_torch = seed if seed < 2**64 else seed % 2**64
    # not `torch.manual_seed`: it would also seed an accelerator that is not initialised
    torch.default_generator.manual_seed(of_torch)
    if _cuda_is_up():
        torch.cuda.manual_seed_all(of_torch)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(of_torch)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    return rng_states(_numpy_at(seed % 2**32))


@lru_cache(8)
def _numpy_at(seed: int) -> Any:
    return np.random.RandomState(seed).get_state()


def rng_states(numpy: Any = None) -> dict[str, Any]:
    """Return the states of all global random streams, by name; numpy's, if given, is not read."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        # by far the slowest to read
        "numpy": np.random.get_state() if numpy is None else numpy,  # noqa: NPY002
        "python": random.getstate(),
    }
    if _cuda_is_up():
        states["cuda"] = torch.cuda.get_rng_state_all()
    elif torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _cuda_is_up() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def set_rng_states(states: dict[str, Any], names: set[str] | None = None) -> None:
    """Set the named random streams, or all, to states that `rng_states` returned."""
    setters: dict[str, Callable[[Any], object]] = {
        "torch": torch.set_rng_state,
        "numpy": np.random.set_state,
        "python": random.setstate,
        "cuda": torch.cuda.set_rng_state_all,
        "mps": torch.mps.set_rng_state,
    }
    for name in states if names is None else names:
        setters[name](states[name])


def differing_rng(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """Return the names of the random streams whose states differ."""
    return {name for name in a if not _same_state(a[name], b[name])}


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same_state, a, b))
    if isinstance(a[1], np.ndarray):
        return a[1].tobytes() == b[1].tobytes() and (a[0], *a[2:]) == (b[0], *b[2:])
    return a == b
