"""Faults that were found in other tools for loss landscapes: none of them here."""

import math

import pytest
import torch
from torch import nn

from lightning_landscape import (
    FunctionObjective,
    evaluate_plane,
    evaluate_slice,
    probing,
    sample_direction,
    symmetric_grid,
)
from lightning_landscape.measures.plane import orthogonalized

GRID = symmetric_grid(0.5, 5)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3))


def params(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def cosine(a, b):
    one, two = (torch.cat([d[name].flatten() for name in a]).double() for d in (a, b))
    return float(one @ two / (one.norm() * two.norm()))


@pytest.mark.parametrize("radius", [0.1, 0.5, 2.0])
def test_a_walk_ends_at_its_distance_and_not_at_one_over_it(radius):
    ruler = FunctionObjective(lambda p: p["w"].norm(), {"w": torch.zeros(3)})
    way = {"w": torch.tensor([0.0, 1.0, 0.0])}
    found = evaluate_slice(ruler, way, symmetric_grid(radius, 5))
    assert found.mean.tolist() == pytest.approx([radius, radius / 2, 0, radius / 2, radius])


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
def test_a_zero_bias_can_be_normalised_and_does_not_move(net, normalize, generator):
    own = params(net)  # the bias of a fresh batch norm is zero
    way = sample_direction(own, "gaussian", generator=generator, normalize=normalize)
    assert all(bool(t.isfinite().all()) for t in way.values())
    if normalize != "model":
        assert way["1.bias"].abs().max() == 0


def test_two_random_directions_are_nearly_orthogonal(net, generator):
    own = {"w": torch.randn(100, 100), "b": torch.randn(100)}
    first, second = (sample_direction(own, "gaussian", generator=generator) for _ in range(2))
    assert abs(cosine(first, second)) < 0.05


def test_the_axes_of_a_plane_are_orthogonal_after_they_were_normalised(net, generator):
    first, second = (sample_direction(params(net), "uniform", generator=generator) for _ in "ab")
    assert cosine(first, second) > 0.5
    assert abs(cosine(first, orthogonalized(second, first))) < 1e-6


def test_a_bias_is_normalised_once(net, generator):
    own = params(net)
    own["3.bias"].fill_(2.0)
    way = sample_direction(own, "gaussian", generator=generator, normalize="filter")
    assert float(way["3.bias"].norm()) == pytest.approx(float(own["3.bias"].norm()))


def test_rows_of_a_plane_are_not_shifted():
    tilted = FunctionObjective(lambda p: 10 * p["w"][0] + p["w"][1], {"w": torch.zeros(2)})
    axes = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    plane = evaluate_plane(tilted, *axes, GRID, GRID)
    expected = 10 * GRID[:, None] + GRID[None, :]
    torch.testing.assert_close(plane.mean, expected)


def test_the_ends_of_a_grid_are_its_ends():
    assert GRID.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]


def test_a_loss_that_is_nan_stays_nan_and_two_planes_are_equal():
    def loss(p):
        return torch.where(p["w"][0] == 0.25, math.nan, p["w"].sum())

    axes = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    rng = torch.get_rng_state()
    bowl = FunctionObjective(loss, {"w": torch.zeros(2)})
    plane, again = (evaluate_plane(bowl, *axes, GRID, GRID) for _ in range(2))
    assert plane.mean[3].isnan().all()
    assert plane.n_nonfinite == 5
    assert torch.equal(plane.losses.nan_to_num(7.0), again.losses.nan_to_num(7.0))
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_module_keeps_its_gradients_statistics_and_random_numbers(net, generator):
    net.train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    rng = torch.get_rng_state()
    loss = {"loss_fn": lambda module, batch: module(batch).square().mean()}
    with probing(net, [torch.randn(4, 2, 3, 3, generator=generator)], **loss) as objective:
        own = objective.params
        axes = [sample_direction(own, "gaussian", generator=generator) for _ in range(2)]
        evaluate_plane(objective, *axes, GRID, GRID)
        objective.gradient()
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[1].training
    assert torch.equal(torch.get_rng_state(), rng)
