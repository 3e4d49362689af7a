"""Random directions in weight space: how they are sampled, and how long they are.

A family is `"<distribution>[@<group>]"`: `"gaussian"`, `"uniform@norm"`, `"sign@head.*"`. A
direction is sampled on the CPU from a generator that you pass. So it depends on the seed alone, and
not on the device, the other families or the training.

References:
    He, Huang, Yuan (2019), Asymmetric Valleys, arXiv:1902.00744: uniform directions.
    Li, Xu, Taylor, Studer, Goldstein (2018), arXiv:1712.09913: filter normalisation.
    Li, Tang, Zhang, Li, Zhan (2024), arXiv:2405.12489: sign-consistent directions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape.checks import check_choice
from lightning_landscape.params import Params, as_real, group_names, l2_norm
from lightning_landscape.sharding import distribute_like, full

__all__ = ["sample_direction"]

Normalize = Literal["filter", "layer", "model", "none"]

_Sampler = Callable[[Tensor, torch.Generator], Tensor]

_PIECE = 2**14  # elements sampled at a time: within the cache it takes two thirds of the time
_LEAST = 1e-15  # a norm of less, or of more than its inverse, needs float64 to be summed
_SMALL = 2**14  # elements: tensors up to here are scaled together
_TOGETHER = 2**20  # elements in all: what is scaled together needs memory


DISTRIBUTIONS: dict[str, _Sampler] = {
    "gaussian": lambda w, g: torch.randn(w.shape, generator=g, dtype=w.dtype),
    "uniform": lambda w, g: torch.rand(w.shape, generator=g, dtype=w.dtype),
    "rademacher": lambda w, g: DISTRIBUTIONS["uniform"](w, g).ge_(0.5).mul_(2).sub_(1),
    "sign": lambda w, g: DISTRIBUTIONS["gaussian"](w, g).abs_().mul_(w.sign()),
}


def sample_direction(
    params: Params,
    family: str,
    *,
    module: nn.Module | None = None,
    generator: torch.Generator,
    normalize: Normalize = "filter",
) -> dict[str, Tensor]:
    """Sample a random direction from `params`.

    Distributions: `gaussian` N(0, 1); `uniform` U(0, 1), the paper's, **not** orthogonal: two of
    them have cosine 3/4; `rademacher` +1 or -1; `sign` `|N(0, 1)| * sign(w)`: every weight grows
    on the + side.

    Lengths: `"filter"`, each output row (`dim 0`) has the norm of that row of the weights, and a
    1-D tensor is one row; `"layer"`, each tensor has the norm of its weights; `"model"`, the whole
    direction has the norm of the group. With these three `alpha` is a relative perturbation, and
    rows of zero weights do not move. `"none"` has unit L2 norm. Costs no evaluation.

    Args:
        params: The point to start from. A frozen `nn.Parameter` never moves.
        family: `"<distribution>[@<group>]"`, groups as in `group_names`.
        module: The module with these parameters; needed for the groups `norm` and `other`.
            Parameters that are frozen in it never move.
        generator: A CPU generator; it advances.
        normalize: The length of the direction, see above.

    Returns:
        A tensor per name of `params`, same shape, dtype and device; zero outside the group.

    Raises:
        ValueError: If the family or normalisation is unknown, the group is empty, or the module has
            no such parameters.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> weights = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}
        >>> direction = sample_direction(weights, "gaussian", generator=g)
        >>> [round(float(row.norm()), 6) for row in direction["w"]]
        [5.0, 0.0]
    """
    check_choice("normalize", normalize, get_args(Normalize))
    distribution, group = split_family(family)
    free = [name for name, tensor in params.items() if not _is_frozen(name, tensor, module)]
    moving = group_names(free, group, module)
    if not moving:
        raise ValueError(
            f"`family` must move at least one parameter. The group of {family!r} is empty here: "
            "choose another group, or leave this family out."
        )
    blocks = _blocks(params, moving)
    steps = [_sampled_and_scaled(distribution, block, normalize, generator) for block in blocks]
    if normalize in ("model", "none"):
        target = l2_norm({name: params[name] for name in moving}) if normalize == "model" else 1.0
        length = l2_norm({str(k): step for k, step in enumerate(steps)})
        for step in steps:
            step.mul_(target / length if length else 0.0)
    sampled: dict[str, Tensor] = {}
    for block, step in zip(blocks, steps, strict=True):
        tensors = list(block.values())
        parts = _like(step, tensors[0]).split([tensor.numel() for tensor in tensors])
        for name, tensor, part in zip(block, tensors, parts, strict=True):
            sampled[name] = distribute_like(part.view(tensor.shape), tensor)
    return {
        name: sampled[name] if name in sampled else torch.zeros_like(tensor.detach())
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


def direction_generator(seed: int, family: str, k: int) -> torch.Generator:
    """Return the CPU generator of the k-th direction of a family; the same on all ranks.

    Example:
        >>> a, b = direction_generator(0, "sign", 1), direction_generator(0, "sign", 2)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).any())
        False
    """
    return seeded_generator(seed, zlib.crc32(family.encode()), k)


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
        *owners, leaf = name.split(".")
        try:
            for owner in owners:  # a hundred times faster than get_parameter()
                module = cast(nn.Module, module._modules[owner])
            tensor = cast(Tensor, module._parameters[leaf])
        except KeyError:
            raise ValueError(
                f"`module` must own the parameters that `params` names. It has no {name!r}: pass "
                "the module they come from."
            ) from None
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _blocks(params: Params, names: list[str]) -> list[dict[str, Tensor]]:
    """Return the large tensors one by one, and the small ones of one kind together."""
    blocks: list[dict[str, Tensor]] = []
    open_blocks: dict[tuple[torch.dtype, torch.device], tuple[dict[str, Tensor], int]] = {}
    for name in names:
        tensor = params[name].detach()
        kind, n = (tensor.dtype, tensor.device), tensor.numel()
        block, size = open_blocks.get(kind, ({}, _TOGETHER))
        if n > _SMALL:
            blocks.append({name: tensor})
            continue
        if size + n > _TOGETHER:
            block, size = {}, 0
            blocks.append(block)
        block[name] = tensor
        open_blocks[kind] = block, size + n
    return blocks


def _sampled_and_scaled(
    distribution: str, block: dict[str, Tensor], normalize: Normalize, generator: torch.Generator
) -> Tensor:
    """Return a flat step for a block of tensors, on the CPU."""
    tensors = [full(tensor) for tensor in block.values()]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) if len(block) > 1 else tensors[0]
    weights = _as_real_cpu(flat).reshape(-1)
    step = torch.empty_like(weights)
    for piece, w in zip(step.split(_PIECE), weights.split(_PIECE), strict=True):
        piece.copy_(DISTRIBUTIONS[distribution](w, generator))
    if normalize != "none" and len(step):
        if len(block) == 1:
            has_rows = tensors[0].ndim >= 2
            _scale(step, weights, normalize, n_rows=len(tensors[0]) if has_rows else 1)
        else:
            _scale_together(step, weights, tensors, normalize)
    return step


def _as_real_cpu(tensor: Tensor) -> Tensor:
    tensor = as_real(tensor)
    # half types are sampled and scaled in float32: their norms would overflow
    return tensor.to("cpu", tensor.dtype if tensor.dtype == torch.float64 else torch.float32)


def _like(step: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        step = torch.view_as_complex(step.view(-1, 2))
    return step.to(device=tensor.device, dtype=tensor.dtype)


def _scale(step: Tensor, weights: Tensor, normalize: Normalize, *, n_rows: int) -> None:
    """Still the rows whose weights are zero and scale the others; in place, no loop over rows."""
    moved, still = step.view(n_rows, -1), weights.view(n_rows, -1)
    target = torch.linalg.vector_norm(still, dim=1, keepdim=True)
    odd = ~((target > _LEAST) & (target < 1 / _LEAST)).view(-1)
    if odd.any():
        # in float32 the squares of what is tiny vanish, and those of what is huge are infinite
        target = target.double()
        target[odd] = torch.linalg.vector_norm(still[odd].double(), dim=1, keepdim=True)
    if normalize == "filter":
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved.mul_(torch.where(length > 0, target / length, 0.0))
        return
    if not target.all():
        moved.mul_(target > 0)
    if normalize == "layer":
        length = torch.linalg.vector_norm(moved)
        moved.mul_(torch.where(length > 0, torch.linalg.vector_norm(target) / length, 0.0))


def _scale_together(
    step: Tensor, weights: Tensor, tensors: list[Tensor], normalize: Normalize
) -> None:
    """Do as `_scale` does for all rows of many tensors at once; in place, no loop over tensors."""
    sizes = np.array([tensor.numel() for tensor in tensors])
    sizes *= len(step) // sizes.sum()  # complex numbers are two
    n_rows = np.array([len(tensor) if tensor.ndim >= 2 else 1 for tensor in tensors])
    n_rows, sizes = n_rows[sizes > 0], sizes[sizes > 0]
    rows = np.repeat(sizes // n_rows, n_rows)
    target = _norms(weights, rows)
    if normalize == "filter":
        _multiply(step, _ratio(target, _norms(step, rows)), rows)
        return
    if not target.all():
        _multiply(step, target > 0, rows)
    if normalize == "layer":
        _multiply(step, _ratio(_norms(weights, sizes), _norms(step, sizes)), sizes)


def _norms(flat: Tensor, lengths: np.ndarray) -> np.ndarray:
    """Return the L2 norms of consecutive stretches."""
    starts = np.cumsum(lengths) - lengths
    return np.sqrt(np.add.reduceat(np.square(flat.numpy(), dtype=np.float64), starts))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _multiply(flat: Tensor, factors: np.ndarray, lengths: np.ndarray) -> None:
    flat.mul_(torch.from_numpy(np.repeat(factors, lengths)).to(flat.dtype))
