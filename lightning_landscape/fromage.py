r"""Fromage: every tensor moves by the same fraction of its own norm.

The gradient of a tensor gives the direction of its step, the norm of the tensor gives the length.
So one number, `lr`, means the same to every layer. Dividing by `sqrt(1 + lr^2)` keeps the weights
from growing. Written from Algorithm 1 and Lemma 2 of Bernstein, Vahdat, Yue and Liu (2020), "On the
distance between two neural networks and the stability of learning", arXiv:2002.03432.
"""

# Every step is `W <- keep * W - step * g`, with one number `step` per tensor. `_batches` groups the
# tensors and `_apply` computes the step on one of three paths:
#   1. together: small tensors on a CPU, and all tensors on an accelerator, of one dtype and device.
#      A few foreach calls update the whole batch. Used by most tensors of most networks.
#   2. one at a time: large tensors on a CPU, distributed tensors (each rank updates its shard), and
#      everything with `foreach=False`. On a CPU one pass over the memory updates the tensor.
#   3. widened: half precision and mixed dtypes, in float32 or wider, in pieces, rounded once.
# On a CPU the norms are read as floats. On an accelerator they stay tensors, since reading a number
# would make the host wait for the device. No path copies a whole tensor.

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.optim.optimizer import ParamsT

from lightning_landscape.checks import check_choice
from lightning_landscape.fromage_settings import (
    check_group,
    check_parameters,
    checked_rate,
    depth_rate,
    parameters_of,
    training_steps,
)

__all__ = ["Fromage", "fromage"]

_PLAIN = (nn.Parameter, Tensor)  # exact types that may share a foreach call
_LARGE = 2**15  # elements: from this size on, a tensor on a CPU is large; also the size of a piece
_DEFAULTS = {"p_bound": None, "prefactor": True, "trust": True, "foreach": None, "maximize": False}


def fromage(
    module: nn.Module,
    lr: float | Literal["depth"] = 1e-2,
    *,
    vectors: Literal["same", "sgd"] = "same",
    decay: Literal["plateau", "cosine"] | None = None,
    monitor: str = "val_loss",
    total_steps: int | None = None,
    **options: Any,
) -> Fromage | dict[str, Any]:
    """Build `Fromage` for a module; the result is what `configure_optimizers` returns.

    With a constant rate Fromage never converges: every step has the same relative length, so the
    weights stay at a distance of about `lr` from a minimum. Give a `decay` or your own schedule.

    Args:
        module: A LightningModule or any other module. All its parameters are taken; those without
            a gradient are skipped at every step.
        lr: The relative step, or `"depth"`: a quarter of `trust_lr(L)`, where `L` counts the
            distinct trainable tensors with two dimensions or more. On digits this trained plain
            MLPs of depth 2 to 16 (not 32) with Kaiming normal weights; with torch's default weights
            up to depth 8, where Adam still trained depth 16.
        vectors: `"same"` treats biases and gains like matrices, as the paper does. `"sgd"` gives
            tensors with fewer than two dimensions the plain step `lr * g`, so that a small bias can
            grow quickly and a single gain can change its sign.
        decay: `None` returns the optimizer itself. `"plateau"` divides `lr` by 10 when `monitor`
            has not fallen for 10 epochs. `"cosine"` lowers it to 0 along half a cosine, once per
            optimizer step. Both return Lightning's dict of `optimizer` and `lr_scheduler`.
        monitor: With `"plateau"`, the name of a metric that your module logs; lower is better.
        total_steps: With `"cosine"`, the number of optimizer steps of the training. The default
            is what the trainer of the module estimates.
        **options: Passed on to `Fromage`: `p_bound`, `prefactor`, `foreach`, `maximize`.

    Returns:
        The optimizer, or with `decay` Lightning's dict.

    Raises:
        TypeError: If `module` is not a module.
        ValueError: If `vectors` or `decay` is unknown, if the module has no parameters, if
            `lr="depth"` and there is no trainable matrix, if `decay="cosine"` and the length of the
            training is unknown, or if `monitor` or `total_steps` come without a `decay`.

    Warns:
        UserWarning: If `lr` is above 1: each step is longer than the weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> round(fromage(net, lr="depth").param_groups[0]["lr"], 4)  # 0.25 * (2 ** (1 / 2) - 1)
        0.1036
    """
    params = parameters_of(module)
    check_choice("vectors", vectors, ["same", "sgd"])
    check_choice("decay", decay, [None, "plateau", "cosine"])
    if decay is None and (monitor, total_steps) != ("val_loss", None):
        raise ValueError(
            "`monitor` and `total_steps` are of a `decay`, 'plateau' or 'cosine'. Got "
            f"{monitor!r} and {total_steps!r} with decay=None: name a decay, or leave them out."
        )
    rate = depth_rate(params) if lr == "depth" else checked_rate(lr)
    plain = [p for p in params if p.ndim < 2 and vectors == "sgd"]
    relative = [p for p in params if p.ndim >= 2 or vectors == "same"]
    groups = [{"params": relative}, {"params": plain, "trust": False}]
    optimizer = Fromage([group for group in groups if group["params"]], rate, **options)
    if decay is None:
        return optimizer
    if decay == "plateau":
        schedule = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": monitor}
    else:
        cosine = CosineAnnealingLR(optimizer, training_steps(module, total_steps))
        schedule = {"scheduler": cosine, "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


class Fromage(Optimizer):
    r"""Optimizer that moves every tensor `W` by the fraction `lr` of its own norm.

    `W <- (W - lr * (||W|| / ||g||) * g) / sqrt(1 + lr^2)`, with the gradient `g` and the Frobenius
    norms of each tensor; where either norm is 0, `W <- (W - lr * g) / sqrt(1 + lr^2)`. Algorithm 1
    of Bernstein et al. (2020), arXiv:2002.03432. A weight orthogonal to its gradient, as before a
    batch norm, keeps its norm exactly and turns by `arctan(lr)`. Scaling the loss and clipping by
    the global norm change nothing.

    With a constant `lr` it never converges: let it decay. A tensor of one element never changes its
    sign when `lr < 1`. Deeper plain MLPs need a smaller `lr`; at depth 16 Adam was less sensitive.

    Cost: one reading of weights and gradients and one update in place, no copy of either. On one
    CPU thread that takes .86 of the time of SGD with momentum on large tensors, 1.3 on small ones.
    The host waits for an accelerator only with `p_bound`, at each tensor's first step. Half
    precision is computed in float32 and rounded once. Norms of float32 tensors are float32: entries
    below 1e-23 count as 0. From 1e19 on the norm is infinite, and its tensor becomes NaN.

    Every argument but `params` is a key of `param_groups`, and so is `trust` (default `True`):
    `trust=False` gives the group the plain step `W <- W - lr * g`.

    Args:
        params: Parameters, named parameters, or groups of them.
        lr: The relative step, a fraction of the norm of each tensor; at least 0. The authors used
            0.01, and 0.001 to fine-tune.
        p_bound: Keep `||W|| <= p_bound * ||W at its first step||`, as a regulariser; `None`: no
            bound. A tensor that is zero at its first step has no bound.
        prefactor: Divide by `sqrt(1 + lr^2)`. Without it (LARS with trust coefficient 1) the norm
            of a weight before a batch norm grows by `sqrt(1 + lr^2)` at every step.
        foreach: `False` updates one tensor at a time. Otherwise tensors are updated together where
            they allow it; distributed tensors never are.
        maximize: Step along the gradient instead of against it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `lr` or `p_bound` is out of range.
        RuntimeError: If a gradient is sparse, at the step; no weight has moved then.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([0.0, 8.0])
        >>> Fromage([weight], lr=0.5, prefactor=False).step()  # the step: 0.5 * 5 along -y
        >>> weight.tolist()
        [3.0, 1.5]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        p_bound: float | None = None,
        prefactor: bool = True,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        check_parameters(params)
        given = {"lr": lr, "p_bound": p_bound, "prefactor": prefactor, "foreach": foreach}
        super().__init__(params, {**_DEFAULTS, **given, "maximize": maximize})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a checkpoint; keys that it lacks get their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.update({key: value for key, value in _DEFAULTS.items() if key not in group})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; keys it lacks come from the arguments of the optimizer."""
        check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Update every parameter that has a gradient; return the loss of the closure, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # all gradients are checked before any weight moves: after an error the model is unchanged
        work = [(group, batch) for group in self.param_groups for batch in _batches(group)]
        for group, batch in work:
            if group["p_bound"] is None:
                _update(batch, group)
            else:
                first = self._first_norms(batch)
                _update(batch, group)
                _bound(batch, [group["p_bound"] * norm for norm in first])
        return loss

    def _first_norms(self, batch: _Batch) -> list[float]:
        """Return the norms at each tensor's first step, as floats, which no checkpoint rounds."""
        states = [self.state[owner] for owner in batch.owners]
        if any("first_norm" not in state for state in states):
            # the only read from an accelerator, at the first step
            norms = torch.stack(_norms(batch.params, batch.together)).tolist()
            for state, norm in zip(states, norms, strict=True):
                state.setdefault("first_norm", norm)
        return [state["first_norm"] for state in states]


class _Batch(NamedTuple):
    """Tensors of one device and dtype that are updated together, or a single tensor."""

    together: bool
    owners: list[Tensor]  # the parameters, keys of the optimizer's state
    params: list[Tensor]  # the same, with complex numbers viewed as pairs
    grads: list[Tensor]


def _batches(group: dict[str, Any]) -> list[_Batch]:
    allowed = group["foreach"] is not False
    found: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for param in group["params"]:
        grad = param.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise RuntimeError(
                "Fromage does not support sparse gradients: the step divides the whole tensor by"
                " sqrt(1 + lr^2). Build the embedding with sparse=False."
            )
        together = allowed and type(param) in _PLAIN and type(grad) in _PLAIN
        if together and not param.is_cpu:
            key = (param.device, param.dtype, grad.dtype)
        elif together and param.numel() < _LARGE:
            key = (param.dtype, grad.dtype)
        else:
            key = id(param)
        owners, grads = found[key]
        owners.append(param)
        grads.append(grad)
    return [
        _Batch(type(key) is tuple, owners, _real(owners), _real(grads))
        for key, (owners, grads) in found.items()
    ]


def _real(tensors: list[Tensor]) -> list[Tensor]:
    if not tensors[0].is_complex():
        return tensors
    return [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]


def _update(batch: _Batch, group: dict[str, Any]) -> None:
    lr = -group["lr"] if group["maximize"] else group["lr"]
    if not group["trust"]:
        _apply(batch, 1.0, [lr] * len(batch.params))
        return
    keep = 1.0 / math.sqrt(1.0 + lr * lr) if group["prefactor"] else 1.0
    _apply(batch, keep, _steps(batch, lr * keep))


def _steps(batch: _Batch, size: float) -> list[Any]:
    """Return `size * ||W|| / ||g||` per tensor, `size` where a norm is 0, NaN where not finite.

    Floats on a CPU, else 0-dim tensors. A step is at most the largest number of its dtype.
    """
    weights, grads = _norms(batch.params, batch.together), _norms(batch.grads, batch.together)
    limit = torch.finfo(weights[0].dtype).max / max(1.0, abs(size))
    if not _free_to_read(weights[0]):
        w, g = torch.stack(weights), torch.stack(grads)
        ratio = (w / g).clamp(max=limit).masked_fill((w == 0) | (g == 0), 1.0)
        return list(((ratio + 0.0 * (w + g)) * size).unbind())
    # for a few hundred tensors this loop over floats is faster than ten small tensor operations
    steps = []
    for weight, grad in zip(weights, grads, strict=True):
        w, g = weight.item(), grad.item()
        if 0.0 < w < math.inf and 0.0 < g < math.inf:
            steps.append(size * min(w / g, limit))
        else:
            steps.append(size if math.isfinite(w + g) else math.nan)
    return steps


def _free_to_read(tensor: Tensor) -> bool:
    return tensor.is_cpu


def _bound(batch: _Batch, bounds: list[float]) -> None:
    """Scale tensors with a norm above their bound down to it; a bound of 0 means no bound."""
    inverses = torch._foreach_reciprocal(_norms(batch.params, batch.together))
    # scalar arguments: copying a list to an accelerator would wait for it
    room = torch._foreach_mul(inverses, [bound or math.inf for bound in bounds])
    excess = (1.0 - torch.stack(room)).clamp(min=0.0)
    steps = excess.tolist() if _free_to_read(excess) else list(excess.unbind())
    _apply(batch._replace(grads=batch.params), 1.0, steps)


def _norms(tensors: list[Tensor], together: bool) -> list[Tensor]:
    """Return the Euclidean norm of each tensor, 0-dim, accumulated in float32 or wider."""
    dtype = torch.float32 if tensors[0].dtype.itemsize < 4 else None
    if together:
        return list(torch._foreach_norm(tensors, 2, dtype))
    (tensor,) = tensors
    if dtype and type(tensor) in _PLAIN and tensor.is_cpu:  # torch would widen all of it at once
        tensor = torch.stack([piece.float().norm() for (piece,) in _pieces(tensor)])
    norm = torch.linalg.vector_norm(tensor, dtype=dtype)
    return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm]


def _apply(batch: _Batch, keep: float, steps: list[Any]) -> None:
    params, grads = batch.params, batch.grads
    if params[0].dtype.itemsize < 4 or params[0].dtype != grads[0].dtype:
        for param, grad, step in zip(params, grads, steps, strict=True):
            _apply_widened(*_local(param, grad), keep, step)
    elif not batch.together:
        _apply_one(*_local(params[0], grads[0]), keep, steps[0])
    elif isinstance(steps[0], Tensor):
        torch._foreach_mul_(params, keep)
        torch._foreach_addcmul_(params, grads, steps, value=-1)
    else:
        ones = [params[0].new_ones(())] * len(params)
        torch._foreach_add_(params, params, alpha=keep - 1.0)
        torch._foreach_addcmul_(params, grads, ones, [-step for step in steps])


def _apply_one(param: Tensor, grad: Tensor, keep: float, step: float | Tensor) -> None:
    if isinstance(step, Tensor):
        param.mul_(keep).addcmul_(grad, step, value=-1)
    elif param.is_contiguous() and grad.is_contiguous():
        # the outer product with [1] is the only operation that scales both sides in one pass
        param.view(-1, 1).addr_(grad.view(-1), param.new_ones(1), beta=keep, alpha=-step)
    else:
        param.mul_(keep).add_(grad, alpha=-step)


def _apply_widened(param: Tensor, grad: Tensor, keep: float, step: float | Tensor) -> None:
    """Compute in float32 or wider, in pieces, and round once."""
    dtype = torch.promote_types(torch.promote_types(param.dtype, grad.dtype), torch.float32)
    for a, b in _pieces(param, grad):
        a.copy_(a.to(dtype).mul_(keep).sub_(b.to(dtype) * step))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    first = tensors[0]
    size = _LARGE if first.is_cpu else max(_LARGE, first.numel() // 16)
    if all(tensor.is_contiguous() for tensor in tensors):
        return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    dim = max(range(first.ndim), key=lambda k: first.shape[k])
    rows = max(1, size * first.shape[dim] // first.numel())
    return zip(*(tensor.split(rows, dim) for tensor in tensors), strict=True)


def _local(param: Any, grad: Any) -> tuple[Tensor, Tensor]:
    """Return this rank's shards of a distributed tensor and of its gradient."""
    if not hasattr(param, "to_local"):
        return param, grad
    return param.to_local(), grad.redistribute(placements=param.placements).to_local()
