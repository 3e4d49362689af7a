"""The average on disk: the file that `SWA(save_at_end=True)` writes, and `load_swa_weights`."""

from __future__ import annotations

import io
import re
from os import PathLike
from typing import Any

import fsspec
import torch
from torch import nn

from lightning_landscape.callbacks.average import WeightAverage
from lightning_landscape.reporting.files import write_into

__all__ = ["load_swa_weights"]


def load_swa_weights(
    checkpoint_path: str | PathLike[str],
    module: nn.Module,
    *,
    name: str = "swa",
    weights_only: bool = True,
) -> None:
    """Load the average that an `SWA` callback saved into a module.

    Batch-norm statistics are loaded too. If the module needs them and the file has none, it warns.

    Args:
        checkpoint_path: A checkpoint that Lightning wrote, or a file of `SWA(save_at_end=True)`.
        module: A module with the parameters that were averaged.
        name: The name of the SWA callback.
        weights_only: Whether to refuse a file with objects other than tensors and plain data:
            reading it can run any code. Use False only for files that you trust.

    Raises:
        ValueError: If the file cannot be read, has no average of that name, or the module has other
            parameters.

    Example:
        >>> import tempfile
        >>> from lightning_landscape import SWA
        >>> swa, module = SWA(0), nn.Linear(1, 1, bias=False)
        >>> for value in (1.0, 4.0):
        ...     _ = module.weight.data.fill_(value)
        ...     swa.update(module)
        >>> path = f"{tempfile.mkdtemp()}/average.ckpt"
        >>> torch.save({"callbacks": {swa.state_key: swa.state_dict()}}, path)
        >>> load_swa_weights(path, module)
        >>> module.weight.item()
        2.5
    """
    rule = f"`checkpoint_path` must lead to a checkpoint with an average called {name!r}"
    content = _read(checkpoint_path, rule, weights_only)
    states = content.get("callbacks") if isinstance(content, dict) else None
    if not isinstance(states, dict):
        raise ValueError(f"{rule}. Got {checkpoint_path}, which is no checkpoint of Lightning's.")
    key = state_key(name)
    state = states.get(key)
    if not isinstance(state, dict):
        raise ValueError(f"{rule}. Got {checkpoint_path}: it has the callbacks {list(states)}.")
    if not state.get("n_averaged") or not state.get("weights"):
        raise ValueError(f"{rule}. Got {checkpoint_path}: its {key} had averaged nothing yet.")
    average = WeightAverage(who=key)
    try:
        average.load_state_dict(state)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{rule}. Got {checkpoint_path}: its {key} is none of SWA's: {error}"
        ) from error
    average.apply_to(module)


def state_key(name: str) -> str:
    """Return what the state of an SWA callback goes by in a checkpoint."""
    return f"SWA(name={name!r})"


def save_average(folder: str, name: str, state: dict[str, Any], step: int) -> str:
    """Write the state of an SWA callback to `<folder>/<name>-step=<step>.ckpt`, all or nothing.

    Returns:
        The path.
    """
    file, content = f"{name.replace('/', '-')}-step={step}.ckpt", io.BytesIO()
    torch.save({"global_step": step, "callbacks": {state_key(name): state}}, content)
    write_into(folder, file, content.getvalue())
    return f"{folder.rstrip('/')}/{file}"


_UNSAFE = re.compile(r"GLOBAL (\S+)")


def _read(path: str | PathLike[str], rule: str, weights_only: bool) -> Any:
    try:
        source: Any = fsspec.open(str(path), "rb")
        with source as file:
            return torch.load(file, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # torch, pickle and the file system have many kinds
        unsafe = _UNSAFE.search(str(error)) if weights_only else None
        if unsafe:
            raise ValueError(
                f"{rule} that holds nothing but tensors and plain data. Got {path} with a "
                f"{unsafe[1]}, such as a hyperparameter. If you trust the file, use "
                "load_swa_weights(..., weights_only=False)."
            ) from error
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{rule}. Got {path}, which cannot be read: {cause}") from error
