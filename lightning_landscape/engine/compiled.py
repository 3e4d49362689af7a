"""Whether a module is compiled: a probe must then run its compiled code, as training does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import compress, repeat
from operator import is_
from types import FunctionType
from typing import Any

from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module, a module inside it, or a method of these is compiled."""
    return bool(getattr(module, "_compiler_ctx", None)) or any(
        hasattr(child, "_orig_mod")
        or getattr(child, "_compiled_call_impl", None) is not None
        or _any_compiled(vars(child))
        or _has_compiled_method(type(child))
        for child in module.modules()
    )


@cache
def _has_compiled_method(cls: type) -> bool:
    return any(_any_compiled(vars(base)) for base in cls.__mro__)


def _any_compiled(namespace: Mapping[str, Any]) -> bool:
    # by identity: a class may refuse `==`
    is_function = map(is_, map(type, namespace.values()), repeat(FunctionType))
    functions = compress(namespace.values(), is_function)
    return any(hasattr(function, "_torchdynamo_orig_callable") for function in functions)
