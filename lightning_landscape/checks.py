"""Check the settings that several rooms share, and say what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")


def check_whole(name: str, n: int, least: int = 1) -> int:
    """Return a whole number that is not below the least.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise ValueError(f"`{name}` must be a whole number from {least} up. Got {n!r}.")
    return n


def check_bool(name: str, value: bool) -> bool:
    """Return True or False; other values are refused, for `"no"` would count as True.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Got {value!r}.")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number, and neither a bool nor text.

    Example:
        >>> is_number(0.05), is_number("5%"), is_number(True), is_number(float("nan"))
        (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_share(name: str, share: float | None) -> float | None:
    """Return a share between 0 and 1, or None.

    Raises:
        ValueError: If it is something else.
    """
    if share is not None and not (is_number(share) and 0 < share < 1):
        raise ValueError(
            f"`{name}` must be a share of the training time between 0 and 1, such as 0.05, or "
            f"None for no limit. Got {share!r}."
        )
    return share


def check_choice(name: str, value: T, choices: Iterable[object]) -> T:
    """Return a value that is one of the choices.

    Raises:
        ValueError: If it is not.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Got {value!r}.")
    return value
