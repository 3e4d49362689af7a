"""The cosine of two steps in a row, over the layers that are as they were."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.measures.steps import successive_cosine


@given(st.floats(0, 2 * math.pi), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_cosine_of_two_steps_is_that_of_the_angle_between(angle, first, second):
    start = {"w": torch.zeros(2, dtype=torch.double)}
    middle = {"w": torch.tensor([first, 0.0], dtype=torch.double)}
    turned = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.double)
    end = {"w": middle["w"] + second * turned}
    assert math.isclose(successive_cosine(start, middle, end, ["w"]), math.cos(angle), abs_tol=1e-9)


def test_a_layer_that_has_grown_is_left_out():
    start = {"w": torch.zeros(2), "grown": torch.zeros(1)}
    middle = {"w": torch.ones(2), "grown": torch.zeros(3)}
    end = {"w": torch.zeros(2), "grown": torch.ones(3)}
    assert math.isclose(successive_cosine(start, middle, end, ["w", "grown"]), -1.0)
    assert math.isnan(successive_cosine(start, middle, end, ["grown"]))
