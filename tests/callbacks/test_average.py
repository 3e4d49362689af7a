"""The average by itself: every kind of mean, parameters that come and go, what it refuses."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_landscape import SWA
from lightning_landscape.callbacks.average import WeightAverage


def line(value=0.0, width=1):
    module = nn.Linear(width, 1, bias=False)
    module.weight.data.fill_(value)
    return module


def taken(average, values):
    module = line()
    for value in values:
        module.weight.data.fill_(value)
        average.update(module)
    return average


def test_weights_that_change_their_precision_are_averaged():
    average, module = WeightAverage(), line(1.0)
    average.update(module)
    average.update(module.double())
    assert average.weights["weight"].item() == 1.0


numbers = st.floats(-100, 100, width=32, allow_subnormal=False)
values = st.lists(numbers, min_size=1, max_size=12)


@given(values, st.integers(1, 6))
def test_the_latest_average_is_the_mean_of_the_last_sets(values, window):
    average = taken(WeightAverage("latest", window=window), values)
    last = torch.tensor(values, dtype=torch.float64)[-window:]
    expected = pytest.approx(last.mean().item(), rel=1e-6, abs=1e-6 * float(last.abs().max()))
    assert average.weights["weight"].item() == expected


@given(values, values, st.integers(1, 4))
def test_a_resumed_latest_average_is_that_of_the_whole_run(before, after, window):
    whole = taken(WeightAverage("latest", window=window), before + after)
    half = taken(WeightAverage("latest", window=window), before)
    resumed = WeightAverage("latest", window=window)
    resumed.load_state_dict(pickle.loads(pickle.dumps(half.state_dict())))
    taken(resumed, after)
    assert torch.equal(resumed.weights["weight"], whole.weights["weight"])


def test_the_latest_average_holds_one_copy_more_than_its_window():
    average = taken(WeightAverage("latest", window=3), range(7))
    assert average.weights["weight"].item() == 5.0  # the mean of 4, 5, 6
    state = average.state_dict()
    held = [state["weights"], *state["sets"]]
    assert len({weights["weight"].data_ptr() for weights in held}) == 4


@pytest.mark.parametrize("average", ["equal", "latest", lambda a, new, n: a + (new - a) / (n + 1)])
def test_a_parameter_that_arrives_late_has_the_mean_of_its_own_values(average):
    module, swa = nn.ModuleDict({"old": line()}), WeightAverage(average, window=20)
    for value in range(10):
        module["old"].weight.data.fill_(value)
        swa.update(module)
    module["new"] = line()
    for value in (0.0, 1.0):
        module["new"].weight.data.fill_(value)
        swa.update(module)
    assert swa.weights["new.weight"].item() == 0.5
    assert swa.weights["old.weight"].item() == pytest.approx((sum(range(10)) + 18) / 12)


def test_a_parameter_that_is_gone_or_has_another_shape_is_forgotten():
    module, swa = nn.ModuleDict({"a": line(1.0), "b": line(1.0)}), WeightAverage()
    swa.update(module)
    module["b"] = line(3.0, width=2)
    del module["a"]
    swa.update(module)
    assert list(swa.weights) == ["b.weight"]
    assert swa.weights["b.weight"].tolist() == [[3.0, 3.0]]
    swa.apply_to(module)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (line(width=2), r"'weight' has the shape \(1, 2\), in the average it has \(1, 1\)"),
        (nn.Linear(1, 1), r"The average lacks \['bias'\]"),
        (
            nn.Sequential(line()),
            r"were averaged, and no others. It lacks \['weight'\]. Is Sequential",
        ),
    ],
    ids=["other shapes", "layers more", "other names"],
)
def test_an_average_of_another_module_is_refused_before_anything_moves(other, message):
    swa = SWA(0)
    swa.update(line(7.0))
    before = copy.deepcopy(other.state_dict())
    for use in (lambda: swa.apply_to(other), lambda: swa.averaged(other).__enter__()):
        with pytest.raises(ValueError, match=message):
            use()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_every_buffer_is_put_back_whatever_is_done_inside():
    module = nn.BatchNorm1d(2)
    average = WeightAverage()
    average.update(module)
    known = {"statistics": {"running_mean": torch.ones(2)}, "statistics_of": 1}
    average.load_state_dict(average.state_dict() | known)
    buffer, before = module.running_mean, copy.deepcopy(module.state_dict())
    with average.held(module):
        assert module.running_mean.tolist() == [1, 1]
        module(torch.randn(4, 2))
        module.running_var = torch.zeros(2)
        module.register_buffer("more", torch.zeros(1))
    assert module.running_mean is buffer
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
