"""Checkpoints of a run: their places on a plane, and the signs of their weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape import layer_sign_agreement, plane_through, project_trajectory


def weights(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


PLANE = plane_through(weights(0, 0, 0), weights(2, 0, 0), weights(1, 1, 0))


def test_the_points_of_a_plane_are_shown_whole():
    path = project_trajectory(PLANE, [weights(2, 0, 0), weights(1, 1, 0)])
    assert path.points.tolist() == [[2, 0], [1, 1]]
    assert path.shown.tolist() == pytest.approx([1, 1])


def test_nothing_is_shown_of_the_origin():
    path = project_trajectory(PLANE, [weights(0, 0, 0)])
    assert math.isnan(path.shown[0])


@given(st.lists(st.floats(-9, 9, allow_subnormal=False), min_size=3, max_size=3))
def test_the_distance_is_split_by_pythagoras(point):
    path = project_trajectory(PLANE, [weights(*point)])
    whole = math.hypot(*point)
    split = math.hypot(*path.points[0].tolist(), float(path.distances[0]))
    assert split == pytest.approx(whole, abs=1e-6)


def test_signs_are_compared_layer_by_layer():
    a = {"first": torch.tensor([1.0, -2.0]), "second": torch.tensor([1.0])}
    b = {"first": torch.tensor([2.0, 2.0]), "second": torch.tensor([-1.0])}
    assert layer_sign_agreement(a, b) == {"first": 0.5, "second": 0.0}


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="must name the same parameters"):
        layer_sign_agreement({"a": torch.ones(1)}, {"b": torch.ones(1)})
