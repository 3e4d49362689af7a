"""Losses with known answers, for the tests of measures."""

import torch

from lightning_landscape import Slice

ONES = {"x": torch.ones(6, dtype=torch.float64)}


def ramp(params):
    """Four times as steep where the mean grows as where it falls."""
    ahead = params["x"].mean() - 1
    return torch.where(ahead > 0, 4 * ahead, -ahead)


def bowl(params):
    """The squared distance to ones."""
    return (params["x"] - 1).square().sum()


def rises_to(plus, minus, *, centre=0.0):
    """A slice with spacing 1 from its rises, walking away from 0 on either side."""
    losses = [*reversed(minus), 0.0, *plus]
    alphas = torch.arange(-len(minus), len(plus) + 1, dtype=torch.float64)
    return Slice(alphas, torch.tensor(losses, dtype=torch.float64) + centre)
