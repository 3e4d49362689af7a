"""Describe an exception: type, text, and the innermost line of the user's code."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch

MEMORY = (MemoryError, torch.OutOfMemoryError)  # never a reason to try another way

_OURS = str(Path(__file__).parent.parent)
_LIBRARIES = ("site-packages", "dist-packages")
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


def describe_error(error: BaseException) -> str:
    """Return the type and text of an exception, and where it was raised.

    The place is the innermost line of the user's own code in the traceback, else the innermost
    line of all.

    Example:
        >>> describe_error(ValueError("too small"))
        'ValueError: too small'
        >>> describe_error(KeyError())
        'KeyError, without a message'
    """
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:
        described = f"{kind}, whose message cannot be read"
    else:
        described = f"{kind}: {text}" if text.strip() else f"{kind}, without a message"
    place = _raised_at(error)
    return f"{described} ({place})" if place else described


def _raised_at(error: BaseException) -> str:
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if _is_of_the_user(file)]
    if not frames:
        return ""
    file, line = (own or frames)[-1]
    return f"{Path(file).name}, line {line}"


def _is_of_the_user(file: str) -> bool:
    installed = any(name in Path(file).parts for name in _LIBRARIES)
    return not (installed or file.startswith((_OURS, *_STANDARD, "<frozen")))
