"""The loss along a line: grids, slices and analytic objectives."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_landscape.measures.slices import Slice, evaluate_slice, line_grid, symmetric_grid
from lightning_landscape.objective import FunctionObjective, check_direction

FEW = settings(max_examples=50, deadline=None)
RADII = st.floats(1e-6, 1e6)


def bowl(**params):
    """sum of squares: its gradient is 2 w."""
    return FunctionObjective(
        lambda p: sum((w**2).sum() for w in p.values()), params or {"w": torch.tensor([1.0, -2.0])}
    )


class Counting:
    """An objective that writes down every alpha it is asked for."""

    params = {"w": torch.tensor([3.0, 4.0])}

    def __init__(self) -> None:
        self.asked, self.prepared = [], 0

    def along(self, direction):
        self.prepared += 1

        def loss(alpha):
            self.asked.append(alpha)
            return torch.tensor([alpha, 2 * alpha], dtype=torch.float64)

        return loss


# --- grids --------------------------------------------------------------------------------------


@FEW
@given(RADII, st.integers(1, 60))
def test_a_symmetric_grid_is_exactly_symmetric_and_contains_exactly_zero(radius, k):
    grid = symmetric_grid(radius, 2 * k + 1)
    assert torch.equal(grid, -grid.flip(0))
    assert grid[k] == 0
    assert (grid[-1], grid[0]) == (radius, -radius)
    assert (len(grid), grid.dtype) == (2 * k + 1, torch.float64)
    # equally spaced: every step is radius / k
    torch.testing.assert_close(
        grid.diff(), torch.full((2 * k,), radius / k, dtype=torch.float64), rtol=1e-9, atol=0
    )


@FEW
@given(RADII, st.integers(1, 30))
def test_a_grid_of_4k_plus_1_points_contains_half_its_radius(radius, k):
    grid = symmetric_grid(radius, 4 * k + 1)
    assert float(grid[3 * k]) == pytest.approx(radius / 2, rel=1e-12)


@pytest.mark.parametrize("radius", [0, -1.0, math.inf, math.nan])
def test_a_radius_that_is_not_positive_is_an_error(radius):
    with pytest.raises(ValueError, match=r"`radius` must be positive and finite\. Got"):
        symmetric_grid(radius, 5)


@pytest.mark.parametrize(("n_points", "way_out"), [(4, 5), (12, 13), (2, 3), (1, 3), (0, 3)])
def test_a_symmetric_grid_needs_an_odd_number_of_points(n_points, way_out):
    with pytest.raises(ValueError, match=rf"odd and at least 3.* Got {n_points}: try {way_out}\."):
        symmetric_grid(1.0, n_points)


@FEW
@given(st.floats(1e-6, 1e4) | st.just(0.0), st.integers(4, 120))
def test_a_line_grid_contains_exactly_zero_and_exactly_one(overhang, n_points):
    grid = line_grid(overhang, n_points)
    assert (len(grid), grid.dtype) == (n_points, torch.float64)
    assert 0.0 in grid
    assert 1.0 in grid
    assert (grid[0], grid[-1]) == (-overhang, 1 + overhang)
    assert (grid.diff() > 0).all()
    # symmetric about 1/2: t and 1 - t are both on it
    torch.testing.assert_close(grid, 1 - grid.flip(0), rtol=1e-12, atol=1e-15)
    assert torch.equal(Slice(grid, grid).alphas, grid)  # a slice accepts it


@FEW
@given(st.integers(0, 6), st.integers(1, 8))
def test_a_line_grid_is_equally_spaced_where_zero_and_one_allow_it(overhang, per_unit):
    # (1 + 2 k) units with `per_unit` intervals each
    grid = line_grid(float(overhang), (1 + 2 * overhang) * per_unit + 1)
    torch.testing.assert_close(grid.diff(), torch.full_like(grid[1:], 1 / per_unit))


def test_the_default_line_grid_has_31_points_two_lengths_beyond_either_end():
    grid = line_grid()
    torch.testing.assert_close(grid, torch.arange(-12, 19, dtype=torch.float64) / 6)


def test_without_overhang_the_two_ends_are_enough():
    assert line_grid(0.0, 2).tolist() == [0.0, 1.0]
    assert line_grid(3.0, 4).tolist() == [-3.0, 0.0, 1.0, 4.0]


@pytest.mark.parametrize("overhang", [-0.1, math.inf, math.nan])
def test_a_negative_overhang_is_an_error(overhang):
    with pytest.raises(ValueError, match=r"`overhang` must be finite and not negative\. Got"):
        line_grid(overhang)


@pytest.mark.parametrize(("overhang", "n_points", "least"), [(1.0, 3, 4), (0.0, 1, 2)])
def test_a_line_grid_needs_room_for_its_ends(overhang, n_points, least):
    with pytest.raises(ValueError, match=rf"at least {least} to hold .* Got {n_points}\."):
        line_grid(overhang, n_points)


# --- Slice --------------------------------------------------------------------------------------


def test_a_slice_of_one_batch_may_be_given_flat():
    line = Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert line.losses.tolist() == [[1.0], [2.0], [3.0]]
    assert line.mean.tolist() == [1.0, 2.0, 3.0]


def test_the_mean_is_over_the_batches():
    line = Slice(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 1.5]]))
    assert line.mean.tolist() == [3.0, 0.5]


def test_a_slice_is_float64_on_the_cpu_and_detached():
    line = Slice(
        torch.tensor([0.0, 1.0], requires_grad=True), torch.ones(2, 3, dtype=torch.bfloat16)
    )
    for tensor in (line.alphas, line.losses, line.mean):
        assert (tensor.dtype, tensor.device.type) == (torch.float64, "cpu")
        assert not tensor.requires_grad


def test_non_finite_losses_are_kept_and_counted():
    losses = torch.tensor([[1.0, math.nan], [math.inf, -math.inf], [0.0, 2.0]])
    line = Slice(torch.tensor([-1.0, 0.0, 1.0]), losses)
    assert line.n_nonfinite == 3
    assert torch.equal(line.losses.isfinite(), losses.isfinite())
    assert line.losses[1].tolist() == [math.inf, -math.inf]
    # nor is one averaged away by the finite loss of another batch
    assert line.mean.isfinite().tolist() == [False, False, True]


def test_a_slice_is_frozen():
    line = Slice(torch.tensor([0.0, 1.0]), torch.zeros(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        line.distance = 1.0


def test_a_slice_becomes_plain_numbers():
    line = Slice(
        torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 3.0], [4.0, 6.0]]), 2.5, "eval", "gaussian"
    )
    expected = {
        "alphas": [0.0, 1.0],
        "losses": [[1.0, 3.0], [4.0, 6.0]],
        "mean": [2.0, 5.0],
        "distance": 2.5,
        "mode": "eval",
        "label": "gaussian",
        "n_nonfinite": 0,
    }
    assert json.loads(json.dumps(line.to_dict())) == expected


@pytest.mark.parametrize(
    "shape", [(4,), (2,), (4, 2), (3, 0), (3, 2, 1), (), (1, 3)], ids=lambda shape: f"{shape}"
)
def test_losses_need_one_row_per_alpha(shape):
    with pytest.raises(ValueError, match=r"`losses` must have the shape .* for 3 alphas"):
        Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(shape))


@pytest.mark.parametrize(
    "alphas",
    [
        [1.0, 0.0, -1.0],
        [-1.0, 1.0, 0.0],
        [-1.0, 0.0, 0.0, 1.0],
        [0.0, math.nan],
        [-math.inf, 0.0],
        [[0.0, 1.0]],
        0.0,
    ],
    ids=str,
)
def test_alphas_that_are_not_sorted_finite_and_flat_are_an_error(alphas):
    alphas = torch.tensor(alphas)
    with pytest.raises(ValueError, match="one-dimensional, finite and strictly ascending"):
        Slice(alphas, torch.zeros(alphas.shape[:1] or 1))
    with pytest.raises(ValueError, match="one-dimensional, finite and strictly ascending"):
        evaluate_slice(Counting(), {}, alphas)


@pytest.mark.parametrize("alphas", [[1.0, 2.0], [-1.0, 1.0], [-1.0, 1e-6, 1.0], []], ids=str)
def test_alphas_without_zero_are_an_error(alphas):
    with pytest.raises(ValueError, match=r"must contain 0.*Use symmetric_grid\(radius, n_points\)"):
        Slice(torch.tensor(alphas), torch.zeros(len(alphas)))
    with pytest.raises(ValueError, match=r"must contain 0"):
        evaluate_slice(Counting(), {}, torch.tensor(alphas))


def test_a_bad_grid_costs_no_evaluation():
    objective = Counting()
    with pytest.raises(ValueError, match="must contain 0"):
        evaluate_slice(objective, {}, torch.tensor([1.0, 2.0]))
    assert objective.asked == []


def test_a_numpy_grid_whose_middle_is_rounding_contains_zero():
    alphas = np.linspace(-0.1, 0.1, 23)
    assert alphas[11] != 0  # 1.4e-17
    line = evaluate_slice(Counting(), {}, torch.from_numpy(alphas))
    assert line.alphas[11] == 0
    assert torch.equal(line.alphas[:11], torch.from_numpy(alphas[:11]))


def test_only_one_point_is_taken_for_zero():
    # a grid that is much finer near 0 keeps its points, and stays strictly ascending
    alphas = torch.tensor([-1.0, -1e-12, 0.0, 1e-12, 1.0], dtype=torch.float64)
    assert torch.equal(Slice(alphas, torch.zeros(5)).alphas, alphas)


def test_the_callers_grid_is_left_alone():
    alphas = torch.tensor([-1.0, 1e-17, 1.0], dtype=torch.float64)
    line = Slice(alphas, torch.zeros(3))
    assert (float(line.alphas[1]), float(alphas[1])) == (0.0, 1e-17)


# --- evaluate_slice -----------------------------------------------------------------------------


@FEW
@given(st.integers(1, 20), st.floats(0.1, 10))
def test_a_slice_costs_exactly_n_points_evaluations(k, radius):
    objective, grid = Counting(), symmetric_grid(radius, 2 * k + 1)
    line = evaluate_slice(objective, objective.params, grid)
    assert sorted(objective.asked) == grid.tolist()  # each once, alpha = 0 among them
    assert objective.prepared == 1
    assert torch.equal(line.losses, torch.stack([grid, 2 * grid], dim=1))


def test_the_distance_is_the_l2_norm_of_the_direction():
    direction = {"w": torch.tensor([3.0, 4.0], dtype=torch.float16), "b": torch.tensor(12.0)}
    assert evaluate_slice(Counting(), direction, symmetric_grid(1.0, 3)).distance == 13.0


def test_the_end_of_a_slice_is_at_the_requested_distance():
    # loss-landscapes ended at 1/d: here ||w(alpha) - w(0)|| = alpha * distance
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    away = FunctionObjective(lambda p: torch.linalg.vector_norm(p["w"] - start), {"w": start})
    line = evaluate_slice(away, {"w": torch.tensor([3.0, 4.0])}, symmetric_grid(2.0, 5))
    torch.testing.assert_close(line.mean, line.alphas.abs() * line.distance, rtol=1e-12, atol=0)
    assert line.mean[-1] == 10.0


def test_the_label_and_the_objectives_mode_are_kept():
    objective = Counting()
    grid = symmetric_grid(1.0, 3)
    assert evaluate_slice(objective, {}, grid).mode == "function"
    objective.mode = "recalibrated"
    line = evaluate_slice(objective, {}, grid, label="uniform@norm")
    assert (line.mode, line.label) == ("recalibrated", "uniform@norm")
    assert evaluate_slice(bowl(), {}, grid).label == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_data(bad):
    objective = FunctionObjective(
        lambda p: torch.where(p["x"] > 0.6, bad, p["x"] ** 2), {"x": torch.tensor(0.0)}
    )
    line = evaluate_slice(objective, {"x": torch.tensor(1.0)}, symmetric_grid(1.0, 5))
    assert line.n_nonfinite == 1
    assert str(line.mean[-1].item()) == str(bad)
    assert line.mean[:-1].tolist() == [1.0, 0.25, 0.0, 0.25]


def test_a_loss_that_raises_is_an_error_and_passed_on():
    def explode(p):
        if p["x"] > 0.5:
            raise FloatingPointError("the user's own words")
        return p["x"]

    params, direction = {"x": torch.tensor(0.0)}, {"x": torch.tensor(1.0)}
    with pytest.raises(FloatingPointError, match="the user's own words"):
        evaluate_slice(FunctionObjective(explode, params), direction, symmetric_grid(1.0, 5))
    assert (params["x"], direction["x"]) == (0.0, 1.0)


def test_walking_leaves_the_params_and_the_direction_alone():
    def vandal(p):
        loss = (p["w"] ** 2).sum()
        p["w"].fill_(99)  # even a loss that writes to what it is given
        return loss

    params = {"w": torch.tensor([1.0, 2.0], requires_grad=True)}
    direction = {"w": torch.tensor([3.0, 4.0], requires_grad=True)}
    objective = FunctionObjective(vandal, params)
    evaluate_slice(objective, direction, symmetric_grid(1.0, 5))
    for tensors in (params, objective.params):
        assert tensors["w"].tolist() == [1.0, 2.0]
    assert direction["w"].tolist() == [3.0, 4.0]
    assert params["w"].grad is None
    assert direction["w"].grad is None


def test_the_batches_of_all_processes_are_gathered_once_per_slice():
    class Distributed(Counting):
        gathered = 0

        def gather(self, losses):
            self.gathered += 1
            return torch.cat([losses, losses + 1], dim=1)

    objective = Distributed()
    line = evaluate_slice(objective, {}, symmetric_grid(1.0, 3))
    assert objective.gathered == 1
    assert line.losses.tolist() == [
        [-1.0, -2.0, 0.0, -1.0],
        [0.0, 0.0, 1.0, 1.0],
        [1.0, 2.0, 2.0, 3.0],
    ]


@FEW
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=4), st.integers(-8, 8))
def test_a_slice_of_a_bowl_is_its_parabola(direction, start):
    # |w + a d|^2 = |w|^2 + 2 a w.d + a^2 |d|^2, exact in small integers
    w = torch.full((len(direction),), float(start))
    d = torch.tensor(direction, dtype=torch.float32)
    line = evaluate_slice(bowl(w=w), {"w": d}, symmetric_grid(2.0, 9))
    a = line.alphas
    assert torch.equal(line.mean, float(w @ w) + 2 * a * float(w @ d) + a**2 * float(d @ d))


def test_the_same_alpha_gives_the_same_bits_on_any_grid():
    objective = FunctionObjective(lambda p: p["w"].sin().sum(), {"w": torch.randn(50)})
    direction = {"w": torch.randn(50)}
    coarse = evaluate_slice(objective, direction, symmetric_grid(1.0, 5))
    fine = evaluate_slice(objective, direction, symmetric_grid(1.0, 9))
    assert torch.equal(coarse.losses, fine.losses[::2])


# --- FunctionObjective --------------------------------------------------------------------------


def test_the_objective_stands_at_a_copy():
    w = torch.tensor([1.0, -2.0])
    objective = bowl(w=w)
    w.zero_()
    assert objective.losses().tolist() == [5.0]


def test_losses_without_a_direction_are_those_of_the_point():
    # 1 + 4
    objective = bowl()
    direction = {"w": torch.tensor([1.0, 1.0])}
    assert objective.losses().tolist() == objective.losses(direction, 0.0).tolist() == [5.0]
    # (1 + 2)^2 + (-2 + 2)^2
    assert objective.losses(direction, 2.0).tolist() == [9.0]


def test_names_the_direction_lacks_stay_where_they_are():
    objective = bowl(a=torch.tensor([1.0]), b=torch.tensor([10.0]))
    # (1 + 3)^2 + 10^2
    assert objective.losses({"a": torch.tensor([1.0])}, 3.0).tolist() == [116.0]


def test_at_zero_the_direction_does_not_count_even_where_it_is_infinite():
    objective = bowl()
    assert objective.losses({"w": torch.tensor([math.inf, math.nan])}, 0.0).tolist() == [5.0]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda p: p["w"].sum(), [-1.0]),
        (lambda p: p["w"] * 2, [2.0, -4.0]),
        (lambda p: 7, [7.0]),
    ],
    ids=["scalar", "per batch", "number"],
)
def test_a_loss_is_a_scalar_or_one_per_batch(loss, expected):
    objective = FunctionObjective(loss, {"w": torch.tensor([1.0, -2.0])})
    losses = objective.losses()
    assert (losses.dtype, losses.tolist()) == (torch.float64, expected)
    assert not losses.requires_grad


@FEW
@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    st.integers(-9, 9),
    st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0]),
)
def test_the_gradient_of_a_bowl_is_twice_the_point(w, d, alpha):
    w = torch.tensor(w, dtype=torch.float32)
    direction = {"w": torch.full_like(w, d)}
    _, gradient = bowl(w=w).gradient(direction, alpha)
    assert torch.equal(gradient["w"], 2 * (w + alpha * d))


def test_the_gradient_is_that_of_the_mean_over_batches():
    # losses x y and x y^2: mean gradient ((y + y^2) / 2, (x + 2 x y) / 2) at (3, 2) = (3, 7.5)
    objective = FunctionObjective(
        lambda p: torch.stack([p["x"] * p["y"], p["x"] * p["y"] ** 2]),
        {"x": torch.tensor(3.0), "y": torch.tensor(2.0)},
    )
    losses, gradient = objective.gradient()
    assert losses.tolist() == [6.0, 12.0]
    assert (gradient["x"].item(), gradient["y"].item()) == (3.0, 7.5)


@FEW
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_the_losses_beside_a_gradient_are_bit_equal_to_the_losses(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    w, d = (torch.randn(40, generator=generator) for _ in range(2))
    objective = FunctionObjective(
        lambda p: (p["w"].sin() * p["w"].exp()).reshape(4, 10).mean(dim=1), {"w": w}
    )
    losses, _ = objective.gradient({"w": d}, alpha)
    assert torch.equal(losses, objective.losses({"w": d}, alpha))
    assert torch.equal(losses, objective.along({"w": d})(alpha))
    assert not losses.requires_grad


def test_a_parameter_the_loss_does_not_use_has_gradient_zero():
    objective = FunctionObjective(
        lambda p: p["w"].sum(), {"w": torch.ones(2), "idle": torch.ones(3)}
    )
    _, gradient = objective.gradient()
    assert gradient["w"].tolist() == [1.0, 1.0]
    assert gradient["idle"].tolist() == [0.0, 0.0, 0.0]


def test_a_constant_loss_is_flat_not_an_error():
    objective = FunctionObjective(lambda p: torch.tensor([1.0, 2.0]), {"w": torch.ones(2)})
    losses, gradient = objective.gradient()
    assert losses.tolist() == [1.0, 2.0]
    assert gradient["w"].tolist() == [0.0, 0.0]


def test_gradients_work_under_no_grad_and_leave_no_trace():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    objective = bowl(w=w)
    with torch.no_grad():
        _, gradient = objective.gradient()
        assert not torch.is_grad_enabled()
    assert gradient["w"].tolist() == [2.0, -4.0]
    assert w.grad is None
    assert not objective.params["w"].requires_grad
    assert objective.losses().tolist() == [5.0]


def test_the_gradient_of_a_raising_loss_raises():
    def explode(p):
        raise FloatingPointError("boom")

    with pytest.raises(FloatingPointError, match="boom"):
        FunctionObjective(explode, {"w": torch.ones(1)}).gradient()


def every_entry(objective, direction):
    yield lambda: objective.along(direction)
    yield lambda: objective.losses(direction, 1.0)
    yield lambda: objective.gradient(direction, 1.0)
    yield lambda: evaluate_slice(objective, direction, symmetric_grid(1.0, 3))
    yield lambda: check_direction(direction, objective.params)


def test_a_direction_with_an_unknown_name_is_an_error():
    objective = bowl(**{f"w{k}": torch.ones(1) for k in range(6)})
    for call in every_entry(objective, {"v": torch.ones(1)}):
        with pytest.raises(ValueError, match=r"Got 'v'; known are \['w0', .*'w4'\] \.\.\.\."):
            call()


@pytest.mark.parametrize("shape", [(3,), (1,), (), (2, 2)], ids=str)
def test_a_direction_of_another_shape_is_an_error_not_a_broadcast(shape):
    for call in every_entry(bowl(), {"w": torch.ones(shape)}):
        with pytest.raises(ValueError, match=r"shapes of the parameters\. Got .* 'w', .* \(2,\)"):
            call()


@FEW
@given(st.integers(1, 20), st.integers(-9, 9))
def test_scaling_the_direction_is_scaling_alpha(k, exponent):
    scale = 2.0**exponent  # a power of two: both walks reach the same numbers
    objective = FunctionObjective(lambda p: p["x"].exp(), {"x": torch.tensor(0.5).double()})
    grid = symmetric_grid(1.0, 2 * k + 1)
    wide = evaluate_slice(objective, {"x": torch.tensor(scale)}, grid)
    far = evaluate_slice(objective, {"x": torch.tensor(1.0)}, scale * grid)
    assert torch.equal(wide.losses, far.losses)
    assert wide.distance == scale * far.distance
