"""Weights of any kind are moved along a direction and restored bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_landscape import probing
from lightning_landscape.engine.tensors import copier, differing
from lightning_landscape.engine.weights import Path, Weights

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def module_of(*tensors):
    module = nn.Module()
    for i, tensor in enumerate(tensors):
        module.register_parameter(f"p{i}", nn.Parameter(tensor))
    return module


def draws(sizes, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in sizes]


# ------------------------------------------------------------------------------------------ moving


@given(sizes=SIZES, seed=st.integers(0, 9), alpha=st.floats(-2, 2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_moving_together_gives_the_bits_of_moving_one_by_one(dtype, sizes, seed, alpha):
    start = draws([*sizes, 5000], seed, dtype)
    steps = draws([*sizes, 5000], seed + 1, dtype)
    module = module_of(*[tensor.clone() for tensor in start])
    weights = Weights(module)
    weights.move(weights.path({f"p{i}": step for i, step in enumerate(steps)}), alpha)
    for p, a, b in zip(module.parameters(), start, steps, strict=True):
        assert torch.equal(p, torch.add(a, b, alpha=alpha))
    weights.move(Path(), 0.0)
    assert all(torch.equal(p, a) for p, a in zip(module.parameters(), start, strict=True))


@pytest.mark.parametrize("n", [3, 5000])
def test_unmoved_weights_keep_even_negative_zeros(n):
    module = module_of(torch.full((n,), -0.0), torch.ones(n))
    weights = Weights(module)
    weights.move(weights.path({"p0": torch.zeros(n), "p1": torch.ones(n)}), 1.0)
    assert bool(module.p0.signbit().all())
    assert torch.equal(module.p1, torch.full((n,), 2.0))


def test_a_direction_of_zeros_moves_nothing():
    weights = Weights(module_of(torch.ones(3)))
    assert weights.path({"p0": torch.zeros(3)}).moving == frozenset()


def test_a_move_along_one_direction_undoes_that_along_another():
    module = module_of(torch.ones(3), torch.ones(5000), torch.ones(2))
    weights = Weights(module)
    weights.move(weights.path({"p0": torch.ones(3), "p1": torch.ones(5000)}), 2.0)
    weights.move(weights.path({"p2": torch.ones(2)}), 3.0)
    assert [p.mean().item() for p in module.parameters()] == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("n", [3, 5000])
def test_at_the_start_even_a_negative_zero_is_restored(n):
    # -0 + 0 * step is +0: who computes the start does not come back to it
    module = module_of(torch.full((n,), -0.0), torch.full((4, n), -0.0).mT)
    weights = Weights(module)
    path = weights.path({"p0": torch.ones(n), "p1": torch.ones(n, 4)})
    for alpha in (1.0, 0.0):
        weights.move(path, alpha)
        assert all(bool(p.signbit().all()) is not bool(alpha) for p in module.parameters())


def test_a_direction_of_another_dtype_moves_in_that_of_the_weights():
    module = module_of(torch.ones(3))
    weights = Weights(module)
    weights.move(weights.path({"p0": torch.ones(3, dtype=torch.float64)}), 0.5)
    assert module.p0.dtype == torch.float32
    assert module.p0.tolist() == [1.5, 1.5, 1.5]


@pytest.mark.parametrize("n", [3, 5000])
def test_a_parameter_that_was_given_other_storage_is_still_moved(n):
    module = module_of(torch.ones(n))
    weights = Weights(module)
    path = weights.path({"p0": torch.ones(n)})
    weights.move(path, 1.0)
    module.p0.data = module.p0.data.clone()
    weights.move(path, 2.0)
    assert torch.equal(module.p0, torch.full((n,), 3.0))


@pytest.mark.parametrize("n", [3, 5000])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_single_bit_written_by_other_code_is_found(n, alpha):
    module = module_of(torch.ones(n), torch.ones(n), torch.ones(n))
    weights = Weights(module)
    path = weights.path({"p0": torch.ones(n), "p1": torch.ones(n)})
    weights.move(path, alpha)
    assert weights.written(path, alpha) == frozenset()
    module.p1.data[-1] = module.p1.data[-1].nextafter(torch.tensor(9.0))
    assert weights.written(path, alpha) == {1}
    module.p2.data[0] = -1.0
    assert weights.written(path, alpha) == {1, 2}
    assert weights.not_at_start() == ([1, 2] if alpha == 0 else [2])


# ------------------------------------------------------------------------------- starting elsewhere


@pytest.mark.parametrize("own", [nn.Module.named_parameters, nn.Module.state_dict])
def test_the_weights_to_start_at_may_be_the_modules_own(own):
    # they are the memory that moves: from a start that moves along, no way leads back
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    batches = [torch.ones(3, 2)]
    with probing(
        net, batches, at=dict(own(net)), loss_fn=lambda m, x: m(x).square().mean()
    ) as objective:
        ones = {"weight": torch.ones(1, 2)}
        losses = [objective.losses(ones, alpha).item() for alpha in (1.0, 2.0, 0.0, 1.0)]
    assert losses == [16.0, 36.0, 4.0, 16.0]


@pytest.mark.parametrize("n", [2, 5000])
def test_a_direction_may_be_the_live_weights_themselves(n):
    module = module_of(torch.full((n,), 2.0))
    weights = Weights(module)
    path = weights.path(dict(module.named_parameters()))
    for alpha in (1.0, 2.0, -1.0):
        weights.move(path, alpha)
        assert torch.equal(module.p0, torch.full((n,), 2.0 + 2.0 * alpha))


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.add_(1),
        lambda t: t.data.add_(1),
        lambda t: t.detach().view(-1).mul_(2),
        lambda t: t.numpy().fill(7.0),
        lambda t: torch._foreach_add_([t], 1.0),
    ],
)
def test_a_write_to_the_point_of_an_objective_goes_to_a_copy(write):
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    with probing(net, [torch.ones(3, 2)], loss_fn=loss) as objective:
        first = objective.losses()
        write(objective.params["weight"])
        assert torch.equal(objective.losses(), first)
    assert torch.equal(net.weight, before)


def test_the_point_of_an_objective_takes_no_memory_until_it_is_written_to():
    net = nn.Linear(2, 1, bias=False)
    with probing(net, [torch.ones(3, 2)], loss_fn=lambda m, x: m(x).mean()) as objective:
        objective.losses({"weight": torch.ones(1, 2)}, 1.0)
        assert torch._C._is_cow_tensor(objective.params["weight"])


# ------------------------------------------------------------------------ comparing and copying

KINDS = {
    "float": lambda: torch.randn(3, 4),
    "float64": lambda: torch.randn(3, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(5).bfloat16(),
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
    "bool": lambda: torch.rand(6) > 0.5,
    "count": lambda: torch.tensor(7),
    "transposed": lambda: torch.randn(3, 4).t(),
    "strided": lambda: torch.randn(8)[::2],
    "empty": lambda: torch.zeros(0, 3),
    "large": lambda: torch.randn(5000),
    "expanded": lambda: torch.randn(1).expand(4),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


def changed(tensor):
    return tensor.logical_not() if tensor.dtype == torch.bool else tensor * 2 + 1


def test_all_kinds_of_tensors_are_copied_back_by_one_prepared_call():
    tensors = [make() for make in KINDS.values()]
    contents = [tensor.detach().clone() for tensor in tensors]
    copy = copier(tensors, contents)
    for tensor in tensors:
        if tensor.layout is torch.strided:
            tensor.data = changed(tensor)
    copy()
    assert differing(tensors, contents) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.resize_(2),
        lambda t: t.unsqueeze_(0),
        lambda t: setattr(t, "data", torch.zeros(4)),
        lambda t: setattr(t, "data", torch.zeros(9)),
        lambda t: t.zero_(),
    ],
)
def test_a_tensor_that_changed_its_shape_or_place_is_copied_back(change):
    tensor, saved = torch.arange(4.0), torch.arange(4.0)
    copy = copier([tensor, torch.ones(2)], [saved, torch.ones(2)])
    change(tensor)
    copy()
    assert tensor.shape == (4,)
    assert torch.equal(tensor, saved)


def test_copying_back_is_not_seen_by_the_version_counter():
    tensor = torch.arange(4.0)
    before = tensor._version
    copier([tensor], [torch.zeros(4)])()
    assert tensor._version == before
    assert tensor.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sparse", "empty")])
def test_a_difference_is_found_where_it_is(kind):
    tensors = [KINDS["float"](), KINDS[kind](), KINDS["count"]()]
    contents = [tensor.detach().clone() for tensor in tensors]
    assert differing(tensors, contents) == []
    tensors[1] = changed(tensors[1])
    assert differing(tensors, contents) == [1]


def test_nan_is_nan_and_a_negative_zero_is_not_zero():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert differing([nan, zero], [nan.clone(), -zero]) == [1]


@pytest.mark.parametrize("kind", ["float", "bfloat16", "complex", "bool", "count", "strided"])
def test_a_prepared_call_copies_back_repeatedly(kind):
    place, content = KINDS[kind](), KINDS[kind]()
    write = copier([place], [content])
    for new in (changed(content), content.clone()):
        content.copy_(new)
        write()
        assert torch.equal(place, new)


def test_a_tensor_can_be_resized_after_it_was_copied_back():
    place = torch.zeros(3)
    copier([place], [torch.ones(3)])()
    place.resize_(1000)
    assert place[:3].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("change", [lambda t: t.t_(), lambda t: setattr(t, "data", t.data.t())])
def test_a_matrix_that_was_transposed_in_its_place_is_copied_back(change):
    tensor, saved = torch.arange(9.0).view(3, 3), torch.arange(9.0).view(3, 3)
    copy = copier([tensor], [saved])
    change(tensor)
    copy()
    assert torch.equal(tensor, saved)


def test_a_buffer_can_grow_after_a_probe_as_it_could_before():
    net = nn.BatchNorm1d(2)
    with probing(net, [torch.randn(3, 2)], loss_fn=lambda m, x: m(x).square().mean()) as objective:
        objective.losses({"weight": torch.ones(2)}, 1.0)
    net.running_mean.resize_(1000)
    assert net.running_mean[:2].tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------ unusual parameters


def square(module, x):
    return module(x).square().mean()


def losses_along(net, direction, alphas, loss=square):
    with probing(net, [torch.ones(2, 3)], loss_fn=loss) as objective:
        return [objective.losses(direction, alpha).item() for alpha in alphas]


@pytest.mark.parametrize("n_layers", [1, 10])
def test_a_direction_may_be_the_modules_own_weights(n_layers):
    # they move along with themselves: what counts is where they were
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n_layers)])
    own, copied = dict(net.named_parameters()), {k: v.clone() for k, v in net.named_parameters()}
    alphas = [0.5, 0.5, 1.0, 0.0, 0.5]
    with probing(net, [torch.ones(2, 3)], loss_fn=square) as objective:
        expected = [objective.losses(copied, alpha) for alpha in alphas]
        again = [objective.losses(own, alpha) for alpha in alphas]
    assert again == expected


class Restless(nn.Module):
    """Changes its weights after every pass."""

    def __init__(self, change, n_layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n_layers)])
        self.change = change

    def forward(self, x):
        output = self.layers(x.to(self.layers[0].weight.dtype))
        self.change(self.layers)
        return output.float()


def transpose(layers):
    for layer in layers:
        layer.weight.data = layer.weight.data.t()


@pytest.mark.parametrize("n_layers", [1, 10])
@pytest.mark.parametrize("change", [transpose, lambda layers: layers.double()])
def test_weights_that_a_step_leaves_in_another_form_are_still_moved(change, n_layers):
    net, still = Restless(change, n_layers), Restless(lambda layers: None, n_layers)
    direction = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    alphas = [0.0, 0.5, 0.25, 0.5, 0.0, 0.25]
    assert losses_along(net, direction, alphas) == pytest.approx(
        losses_along(still, direction, alphas), rel=1e-5
    )
    for mine, other in zip(net.parameters(), still.parameters(), strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


class Own(nn.Parameter):
    """A parameter of a user's class."""


@pytest.mark.parametrize("kind", [nn.Parameter, Own])
def test_a_parameter_of_any_class_may_be_given_other_storage_by_every_step(kind):
    net = nn.Module()
    net.gain = kind(torch.ones(3))

    def loss(module, x):
        module.gain.data = module.gain.data.clone()
        return (module.gain * x).mean()

    found = losses_along(net, {"gain": torch.ones(3)}, [0.0, 1.0, 2.0, 1.0], loss)
    assert found == [1.0, 2.0, 3.0, 2.0]


def test_an_expanded_parameter_is_moved_as_a_single_number():
    net = nn.Module()
    net.gain = nn.Parameter(torch.ones(1).expand(3))
    loss = lambda module, x: (module.gain * x).mean()  # noqa: E731
    found = losses_along(net, {"gain": torch.ones(3)}, [0.0, 1.0, 2.0, 1.0], loss)
    assert found == [1.0, 2.0, 3.0, 2.0]
    assert net.gain.tolist() == [1.0, 1.0, 1.0]


def test_the_point_of_an_objective_may_hold_sparse_weights():
    net = nn.Module()
    net.gain = nn.Parameter(torch.eye(3).to_sparse())
    loss = lambda module, x: torch.sparse.mm(module.gain, x.t()).mean()  # noqa: E731
    with probing(net, [torch.ones(2, 3)], loss_fn=loss) as objective:
        assert objective.losses({"gain": torch.eye(3).to_sparse()}, 1.0).item() == 2.0
        assert torch.equal(objective.params["gain"].to_dense(), torch.eye(3))
