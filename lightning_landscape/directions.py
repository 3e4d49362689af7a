"""Random directions in weight space: how they are drawn, and how long they are.

A family is `"<distribution>[@<group>]"`: `"gaussian"`, `"uniform@norm"`, `"sign@head.*"`. Drawing
happens on the CPU from a generator you pass, so that a direction depends on its seed alone, not on
the device, the other families or the state of anybody's training.

References:
    He, Huang, Yuan (2019), Asymmetric Valleys, arXiv:1902.00744: uniform directions.
    Li, Xu, Taylor, Studer, Goldstein (2018), arXiv:1712.09913: filter normalisation.
    Li, Tang, Zhang, Li, Zhan (2024), arXiv:2405.12489: sign-consistent directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape.params import Params, group_names, l2_norm

__all__ = ["DISTRIBUTIONS", "Normalize", "sample_direction", "seeded_generator", "split_family"]

Normalize = Literal["filter", "layer", "model", "none"]

_Draw = Callable[[Tensor, torch.Generator], Tensor]


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype)


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    coin = torch.empty(like.shape, dtype=like.dtype)
    return coin.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _sign(like: Tensor, generator: torch.Generator) -> Tensor:
    return _gaussian(like, generator).abs_().mul_(like.sign())


DISTRIBUTIONS: dict[str, _Draw] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "rademacher": _rademacher,
    "sign": _sign,
}


def sample_direction(
    params: Params,
    family: str,
    *,
    module: nn.Module | None = None,
    generator: torch.Generator,
    normalize: Normalize = "filter",
) -> dict[str, Tensor]:
    """Draw one random direction to walk along from `params`.

    Distributions: `gaussian` N(0, 1); `uniform` U(0, 1), the paper's, **not** independent: two of
    them have cosine 3/4; `rademacher` +1 or -1; `sign` |N(0, 1)| * sign(w), which lets every weight
    grow on the + side. Then the length, by `normalize`: `"filter"`, each output row (`dim 0`) has
    the norm of that row of the weights, a 1-D tensor being one row; `"layer"`, each tensor has the
    norm of its weights; `"model"`, the whole direction has the norm of the group; so that with
    these `alpha` is a relative perturbation, and rows of zero weights do not move. `"none"` has
    unit L2 norm. Costs no evaluation.

    Args:
        params: The point to start from. A frozen `nn.Parameter` never moves.
        family: `"<distribution>[@<group>]"`, groups as in `group_names`.
        module: Who owns the parameters; needed for the groups `norm` and `other`. Parameters that
            are frozen in it never move.
        generator: A CPU generator; it advances.
        normalize: How long the direction is, see above.

    Returns:
        A tensor per name of `params`, same shape, dtype and device; zero outside the group.

    Raises:
        ValueError: If the family or normalisation is unknown or the group is empty.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> weights = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}
        >>> direction = sample_direction(weights, "gaussian", generator=g)
        >>> [round(float(row.norm()), 6) for row in direction["w"]]
        [5.0, 0.0]
    """
    if normalize not in get_args(Normalize):
        raise ValueError(
            f"`normalize` must be one of {list(get_args(Normalize))}. Got {normalize!r}."
        )
    distribution, group = split_family(family)
    free = [name for name, tensor in params.items() if not _is_frozen(name, tensor, module)]
    moving = group_names(free, group, module)
    if not moving:
        raise ValueError(
            f"`family` must move at least one parameter. The group of {family!r} is empty here: "
            "choose another group, or leave this family out."
        )
    drawn = {}
    for name in moving:
        weights = _as_real_cpu(params[name])
        drawn[name] = DISTRIBUTIONS[distribution](weights, generator)
        if normalize != "none":
            _scale(drawn[name], weights, normalize, has_rows=params[name].ndim >= 2)
    if normalize in ("model", "none"):
        target = l2_norm({name: params[name] for name in moving}) if normalize == "model" else 1.0
        length = l2_norm(drawn)
        for tensor in drawn.values():
            tensor.mul_(target / length if length else 0.0)
    return {
        name: _like(drawn[name], tensor) if name in drawn else torch.zeros_like(tensor.detach())
        for name, tensor in params.items()
    }


def seeded_generator(*words: int) -> torch.Generator:
    """Return a CPU generator that depends on some whole numbers and on nothing else.

    Example:
        >>> a, b = seeded_generator(0, 1), seeded_generator(0, 1)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    high, low = np.random.SeedSequence(words).generate_state(2)
    return torch.Generator().manual_seed(int(high) << 32 | int(low))


def split_family(family: str) -> tuple[str, str]:
    """Split `"<distribution>[@<group>]"` and check the distribution.

    Raises:
        ValueError: If the distribution is unknown or the group is written but empty.

    Example:
        >>> split_family("uniform@norm"), split_family("gaussian")
        (('uniform', 'norm'), ('gaussian', 'all'))
    """
    distribution, at, group = family.partition("@")
    if distribution not in DISTRIBUTIONS or (at and not group):
        raise ValueError(
            "`family` must be '<distribution>[@<group>]' with a distribution of "
            f"{list(DISTRIBUTIONS)} and a group 'all', 'norm', 'other' or an fnmatch pattern. "
            f"Got {family!r}."
        )
    return distribution, group or "all"


def _is_frozen(name: str, tensor: Tensor, module: nn.Module | None) -> bool:
    if module is not None:
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(module.get_submodule(owner), leaf)
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _as_real_cpu(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    # half types are drawn and scaled in float32: their norms would overflow
    return tensor.to("cpu", tensor.dtype if tensor.dtype == torch.float64 else torch.float32)


def _like(drawn: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        drawn = torch.view_as_complex(drawn)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def _scale(direction: Tensor, weights: Tensor, normalize: Normalize, *, has_rows: bool) -> None:
    """Still the rows whose weights are zero and scale the others; in place, no loop over rows."""
    rows = (len(weights), -1) if has_rows and weights.numel() else (1, -1)
    moved, still = direction.view(rows), weights.reshape(rows)
    target = torch.linalg.vector_norm(still, dim=1, keepdim=True)
    if normalize == "filter":
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved.mul_(torch.where(length > 0, target / length, 0.0))
        return
    if not target.all():
        moved.mul_(target > 0)
    if normalize == "layer":
        length = torch.linalg.vector_norm(moved)
        moved.mul_(torch.where(length > 0, torch.linalg.vector_norm(target) / length, 0.0))
