"""Weights as a mapping: differences, norms, and which parameter belongs to which group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_landscape.params import difference, group_names, l2_norm, trainable

FEW = settings(max_examples=30, deadline=None)


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def norm_names(module: nn.Module) -> list[str]:
    return group_names(names_of(module), "norm", module)


# --- difference ---------------------------------------------------------------------------------


@FEW
@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=1, max_size=5))
def test_walking_the_difference_once_leads_from_b_to_a(pairs):
    a = {str(k): torch.tensor([float(x)]) for k, (x, _) in enumerate(pairs)}
    b = {str(k): torch.tensor([float(y)]) for k, (_, y) in enumerate(pairs)}
    direction = difference(a, b)
    assert all(torch.equal(b[name] + direction[name], a[name]) for name in b)


def test_a_name_only_one_side_has_does_not_move():
    # an average holds frozen weights too, an objective's point does not
    a = {"frozen": torch.ones(2), "w": torch.tensor([3.0])}
    b = {"w": torch.tensor([1.0]), "new": torch.ones(3)}
    assert {name: d.tolist() for name, d in difference(a, b).items()} == {"w": [2.0]}


def test_the_difference_has_the_order_and_dtype_of_b():
    a = {"x": torch.zeros(1), "y": torch.zeros(1)}
    b = {"y": torch.ones(1, dtype=torch.float64), "x": torch.ones(1, dtype=torch.bfloat16)}
    direction = difference(a, b)
    assert list(direction) == ["y", "x"]
    assert [d.dtype for d in direction.values()] == [torch.float64, torch.bfloat16]


def test_a_difference_of_parameters_is_plain_data():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    before = [p.detach().clone() for p in (*a.parameters(), *b.parameters())]
    direction = difference(dict(a.named_parameters()), dict(b.named_parameters()))
    assert not any(d.requires_grad or isinstance(d, nn.Parameter) for d in direction.values())
    for d in direction.values():
        d.zero_()  # ours to change: it shares no memory with either side
    after = [*a.parameters(), *b.parameters()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("a", "b"),
    [({"x": torch.ones(1)}, {"y": torch.ones(1)}), ({}, {"y": torch.ones(1)}), ({}, {})],
    ids=["disjoint", "one empty", "both empty"],
)
def test_two_sides_that_share_no_name_are_an_error(a, b):
    with pytest.raises(ValueError, match="must name the same parameters"):
        difference(a, b)


def test_the_error_shows_only_the_first_names():
    many = {f"layer{k}": torch.ones(1) for k in range(9)}
    with pytest.raises(ValueError, match=r"'layer4', \.\.\.\] and \['other'\]"):
        difference(many, {"other": torch.ones(1)})


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), ()], ids=str)
def test_two_shapes_under_one_name_are_an_error_not_a_broadcast(shape):
    with pytest.raises(ValueError, match=r"same shapes\. Got \(2, 3\) and .* for 'w'"):
        difference({"w": torch.ones(2, 3)}, {"w": torch.ones(shape)})


# --- norm ---------------------------------------------------------------------------------------


def test_the_norm_runs_over_all_entries_of_all_tensors():
    # 1 + 4 + 4 + 16 + 0 = 25
    params = {"a": torch.tensor([[1.0, -2.0], [2.0, 0.0]]), "b": torch.tensor(-4.0)}
    assert l2_norm(params) == 5.0


def test_the_norm_of_nothing_is_zero():
    assert l2_norm({}) == 0.0
    assert l2_norm({"w": torch.empty(0, 3)}) == 0.0


def test_the_norm_counts_both_parts_of_a_complex_number():
    assert l2_norm({"z": torch.tensor([3.0 + 4.0j]), "zc": torch.tensor([12.0j]).conj()}) == 13.0


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        # 300 * 60000 is far above 65504, the largest float16
        (torch.full((300, 300), 60000.0, dtype=torch.float16), 300 * 60000.0),
        # a running sum in bfloat16 sticks at 256
        (torch.ones(1000, 1000, dtype=torch.bfloat16), 1000.0),
        # the squares overflow float32, 1e40 > 3.4e38: 2 * 1e20 by entries
        (torch.full((4,), 2.0**66), 2.0**67),
        # and underflow it
        (torch.full((4,), 2.0**-100), 2.0**-99),
        # the sum of the squares is 2 ** 1022, which float64 still has
        (torch.full((2**15,), 2.0**503.5, dtype=torch.float64), 2.0**511),
    ],
    ids=["float16", "bfloat16", "large", "small", "large float64"],
)
def test_the_norm_is_summed_in_float64(tensor, expected):
    assert l2_norm({"w": tensor}) == pytest.approx(expected, rel=1e-12)


def test_the_norm_of_several_may_be_larger_than_the_root_of_any_square():
    half = torch.full((2**16,), 2.0**503.5, dtype=torch.float64)  # its squares sum to 2 ** 1023
    assert l2_norm({"a": half, "b": half}) == pytest.approx(2.0**512, rel=1e-12)


# --- trainable ----------------------------------------------------------------------------------


def test_frozen_parameters_are_not_trainable():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    net[0].weight.requires_grad_(False)
    assert list(trainable(net)) == ["0.bias", "1.weight"]


def test_trainable_hands_out_the_live_parameters():
    net = nn.Linear(2, 2)
    assert trainable(net)["weight"] is net.weight


def test_a_tied_parameter_is_listed_once_under_its_first_name():
    net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["embed"].weight
    assert list(trainable(net)) == ["embed.weight"]


@pytest.mark.parametrize("module", [nn.Linear(2, 2).requires_grad_(False), nn.ReLU()], ids=repr)
def test_a_module_with_nothing_to_train_is_an_error(module):
    with pytest.raises(ValueError, match=f"{type(module).__name__} has none: unfreeze"):
        trainable(module)


# --- groups -------------------------------------------------------------------------------------


class Scale(nn.Module):
    """One gain, whatever the class is called."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def scale_called(name: str) -> nn.Module:
    return type(name, (Scale,), {})()


class PreNorm(nn.Module):
    """Called a norm, but what it holds is a big linear layer and a real norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(1))


class QuietSubclass(nn.BatchNorm1d):
    """One of torch's by birth, not by name."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm2d(),
        nn.InstanceNorm1d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm3d(4, affine=True),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        QuietSubclass(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_torchs_normalisation_layers_are_norms_also_under_another_name(layer):
    net = nn.Sequential(nn.Linear(4, 4), layer)
    assert norm_names(net) == [f"1.{name}" for name in names_of(layer)] != []


@pytest.mark.parametrize(
    ("name", "is_norm"),
    [
        *((name, True) for name in ("Norm", "LlamaRMSNorm", "MyNorm1d", "MyNorm2d", "MyNorm3d")),
        *((name, False) for name in ("Gain", "Normalizer", "NormalHead", "MyNorm4d", "Norm2dHead")),
        *((name, False) for name in ("Denorm", "MyNorm_", "LayerNormMLP")),
    ],
)
def test_a_users_layer_is_a_norm_by_the_end_of_its_class_name(name, is_norm):
    net = nn.Sequential(scale_called(name))
    assert group_names(["0.gain"], "norm" if is_norm else "other", net) == ["0.gain"]
    assert group_names(["0.gain"], "other" if is_norm else "norm", net) == []


def test_only_what_a_norm_named_wrapper_holds_itself_is_norm():
    net = nn.ModuleDict({"block": PreNorm()})
    assert norm_names(net) == ["block.gain", "block.norm.weight", "block.norm.bias"]
    assert group_names(names_of(net), "other", net) == ["block.inner.weight", "block.inner.bias"]


def test_a_bare_normalisation_layer_is_its_own_root():
    assert norm_names(nn.LayerNorm(3)) == ["weight", "bias"]
    assert norm_names(nn.Linear(3, 3)) == []


@pytest.mark.parametrize("parametrize", [weight_norm, spectral_norm], ids=["weight", "spectral"])
@pytest.mark.parametrize("wrap", [nn.Sequential, lambda layer: layer], ids=["inside", "root"])
def test_a_parametrized_linear_layer_is_no_norm(parametrize, wrap):
    # its tensors live in ParametrizationList and _WeightNorm / _SpectralNorm modules
    net = wrap(parametrize(nn.Linear(3, 3)))
    assert norm_names(net) == []
    assert group_names(names_of(net), "other", net) == names_of(net)


class Positive(nn.Module):
    def forward(self, raw):
        return raw.exp()


def test_a_parametrized_norm_stays_a_norm():
    layer = nn.LayerNorm(3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Positive())
    assert norm_names(layer) == ["bias", "parametrizations.weight.original"]
    net = nn.Sequential(nn.Linear(3, 3), layer)
    assert norm_names(net) == ["1.bias", "1.parametrizations.weight.original"]


def test_norm_and_other_share_out_all_parameters_in_their_order():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), weight_norm(nn.Linear(4, 4)), PreNorm(), Scale()
    )
    names = names_of(net)
    norm, other = (group_names(names, group, net) for group in ("norm", "other"))
    assert not set(norm) & set(other)
    assert sorted(norm + other, key=names.index) == names == group_names(names, "all")


def test_a_network_without_norms_has_an_empty_norm_group():
    net = nn.Linear(2, 2)
    assert group_names(names_of(net), "norm", net) == []
    assert group_names(names_of(net), "other", net) == names_of(net)


def test_tied_parameters_are_grouped_under_the_name_they_are_listed_by():
    net = nn.ModuleDict({"norm": nn.LayerNorm(3), "again": nn.LayerNorm(3)})
    net["again"].weight = net["norm"].weight
    assert norm_names(net) == ["norm.weight", "norm.bias", "again.bias"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("encoder.*", ["encoder.0.weight", "encoder.0.bias"]),
        ("*.bias", ["encoder.0.bias", "head.bias"]),
        ("head.[wb]*", ["head.weight", "head.bias"]),
        ("head.bias", ["head.bias"]),
        ("*", ["encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"]),
    ],
)
def test_any_other_group_is_a_pattern_on_the_names(pattern, expected):
    names = ["encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"]
    assert group_names(iter(names), pattern) == expected


def test_patterns_mind_the_case():
    assert group_names(["Head.weight", "head.weight"], "head.*") == ["head.weight"]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"Got 'encodr\.\*', which matches none of \['encoder"):
        group_names(["encoder.weight"], "encodr.*")


@pytest.mark.parametrize("group", ["norm", "other"])
def test_norm_and_other_need_the_module(group):
    with pytest.raises(ValueError, match=f"`module` is needed .* group '{group}'"):
        group_names(["weight"], group)
