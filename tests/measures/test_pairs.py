"""Slices evaluated in pairs from their ends, and left once they cannot count as asymmetric."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_landscape import (
    AsymmetryRate,
    FunctionObjective,
    Slice,
    evaluate_slice,
    probing,
    sample_direction,
    score_asymmetry,
    symmetric_grid,
)
from lightning_landscape.measures.asymmetry import cannot_count
from lightning_landscape.measures.slices import evaluate_pairs

# -- what rules a direction out --------------------------------------------------------------------

GRID = symmetric_grid(0.6, 13)
LOSSES = st.one_of(st.integers(-4, 40).map(float), st.floats(0, 9), st.just(math.inf))
STEEPER = st.sampled_from([1.0, 2.0, 3.5])


def outer(whole, n_pairs):
    known = [*range(n_pairs), 6, *range(13 - n_pairs, 13)]
    return Slice(whole.alphas[known], whole.losses[known])


def counts(whole, c):
    rate = AsymmetryRate(c=c)
    rate.update(score_asymmetry(whole))
    return bool(rate.compute()["rate"])


@pytest.mark.tried("steps", "leaving a slice once it cannot change the rate")
@given(st.lists(LOSSES, min_size=13, max_size=13), STEEPER, st.booleans())
def test_what_is_ruled_out_by_its_outer_points_does_not_count_as_a_whole(losses, c, rising):
    # sorted outwards on one side, slices that count are no rarity
    losses = [*losses[:6], min(losses), *sorted(losses[7:])] if rising else losses
    whole = Slice(GRID, torch.tensor(losses))
    for n_pairs in range(1, 7):
        if cannot_count(outer(whole, n_pairs), c=c):
            assert not counts(whole, c)


def test_even_sides_are_ruled_out_by_two_pairs_and_uneven_ones_never():
    even, uneven = Slice(GRID, GRID**2), Slice(GRID, torch.where(GRID > 0, 9 * GRID, -GRID))
    assert [cannot_count(outer(even, n)) for n in (1, 2, 6)] == [False, True, True]
    assert [cannot_count(outer(uneven, n)) for n in (1, 2, 6)] == [False] * 3
    assert counts(uneven, 2.0)


def test_the_inner_half_rules_nothing_out():
    # 9 times as steep in the outer half, even in the inner
    rises = torch.where(GRID > 0.3, 9 * GRID - 2.4, GRID.abs())
    assert not cannot_count(outer(Slice(GRID, rises), 6))


@pytest.mark.parametrize(("left", "right"), [(math.inf, math.nan), (math.nan, math.inf)])
def test_losses_that_are_not_finite_on_both_sides_rule_it_out(left, right):
    alphas, known = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([left, 0.0, right])
    assert cannot_count(Slice(alphas, known))
    assert not cannot_count(Slice(alphas, known.nan_to_num(2.0, 2.0)))
    assert not cannot_count(Slice(alphas, torch.tensor([1.0, 0.0, right])))


def test_a_centre_that_is_not_finite_rules_it_out():
    assert cannot_count(Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, math.nan, 9.0])))


# -- pairs -----------------------------------------------------------------------------------------


def bent(t):
    return torch.where(t > 0, 4 * t, -t)


def test_pairs_are_walked_inwards_and_shown_as_a_slice_of_what_is_known():
    asked, shown = [], []

    class Watched(FunctionObjective):
        def along(self, direction):
            inner = super().along(direction)
            return lambda alpha: (asked.append(alpha), inner(alpha))[1]

    hill = Watched(lambda p: bent(p["x"]), {"x": torch.tensor(0.0)})
    grid = symmetric_grid(1.0, 5)

    def enough(part):
        shown.append((part.alphas.tolist(), part.mean.tolist()))
        return False

    found = evaluate_pairs(hill, {"x": torch.tensor(1.0)}, grid, torch.zeros(1), enough=enough)
    assert asked == [-1.0, 1.0, -0.5, 0.5]
    assert shown == [([-1.0, 0.0, 1.0], [1.0, 0.0, 4.0])]  # the whole is not shown, it is returned
    assert found.mean.tolist() == [1.0, 0.5, 0.0, 2.0, 4.0]


def test_a_stopped_slice_costs_its_pairs_and_is_not_there():
    asked = []
    bowl = FunctionObjective(
        lambda p: (asked.append(1), (p["x"] ** 2).sum())[1], {"x": torch.zeros(2)}
    )
    ahead = {"x": torch.ones(2)}
    found = evaluate_pairs(bowl, ahead, GRID, torch.zeros(1), enough=cannot_count)
    assert found is None
    assert len(asked) == 4


@pytest.mark.parametrize("mode", ["train", "eval", "recalibrated"])
def test_a_whole_slice_in_pairs_has_the_bits_of_one_in_order(mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 1))
    batches = [torch.randn(6, 4), torch.randn(6, 4)]
    with probing(net, batches, loss_fn=lambda m, x: m(x).square().mean(), mode=mode) as objective:
        generator = torch.Generator().manual_seed(0)
        one, other = (
            sample_direction(objective.params, "gaussian", generator=generator) for _ in range(2)
        )
        centre = evaluate_slice(objective, one, GRID).losses[6]
        in_order = evaluate_slice(objective, other, GRID)
        in_pairs = evaluate_pairs(objective, other, GRID, centre, enough=lambda part: False)
    assert torch.equal(in_pairs.losses, in_order.losses)
    assert in_pairs.to_dict() == in_order.to_dict()


def test_a_grid_that_has_no_pairs_is_an_error():
    bowl = FunctionObjective(lambda p: p["x"] ** 2, {"x": torch.tensor(0.0)})
    with pytest.raises(ValueError, match="`alphas` must be a grid symmetric about 0"):
        evaluate_pairs(bowl, {}, torch.tensor([-1.0, 0.0, 2.0]), torch.zeros(1), enough=bool)
