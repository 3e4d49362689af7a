"""One random direction and its slice in other people's libraries: `pip install .[benchmarks]`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Slice = Callable[[nn.Module, tuple[Tensor, Tensor], int], object]


def loss_landscapes(net: nn.Module, batch: tuple[Tensor, Tensor], n_points: int) -> object:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    metric = Loss(F.cross_entropy, *batch)
    # the copy, or the weights stay at the end of the walk
    return loss_landscapes.random_line(net, metric, 1.0, n_points, "filter", deepcopy_model=True)


def landscaper(net: nn.Module, batch: tuple[Tensor, Tensor], n_points: int) -> object:
    from landscaper.compute import compute_loss_landscape

    direction = [torch.randn_like(parameter) for parameter in net.parameters()]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return compute_loss_landscape(
            net,
            batch,
            [direction],
            lambda model, data: F.cross_entropy(model(data[0]), data[1]).item(),
            steps=n_points,
            distance=0.6,
            dim=1,
            device="cpu",
        )


def installed() -> dict[str, Slice]:
    """Return the peers that can be imported, by name."""
    found: dict[str, Slice] = {}
    tiny = (torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    for name, walk in (("loss-landscapes", loss_landscapes), ("landscaper", landscaper)):
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            walk(nn.Linear(2, 2).eval(), tiny, 3)
            found[name] = walk
    return found
