"""Weights as a mapping from names to tensors: differences, norms and groups.

A `Params` maps a parameter's name, as `named_parameters()` spells it, to a tensor. Points,
directions, averages, gradients and updates all have this type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_landscape.sharding import (
    distribute_like,
    is_sharded,
    local,
    shard_of,
    sum_over_shards,
)

__all__ = ["Params", "difference"]

Params: TypeAlias = Mapping[str, Tensor]

_NORM_CLASS_NAME = re.compile(r"Norm([123]d)?$")


def difference(a: Params, b: Params) -> dict[str, Tensor]:
    """Return `a - b`, the direction that leads from `b` (`alpha = 0`) to `a` (`alpha = 1`).

    Names that only `a` or only `b` has are left out: an average holds frozen weights, the point
    of an objective does not. Costs no evaluation.

    Args:
        a: The end of the direction.
        b: Its start.

    Returns:
        One tensor per shared name, in the order, dtype and on the device of `b`.

    Raises:
        ValueError: If the two share no name, or a shared name has two shapes.

    Example:
        >>> difference({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
        {'w': tensor([2.])}
    """
    names = [name for name in b if name in a]
    if not names:
        raise ValueError(
            "`a` and `b` must name the same parameters, as `named_parameters()` spells them. "
            f"Got {_some(a)} and {_some(b)}."
        )
    for name in names:
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"`a` and `b` must have the same shapes. Got {tuple(a[name].shape)} and "
                f"{tuple(b[name].shape)} for {name!r}: are they from the same architecture?"
            )
    with torch.no_grad():
        return {
            name: distribute_like(a[name].detach(), b[name]).to(b[name]) - b[name].detach()
            for name in names
        }


def l2_norm(params: Params) -> float:
    """Return the L2 norm over all entries of all tensors, summed in float64.

    Example:
        >>> l2_norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        5.0
    """
    whole = [tensor for tensor in params.values() if not is_sharded(tensor)]
    sharded = [tensor for tensor in params.values() if is_sharded(tensor)]
    with torch.no_grad():
        norms = _norms(whole)
        if sharded:  # one collective for all of them
            squares = torch.stack([norm.square() for norm in _norms(map(local, sharded))])
            norms += sum_over_shards(squares, sharded).sqrt().unbind()
    # not the root of the sum of squares: it may overflow where the norm does not
    return math.hypot(*map(float, norms))


def sign_agreement(start: Params, direction: Params) -> float:
    """Return the share of the weights that have the same sign at both ends of a direction.

    0 agrees with 0 only. nan if the two share no name. Costs no evaluation.

    Args:
        start: The weights at the start.
        direction: The end is at `start + direction`. Names that it lacks are not counted.

    Example:
        >>> w = torch.tensor([1.0, -1.0, 2.0, 0.0])
        >>> sign_agreement({"w": w}, {"w": torch.tensor([1.0, 3.0, -1.0, 0.0])})
        0.75
    """
    names = [name for name in direction if name in start]
    if not names:
        return math.nan
    rows = []
    with torch.no_grad():
        for name in names:
            w = local(start[name].detach())
            end = w + shard_of(direction[name].detach(), start[name]).to(w)
            same = (as_real(w).sign() == as_real(end).sign()).count_nonzero()
            rows.append(torch.stack([same, same.new_tensor(as_real(w).numel())]).cpu().double())
        same, n = (
            sum_over_shards(torch.stack(rows), [start[name] for name in names]).sum(dim=0).tolist()
        )
    return same / n if n else math.nan


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters an optimizer may move, by name; tied ones once, under their first name.

    Raises:
        ValueError: If every parameter is frozen.

    Example:
        >>> list(trainable(nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            "`module` must have at least one parameter that requires gradients. "
            f"{type(module).__name__} has none: unfreeze one with requires_grad_(True)."
        )
    return named


def group_names(names: Iterable[str], group: str, module: nn.Module | None = None) -> list[str]:
    """Return the names that belong to a group, in their order.

    Args:
        names: Parameter names to choose from.
        group: `"all"`; `"norm"`, the parameters of normalisation layers; `"other"`, the rest; or
            an `fnmatch` pattern on the names, such as `"encoder.*.weight"`.
        module: The module with these parameters; needed for `"norm"` and `"other"`.

    Returns:
        The chosen names. `"norm"` and `"other"` may be empty: not every network has such layers.

    Raises:
        ValueError: If a pattern matches nothing, or `"norm"`/`"other"` come without a module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> group_names(["0.weight", "0.bias", "1.weight", "1.bias"], "norm", net)
        ['1.weight', '1.bias']
    """
    names = list(names)
    if group == "all":
        return names
    if group in ("norm", "other"):
        if module is None:
            raise ValueError(
                f"`module` is needed to tell which parameters are in group {group!r}: pass the "
                "module the parameters come from, or name them with a pattern such as '*.bn*'."
            )
        return [name for name in names if _is_norm(name, module) == (group == "norm")]
    chosen = [name for name in names if fnmatchcase(name, group)]
    if not chosen:
        raise ValueError(
            "`group` must be 'all', 'norm', 'other' or an fnmatch pattern that matches a trainable "
            f"parameter. Got {group!r}, which matches none of {_some(names)}."
        )
    return chosen


def _is_norm(name: str, module: nn.Module) -> bool:
    # a parametrized layer keeps its tensor one level down, in `<layer>.parametrizations.<name>`
    owner = name.rpartition(".")[0].partition(".parametrizations.")[0]
    if owner == "parametrizations" or owner.startswith("parametrizations."):
        owner = ""
    layer = module.get_submodule(owner)
    # by class name, for layers of other packages; parents too, for subclasses of another name
    return any(_NORM_CLASS_NAME.search(cls.__name__) for cls in type(layer).__mro__)


def _norms(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the norm of each tensor, summed in float64; in float32 if one is on `mps`."""
    own = [as_real(tensor) for tensor in tensors]
    if not own:
        return []
    narrow = any(tensor.is_mps for tensor in own)
    return list(torch._foreach_norm(own, dtype=torch.float32 if narrow else torch.float64))


def widest(device: torch.device) -> torch.dtype:
    """Return the type to sum in: float64, or float32 on a device without it.

    Example:
        >>> widest(torch.device("cpu")), widest(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of real numbers, and any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(map(repr, names[:5]))
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
