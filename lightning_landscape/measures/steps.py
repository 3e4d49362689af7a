"""The step an optimizer has taken: as a direction, and how large it was for each layer.

Both need weights and gradients that are there anyway: no pass over a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_landscape.inner_products import inner_products, squared
from lightning_landscape.measures.slices import as_plain
from lightning_landscape.params import Params, difference
from lightning_landscape.sharding import local, sum_over_shards

_COLUMNS = "relative_update", "relative_gradient", "weight_gradient_cosine"


class Update(dict[str, Tensor]):
    """The change over a step, as a direction that knows where it ends.

    In floating point `before + (after - before)` need not be `after`: an objective that stands at
    the weights before the step goes to `end` at 1, so that 1 is the step to the last bit.

    Args:
        before: The weights before the step.
        after: The weights after it; kept, not copied.
        names: Which of them to move; all by default.

    Example:
        >>> before, after = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1e-10])}
        >>> update = Update(before, after)
        >>> float(before["w"] + update["w"]), float(update.end["w"])
        (0.0, 1.000000013351432e-10)
    """

    def __init__(self, before: Params, after: Params, names: Iterable[str] | None = None) -> None:
        names = before if names is None else list(names)
        self.end = {name: after[name] for name in names}
        super().__init__(difference(self.end, {name: before[name] for name in names}))

    @cached_property
    def moves(self) -> bool:
        """Whether the step changed anything: one that a loss scaler skipped did not."""
        steps = list(self.values())
        counts = torch.stack([local(step).count_nonzero().cpu() for step in steps])
        return bool(sum_over_shards(counts, steps).any())


@dataclass(frozen=True, eq=False)
class StepSizes:
    """How large a step was, layer by layer; tensors are float64 on the CPU, `[n_layers]`.

    Attributes:
        names: The layers: matrices and tensors of more dimensions, as they come.
        relative_update: `||dW|| / ||W||`; nan where the weights are all zero.
        relative_gradient: `||g|| / ||W||`; likewise.
        weight_gradient_cosine: Between `W` and `g`: 0 for a layer whose scale does not matter, such
            as one before a batch norm; nan where one is zero.
        successive_cosine: Between the step and the one before it, over everything that moves. A run
            that goes somewhere has positive ones, one that hovers negative ones; nan if unknown.
    """

    names: tuple[str, ...]
    relative_update: Tensor
    relative_gradient: Tensor
    weight_gradient_cosine: Tensor
    successive_cosine: float = math.nan

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        return as_plain(self, ("names", *_COLUMNS, "successive_cosine"))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StepSizes:
        """Return the sizes that `to_dict` was called on."""
        tensors = {name: torch.tensor(content[name], dtype=torch.float64) for name in _COLUMNS}
        return cls(**{**content, **tensors, "names": tuple(content["names"])})


def measure_step(
    before: Params,
    after: Params,
    gradient: Params,
    names: Iterable[str],
    *,
    successive: float = math.nan,
) -> StepSizes:
    """Compare a step and the gradient it came from with the weights, layer by layer.

    Args:
        before: The weights before the step.
        after: The weights after it.
        gradient: The gradient before it.
        names: Which of them to look at; vectors are no layers and are left out.
        successive: What `successive_cosine` gave.

    Example:
        >>> w = {"w": torch.tensor([[3.0, 4.0]])}
        >>> sizes = measure_step(w, {"w": 1.1 * w["w"]}, {"w": torch.tensor([[4.0, -3.0]])}, ["w"])
        >>> [round(float(x), 6) for x in (sizes.relative_update, sizes.weight_gradient_cosine)]
        [0.1, 0.0]
    """
    layers = [name for name in names if before[name].ndim >= 2]
    table = inner_products(
        [(before[name], after[name], gradient[name]) for name in layers],
        lambda w, to, g: ((w, w), squared(to - w), (g, g), (w, g)),
    )
    table = table.cpu().double()
    weight, step, slope = table[:, :3].sqrt().unbind(dim=1)
    weight = weight.where(weight > 0, math.nan)
    return StepSizes(
        names=tuple(layers),
        relative_update=step / weight,
        relative_gradient=slope / weight,
        weight_gradient_cosine=(table[:, 3] / (weight * slope)).clamp(-1, 1),
        successive_cosine=successive,
    )


def successive_cosine(
    previous: Params, before: Params, after: Params, names: Iterable[str]
) -> float:
    """Return the cosine of two steps, `previous` to `before` and `before` to `after`.

    Over all the names as one vector, without those whose shape has changed; nan if one of the steps
    went nowhere.

    Example:
        >>> there, back = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
        >>> round(successive_cosine(there, back, there, ["w"]), 6)
        -1.0
    """
    names = [n for n in names if n in previous and previous[n].shape == before[n].shape]
    if not names:
        return math.nan
    table = inner_products(
        [(previous[name], before[name], after[name]) for name in names],
        lambda a, b, c: _of_steps(b - a, c - b),
    )
    first, second, both = table.cpu().double().sum(dim=0).tolist()
    norms = math.sqrt(first * second)
    return max(-1.0, min(1.0, both / norms)) if norms else math.nan


def _of_steps(first: Tensor, second: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return squared(first), squared(second), (first, second)


def optimizer_steps(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, Tensor],
    before: Params,
    after: Params,
) -> dict[str, Update]:
    """Return the step of each optimizer, of its own parameters, by its name in tags.

    Args:
        optimizers: The optimizers that made the steps; one that has none of the parameters is left
            out. Where all have none, as with optimizers that step in the backward pass, all moved
            as one.
        parameters: The parameters, by name.
        before: The weights before the step; names it lacks do not move.
        after: The weights after it.

    Returns:
        `""` for a single optimizer. Else `"<name>/"`: the part of the module that all its
        parameters are in, where that tells them apart, or its number.

    Example:
        >>> net = torch.nn.ModuleDict({"g": torch.nn.Linear(1, 1), "d": torch.nn.Linear(1, 1)})
        >>> w = dict(net.named_parameters())
        >>> list(optimizer_steps([torch.optim.SGD(net[k].parameters()) for k in "gd"], w, w, w))
        ['g/', 'd/']
    """
    names = {id(p): name for name, p in parameters.items() if name in before}
    groups = []
    for optimizer in optimizers:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        groups.append([name for key, name in names.items() if key in own])
    if not any(groups):
        groups = [list(names.values())]
    labelled = zip(_labels(groups), groups, strict=True)
    return {who: Update(before, after, group) for who, group in labelled if group}


def _labels(groups: list[list[str]]) -> list[str]:
    if len(groups) == 1:
        return [""]
    labels = [_owner(names) for names in groups]
    distinct = all(labels) and len(set(labels)) == len(labels)
    return [f"{label if distinct else k}/" for k, label in enumerate(labels)]


def _owner(names: Iterable[str]) -> str:
    """Return the innermost module that all these parameters are in, `""` for the whole."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))
