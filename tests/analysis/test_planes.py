"""Planes: the algebra of three points, and losses that are those of every single point."""

import html
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_landscape import FunctionObjective, probing, sample_direction, symmetric_grid
from lightning_landscape.analysis.planes import Plane, evaluate_plane, measure_plane
from lightning_landscape.measures.plane import plane_through
from lightning_landscape.reporting.arrays import npz_content
from lightning_landscape.reporting.records import Record


def square(module, batch):
    return module(batch).square().mean()


def weights(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


numbers = st.floats(-10, 10, allow_subnormal=False)
point = st.lists(numbers, min_size=4, max_size=4)


@given(point, point, point)
def test_the_three_points_lie_where_the_basis_says(a, b, c):
    a, b, c = (torch.tensor(p, dtype=torch.float64) for p in (a, b, c))
    area = (b - a).norm() ** 2 * (c - a).norm() ** 2 - ((b - a) @ (c - a)) ** 2
    if area < 1e-6:
        return
    plane = plane_through({"w": a}, {"w": b}, {"w": c})
    assert float(plane.d1["w"] @ plane.d2["w"]) == pytest.approx(0, abs=1e-9)
    for corner, (x, y) in zip((a, b, c), plane.points.tolist(), strict=True):
        torch.testing.assert_close(a + x * plane.d1["w"] + y * plane.d2["w"], corner)


def test_an_objective_of_ones_own_may_leave_out_its_mode():
    class Bowl:
        params = weights(0, 0)

        def at(self, params):
            return FunctionObjective(lambda p: p["w"].square().sum(), params)

    grid = symmetric_grid(1.0, 3)
    plane = evaluate_plane(Bowl(), weights(1, 0), weights(0, 1), grid, grid)
    assert plane.mode == "function"
    assert plane.mean[2].tolist() == [2.0, 1.0, 2.0]


def test_a_projection_says_how_far_off_the_plane_a_point_is():
    plane = plane_through(weights(0, 0, 0), weights(2, 0, 0), weights(0, 3, 0))
    (x, y), distance = plane.project(weights(1, -1, 5))
    assert (x, y) == pytest.approx((1, -1))
    assert distance == pytest.approx(5)


def test_points_on_one_line_span_no_plane():
    with pytest.raises(ValueError, match="must not lie on one line"):
        plane_through(weights(0, 0), weights(1, 1), weights(3, 3))


def test_two_points_that_are_the_same_span_no_plane():
    with pytest.raises(ValueError, match="must be three different sets"):
        plane_through(weights(1, 1), weights(1, 1), weights(3, 4))


def test_every_point_of_a_plane_is_what_the_loss_is_there(generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    batches = [torch.randn(5, 3), torch.randn(5, 3)]
    grid = symmetric_grid(1.0, 5)
    with probing(net, batches, loss_fn=square) as objective:
        d1, d2 = (sample_direction(objective.params, "gaussian", generator=generator) for _ in "ab")
        plane = evaluate_plane(objective, d1, d2, grid, grid)
        centre = objective.losses()
    assert plane.losses.shape == (5, 5, 2)
    for i, a in enumerate(grid.tolist()):
        for j, b in enumerate(grid.tolist()):
            at = {n: before[n] + a * d1[n] + b * d2[n] for n in before}
            expected = [
                float(square(lambda x, at=at: torch.func.functional_call(net, at, x), x))
                for x in batches
            ]
            assert plane.losses[i, j].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(plane.losses[2, 2], centre)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)


def test_a_killed_plane_goes_on_after_its_last_row(tmp_path):
    seen = []

    def loss(p):
        seen.append(float(p["w"][0]))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return (p["w"] ** 2).sum()

    grid = symmetric_grid(1.0, 3)
    arguments = weights(1, 0), weights(0, 1), grid, grid
    with pytest.raises(KeyboardInterrupt):
        evaluate_plane(FunctionObjective(loss, weights(0, 0)), *arguments, rows=tmp_path / "rows")
    plane = evaluate_plane(
        FunctionObjective(loss, weights(0, 0)), *arguments, rows=tmp_path / "rows"
    )
    assert len(seen) == 5 + 6  # the first row was kept
    assert plane.mean.tolist() == [[2, 1, 2], [1, 0, 1], [2, 1, 2]]


def test_a_folder_of_another_plane_is_refused(tmp_path):
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum(), weights(0, 0))
    grid = symmetric_grid(1.0, 3)
    evaluate_plane(bowl, weights(1, 0), weights(0, 1), grid, grid, rows=tmp_path)
    with pytest.raises(ValueError, match="holds rows of another one"):
        evaluate_plane(bowl, weights(2, 0), weights(0, 1), grid, grid, rows=tmp_path)


def test_rows_in_the_place_of_a_file_are_refused(tmp_path):
    (tmp_path / "rows").write_text("a file")
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum(), weights(0, 0))
    grid = symmetric_grid(1.0, 3)
    with pytest.raises(ValueError, match=r"`rows` must be a folder\. .*rows is a file"):
        evaluate_plane(bowl, weights(1, 0), weights(0, 1), grid, grid, rows=tmp_path / "rows")


@pytest.mark.parametrize("alphas", [[1.0, 0.0], [], [[0.0]], [0.0, float("nan")]])
def test_an_axis_is_a_sorted_grid(alphas):
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum(), weights(0, 0))
    with pytest.raises(
        ValueError, match="`alphas1` must be one-dimensional and strictly ascending"
    ):
        evaluate_plane(
            bowl, weights(1, 0), weights(0, 1), torch.tensor(alphas), torch.tensor([0.0])
        )


def test_a_saved_plane_is_read_back(tmp_path):
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum(), weights(0, 0))
    grid = symmetric_grid(1.0, 3)
    plane = evaluate_plane(bowl, weights(1, 0), weights(0, 2), grid, grid)
    plane.save(tmp_path / "plane.npz")
    assert Plane.load(tmp_path / "plane.npz").to_dict() == plane.to_dict()
    assert "Its least loss is 0, at (0, 0)." in plane.summary()


def test_a_plane_comes_back_from_its_plain_numbers():
    losses = torch.randn(3, 2, 4, dtype=torch.float64)
    losses[0, 0, 0] = math.inf
    plane = Plane(symmetric_grid(1.0, 3), torch.tensor([0.0, 2.0]).double(), losses, "eval", (2, 3))
    again = Plane.from_dict(json.loads(json.dumps(plane.to_dict())))
    assert torch.equal(again.losses, losses)
    assert again.to_dict() == plane.to_dict()


def test_the_record_of_a_plane_round_trips_with_its_points():
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum(), weights(0, 0))
    grid = symmetric_grid(1.0, 3)
    plane = evaluate_plane(bowl, weights(1, 0), weights(0, 1), grid, grid)
    record = plane.record({"SWA": (0.5, -0.5)}, "mine")
    assert Record.from_bytes(record.to_bytes()) == record
    assert (record.kind, record.name, record.data["unit"]) == ("plane", "mine", "L2 distance")
    assert record.data["mean"] == [[2, 1, 2], [1, 0, 1], [2, 1, 2]]
    assert record.data["points"] == {"SWA": [0.5, -0.5]}
    assert "SWA lies at (0.5, -0.5)" in record.data["words"]
    assert "<h3>Plane</h3>" in html.unescape(plane._repr_html_())


def test_the_loss_said_of_a_point_is_that_of_its_very_weights(tmp_path):
    net, x = nn.Linear(2, 1, bias=False), torch.eye(2)
    corners = [{"weight": torch.tensor([w])} for w in ([3.0, 4.0], [0.0, 0.0], [10.0, 0.0])]
    plane, basis = measure_plane(net, [x, 2 * x], corners, n=2, loss_fn=square)
    # the mean of (s w1)^2 and (s w2)^2 is s^2 |w|^2 / 2
    assert plane.point_losses.tolist() == [[12.5, 50.0], [0.0, 0.0], [50.0, 200.0]]
    names = dict(zip(("last", "swa", "other"), basis.points.tolist(), strict=True))
    words = plane.summary(names)
    assert "last lies at (0, 0); the loss there is 31.25." in words
    assert "swa lies at (5, 0); the loss there is 0." in words
    assert "other lies at (-1, 8); the loss there is 125." in words
    plane.save(tmp_path / "plane.npz")
    assert Plane.load(tmp_path / "plane.npz").summary(names) == words


def test_the_cost_of_a_plane_counts_its_points(capsys):
    corners = [{"weight": torch.tensor([w])} for w in ([3.0, 4.0], [0.0, 0.0], [10.0, 0.0])]
    net = nn.Linear(2, 1, bias=False)
    measure_plane(net, [torch.eye(2)], corners, n=2, loss_fn=square, progress=True)
    assert "7 evaluations of 1 batch =" in capsys.readouterr().err


def test_a_plane_without_exact_losses_says_none_of_its_points(tmp_path):
    grid = symmetric_grid(1.0, 3)
    plane = Plane(grid, grid, torch.ones(3, 3, 2, dtype=torch.float64))
    assert plane.summary({"a": (0.4, 0.4)}).endswith("\na lies at (0.4, 0.4).")
    old = {name: getattr(plane, name) for name in ("alphas1", "alphas2", "losses", "mode")}
    content = npz_content(
        {**old, "distances": (1.0, 1.0)}
    )  # as it was written before points had losses
    (tmp_path / "old.npz").write_bytes(content)
    assert Plane.load(tmp_path / "old.npz").to_dict() == plane.to_dict()


def test_a_file_that_is_no_plane_is_named(tmp_path):
    (tmp_path / "plane.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"must be a file that Plane\.save wrote"):
        Plane.load(tmp_path / "plane.npz")
