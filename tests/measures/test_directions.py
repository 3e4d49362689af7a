"""Random directions: how long they are, what stays still, and what they depend on."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_landscape.measures.directions import DISTRIBUTIONS, sample_direction, split_family
from lightning_landscape.params import l2_norm

FEW = settings(max_examples=30, deadline=None)
FAMILIES = ["gaussian", "uniform", "rademacher", "sign"]
LENGTHS = ["filter", "layer", "model", "none"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def params_of(module):
    return dict(module.named_parameters())


def row_norms(tensor):
    """The naive reference: a loop over rows; below two dimensions the tensor is one row."""
    rows = list(tensor.detach()) if tensor.ndim >= 2 else [tensor.detach()]
    squares = [sum(abs(x) ** 2 for x in row.flatten().tolist()) for row in rows]
    return torch.tensor([math.sqrt(square) for square in squares])


def whole_norm(*tensors):
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def net_with_norms():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([3.0, 0.0, 4.0]))
    return net


# --- length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "weight",
    [
        weights(4, 3, 3, 2),
        weights(5, 4),
        weights(10, 3),
        weights(4, 3).T,
        weights(2, 3, 4, 4).to(memory_format=torch.channels_last),
        weights(7),
        weights(()),
        torch.full((1, 1), -3.0),
    ],
    ids=["conv", "linear", "embedding", "transposed", "channels_last", "1-D", "0-D", "single"],
)
def test_filter_every_row_is_as_long_as_that_row_of_the_weights(family, weight):
    direction = sample_direction({"w": weight}, family, generator=seeded())["w"]
    torch.testing.assert_close(row_norms(direction), row_norms(weight), rtol=1e-5, atol=0)


@FEW
@given(
    st.lists(st.integers(1, 4), max_size=4),
    st.integers(0, 2**31),
    st.floats(1e-3, 1e3),
    st.sampled_from(FAMILIES),
)
def test_filter_holds_for_any_shape_and_size(shape, seed, size, family):
    weight = weights(*shape, seed=seed) * size if shape else weights((), seed=seed) * size
    direction = sample_direction({"w": weight}, family, generator=seeded(seed))["w"]
    torch.testing.assert_close(row_norms(direction), row_norms(weight), rtol=1e-5, atol=0)


def test_filter_treats_a_real_networks_layers_row_by_row():
    params = params_of(nn.ModuleDict({"c": nn.Conv2d(3, 4, 3), "e": nn.Embedding(6, 2)}))
    direction = sample_direction(params, "gaussian", generator=seeded())
    for name, weight in params.items():
        torch.testing.assert_close(row_norms(direction[name]), row_norms(weight))


def test_layer_gives_each_tensor_the_norm_of_its_weights():
    params = {"a": weights(4, 3), "b": weights(5, seed=2) * 10, "c": torch.tensor(-2.0)}
    direction = sample_direction(params, "gaussian", generator=seeded(), normalize="layer")
    for name, weight in params.items():
        assert whole_norm(direction[name]) == pytest.approx(whole_norm(weight), rel=1e-5)
    # and not each row: the two would only agree by accident
    assert not torch.allclose(row_norms(direction["a"]), row_norms(params["a"]), rtol=1e-2)


def test_model_gives_the_whole_direction_the_norm_of_the_group():
    net = net_with_norms()
    params = params_of(net)
    everything = sample_direction(params, "gaussian", generator=seeded(), normalize="model")
    assert whole_norm(*everything.values()) == pytest.approx(whole_norm(*params.values()), rel=1e-5)
    norms = sample_direction(
        params, "gaussian@norm", module=net, generator=seeded(), normalize="model"
    )
    assert whole_norm(*norms.values()) == pytest.approx(5.0, rel=1e-5)  # (3, 0, 4) and a zero bias


@pytest.mark.parametrize("family", FAMILIES)
def test_none_gives_unit_length(family):
    params = {"a": weights(4, 3) * 100, "b": weights(5)}
    direction = sample_direction(params, family, generator=seeded(), normalize="none")
    assert whole_norm(*direction.values()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("normalize", LENGTHS)
def test_lengths_do_not_turn_a_one_row_direction(normalize):
    # every normalisation only rescales: for one row all four are parallel
    weight = {"w": weights(50)}
    raw = DISTRIBUTIONS["gaussian"](weight["w"], seeded())
    direction = sample_direction(weight, "gaussian", generator=seeded(), normalize=normalize)["w"]
    assert torch.cosine_similarity(raw, direction, dim=0) == pytest.approx(1.0, abs=1e-6)


# --- zero rows and fresh layers -----------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_zero_weights_does_not_move(family, normalize):
    weight = weights(4, 3)
    weight[[0, 2]] = 0
    direction = sample_direction({"w": weight}, family, generator=seeded(), normalize=normalize)
    moves = direction["w"].abs().amax(dim=1) > 0
    assert moves.tolist() == [False, True, False, True]


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_batch_norm_is_safe_and_not_hidden(family, normalize):
    # gain 1, bias 0: the bias cannot move relatively, the gain must
    net = nn.BatchNorm1d(5)
    direction = sample_direction(
        params_of(net), family, module=net, generator=seeded(), normalize=normalize
    )
    assert direction["bias"].tolist() == [0.0] * 5
    assert whole_norm(direction["weight"]) == pytest.approx(math.sqrt(5), rel=1e-5)


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("zeros", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(())], ids=str)
def test_all_zero_weights_give_a_zero_direction_not_a_nan(zeros, normalize):
    direction = sample_direction({"w": zeros}, "gaussian", generator=seeded(), normalize=normalize)
    assert torch.equal(direction["w"], zeros)


@pytest.mark.parametrize("normalize", LENGTHS)
def test_an_empty_tensor_is_carried_along(normalize):
    params = {"empty": torch.zeros(0, 3), "flat": torch.zeros(3, 0), "w": weights(2, 2)}
    direction = sample_direction(params, "gaussian", generator=seeded(), normalize=normalize)
    assert [tuple(d.shape) for d in direction.values()] == [(0, 3), (3, 0), (2, 2)]
    assert all(d.isfinite().all() for d in direction.values())


@pytest.mark.parametrize("normalize", LENGTHS)
def test_the_sign_family_leaves_zero_weights_alone(normalize):
    weight = {"w": torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 0.0]])}
    direction = sample_direction(weight, "sign", generator=seeded(), normalize=normalize)["w"]
    assert torch.equal(direction == 0, weight["w"] == 0)


# --- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_a_direction_has_the_dtype_and_shape_of_the_weights(dtype, normalize):
    params = {"a": weights(3, 4, dtype=dtype), "b": weights(2, dtype=dtype)}
    direction = sample_direction(params, "gaussian", generator=seeded(), normalize=normalize)
    for name, weight in params.items():
        assert (direction[name].dtype, direction[name].shape) == (dtype, weight.shape)
        assert not direction[name].requires_grad


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_half_types_survive_norms_above_their_range(dtype, unit, normalize):
    # 40000 weights of 1000: norm 200 * 1000, above 65504; no entry of the direction is
    weight = torch.full((40_000,), 1000.0, dtype=dtype)
    direction = sample_direction({"w": weight}, "gaussian", generator=seeded(), normalize=normalize)
    assert direction["w"].isfinite().all()
    # each entry is rounded by at most half a unit, so the norm is too
    length = whole_norm(direction["w"])
    assert length == pytest.approx(whole_norm(weight), rel=unit / 2 + 1e-5)


def test_float64_weights_get_float64_accuracy():
    weight = weights(6, 5, dtype=torch.float64)
    direction = sample_direction({"w": weight}, "gaussian", generator=seeded())["w"]
    torch.testing.assert_close(direction.norm(dim=1), weight.norm(dim=1), rtol=1e-14, atol=0)
    assert not torch.equal(direction, direction.float().double())  # drawn in float64 as well


def test_complex_rows_have_their_weights_norm_and_move_in_both_parts():
    params = {"w": weights(3, 4, dtype=torch.complex64), "b": weights(4, dtype=torch.complex64)}
    direction = sample_direction(params, "gaussian", generator=seeded())
    for name, weight in params.items():
        torch.testing.assert_close(row_norms(direction[name]), row_norms(weight))
        assert (direction[name].real != 0).all()
        assert (direction[name].imag != 0).all()
    # a 1-D tensor is one row, not a row of two numbers per entry
    assert not torch.allclose(direction["b"].abs(), params["b"].abs(), rtol=1e-2)


def test_the_sign_family_lets_both_parts_of_a_complex_weight_grow():
    weight = weights(5, 5, dtype=torch.complex64)
    direction = sample_direction({"w": weight}, "sign", generator=seeded())["w"]
    assert (direction.real * weight.real > 0).all()
    assert (direction.imag * weight.imag > 0).all()


# --- what they are drawn from -------------------------------------------------------------------


def test_gaussian_is_normal():
    # of n = 20000: the mean has sd 1/sqrt(n) = .0071, the variance sqrt(2/n) = .01, and
    # P(|x| < 1) = .6827 has sd sqrt(.6827 * .3173 / n) = .0033; five of each
    x = DISTRIBUTIONS["gaussian"](torch.ones(20_000), seeded())
    assert float(x.mean()) == pytest.approx(0, abs=0.036)
    assert float(x.var()) == pytest.approx(1, abs=0.05)
    assert float((x.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.017)


def test_uniform_is_between_zero_and_one():
    # of n = 20000: the mean has sd 1/sqrt(12 n) = .002; P(x < 1/4) has sd sqrt(3/16/n) = .0031
    x = DISTRIBUTIONS["uniform"](torch.ones(20_000), seeded())
    assert x.min() >= 0
    assert x.max() < 1
    assert float(x.mean()) == pytest.approx(0.5, abs=0.011)
    assert float((x < 0.25).double().mean()) == pytest.approx(0.25, abs=0.016)


def test_rademacher_is_a_fair_sign():
    x = DISTRIBUTIONS["rademacher"](torch.ones(20_000), seeded())
    assert set(x.tolist()) == {-1.0, 1.0}
    assert float(x.mean()) == pytest.approx(0, abs=0.036)  # five times 1/sqrt(n)


def test_sign_is_half_normal_towards_larger_weights():
    # E|N(0,1)| = sqrt(2/pi) = .7979, sd sqrt(1 - 2/pi) / sqrt(n) = .0043
    weight = torch.ones(20_000)
    weight[::2] = -1
    x = DISTRIBUTIONS["sign"](weight, seeded())
    assert (x * weight >= 0).all()
    assert float((x * weight).mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.022)


@FEW
@given(st.integers(0, 2**31), st.floats(0.01, 3), st.sampled_from(LENGTHS))
def test_the_sign_family_makes_every_weight_grow(seed, alpha, normalize):
    params = {"w": weights(4, 3, seed=seed), "b": weights(3, seed=seed + 1)}
    direction = sample_direction(params, "sign", generator=seeded(seed), normalize=normalize)
    for name, weight in params.items():
        assert ((weight + alpha * direction[name]).abs() >= weight.abs()).all()
        assert (direction[name] != 0).all()


def mean_cosine(family, dimension, pairs, normalize="filter"):
    """Over disjoint pairs, which are independent."""
    generator = seeded()
    weight = {"w": torch.ones(dimension)}
    draws = [
        sample_direction(weight, family, generator=generator, normalize=normalize)["w"].double()
        for _ in range(2 * pairs)
    ]
    cosines = [
        torch.cosine_similarity(a, b, dim=0) for a, b in zip(draws[::2], draws[1::2], strict=True)
    ]
    return float(torch.stack(cosines).mean())


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("family", ["gaussian", "rademacher"])
def test_two_isotropic_directions_have_mean_cosine_zero(family, normalize):
    # one cosine has variance 1/d, the mean of m of them sd 1/sqrt(d m) = 1/sqrt(1000 * 40) = .005
    assert mean_cosine(family, 1000, 40, normalize) == pytest.approx(0, abs=5 * 0.005)


def test_two_uniform_directions_have_cosine_three_quarters():
    # E[uv] / E[u^2] = (1/4) / (1/3). To first order the cosine is .75 plus the mean over entries of
    # X = 3uv - 9/8 (u^2 + v^2), E X = 0, E X^2 = 9/9 + 81/64 (2/5 + 2/9) - 27/2 * 1/8 = .1;
    # so the mean of m has sd sqrt(.1 / (d m)) = sqrt(.1 / (10000 * 20)) = .0007, and a bias < 1/d
    cosine = mean_cosine("uniform", 10_000, 20)
    assert cosine == pytest.approx(0.75, abs=5 * 0.0007 + 1e-4)


def test_two_sign_directions_share_two_over_pi():
    # E|g| E|h| / E g^2 = 2/pi = .637. As above, X = |gh| - (1/pi)(g^2 + h^2), E X = 0,
    # E X^2 = 1 + 8/pi^2 - (4/pi)(2 * 2/pi) = 1 - 8/pi^2 = .19: sd sqrt(.19 / 200000) = .001
    assert mean_cosine("sign", 10_000, 20) == pytest.approx(2 / math.pi, abs=5 * 0.001 + 1e-4)


# --- what they depend on ------------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_direction(family):
    params = {"a": weights(4, 3), "b": weights(5)}
    first, again = (sample_direction(params, family, generator=seeded(7)) for _ in range(2))
    other = sample_direction(params, family, generator=seeded(8))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generator_advances(family):
    params, generator = {"w": weights(4, 3)}, seeded()
    first, second = (sample_direction(params, family, generator=generator) for _ in range(2))
    assert not same(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_global_random_stream_is_touched(family):
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    sample_direction({"w": weights(4, 3)}, family, generator=seeded())
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert before[2] == after[2]


def test_the_global_seed_does_not_matter():
    params = {"w": weights(4, 3)}
    torch.manual_seed(1)
    first = sample_direction(params, "gaussian", generator=seeded())
    torch.manual_seed(2)
    assert same(first, sample_direction(params, "gaussian", generator=seeded()))


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_left_alone(family, normalize):
    params = {"a": weights(4, 3), "b": weights(5), "still": weights(2)}
    before = {name: tensor.clone() for name, tensor in params.items()}
    direction = sample_direction(params, f"{family}@[ab]", generator=seeded(), normalize=normalize)
    for tensor in direction.values():
        tensor.fill_(9)  # ours to change: it shares no memory with the weights
    assert same(before, params)


# --- groups and frozen weights ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "moving"),
    [
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}),
        ("norm", {"1.weight", "1.bias"}),
        ("other", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("2.*", {"2.weight", "2.bias"}),
    ],
)
def test_outside_its_group_a_direction_is_zero(group, moving):
    net = net_with_norms()
    nn.init.ones_(net[1].bias)
    params = params_of(net)
    direction = sample_direction(params, f"gaussian@{group}", module=net, generator=seeded())
    assert list(direction) == list(params)
    assert {name for name, tensor in direction.items() if tensor.any()} == moving


def test_no_group_means_all():
    net = net_with_norms()
    plain, everything = (
        sample_direction(params_of(net), family, generator=seeded())
        for family in ("gaussian", "gaussian@all")
    )
    assert same(plain, everything)


def test_all_and_patterns_need_no_module():
    direction = sample_direction({"w": weights(3)}, "uniform@w", generator=seeded())
    assert direction["w"].all()


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("as_data", [False, True], ids=["parameters", "data with module"])
def test_frozen_parameters_never_move(as_data, normalize):
    net = net_with_norms()
    net[0].weight.requires_grad_(False)
    net[2].requires_grad_(False)
    params = params_of(net)
    if as_data:  # a snapshot: only the module knows who is frozen
        params = {name: tensor.detach().clone() for name, tensor in params.items()}
    direction = sample_direction(
        params, "rademacher", module=net, generator=seeded(), normalize=normalize
    )
    still = {name for name, tensor in direction.items() if not tensor.any()}
    assert {"0.weight", "2.weight", "2.bias"} <= still
    assert "0.bias" not in still
    assert list(direction) == list(params)


def test_frozen_parameters_without_a_module_are_known_by_themselves():
    params = {"w": nn.Parameter(weights(3), requires_grad=False), "v": nn.Parameter(weights(3))}
    direction = sample_direction(params, "gaussian", generator=seeded())
    assert not direction["w"].any()
    assert direction["v"].all()


def test_frozen_weights_do_not_count_in_the_length_of_the_model():
    params = {
        "w": nn.Parameter(torch.tensor([3.0, 4.0])),
        "frozen": nn.Parameter(torch.full((9,), 100.0), requires_grad=False),
    }
    direction = sample_direction(params, "gaussian", generator=seeded(), normalize="model")
    assert whole_norm(*direction.values()) == pytest.approx(5.0, rel=1e-5)


def test_frozen_weights_do_not_use_up_the_generator():
    # freezing a layer leaves the directions of the others as they were
    frozen = {"f": nn.Parameter(weights(3), requires_grad=False), "w": weights(4)}
    alone = {"w": weights(4)}
    with_frozen = sample_direction(frozen, "gaussian", generator=seeded())
    assert torch.equal(
        with_frozen["w"], sample_direction(alone, "gaussian", generator=seeded())["w"]
    )


def test_a_parametrized_layer_moves_by_its_real_parameters():
    net = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.LayerNorm(2))
    params = params_of(net)
    norm, other = (
        sample_direction(params, f"gaussian@{group}", module=net, generator=seeded())
        for group in ("norm", "other")
    )
    names = {f"0.parametrizations.weight.original{k}" for k in (0, 1)}
    assert not any(norm[name].any() for name in names)
    assert all(other[name].any() for name in names)
    assert not other["1.weight"].any()


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gauss", "", "@norm", "Gaussian", "gaussian ", "uniform-norm"])
def test_an_unknown_distribution_is_an_error_that_lists_the_known(family):
    with pytest.raises(ValueError, match=r"\['gaussian', 'uniform', 'rademacher', 'sign'\]"):
        sample_direction({"w": weights(3)}, family, generator=seeded())


def test_a_group_that_is_written_but_empty_is_an_error():
    with pytest.raises(ValueError, match=r"`family` must be .* Got 'gaussian@'"):
        split_family("gaussian@")


def test_a_family_splits_at_its_first_at_sign():
    assert split_family("sign@a@b.*") == ("sign", "a@b.*")
    assert split_family("sign") == ("sign", "all")


@pytest.mark.parametrize("normalize", ["Filter", "weight", "", None])
def test_an_unknown_normalisation_is_an_error_that_lists_the_known(normalize):
    with pytest.raises(ValueError, match=r"`normalize` must be one of \['filter', 'layer'"):
        sample_direction({"w": weights(3)}, "gaussian", generator=seeded(), normalize=normalize)


def test_a_pattern_that_only_matches_frozen_parameters_is_an_error():
    net = net_with_norms()
    net[2].requires_grad_(False)
    with pytest.raises(ValueError, match="fnmatch pattern that matches a trainable parameter"):
        sample_direction(params_of(net), "gaussian@2.*", module=net, generator=seeded())


@pytest.mark.parametrize(
    ("net", "family"),
    [
        (nn.Linear(2, 2), "gaussian@norm"),
        (nn.LayerNorm(2), "gaussian@other"),
        (nn.Linear(2, 2).requires_grad_(False), "gaussian"),
    ],
    ids=["no norm", "only norm", "all frozen"],
)
def test_a_group_with_nothing_to_move_is_an_error(net, family):
    with pytest.raises(ValueError, match=f"The group of '{family}' is empty here"):
        sample_direction(params_of(net), family, module=net, generator=seeded())


def test_an_error_does_not_advance_the_generator():
    generator = seeded()
    before = generator.get_state()
    for family, normalize in itertools.product(["gauss", "sign@v*", "gaussian@norm"], LENGTHS):
        with pytest.raises(ValueError, match="`"):
            sample_direction({"w": weights(3)}, family, generator=generator, normalize=normalize)
    assert torch.equal(generator.get_state(), before)


def test_a_module_that_does_not_own_the_parameters_is_refused():
    with pytest.raises(ValueError, match=r"`module` must own the parameters .* no 'weight'"):
        sample_direction(
            {"weight": torch.ones(2)},
            "gaussian",
            module=nn.Sequential(nn.Linear(2, 1)),
            generator=torch.Generator().manual_seed(0),
        )


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-18, 1e18, 1e25, 1e30])
@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("together", [False, True])
def test_tiny_and_huge_weights_move_by_their_own_length(together, normalize, size):
    weights = {name: torch.full((4, 4), size) for name in ("a", "b")[: 1 + together]}
    generator = torch.Generator().manual_seed(0)
    drawn = sample_direction(weights, "gaussian", generator=generator, normalize=normalize)
    assert l2_norm(drawn) == pytest.approx(l2_norm(weights), rel=1e-3, abs=0)
