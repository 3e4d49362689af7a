"""What a snapshot searches: everything that can be reached from a module, up to stated boundaries.

The search follows attributes, slots, containers (keys too), closures, defaults, partials and bound
methods. What lies beyond a boundary is in use elsewhere while a probe runs, or cannot be restored.
`docs/not-covered.md` lists the boundaries with their reasons.
"""

from __future__ import annotations

import gc
import random
import sys
import sysconfig
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_landscape.engine.contents import has_attributes, kind_of, read_cell

LONGEST = 10_000  # elements: the contents of longer containers are not searched
MOST_BYTES = 2**30  # of copies of tensors and arrays, without buffers

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, type(...)}
    | {random.SystemRandom, types.ModuleType, types.CodeType, types.FrameType}
    | {torch.dtype, torch.device, torch.Size}
)
# with all their subclasses: they are in use while a probe runs
_OUTSIDE = {
    "a trainer, a logger or something else that Lightning runs with": (
        *(f"lightning.pytorch.{part}" for part in ("trainer", "loggers", "strategies", "loops")),
        *(f"lightning.pytorch.{part}" for part in ("accelerators", "plugins", "profilers")),
        *(f"lightning.fabric.{part}" for part in ("loggers", "strategies", "accelerators")),
        *(f"lightning.fabric.{part}" for part in ("plugins", "fabric")),
    ),
    "part of this package": ("lightning_landscape",),
    "a client of a logging service": (
        *("torch.utils.tensorboard", "tensorboard", "tensorboardX", "wandb", "mlflow"),
        *("comet_ml", "neptune", "clearml", "aim", "ray"),
    ),
    "part of torch's own machinery": (
        *("torch._C", "torch._dynamo", "torch._inductor", "torch._functorch", "torch._ops"),
        *("torch._library", "torch._subclasses", "torch._higher_order_ops", "torch._export"),
        *("torch.fx", "torch.export", "torch.jit", "torch.distributed", "torch.profiler"),
        *("torch.autograd", "torch.multiprocessing", "torch.cuda.streams", "torch.cuda.graphs"),
    ),
    "a data loader": ("torch.utils.data.dataloader", "lightning.pytorch.utilities.combined_loader"),
    "in use by another thread or process, or by the operating system": (
        *("threading", "_thread", "queue", "_queue", "multiprocessing", "concurrent", "asyncio"),
        *("_asyncio", "subprocess", "socket", "_socket", "ssl", "selectors", "logging", "io"),
        *("_io", "mmap", "sqlite3", "contextvars"),
    ),
    "a table of pandas: what a step writes into it stays": ("pandas",),
    "a constant": ("enum",),
}
# without their subclasses: a user's subclass is searched
_READ_ONLY = {
    "a data set that is only read": (
        *("torchvision.datasets", "torchaudio.datasets", "datasets.arrow_dataset"),
        "torch.utils.data.dataset.TensorDataset",
    ),
    "a constant": ("inspect", "typing", "importlib", "datetime", "decimal", "re", "pathlib"),
    "a cache or an iterator inside Python": ("functools._lru_cache_wrapper", "itertools"),
}
UNREMARKABLE = frozenset({"a constant", "a class or a module", "part of this package"})
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_TWINS = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}
_TRANSPARENT = (
    *(tuple, frozenset, partial, types.MethodType, types.BuiltinMethodType),
    types.MappingProxyType,
    *(types.MethodWrapperType, staticmethod, classmethod, property),
)


def boundary(value: Any) -> str | None:
    """Return why an object is not searched; None if it is."""
    cls = type(value)
    if cls is types.FunctionType:
        return _of_name(value.__globals__.get("__name__") or "", _OUTSIDE)
    if cls is dict and (value is sys.modules or "__builtins__" in value or "__module__" in value):
        return "the names of a module or a class"
    if issubclass(cls, threading.Thread) and cls.__module__ != "threading" and not _runs(value):
        return None
    return _of_class(cls)


def children(value: Any) -> Iterator[Any]:
    """Yield the objects that an object refers to, besides its attributes and slots."""
    cls = type(value)
    if cls is types.FunctionType:  # not its globals
        yield from value.__closure__ or ()
        yield from value.__defaults__ or ()
        if value.__kwdefaults__:
            yield value.__kwdefaults__
    elif issubclass(cls, dict):
        base: Any = OrderedDict if issubclass(cls, OrderedDict) else dict
        if base.__len__(value) <= LONGEST:
            yield from base.keys(value)
            yield from base.values(value)
        if issubclass(cls, defaultdict):
            yield value.default_factory
    elif issubclass(cls, (list, set, deque)):
        base = next(base for base in (list, set, deque) if issubclass(cls, base))
        if base.__len__(value) <= LONGEST:
            yield from base.__iter__(value)
    elif issubclass(cls, np.ndarray):
        if value.dtype.hasobject and value.size <= LONGEST:
            yield from value.view(np.ndarray).ravel().tolist()
    elif cls is types.CellType:
        yield from read_cell(value)
    elif issubclass(cls, weakref.ref):
        yield value()
    elif issubclass(cls, _TRANSPARENT):
        yield from gc.get_referents(value)


def _runs(thread: threading.Thread) -> bool:
    return any(other is thread for other in threading.enumerate())


def is_opaque(value: Any) -> bool:
    """Return whether an object shows nothing of what it holds."""
    cls = type(value)
    known = issubclass(cls, (*_TRANSPARENT, types.FunctionType, weakref.ref))
    return not (known or kind_of(cls) or has_attributes(cls) or _is_constant(cls))


@cache
def _of_class(cls: type) -> str | None:
    if issubclass(cls, threading.local):
        return None  # it shows the values of this thread
    if issubclass(cls, (type, types.ModuleType)):
        return "a class or a module"
    if issubclass(cls, BaseException):
        return "an exception, with the frames it came through"
    if hasattr(cls, "__next__") and not isinstance(cls.__next__, types.FunctionType):
        return "an iterator or a generator: its position cannot be set back"
    own = _of_name(f"{cls.__module__}.{cls.__qualname__}", _READ_ONLY)
    if own is not None:
        return own
    reasons = (_of_name(f"{base.__module__}.{base.__qualname__}", _OUTSIDE) for base in cls.__mro__)
    return next((reason for reason in reasons if reason is not None), None)


def _of_name(name: str, table: dict[str, tuple[str, ...]]) -> str | None:
    root = name.partition(".")[0]
    name = name.replace(root, _TWINS.get(root, root), 1)
    for reason, prefixes in table.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return reason if is_installed(root) else None
    return None


def is_installed(root: str) -> bool:
    """Return whether a package is the installed one, not a folder of the user's project."""
    module = sys.modules.get(root)
    file = getattr(module, "__file__", None)
    if file is None:
        return True  # built in
    parts = Path(file).parts
    installed = "site-packages" in parts or "dist-packages" in parts
    return installed or file.startswith(_STANDARD) or root in ("torch", "lightning_landscape")


@cache
def _is_constant(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("builtins", "numpy", "_struct", "operator", "re")
