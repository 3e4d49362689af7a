"""The learning rate in use, where the step is proportional to it."""

import math

import pytest
import torch
from torch import nn

from lightning_landscape import Fromage
from lightning_landscape.measures.learning_rates import rate_in_use, rates_in_use


@pytest.mark.parametrize(
    "kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta"]
)
def test_the_rate_is_that_of_optimizers_whose_step_is_proportional_to_it(kind):
    for rate in (0.1, 0.2):
        weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = getattr(torch.optim, kind)([weight], lr=rate)
        assert rate_in_use(optimizer) == rate
        before = weight.detach().clone()
        weight.square().sum().backward()
        optimizer.step()
        step = weight.detach() - before
        unit = step / rate if rate == 0.1 else unit  # noqa: F821
        assert torch.allclose(step, rate * unit)


def test_fromage_has_a_rate():
    assert rate_in_use(Fromage([nn.Parameter(torch.ones(2, 2))], lr=0.01)) == 0.01


def wrapped():
    class Twice(torch.optim.SGD):
        """Whatever a subclass does with its rate."""

    return Twice


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Rprop, wrapped()])
def test_other_optimizers_have_none(kind):
    assert math.isnan(rate_in_use(kind([nn.Parameter(torch.ones(2))], lr=0.1)))


def test_of_groups_it_is_the_largest_rate_that_moves_something():
    weights = [nn.Parameter(torch.ones(1), requires_grad=k < 2) for k in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.1, 0.2, 0.9), strict=True)]
    assert rate_in_use(torch.optim.SGD(groups, lr=1.0)) == 0.2


def test_each_parameter_has_the_rate_of_its_own_optimizer():
    net = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    optimizers = [torch.optim.SGD(net[k].parameters(), lr=lr) for k, lr in (("a", 1.0), ("b", 2.0))]
    rates = rates_in_use(optimizers, dict(net.named_parameters()))
    assert rates == {"a.weight": 1.0, "b.weight": 2.0}
