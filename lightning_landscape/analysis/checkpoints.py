"""Weights out of checkpoint files, and one sentence where a file cannot give them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_landscape.params import Params


def load_weights(path: str | Path, module: nn.Module, *, weights_only: bool = True) -> Params:
    """Return a checkpoint's parameters for a module, by name; the module does not change.

    Args:
        path: A checkpoint that Lightning wrote, or a file with a state dict. `"<path>:<name>"`
            is the average that `SWA(name=<name>)` saved in it.
        module: The module with these parameters.
        weights_only: Whether to refuse a file with objects other than tensors and plain data:
            reading it can run any code. Use False only for files that you trust.

    Returns:
        A tensor per parameter of the module, on the CPU.

    Raises:
        ValueError: If the file is missing, no checkpoint, or of another architecture.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(1, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}},
        ...                f"{folder}/last.ckpt")
        ...     load_weights(f"{folder}/last.ckpt", net)
        {'weight': tensor([[1.]]), 'bias': tensor([0.])}
    """
    file, average = _split(path)
    state = read_checkpoint(file, weights_only=weights_only)
    state = _average(path, state, average) if average else state.get("state_dict", state)
    named = {name: p for name, p in module.named_parameters() if not name.endswith("_orig_mod")}
    missing = [name for name in named if not isinstance(state.get(name), Tensor)]
    if missing:
        raise ValueError(
            f"{path} must hold the parameters of {type(module).__name__}. It lacks {missing[:3]}: "
            "is it a checkpoint of another architecture?"
        )
    for name, parameter in named.items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"{path} must hold the parameters of {type(module).__name__}. Got the shape "
                f"{tuple(state[name].shape)} for {name!r}, which has {tuple(parameter.shape)}: is "
                "it a checkpoint of another architecture?"
            )
        if not state[name].isfinite().all():
            raise ValueError(
                f"{path} must hold finite weights. Got nan or infinity in {name!r}: the training "
                "had diverged by then, use an earlier checkpoint."
            )
    return {name: state[name].detach().clone() for name in named}


def read_checkpoint(path: str | Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Return what a checkpoint file holds, on the CPU.

    Raises:
        ValueError: If there is no such file, or torch cannot read it.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} must be a checkpoint file. There is no such file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=weights_only)
    except (
        pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError,
        AttributeError,
    ) as error:  # fmt: skip
        lines = str(error).splitlines() or [""]
        if isinstance(error, pickle.UnpicklingError) and weights_only and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds more than tensors, which torch refuses to load from a file that may "
                "not be trusted. Use weights_only=False if you trust it. "
                f"({lines[0]})"
            ) from error
        raise ValueError(
            f"{path} must be a checkpoint file. It is truncated or something else "
            f"({type(error).__name__}: {lines[0][:120]})."
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path} must be a checkpoint file. It holds a {type(state).__name__}, not a dict."
        )
    return dict(state)


def checkpoint_file(path: str | Path) -> Path:
    """Return the file of `"<path>"` or `"<path>:<name>"`."""
    return _split(path)[0]


def _split(path: str | Path) -> tuple[Path, str]:
    """Split `"<path>:<name>"`, unless the whole is a file."""
    file, colon, name = str(path).rpartition(":")
    if Path(path).exists() or not colon or not file or "/" in name or "\\" in name:
        return Path(path), ""
    return Path(file), name


def _average(path: str | Path, state: dict[str, Any], name: str) -> Mapping[str, Any]:
    callbacks = state.get("callbacks", {})
    own = callbacks.get(f"SWA(name={name!r})")
    if not own or not own.get("n_averaged"):
        averages = [key for key in callbacks if str(key).startswith("SWA(")]
        raise ValueError(
            f"{path} must name an average that is in the checkpoint. It has "
            f"{averages or 'no SWA callback'}"
            f"{', which had averaged nothing yet' if own else ''}."
        )
    return own["weights"]
