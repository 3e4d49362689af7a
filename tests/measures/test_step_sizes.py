"""The step of an optimizer as a direction, its sizes, and its cosine with the one before."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.measures.steps import Update, measure_step, successive_cosine
from lightning_landscape.reporting.scalars import step_scalars

near = functools.partial(pytest.approx, rel=1e-5)


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


def test_an_update_knows_its_end_where_the_sum_has_lost_it():
    before, after = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1e-10])}
    update = Update(before, after)
    assert float(before["w"] + update["w"]) == 0.0
    assert torch.equal(update.end["w"], after["w"])


def test_an_update_of_some_names_moves_those_alone():
    before, after = (
        {"a": torch.zeros(1), "b": torch.zeros(1)},
        {"a": torch.ones(1), "b": torch.ones(1)},
    )
    assert set(Update(before, after, ["b"])) == {"b"}
    assert Update(before, after, ["b"]).moves
    assert not Update(before, before).moves


def test_sizes_are_of_layers_by_name_and_unknown_for_weights_of_zero():
    w = {"a": torch.tensor([[3.0, 4.0]]), "bias": torch.ones(2), "zero": torch.zeros(1, 2)}
    step = {name: weight + 1 for name, weight in w.items()}
    gradient = {"a": torch.tensor([[4.0, -3.0]]), "bias": torch.ones(2), "zero": torch.ones(1, 2)}
    sizes = measure_step(w, step, gradient, w)
    assert sizes.names == ("a", "zero")
    assert sizes.relative_update.tolist() == near([math.sqrt(2) / 5, math.nan], nan_ok=True)
    assert sizes.relative_gradient.tolist() == near([1, math.nan], nan_ok=True)
    assert sizes.weight_gradient_cosine.tolist() == near([0, math.nan], nan_ok=True)
    assert math.isnan(sizes.successive_cosine)


def test_of_many_layers_the_scalars_show_the_most_extreme():
    w = {"up": torch.tensor([[3.0, 4.0]]), "down": torch.tensor([[0.0, 1.0]])}
    step = {"up": 1.1 * w["up"], "down": 1.2 * w["down"]}
    gradient = {"up": torch.tensor([[1.0, 0.0]]), "down": torch.tensor([[0.0, -0.5]])}
    assert step_scalars(measure_step(w, step, gradient, w), "net/") == {
        "net/step/relative_update": near(0.2),
        "net/step/relative_gradient": near(0.5),
        "net/step/weight_gradient_cosine": near(-1),  # the other is .6
        "net/step/successive_cosine": near(math.nan, nan_ok=True),
    }


def test_the_cosine_of_successive_steps_is_over_everything_that_moves():
    # steps (1, 0) and (1, 1): 45 degrees
    a = {"u": torch.tensor([0.0]), "v": torch.tensor([0.0])}
    b = {"u": torch.tensor([1.0]), "v": torch.tensor([0.0])}
    c = {"u": torch.tensor([2.0]), "v": torch.tensor([1.0])}
    assert successive_cosine(a, b, c, a) == near(math.sqrt(0.5))
    assert math.isnan(successive_cosine(a, a, c, a))
    assert math.isnan(successive_cosine({}, b, c, a))
