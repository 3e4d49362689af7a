"""The networks that are timed, and what the ratios of each must stay below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Classifier(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def thousand() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(250):
        layers += [nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0)]
    return nn.Sequential(*layers[:-1], nn.Linear(16, 10))


@dataclass(frozen=True)
class Network:
    """How to make one, and the most its slices may cost beside the barest loop that moves it."""

    title: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    limit: float
    rounds: int
    has_batch_norm: bool = False

    def module(self) -> Classifier:
        """Return it as a LightningModule with the same weights every time."""
        torch.manual_seed(0)
        module = Classifier(self.make())
        for parameter in module.parameters():  # loss-landscapes divides by the norm of each
            parameter.data.add_(0.01 * torch.randn_like(parameter))
        return module

    def batch(self, size: int = 256) -> tuple[Tensor, Tensor]:
        """Return random inputs and labels."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size, *self.inputs, generator=generator)
        return x, torch.randint(10, (size,), generator=generator)


NETWORKS = {
    "cnn": Network("CNN with batch norm, 15k", cnn, (3, 12, 12), 1.04, 4, has_batch_norm=True),
    "mlp-26k": Network("MLP, 26k", lambda: mlp(64, 128, 128, 10), (64,), 1.08, 20),
    "mlp-1m": Network("MLP, 1.13M", lambda: mlp(64, 1024, 1024, 10), (64,), 1.04, 4),
    "thousand": Network("1000 modules, 76k", thousand, (16,), 1.10, 4, has_batch_norm=True),
}
