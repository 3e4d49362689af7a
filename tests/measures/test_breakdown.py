"""How much gradients change along a step: closed forms, Lemma 1, and what the words may say."""

import json
import math
import re
import weakref
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lightning_landscape.measures.breakdown import (
    DEFAULT_ETAS,
    GradientBreakdown,
    critical_rate,
    measure_breakdown,
    trust_lr,
)
from lightning_landscape.measures.gradients import Start, gradient_direction
from lightning_landscape.objective import FunctionObjective
from lightning_landscape.params import trainable

FEW = settings(max_examples=25, deadline=None)
STEPS = st.lists(st.floats(1e-3, 3.0), min_size=1, max_size=5, unique=True).map(sorted)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def row(*values):
    """One layer: a matrix of one row."""
    return f64(values)


def near(values):
    """Equal to 1e-9, nested or not."""
    return pytest.approx(np.asarray(values, np.float64), rel=1e-9, abs=1e-12, nan_ok=True)


def bowl(x, curvature=1.0):
    """Return `a/2 * x ** 2`, whose gradient is `a * x`."""
    return FunctionObjective(lambda p: (curvature * p["x"] ** 2).sum() / 2, {"x": x})


def product_of(factors, sign=-1.0):
    """Return `-Π w_k`: linear in the output, so that nothing but the layers changes a gradient."""
    net = {f"w{k}": row(w) for k, w in enumerate(factors)}
    return FunctionObjective(lambda p: sign * torch.stack(list(p.values())).prod(), net)


def network(seed, activation=torch.tanh, widths=(3, 4, 4, 2), biases=False):
    """A small random net on random data, mean squared error per batch of 3."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    params = {}
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        params[f"{k}.weight"] = draw(n_out, n_in) / n_in**0.5
        if biases:
            params[f"{k}.bias"] = draw(n_out)
    x, y = draw(2, 3, widths[0]), draw(2, 3, widths[-1])

    def loss(p):
        h = x
        for k in range(len(widths) - 1):
            h = (activation(h) if k else h) @ p[f"{k}.weight"].T + p.get(f"{k}.bias", 0)
        return (h - y).square().mean(dim=(1, 2))

    return FunctionObjective(loss, params), draw


class Watched:
    """An objective that notes what it is asked, and how many gradients are alive when asked."""

    def __init__(self, objective):
        self.inner, self.asked, self.alive, self._given = objective, [], [], []

    @property
    def params(self):
        return self.inner.params

    def gradient(self, direction=None, alpha=0.0):
        self.alive.append(sum(any(ref() is not None for ref in refs) for refs in self._given))
        self.asked.append(alpha if direction else 0.0)
        losses, gradients = self.inner.gradient(direction, alpha)
        self._given.append([weakref.ref(g) for g in gradients.values()])
        return losses, gradients

    def along(self, direction):
        raise AssertionError("not a gradient evaluation")

    losses = along


# --- closed forms -------------------------------------------------------------------------------


@FEW
@given(
    st.lists(st.floats(0.1, 5) | st.floats(-5, -0.1), min_size=2, max_size=7),
    STEPS,
    st.sampled_from([-1.0, 1.0]),
)
def test_a_product_breaks_down_by_one_factor_less_than_the_model(factors, etas, sign):
    # g_k is the product of the others; all grow by (1 + eta): r = (1 + eta)^(L - 1) - 1 everywhere
    depth, grown = len(factors), 1 + f64(*etas)
    objective = product_of(factors, sign)
    found = measure_breakdown(objective, objective.params, etas)
    assert found.names == tuple(objective.params)
    for k in range(depth):
        assert found.breakdown[k].tolist() == near(grown ** (depth - 1) - 1)
        assert found.cosine[k].tolist() == near(torch.ones(len(etas)))
    assert found.model.tolist() == near(grown**depth - 1)
    assert found.excess.tolist() == near((found.breakdown / found.model).tolist())
    assert found.relative_step == pytest.approx(1.0)


def test_a_single_linear_layer_never_breaks_down():
    # f = w: the gradient is constant, the model still says eta
    found = measure_breakdown(product_of([3.0]), {"w0": row(3.0)}, [0.5, 1.0])
    assert found.breakdown.tolist() == [[0.0, 0.0]]
    assert found.model.tolist() == [0.5, 1.0]
    assert found.descent_limit == found.break_even == math.inf


@FEW
@given(st.integers(0, 10**6), STEPS)
def test_on_a_quadratic_the_breakdown_is_linear_in_eta(seed, etas):
    # g = a x elementwise: r = eta ||a D|| / ||a x||
    g = torch.Generator().manual_seed(seed)
    x, d, a = (torch.rand(2, 3, generator=g, dtype=torch.float64) + 0.1 for _ in range(3))
    found = measure_breakdown(bowl(x, a), {"x": d}, etas)
    ratio = (a * d).norm() / (a * x).norm()
    assert found.breakdown[0].tolist() == near(f64(*etas) * ratio)


@FEW
@given(st.integers(0, 10**6), STEPS)
def test_on_a_quadratic_descent_limit_and_break_even_are_exact_on_any_grid(seed, etas):
    # slope(eta) = <a x, D> + eta <a D, D>, rise(eta) / eta = <a x, D> + eta/2 <a D, D>
    g = torch.Generator().manual_seed(seed)
    x, d = torch.randn(2, 2, 3, generator=g, dtype=torch.float64)
    a = torch.rand(2, 3, generator=g, dtype=torch.float64) + 0.1
    found = measure_breakdown(bowl(x, a), {"x": d}, etas)
    zero = -float((a * x * d).sum() / (a * d * d).sum())
    for measured, exact in ((found.descent_limit, zero), (found.break_even, 2 * zero)):
        assume(abs(exact - etas[-1]) > 1e-9)
        expected = 0.0 if exact < 0 else exact if exact < etas[-1] else math.inf
        assert measured == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("etas", [(3, 4), (1.5, 2.5), (0.3, 0.9, 1.7, 5), (1, 2), (7,)])
def test_the_zeros_of_a_quadratic_do_not_depend_on_the_grid(etas):
    # f = x^2 / 2 from 3 along -3: minimum at eta = 1, back at the start at 2
    found = measure_breakdown(bowl(row(3.0)), {"x": row(-3.0)}, etas)
    assert (found.descent_limit, found.break_even) == pytest.approx((1.0, 2.0))
    assert (found.loss_start, found.slope_start) == (4.5, -9.0)
    assert found.loss.tolist() == near([4.5 * (1 - eta) ** 2 for eta in etas])
    assert found.slope.tolist() == near([-9 * (1 - eta) for eta in etas])


def test_uphill_and_level_directions_have_no_descent():
    uphill = measure_breakdown(bowl(row(3.0)), {"x": row(1.0)}, (0.5, 1.0))
    level = measure_breakdown(bowl(row(1.0, 0.0)), {"x": row(0.0, 1.0)}, (0.5, 1.0))
    assert uphill.slope_start > 0
    assert level.slope_start == 0
    for found in (uphill, level):
        assert (found.descent_limit, found.break_even) == (0.0, 0.0)


@pytest.mark.parametrize(("eta", "limit", "even"), [(0.5, math.inf, math.inf), (1.5, 1, math.inf)])
def test_what_lies_beyond_the_grid_is_not_guessed(eta, limit, even):
    found = measure_breakdown(bowl(row(3.0)), {"x": row(-3.0)}, [eta])
    assert (found.descent_limit, found.break_even) == pytest.approx((limit, even))


def test_the_first_zero_counts_when_the_slope_changes_sign_twice():
    # f = -sin x from 0 along 1: slope -cos(eta) is 0 at pi/2 and again at 3 pi/2
    wave = FunctionObjective(lambda p: -p["x"].sin(), {"x": row(0.0)})
    etas = torch.linspace(0.01, 6, 600, dtype=torch.float64)
    found = measure_breakdown(wave, {"x": row(1.0)}, etas)
    # and -sin(eta) / eta is 0 first at pi
    assert (found.descent_limit, found.break_even) == pytest.approx(
        (math.pi / 2, math.pi), abs=1e-4
    )


def test_a_deep_linear_net_by_hand():
    # f = (W3 W2 W1 - 6)^2 / 2, W1 = [1 2]^T, W2 = 1, W3 = [1 1]; D1 = [1 0]^T, D3 = [0 1], D2 = 0
    # W3 W2 W1 = 3 + 3 eta, so e = 3 eta - 3; g1 = e W3^T = e [1 1+eta]^T, g3 = e W1^T = e [1+eta 2]
    net = {"1": row(1.0, 2.0).T, "2": torch.eye(2, dtype=torch.float64), "3": row(1.0, 1.0)}
    objective = FunctionObjective(lambda p: (p["3"] @ p["2"] @ p["1"] - 6).square() / 2, net)
    direction = {"1": row(1.0, 0.0).T, "2": torch.zeros(2, 2), "3": row(0.0, 1.0)}
    found = measure_breakdown(objective, direction, (0.5, 1.0))
    assert found.names == ("1", "3")
    # eta = 1/2, e = -3/2: g1 = [-3/2 -9/4] after [-3 -3], g3 = [-9/4 -3] after [-3 -6]
    r1, r3 = math.sqrt(2.8125 / 18), math.sqrt(9.5625 / 45)
    assert found.breakdown[0].tolist() == near([r1, 1.0])
    assert found.breakdown[1].tolist() == near([r3, 1.0])
    # and at eta = 1, e = 0, there is no gradient left to have an angle with
    assert found.cosine[0].tolist() == near([2.5 / math.sqrt(6.5), math.nan])
    assert found.cosine[1].tolist() == near([5.5 / math.sqrt(5 * 6.25), math.nan])
    u1, u3 = 1 / math.sqrt(5), 1 / math.sqrt(2)
    model = [(1 + eta * u1) * (1 + eta * u3) - 1 for eta in (0.5, 1.0)]
    assert found.model.tolist() == near(model)
    assert found.excess[0].tolist() == near([r1 / model[0], 1 / model[1]])
    # f = (3 - 3 eta)^2 / 2; cos(-g1, D1) = 1/sqrt 2 is the lesser of 1/sqrt 2 and 2/sqrt 5
    assert (found.loss_start, found.slope_start) == pytest.approx((4.5, -9.0))
    assert (found.descent_limit, found.break_even) == (pytest.approx(1.0), math.inf)
    assert found.trust_lr == pytest.approx((1 + 1 / math.sqrt(2)) ** (1 / 2) - 1)
    assert found.relative_step == pytest.approx(u3)


def test_the_gradient_is_that_of_the_mean_over_batches():
    # batches (x - 1)^2 and (x + 1)^2 have the mean x^2 + 1
    two = FunctionObjective(
        lambda p: torch.cat([(p["x"] - 1) ** 2, (p["x"] + 1) ** 2]), {"x": row(2.0)}
    )
    found = measure_breakdown(two, {"x": row(-1.0)}, [1.0])
    assert (found.loss_start, found.slope_start) == (5.0, -4.0)
    assert (found.loss.tolist(), found.slope.tolist()) == ([2.0], [-2.0])


def test_the_batches_of_all_processes_make_the_loss():
    # gradients come averaged over ranks; the losses must be, or rise and slope are of two functions
    objective = bowl(row(3.0))
    objective.gather = lambda losses: torch.cat([losses, losses + 2], dim=1)
    found = measure_breakdown(objective, {"x": row(-3.0)}, [1.0, 2.0])
    assert (found.loss_start, found.loss.tolist()) == (5.5, [1.0, 5.5])


# --- Lemma 1 ------------------------------------------------------------------------------------


def check_lemma_1(seed, activation, depth, size, aim):
    """Step by `size` at a cosine of about `aim`; return how often the premise held."""
    objective, draw = network(seed, activation, (3, *[5] * (depth - 1), 2))
    _, g = objective.gradient()
    direction = {}
    for name, w in objective.params.items():
        noise = draw(*w.shape)
        if g[name].norm() > 0:
            noise -= (noise * g[name]).sum() / g[name].square().sum() * g[name]
            along = aim * -g[name] / g[name].norm()
            direction[name] = w.norm() * (along + (1 - aim**2) ** 0.5 * noise / noise.norm())
    etas = size * torch.arange(1, 49, dtype=torch.float64) / 48
    found = measure_breakdown(objective, direction, etas)
    cosines = f64(
        *[
            -(g[name] * direction[name]).sum() / (g[name].norm() * direction[name].norm())
            for name in found.names
        ]
    )
    # the maximum over the segment, seen on a dense grid: a margin for what lies between its points
    worst = found.breakdown.cummax(dim=1).values
    premise = (worst < 0.95 * cosines[:, None]).all(dim=0) & (len(found.names) == depth)
    assert (found.loss[premise] < found.loss_start).all()
    return int(premise.sum())


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([torch.tanh, torch.relu]),
    st.integers(1, 4),
    st.sampled_from([0.01, 0.1, 0.5, 2.0]),
    st.floats(0.2, 1.0),
)
def test_the_loss_falls_while_no_gradient_breaks_down_by_the_cosine(
    seed, activation, depth, size, aim
):
    check_lemma_1(seed, activation, depth, size, aim)


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_the_premise_of_lemma_1_is_met_and_missed(activation):
    # or the test above would say nothing
    held = [check_lemma_1(seed, activation, 3, 0.5, 0.9) for seed in range(12)]
    assert sum(n > 0 for n in held) >= 6
    assert sum(n < 48 for n in held) >= 6


def test_the_criterion_is_sufficient_and_not_necessary():
    # f = x^2 / 2 from 1 along -1: r = eta reaches the cosine, 1, at the minimum, while f stays
    # below its start until eta = 2
    found = measure_breakdown(bowl(row(1.0)), {"x": row(-1.0)}, (1.0, 1.5, 2.0))
    assert found.breakdown.tolist() == [[1.0, 1.5, 2.0]]
    assert (found.loss < found.loss_start).tolist() == [True, True, False]


# --- what is a layer ----------------------------------------------------------------------------


def test_biases_move_and_bend_the_slope_but_are_no_layers():
    # f = (w + b)^2 / 2 from 1 + 1, D = -1 each: e = 2 - 2 eta, slope -2 e
    objective = FunctionObjective(
        lambda p: (p["w"] + p["b"]).square().sum() / 2, {"w": row(1.0), "b": f64(1.0)}
    )
    found = measure_breakdown(objective, {"w": row(-1.0), "b": f64(-1.0)}, [0.5])
    assert (found.names, found.dead) == (("w",), ())
    assert (found.slope_start, found.slope.tolist()) == (-4.0, [-2.0])
    assert found.breakdown.tolist() == [[0.5]]
    assert found.model.tolist() == [0.5]  # one factor, 1 + eta: the bias is not in the product


def test_names_the_direction_lacks_and_zeros_do_not_move_and_are_no_layers():
    net = {name: row(1.0, 2.0) for name in "abc"}
    objective = FunctionObjective(lambda p: (p["a"] * p["b"] * p["c"]).sum() ** 2, net)
    found = measure_breakdown(objective, {"b": row(-1.0, 0.0), "c": torch.zeros(1, 2)}, [1.0])
    assert (found.names, found.dead) == (("b",), ())


def test_layers_come_in_the_objectives_order():
    net = {name: row(1.0) for name in "zay"}
    objective = FunctionObjective(lambda p: (p["a"] * p["y"] * p["z"]) ** 2, net)
    direction = {name: row(-1.0) for name in "ayz"}
    assert measure_breakdown(objective, direction, [0.1]).names == ("z", "a", "y")


def weighted(scales):
    """Return `Σ s_k (x_k - 2)^2 / 2` from 1: the gradient of x_k is `-s_k`."""
    net = {name: row(1.0) for name in scales}
    return FunctionObjective(
        lambda p: sum(s * (p[n] - 2).square().sum() / 2 for n, s in scales.items()), net
    )


def test_layers_with_a_gradient_of_1e_8_of_the_largest_are_dead():
    objective = weighted({"a": 1.0, "edge": 1e-8, "above": 1.1e-8, "none": 0.0})
    found = measure_breakdown(objective, objective.params, [0.5, 1.0])
    assert (found.names, found.dead) == (("a", "above"), ("edge", "none"))
    assert found.breakdown.shape == found.cosine.shape == found.excess.shape == (2, 2)
    assert found.model.tolist() == near([1.5**2 - 1, 2.0**2 - 1])  # the dead are no factors
    assert found.trust_lr == pytest.approx(2 ** (1 / 2) - 1)
    # but they move: the whole slope is -(1 + 2.1e-8)
    assert found.slope_start == pytest.approx(-1 - 2.1e-8, rel=1e-15)


def test_a_bias_without_a_gradient_is_no_dead_layer():
    objective = FunctionObjective(
        lambda p: p["w"].sum() ** 2 + 0 * p["b"].sum(), {"w": row(1.0), "b": f64(1.0)}
    )
    found = measure_breakdown(objective, {"w": row(-1.0), "b": f64(-1.0)}, [1.0])
    assert (found.names, found.dead) == (("w",), ())


def test_only_moved_matrices_set_the_scale_of_dead():
    # the gradients of a bias and of a still matrix are 1e12 times as large; they kill nothing
    objective = FunctionObjective(
        lambda p: (p["w"] + 1e12 * p["still"] + 1e12 * p["b"]).sum() ** 2,
        {"w": row(1.0), "still": row(1.0), "b": f64(1.0)},
    )
    found = measure_breakdown(objective, {"w": row(-1.0), "b": f64(-1.0)}, [1.0])
    assert (found.names, found.dead) == (("w",), ())


@pytest.mark.parametrize("kind", ["only vectors", "all dead", "nothing moves", "empty"])
def test_without_a_layer_loss_and_slope_still_work(kind):
    # f = b^2 / 2 from 1 along -1: descent to eta = 1, back at 2
    objective = FunctionObjective(
        lambda p: p["b"].square().sum() / 2 + 0 * p["w"].sum(), {"b": f64(1.0), "w": row(1.0)}
    )
    direction = {
        "only vectors": {"b": f64(-1.0)},
        "all dead": {"b": f64(-1.0), "w": row(-1.0)},
        "nothing moves": {"b": f64(0.0)},
        "empty": {},
    }[kind]
    found = measure_breakdown(objective, direction, (1.5, 2.5))
    assert found.names == ()
    assert found.dead == (("w",) if kind == "all dead" else ())
    for empty in (found.breakdown, found.excess, found.cosine):
        assert (empty.shape, empty.dtype) == ((0, 2), torch.float64)
    assert found.model.tolist() == [0.0, 0.0]  # the empty product
    assert math.isnan(found.trust_lr)
    assert math.isnan(found.relative_step)
    moves = "b" in direction and kind != "nothing moves"
    assert found.loss.tolist() == near([0.125, 1.125] if moves else [0.5, 0.5])
    assert found.slope.tolist() == near([0.5, 1.5] if moves else [0.0, 0.0])
    assert (found.descent_limit, found.break_even) == ((1.0, 2.0) if moves else (0.0, 0.0))


def test_zero_weights_are_layers_outside_the_model():
    # f = (a + z - 3)^2 / 2, a = 1, z = 0: both gradients are -2, and r = eta for D = 1
    objective = FunctionObjective(
        lambda p: (p["a"] + p["z"] - 3).square() / 2, {"a": row(1.0), "z": row(0.0)}
    )
    found = measure_breakdown(objective, {"a": row(0.5), "z": row(1.5)}, [0.5])
    assert found.names == ("a", "z")
    assert found.breakdown.tolist() == [[0.5], [0.5]]
    assert found.model.tolist() == [0.25]
    assert found.relative_step == 0.5
    assert found.trust_lr == pytest.approx(2 ** (1 / 2) - 1)  # still two layers deep


def test_zero_weights_alone_leave_the_model_nothing_to_say():
    objective = FunctionObjective(lambda p: (p["z"] - 3).square() / 2, {"z": row(0.0)})
    found = measure_breakdown(objective, {"z": row(3.0)}, [0.5])
    assert found.model.tolist() == [0.0]
    assert found.excess.tolist() == [[math.inf]]
    assert math.isnan(found.relative_step)
    words = found.summary()
    assert words.endswith("deep relative trust (model) has no weights to go by.")


def test_a_tied_weight_is_one_layer_however_often_it_is_used():
    # f = -w^3: g = -3 w^2 grows by (1 + eta)^2 - 1, the model of one layer says eta
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(1, 1, bias=False, dtype=torch.float64)
            self.b, self.c = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.b.weight = self.c.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    tied = Tied()
    one = torch.ones(1, 1, dtype=torch.float64)
    objective = FunctionObjective(lambda p: -functional_call(tied, dict(p), one), trainable(tied))
    found = measure_breakdown(objective, objective.params, [0.5])
    assert found.names == ("a.weight",)
    assert found.breakdown.tolist() == near([[1.5**2 - 1]])
    assert found.model.tolist() == near([0.5])


def test_frozen_weights_are_not_in_the_objective_and_cannot_be_moved():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    net[0].requires_grad_(False)
    x = torch.ones(3, 2, dtype=torch.float64)
    objective = FunctionObjective(
        lambda p: functional_call(net, dict(p), x).square().mean(), trainable(net)
    )
    found = measure_breakdown(objective, gradient_direction(objective), [0.1])
    assert found.names == ("1.weight",)
    with pytest.raises(ValueError, match="`direction` must only name parameters of the objective"):
        measure_breakdown(objective, {"0.weight": torch.ones(2, 2)}, [0.1])
    with pytest.raises(ValueError, match="`direction` must have the shapes of the parameters"):
        measure_breakdown(objective, {"1.weight": torch.ones(2, 2)}, [0.1])


@pytest.mark.parametrize("sparse", [False, True])
def test_untouched_rows_of_an_embedding_only_lengthen_its_weights(sparse):
    def measured(table):
        used = torch.tensor([0, 1])
        objective = FunctionObjective(
            lambda p: (
                nn.functional.embedding(used, p["table"], sparse=sparse).square() * f64(1.0, 4.0)
            ).sum(),
            {"table": table},
        )
        direction = gradient_direction(objective)
        return direction["table"], measure_breakdown(objective, direction, [0.5, 1.0])

    touched = f64([1.0, 0.5], [0.5, 1.0])
    # five more rows, of norm 5 ||touched|| together: the table is sqrt(26) times as long
    rest = touched.norm() * f64([1.0, 0.0]).expand(5, 2) * 5**0.5
    _, short = measured(touched)
    direction, long = measured(torch.cat([touched, rest]))
    assert not direction[2:].any()
    stretched = 26**0.5
    # r is linear here, and the relative direction is sqrt(26) times as long
    assert long.breakdown.tolist() == near((stretched * short.breakdown).tolist())
    assert long.descent_limit == pytest.approx(short.descent_limit / stretched)
    for found in (short, long):
        assert found.model.tolist() == near([0.5, 1.0])


# --- numbers that are none ----------------------------------------------------------------------


def walled(wall):
    """Return `(x - 9)^2 / 2`, infinite from `wall` on; its gradient stays finite."""
    return FunctionObjective(
        lambda p: torch.where(p["x"] < wall, (p["x"] - 9).square() / 2, torch.inf), {"x": row(0.0)}
    )


def test_a_loss_that_blows_up_ends_the_descent_at_the_last_finite_eta():
    found = measure_breakdown(walled(2.5), {"x": row(1.0)}, (1.0, 2.0, 3.0, 4.0))
    assert found.loss.tolist() == [32.0, 24.5, math.inf, math.inf]
    assert (found.descent_limit, found.break_even) == (2.0, 2.0)


def test_a_loss_that_is_finite_at_the_start_alone_has_no_descent():
    found = measure_breakdown(walled(0.5), {"x": row(1.0)}, (1.0, 2.0))
    assert (found.descent_limit, found.break_even) == (0.0, 0.0)


def test_a_zero_before_the_blow_up_is_a_zero():
    # x^2 / 2 from 1 along -1, infinite beyond eta = 5: descent to 1, back at 2
    objective = FunctionObjective(
        lambda p: torch.where(p["x"] > -4, p["x"].square() / 2, torch.inf), {"x": row(1.0)}
    )
    found = measure_breakdown(objective, {"x": row(-1.0)}, (1.5, 2.5, 6.0))
    assert (found.descent_limit, found.break_even) == (1.0, 2.0)


def test_one_infinite_batch_is_an_infinite_loss():
    objective = FunctionObjective(
        lambda p: torch.cat([-p["x"], torch.where(p["x"] < 1.5, 0.0, torch.inf)]).flatten(),
        {"x": row(0.0)},
    )
    found = measure_breakdown(objective, {"x": row(1.0)}, (1.0, 2.0))
    assert found.loss.tolist() == [-0.5, math.inf]
    assert found.descent_limit == 1.0


def test_a_gradient_that_is_nan_ends_the_descent_but_not_the_rise():
    # 0 * sqrt|x - 2| is 0 with the gradient 0 * inf at x = 2, where (x - 9)^2 / 2 goes on falling
    objective = FunctionObjective(
        lambda p: (p["x"] - 9).square() / 2 + 0 * (p["x"] - 2).abs().sqrt(), {"x": row(0.0)}
    )
    found = measure_breakdown(objective, {"x": row(1.0)}, (1.0, 2.0, 3.0))
    assert found.breakdown.isnan().tolist() == [[False, True, False]]
    assert found.cosine.isnan().tolist() == [[False, True, False]]
    assert found.slope.isnan().tolist() == [False, True, False]
    assert found.loss.isfinite().all()
    assert (found.descent_limit, found.break_even) == (1.0, math.inf)


@pytest.mark.parametrize("start", [math.inf, math.nan])
def test_from_a_loss_that_is_not_finite_nothing_can_be_judged(start):
    objective = FunctionObjective(lambda p: p["x"] ** 2 + start, {"x": row(1.0)})
    found = measure_breakdown(objective, {"x": row(-1.0)}, [0.5])
    assert math.isnan(found.descent_limit)
    assert math.isnan(found.break_even)
    assert found.breakdown.tolist() == [[0.5]]  # this is finite, and data


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_at_the_start_kills_no_other_layer(weight):
    # the derivative of weight * sqrt(y) at 0 is 0 * inf or inf
    objective = FunctionObjective(
        lambda p: p["x"].square() / 2 + weight * p["y"].sqrt(), {"x": row(1.0), "y": row(0.0)}
    )
    found = measure_breakdown(objective, {"x": row(-1.0), "y": row(1.0)}, [0.5])
    assert (found.names, found.dead) == (("x", "y"), ())
    assert found.breakdown.tolist() == near([[0.5], [math.nan]])
    assert not math.isfinite(found.slope_start)
    assert all(map(math.isnan, (found.descent_limit, found.break_even, found.trust_lr)))


def test_a_direction_that_is_not_a_number_is_data():
    found = measure_breakdown(bowl(row(1.0)), {"x": row(math.nan)}, [0.5])
    assert found.names == ("x",)
    assert found.breakdown.isnan().all()
    assert math.isnan(found.descent_limit)


def test_norms_of_half_precision_do_not_overflow():
    # ||W|| = 1e5, and float16 ends at 65504
    objective = FunctionObjective(
        lambda p: p["x"].double().square().sum() / 2,
        {"x": torch.full((100, 100), 1000.0, dtype=torch.float16)},
    )
    direction = gradient_direction(objective)
    assert direction["x"].dtype == torch.float16
    assert direction["x"].unique().tolist() == [-1000.0]
    found = measure_breakdown(objective, direction, [0.5])
    assert found.breakdown.tolist() == [[0.5]]
    assert (found.relative_step, found.slope_start) == (1.0, -1e10)


def test_changes_of_half_precision_are_not_rounded_to_it():
    # g = 1024 x^2 falls from 1024 to 1 as x falls from 1 to 1/32; bfloat16 has no 1023
    objective = FunctionObjective(
        lambda p: (1024 / 3 * p["x"].double() ** 3).sum(),
        {"x": torch.ones(1, 1, dtype=torch.bfloat16)},
    )
    found = measure_breakdown(objective, {"x": torch.full((1, 1), -31 / 32)}, [1.0])
    assert found.breakdown.tolist() == [[1023 / 1024]]


def test_complex_weights_have_a_real_slope():
    # f = |z|^2 / 2 from 3 + 4i: g = z, and along -z the minimum lies at 1
    z = torch.tensor([[3 + 4j]], dtype=torch.complex128)
    objective = FunctionObjective(lambda p: p["z"].abs().square().sum() / 2, {"z": z})
    direction = gradient_direction(objective)
    assert direction["z"].item() == pytest.approx(-3 - 4j)
    found = measure_breakdown(objective, direction, (0.5, 3.0))
    assert found.breakdown.tolist() == near([[0.5, 3.0]])
    assert (found.slope_start, found.descent_limit) == pytest.approx((-25.0, 1.0))
    real = measure_breakdown(objective, {"z": row(-3.0)}, [0.5])  # a real step of 3 of 5
    assert real.slope_start == pytest.approx(-9.0)


def test_layers_larger_than_a_piece_and_empty_ones_are_summed_whole():
    # 300 x 300 entries are more than are widened at a time
    g = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 300, 300, generator=g, dtype=torch.float64)
    net = {"x": x.T, "none": torch.zeros(0, 3, dtype=torch.float64)}
    objective = FunctionObjective(lambda p: p["x"].square().sum() / 2 + p["none"].sum(), net)
    found = measure_breakdown(objective, {"x": d.T, "none": torch.zeros(0, 3)}, [2.0])
    assert found.names == ("x",)
    assert found.breakdown.tolist() == near([[2 * float(d.norm() / x.norm())]])
    assert found.slope_start == pytest.approx(float((x * d).sum()))


# --- the direction of figure 1 ------------------------------------------------------------------


def test_every_tensor_steps_against_its_gradient_by_its_own_norm():
    objective, _ = network(0, biases=True)
    _, gradients = objective.gradient()
    for name, d in gradient_direction(objective).items():
        w, g = objective.params[name], gradients[name]
        assert float(d.norm()) == pytest.approx(float(w.norm()))
        assert float((d * g).sum()) == pytest.approx(-float(w.norm() * g.norm()))
        assert (d.dtype, d.shape, d.requires_grad) == (w.dtype, w.shape, False)


@pytest.mark.parametrize("curvature", [0.5, 2.0, 40.0])
@pytest.mark.parametrize("etas", [[1e-3, 1.0, 9.0], [0.01, 0.1, 30.0]])
def test_down_the_gradient_itself_eta_is_the_rate_of_descent(curvature, etas):
    # a/2 x^2: a step of rate eta takes x to (1 - eta a) x: level at 2 / a, lowest at 1 / a
    objective = bowl(f64(3.0, -2.0), curvature)
    down = gradient_direction(objective, normalize="none")
    assert near(down["x"]) == -curvature * f64(3.0, -2.0)
    found = measure_breakdown(objective, down, etas)
    assert near(found.break_even) == 2 / curvature
    assert near(found.descent_limit) == 1 / curvature


def test_directions_are_layer_normalised_or_not_at_all():
    with pytest.raises(ValueError, match=r"`normalize` must be one of .'layer', 'none'.. Got 'fil"):
        gradient_direction(bowl(f64(1.0)), normalize="filter")


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.9])
def test_the_critical_rate_of_a_quadratic_is_two_over_its_curvature(rate):
    x, curvature = f64(3.0, -2.0), 1.5
    step = {"x": -rate * curvature * x}
    found = measure_breakdown(bowl(x, curvature), step, [0.25, 1.0, 400.0])
    assert near(critical_rate(rate, found)) == 2 / curvature


def test_the_critical_rate_beyond_the_grid_is_infinite():
    found = measure_breakdown(bowl(f64(1.0)), {"x": f64(-0.1)}, [1.0, 2.0])
    assert critical_rate(0.1, found) == math.inf


@pytest.mark.parametrize("rate", [0.0, -0.1, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    found = measure_breakdown(bowl(f64(1.0)), {"x": f64(-0.1)}, [1.0])
    with pytest.raises(ValueError, match="`rate` must be a learning rate"):
        critical_rate(rate, found)


def test_a_start_is_measured_once_for_several_directions():
    class Counted(FunctionObjective):
        n = 0

        def gradient(self, direction=None, alpha=0.0):
            self.n += 1
            return super().gradient(direction, alpha)

    objective = Counted(lambda p: (p["x"] ** 4).sum(), {"x": row(1.0, 2.0)})
    start = Start.of(objective)
    down = gradient_direction(objective, start=start)
    shared = measure_breakdown(objective, down, [0.1, 0.2], start=start)
    assert objective.n == 1 + 2
    alone = measure_breakdown(objective, gradient_direction(objective), [0.1, 0.2])
    assert shared.to_dict() == alone.to_dict()


def test_a_tensor_without_weights_or_without_a_gradient_does_not_step():
    net = {"zero": row(0.0), "idle": row(3.0), "w": row(2.0)}
    objective = FunctionObjective(lambda p: p["zero"] + p["w"] + 0 * p["idle"], net)
    direction = gradient_direction(objective)
    assert {name: d.item() for name, d in direction.items()} == {"zero": 0, "idle": 0, "w": -2}


def test_along_it_eta_is_a_relative_step_and_the_cosine_is_1():
    objective, _ = network(1, biases=True)
    found = measure_breakdown(objective, gradient_direction(objective), [0.01, 0.1])
    assert found.relative_step == pytest.approx(1.0)
    assert found.trust_lr == pytest.approx(trust_lr(3))
    assert found.model.tolist() == near([1.01**3 - 1, 1.1**3 - 1])


def test_rounding_takes_no_cosine_above_1():
    # sqrt(s) * sqrt(s) may fall short of s, and s / (sqrt(s) * sqrt(s)) exceed 1
    for k in range(1, 40):
        x = row(0.1 * k, 0.3)
        found = measure_breakdown(bowl(x), {"x": -x}, (0.1, 0.5))
        assert found.cosine.tolist() == near([[1.0, 1.0]])
        assert (found.cosine <= 1).all()
        assert found.trust_lr <= trust_lr(1) == 1


def test_a_gradient_that_is_not_finite_gives_a_direction_that_is_not():
    net = {"y": row(1.0, 1.0), "zero": row(0.0)}
    objective = FunctionObjective(lambda p: math.nan * (p["y"].sum() + p["zero"].sum()), net)
    direction = gradient_direction(objective)
    assert direction["y"].isnan().all()
    assert direction["zero"].tolist() == [[0.0]]  # there is no relative step from 0


# --- laws ---------------------------------------------------------------------------------------

SAME = ("breakdown", "excess", "cosine", "model", "descent_limit", "break_even", "trust_lr")


def assert_same(a, b, names):
    for name in names:
        x, y = (torch.as_tensor(getattr(found, name), dtype=torch.float64) for found in (a, b))
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10, equal_nan=True, msg=name)


def random_step(seed, biases=True):
    objective, draw = network(seed, biases=biases)
    _, gradients = objective.gradient()
    step = {n: 0.3 * draw(*w.shape) - gradients[n] for n, w in objective.params.items()}
    return objective, step


@FEW
@given(st.integers(0, 10**6), st.floats(-12, 12))
def test_scaling_the_loss_scales_loss_and_slope_and_nothing_else(seed, exponent):
    objective, step = random_step(seed)
    scale = 10.0**exponent
    scaled = FunctionObjective(lambda p: scale * objective._loss(p), objective.params)
    a, b = (measure_breakdown(o, step, (0.1, 0.5, 1.0)) for o in (objective, scaled))
    assert_same(a, b, (*SAME, "relative_step"))
    assert b.loss.tolist() == near((scale * a.loss).tolist())
    assert b.slope.tolist() == pytest.approx((scale * a.slope).tolist(), rel=1e-6)
    assert (b.names, b.dead) == (a.names, a.dead)


@FEW
@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_a_shorter_direction_walked_further_is_the_same_walk(seed, exponent):
    objective, step = random_step(seed)
    scale = 10.0**exponent
    a = measure_breakdown(objective, step, (0.1, 0.5, 1.0))
    short = {name: d * scale for name, d in step.items()}
    b = measure_breakdown(objective, short, f64(0.1, 0.5, 1.0) / scale)
    assert_same(a, b, ("breakdown", "excess", "cosine", "model", "loss", "trust_lr"))
    # in units of relative steps the limits are the same too
    for name in ("descent_limit", "break_even"):
        x, y = getattr(a, name) * a.relative_step, getattr(b, name) * b.relative_step
        assert x == pytest.approx(y, rel=1e-6)


@FEW
@given(st.integers(0, 10**6), STEPS, st.data())
def test_what_is_measured_at_one_eta_does_not_depend_on_the_others(seed, etas, data):
    objective, step = random_step(seed)
    kept = sorted(data.draw(st.sets(st.sampled_from(etas), min_size=1)))
    columns = [etas.index(eta) for eta in kept]
    whole, part = measure_breakdown(objective, step, etas), measure_breakdown(objective, step, kept)
    for name in ("breakdown", "excess", "cosine", "model", "loss", "slope"):
        assert torch.equal(getattr(whole, name)[..., columns], getattr(part, name))


@FEW
@given(st.integers(0, 10**6), STEPS)
def test_a_gradient_that_turned_by_an_angle_changed_by_its_sine_at_least(seed, etas):
    # ||g' - g|| is at least the distance of g from the line through g'
    objective, step = random_step(seed)
    found = measure_breakdown(objective, step, etas)
    assert (found.breakdown >= (1 - found.cosine**2).clamp(min=0).sqrt() - 1e-6).all()
    assert (found.cosine.abs() <= 1).all()


@FEW
@given(st.integers(0, 10**6), STEPS)
def test_the_slope_is_the_derivative_of_the_loss(seed, etas):
    objective, step = random_step(seed)
    found = measure_breakdown(objective, step, etas)
    loss, h = objective.along(step), 1e-5
    differences = [float(loss(e + h).mean() - loss(e - h).mean()) / (2 * h) for e in [0.0, *etas]]
    slopes = [found.slope_start, *found.slope.tolist()]
    assert slopes == pytest.approx(differences, rel=1e-4, abs=1e-4)


@FEW
@given(st.integers(0, 10**6))
def test_slopes_are_negative_up_to_the_descent_limit(seed):
    objective, step = random_step(seed)
    found = measure_breakdown(objective, step, [0.01, 0.03, 0.1, 0.3, 1.0])
    assert (found.slope[found.etas < found.descent_limit] < 0).all()
    assert (found.loss[found.etas < found.break_even] < found.loss_start).all()
    assert (found.descent_limit > 0) == (found.slope_start < 0)


# --- cost, and leaving things alone -------------------------------------------------------------


@pytest.mark.parametrize("etas", [[1.0], [0.1, 0.2, 0.3, 0.4], DEFAULT_ETAS["gradient"]])
def test_it_costs_one_gradient_per_eta_and_one_at_the_start(etas):
    watched = Watched(network(0, biases=True)[0])
    direction = gradient_direction(watched)
    assert watched.asked == [0.0]
    measure_breakdown(watched, direction, etas)
    assert watched.asked == [0.0, 0.0, *etas]


def test_it_holds_the_gradient_at_the_start_and_the_current_one():
    watched = Watched(network(0, biases=True)[0])
    measure_breakdown(watched, watched.params, [0.1, 0.2, 0.3, 0.4])
    assert max(watched.alive) == 1  # when the next is asked for


def test_of_the_start_it_only_holds_what_moves():
    objective, _ = network(0)
    held = []

    class Listening(Watched):
        def gradient(self, direction=None, alpha=0.0):
            held.append([sum(ref() is not None for ref in refs) for refs in self._given])
            return super().gradient(direction, alpha)

    measure_breakdown(Listening(objective), {"1.weight": torch.ones(4, 4)}, [0.1, 0.2])
    assert held == [[], [1], [1, 0]]


def test_a_wrong_grid_or_direction_costs_nothing():
    watched = Watched(bowl(row(1.0)))
    for direction, etas in (({"x": row(1.0)}, []), ({"y": row(1.0)}, [1.0])):
        with pytest.raises(ValueError, match="must"):
            measure_breakdown(watched, direction, etas)
    assert watched.asked == []


def test_nothing_it_is_given_is_changed():
    objective, step = random_step(0)
    etas = f64(0.1, 0.2)
    given_ = [*objective.params.values(), *step.values(), etas]
    before = [tensor.clone() for tensor in given_]
    found = measure_breakdown(objective, step, etas)
    found.etas.zero_()  # ours, not the caller's
    gradient_direction(objective)
    assert all(torch.equal(x, y) for x, y in zip(before, given_, strict=True))
    assert all(tensor.grad is None for tensor in given_)
    assert list(step) == list(objective.params)


def test_it_works_where_gradients_are_off_and_draws_no_random_number():
    objective, step = random_step(0)
    expected = measure_breakdown(objective, step, [0.1])
    state = torch.get_rng_state()
    with torch.no_grad():
        found = measure_breakdown(objective, step, [0.1])
    assert torch.equal(found.breakdown, expected.breakdown)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.gpu
def test_an_accelerator_gives_the_same_numbers():
    objective, step = random_step(0)
    there = {name: w.cuda() for name, w in objective.params.items()}
    moved = FunctionObjective(
        lambda p: objective._loss({name: w.cpu() for name, w in p.items()}), there
    )
    a = measure_breakdown(objective, step, (0.1, 0.5))
    b = measure_breakdown(moved, {name: d.cuda() for name, d in step.items()}, (0.1, 0.5))
    assert_same(a, b, (*SAME, "loss", "slope", "relative_step"))
    assert {d.device.type for d in gradient_direction(moved).values()} == {"cuda"}


# --- the grid of steps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "etas",
    [
        [],
        [0.0, 1.0],
        [-1.0],
        [1.0, 0.5],
        [1.0, 1.0],
        [1.0, math.inf],
        [math.nan],
        [1.0, math.nan],
        [[1.0, 2.0]],
        1.0,
    ],
)
def test_a_wrong_grid_is_refused_with_the_rule_and_the_way_out(etas):
    shown = str(torch.as_tensor(etas, dtype=torch.float64).tolist())
    with pytest.raises(ValueError, match="`etas` must be at least one finite step above 0") as e:
        measure_breakdown(bowl(row(1.0)), {"x": row(-1.0)}, etas)
    assert f"Got {shown}. Use DEFAULT_ETAS['gradient']" in str(e.value)


def test_lists_tuples_and_tensors_make_the_same_grid():
    grids = ([0.25, 0.5], (0.25, 0.5), torch.tensor([0.25, 0.5]), torch.tensor([1, 2]) / 4)
    for etas in grids:
        found = measure_breakdown(bowl(row(1.0)), {"x": row(-1.0)}, etas)
        assert (found.etas.tolist(), found.etas.dtype) == ([0.25, 0.5], torch.float64)


def test_the_named_directions_have_their_grids():
    # half decades of relative steps; halvings and doublings of the step taken
    half_decades = [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1]
    assert DEFAULT_ETAS["gradient"] == pytest.approx(half_decades)
    assert DEFAULT_ETAS["random"] == DEFAULT_ETAS["gradient"]
    assert DEFAULT_ETAS["update"] == (0.25, 0.5, 1, 2, 4)
    for etas in DEFAULT_ETAS.values():
        measure_breakdown(bowl(row(1.0)), {"x": row(-1.0)}, etas)


# --- the result ---------------------------------------------------------------------------------


def test_the_fields_are_those_of_the_contract_in_its_order():
    contract = (
        "names, etas, breakdown, excess, cosine, model, loss, slope, loss_start, slope_start, "
        "dead, descent_limit, break_even, trust_lr, relative_step"
    )
    assert ", ".join(field.name for field in fields(GradientBreakdown)) == contract


def test_it_is_frozen_float64_and_plain_on_request():
    objective, step = random_step(0)
    found = measure_breakdown(
        FunctionObjective(
            lambda p: objective._loss({n: w.double() for n, w in p.items()}),
            {name: w.float() for name, w in objective.params.items()},
        ),
        {name: d.float() for name, d in step.items()},
        (0.5, 1.0),
    )
    tensors = [v for v in vars(found).values() if isinstance(v, torch.Tensor)]
    assert {(t.dtype, t.device.type) for t in tensors} == {(torch.float64, "cpu")}
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == [field.name for field in fields(found)]
    assert plain["breakdown"] == found.breakdown.tolist()
    assert plain["names"] == ["0.weight", "1.weight", "2.weight"]
    with pytest.raises(AttributeError):
        found.loss_start = 0.0
    assert found != replace(found)  # tensors have no truth to compare by


# --- the words ----------------------------------------------------------------------------------


def said(objective, direction, etas=(0.25, 0.5, 1.0, 2.0, 4.0)):
    return measure_breakdown(objective, direction, etas).summary()


def test_a_step_too_large_is_said_in_units_of_the_step():
    # x^2 / 2 from 1 along -2: minimum at .5, r = 2 eta, relative step 2
    assert said(bowl(row(1.0)), {"x": row(-2.0)}) == (
        "The loss of these batches falls up to 0.5 times the step that was made (descent limit); "
        "the step takes the loss from 0.5 to 0.5. "
        "Over the whole step layer x changed its gradient most, by 2 times its size; "
        "deep relative trust (model) predicts 2. "
        "As relative steps, the descent limit is 1 and the break-even, where the loss is back at "
        "its start, 2; deep relative trust (model) allows 1."
    )


def test_a_direction_that_is_no_step_is_said_in_relative_steps():
    # without eta = 1 nobody takes the direction itself; r = eta, and (1 + eta) - 1 is the model
    assert said(bowl(row(3.0)), {"x": row(-3.0)}, (0.5, 1.5)) == (
        "Along the direction the loss falls on these batches up to a relative step of 1. "
        "At a relative step of 1.5 layer x changed its gradient most, by 1.5 times its size; "
        "deep relative trust (model) predicts 1.5. "
        "As relative steps, the descent limit is 1 and the break-even, where the loss is back at "
        "its start, beyond 1.5; deep relative trust (model) allows 1."
    )
    assert "up to eta = 0.5." in said(bowl(row(3.0)), {"x": row(-6.0)}, (0.2, 0.7))


def test_what_was_not_reached_is_said_to_lie_beyond():
    assert said(bowl(row(1.0)), {"x": row(-0.1)}) == (
        "The loss still falls on these batches at every step measured, up to 4 times the step: "
        "the descent limit lies beyond. "
        "Over the whole step layer x changed its gradient most, by 0.1 times its size; "
        "deep relative trust (model) predicts 0.1. "
        "As relative steps, the descent limit is beyond 0.4 and the break-even, where the loss is "
        "back at its start, beyond 0.4; deep relative trust (model) allows 1."
    )


def test_a_loss_that_blew_up_is_not_said_to_have_turned():
    words = said(walled(2.5), {"x": row(1.0)}, (1.0, 2.0, 3.0))
    assert words.startswith(
        "The loss still falls on these batches at 2 times the step; at the next step measured, 3, "
        "it or its slope is not finite."
    )
    # a slope that is not a number at 2 hides the zero at 2.5
    objective = FunctionObjective(
        lambda p: (p["x"] - 2.5).square() / 2 + 0 * (p["x"] - 2).abs().sqrt(), {"x": row(0.0)}
    )
    words = said(objective, {"x": row(1.0)}, (1.0, 2.0, 3.0))
    assert words.startswith("The loss still falls on these batches at 1 times the step; at the")
    # eta = 1.5 is the minimum of (x - 1.5)^2, and beyond 2 the loss is gone: it never came back
    objective = FunctionObjective(
        lambda p: torch.where(p["x"] < 3, (p["x"] - 2.5).square(), torch.inf), {"x": row(1.0)}
    )
    words = said(objective, {"x": row(1.0)}, (1.0, 1.75, 2.5))
    assert "the descent limit is 1.5 and the break-even" in words
    assert "its start, beyond 1.75" in words
    words = said(objective, {"x": row(2.0)}, (0.8, 1.0))
    assert "the step takes the loss from 2.25 to a value that is not finite" in words


@pytest.mark.parametrize(
    ("objective", "direction", "sentence"),
    [
        (bowl(row(1.0)), row(1.0), "The direction leads uphill on these batches"),
        (bowl(row(1.0, 0.0)), row(0.0, 1.0), "The slope along the direction is 0 at the start"),
        (bowl(row(1.0)), row(1.0), "(model) allows no step: in at least one layer"),
        (bowl(row(1.0, 1.0)), row(1.0, -1.0), "(model) allows no step: in at least one layer"),
        (bowl(row(math.inf)), row(1.0), "The loss is not finite at the start, so no step"),
        (bowl(row(1.0)), row(math.nan), "The slope is not finite at the start, so no step"),
        (
            bowl(row(1.0)),
            row(math.nan),
            "gradient change of layer x over the whole step is not finite.",
        ),
        (bowl(row(0.0)), row(1.0), "No layer has a gradient to compare (1 moved without one)."),
    ],
)
def test_zero_and_non_finite_cases_have_their_own_sentences(objective, direction, sentence):
    assert sentence in said(objective, {"x": direction})


def test_layers_left_out_or_unchanged_are_said_to_be():
    assert "No layer changed its gradient over the whole step." in said(
        product_of([2.0]), {"w0": row(1.0)}
    )
    objective = weighted({"a": 1.0, "b": 0.0, "c": 0.0})
    assert "times its size (2 without a gradient left out);" in said(objective, objective.params)
    broken = {"a": row(math.nan), "b": row(math.nan)}
    words = said(weighted({"a": 1.0, "b": 1.0}), broken)
    assert "layer a over the whole step is not finite, nor that of 1 more." in words


def test_of_a_loss_that_is_not_finite_nothing_else_is_said():
    objective = FunctionObjective(lambda p: math.nan * p["a"].sum(), {"a": row(1.0)})
    assert said(objective, objective.params) == (
        "The loss is not finite at the start, so no step along the direction can be judged."
    )


def test_a_limit_too_small_for_a_float_is_still_a_sentence():
    found = measure_breakdown(bowl(row(1.0)), {"x": row(-1.0)}, (1.0, 2.0))
    words = replace(found, descent_limit=0.0).summary()
    assert words.startswith("The loss of these batches falls up to 0 times the step that was made")


def test_trust_without_descent_is_said_alone():
    # the layer leads downhill, cosine 1; a bias undoes it
    objective = FunctionObjective(
        lambda p: p["w"].square().sum() / 2 + 9 * p["b"].sum(), {"w": row(1.0), "b": f64(1.0)}
    )
    words = said(objective, {"w": row(-1.0), "b": f64(1.0)})
    assert words.startswith("The direction leads uphill")
    assert words.endswith("As relative steps, deep relative trust (model) allows 1.")


VALUES = st.sampled_from([0.0, -1.0, 1.0, -1e-320, 1e300, -1e300, math.inf, -math.inf, math.nan])


class Given:
    """An objective whose losses and gradients are given, by eta."""

    def __init__(self, params, found):
        self.params, self.found = params, found

    def gradient(self, direction=None, alpha=0.0):
        return self.found[alpha if direction else 0.0]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 2), st.integers(1, 3), st.booleans())
def test_a_summary_is_one_to_three_sentences_whatever_was_measured(data, n_layers, n_etas, whole):
    etas = [(1.0 if whole else 0.3) * 2**k for k in range(n_etas)]
    weights = st.sampled_from([0.0, 1.0])
    net = {name: row(data.draw(weights)) for name in "ab"[:n_layers]} | {"bias": f64(1.0)}

    def drawn():
        gradients = {name: torch.full_like(w, data.draw(VALUES)) for name, w in net.items()}
        return f64(data.draw(VALUES)), gradients

    objective = Given(net, {eta: drawn() for eta in [0.0, *etas]})
    found = measure_breakdown(objective, {n: torch.ones_like(w) for n, w in net.items()}, etas)
    words = found.summary()
    assert 1 <= len(words.split(". ")) <= 3
    assert words.endswith(".")
    assert not re.search(r"\b(nan|inf|bound)\b", words)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("offset", [0.0, 3.0, 3e3])
def test_rounding_of_small_steps_is_no_break_even(offset):
    # offset + |w|^2 / 2 in float32: along -w / 1e6 the loss changes by less than it is rounded by,
    # and the break-even is at eta = 2e6, beyond what is measured
    weights = {"w": torch.linspace(0.1, 1.0, 12).reshape(3, 4)}
    valley = FunctionObjective(lambda p: offset + p["w"].square().sum() / 2, weights)
    down = {"w": -1e-6 * weights["w"]}
    found = measure_breakdown(valley, down, DEFAULT_ETAS["update"])
    assert found.break_even == math.inf
    whole = measure_breakdown(valley, {"w": -weights["w"]}, [1e-6, 1.0, 2.5])
    # rise / eta is eta - 2 times |w|^2 / 2: linear, so the zero between 1 and 2.5 is exact
    assert whole.break_even == pytest.approx(2.0, rel=1e-3 if offset < 1e3 else 0.1)
