"""Losses and gradients of a module as functions of its weights: the same weights, the same bits."""

import pytest
import torch
import torch.nn.functional as F
from hostile import differences
from probed import (
    MODES,
    OLD_WAYS,
    STEPS,
    BatchNorm,
    Checkpointed,
    CheckpointedBackward,
    Dropout,
    Encoder,
    GradientPenalty,
    OddParameters,
    Reentrant,
    ReentrantBackward,
    SparseEmbedding,
    Step,
    Teacher,
    direction_of,
    unchanged,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_landscape import probing
from lightning_landscape.engine.tensors import same_bits
from lightning_landscape.measures.slices import evaluate_slice, symmetric_grid

ALPHAS = (0.5, 0.0, -1.0, 0.5, 0.0)


def plain_gradient(module, batches):
    """Return the gradient of the mean loss as a training loop would have it."""
    loss = sum(module.training_step(batch, i) for i, batch in enumerate(batches)) / len(batches)
    weights = dict(module.named_parameters())
    gradients = torch.autograd.grad(
        loss, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, gradients, strict=True))


@OLD_WAYS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", STEPS)
def test_the_same_alpha_gives_the_same_bits(kind, mode):
    module = kind()
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    direction, losses = direction_of(module), {}
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        for alpha in ALPHAS:
            value = objective.losses(direction, alpha)
            assert same_bits(value, losses.setdefault(alpha, value))
            with_gradient, gradient = objective.gradient(direction, alpha)
            assert same_bits(with_gradient, losses[alpha])
            assert list(gradient) == list(objective.params)
        assert same_bits(objective.losses(direction, -1.0), losses[-1.0])
    assert losses[0.0].shape == (2,)
    assert losses[0.0].dtype == torch.float64
    assert not same_bits(losses[0.0], losses[0.5])
    # another probe, in another order, gradients first
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        for alpha in sorted(losses):
            assert same_bits(objective.gradient(direction, alpha)[0], losses[alpha])
            assert same_bits(objective.losses(direction, alpha), losses[alpha])


@pytest.mark.parametrize("seed", range(8))
def test_a_fused_kernel_is_detected_if_the_loss_agrees_by_chance(seed):
    module = Encoder()
    torch.manual_seed(seed)
    batch = torch.randn(4, 3)
    with probing(module, [batch], mode="eval") as objective:
        for alpha in (0.0, 0.5, 1.0):
            value = objective.losses(direction_of(module), alpha)
            assert objective.gradient(direction_of(module), alpha)[0].equal(value)


def test_a_graph_does_not_stay_in_a_tensor_that_the_step_writes_to():
    class Remembers(Step):
        def build(self):
            self.memory = torch.zeros(2)

        def training_step(self, batch, batch_idx):
            self.memory += self.net(batch).mean(0)
            return self.memory.square().sum()

    module = Remembers()
    with unchanged(module), probing(module, module.inputs()[:1]) as objective:
        value, gradient = objective.gradient(direction_of(module), 1.0)
        for _ in range(2):
            assert objective.losses(direction_of(module), 1.0).equal(value)
            again = objective.gradient(direction_of(module), 1.0)[1]
            assert differences(gradient, again) == []
    assert module.memory.grad_fn is None


def test_losses_are_those_of_the_training_step_at_moved_weights():
    module = Step()
    direction = direction_of(module)
    with probing(module, module.inputs()) as objective:
        losses = objective.losses(direction, 0.7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(direction[name], alpha=0.7)
        expected = [module.training_step(batch, 0).item() for batch in module.inputs()]
    assert losses.tolist() == expected


@pytest.mark.parametrize("kind", [Step, BatchNorm, GradientPenalty, SparseEmbedding, Checkpointed])
def test_the_gradient_is_that_of_autograd(kind):
    module = kind()
    with probing(module, module.inputs()) as objective:
        _, gradient = objective.gradient()
    module = kind()
    torch.manual_seed(0)
    expected = plain_gradient(module, module.inputs())
    for name in expected:
        torch.testing.assert_close(gradient[name], expected[name].to_dense())


def test_the_gradient_is_that_of_finite_differences():
    module = Step()
    module.net[1] = nn.BatchNorm1d(4)
    module = module.double()
    batches = [batch.double() for batch in module.inputs()]
    direction = direction_of(module)
    with probing(module, batches) as objective:
        for alpha in (0.0, 0.4):
            _, gradient = objective.gradient(direction, alpha)
            slope = sum((gradient[name] * direction[name]).sum() for name in gradient)
            along = objective.along(direction)
            rise = along(alpha + 1e-6).mean() - along(alpha - 1e-6).mean()
            assert slope.item() == pytest.approx(rise.item() / 2e-6, rel=1e-7)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "kinds", [(Checkpointed, Reentrant), (CheckpointedBackward, ReentrantBackward)]
)
@pytest.mark.tried("steps", "the gradient through reentrant gradient checkpoints")
def test_a_reentrant_checkpoint_has_the_gradient_of_a_plain_one(kinds):
    gradients = []
    for kind in kinds:
        module = kind()
        with probing(module, module.inputs()) as objective:
            gradients.append(objective.gradient(direction_of(module), 0.3))
    assert differences(*gradients) == []
    assert objective.n_evaluations == 1 + 4  # two for losses, two for gradients


def test_unused_parameters_have_a_gradient_and_frozen_ones_none():
    module = OddParameters()
    module.scalar.requires_grad_(False)
    with probing(module, module.inputs()) as objective:
        _, gradient = objective.gradient()
        assert "scalar" not in objective.params
    assert gradient["unused"].tolist() == [0, 0]
    assert gradient["empty"].shape == (0, 3)
    assert gradient["complex"].tolist() == [2, 2]


def test_a_loss_without_a_graph_has_no_slope():
    module = Step()
    loss_fn = lambda module, batch: module.net(batch).detach().mean()  # noqa: E731
    with probing(module, module.inputs(), loss_fn=loss_fn) as objective:
        _, gradient = objective.gradient()
    assert not any(tensor.any() for tensor in gradient.values())


CALLS = []  # not restored by a probe


class Counted(Step):
    def training_step(self, batch, batch_idx):
        CALLS.append(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("mode", "passes"), [("train", 1), ("eval", 1), ("recalibrated", 2)])
def test_a_slice_costs_its_points_and_two_recorded_evaluations(mode, passes, monkeypatch):
    monkeypatch.setattr(Counted, "build", lambda self: setattr(self, "bn", nn.BatchNorm1d(3)))
    module = Counted()
    CALLS.clear()
    with probing(module, module.inputs(), mode=mode) as objective:
        assert not CALLS
        evaluate_slice(objective, direction_of(module), symmetric_grid(0.5, 5))
        assert len(CALLS) == (5 + 2) * 2 * passes
        objective.prepare()
        assert objective.n_evaluations == 5 + 2
        objective.gradient(direction_of(module), 0.1)
        objective.gradient(direction_of(module), 0.2)
        assert objective.n_evaluations == 5 + 2 + 2 + 1
    assert len(CALLS) == 10 * 2 * passes
    assert CALLS[:4] == [0, 1, 0, 1]


def test_gradients_alone_cost_at_most_six_more():
    module = Counted()
    CALLS.clear()
    with probing(module, module.inputs()) as objective:
        for alpha in (0.1, 0.2, 0.3):
            objective.gradient(direction_of(module), alpha)
    assert 3 < objective.n_evaluations <= 3 + 6
    assert len(CALLS) == 2 * objective.n_evaluations


def test_plain_modules_need_only_a_loss():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    batches = [(torch.ones(3, 2), torch.zeros(3, 2))]

    def loss_fn(module, batch):
        return {"loss": F.mse_loss(module(batch[0]), batch[1]), "other": torch.ones(())}

    with probing(net, batches, loss_fn=loss_fn, mode="eval") as objective:
        assert not net.training
        value = objective.losses()
    assert value.item() == F.mse_loss(net[0](batches[0][0]), batches[0][1]).item()
    assert net.training


def test_writing_to_returned_weights_and_gradients_changes_nothing():
    module = Step()
    at = {"net.0.bias": torch.ones(4)}
    with unchanged(module), probing(module, module.inputs(), at=at) as objective:
        value, gradient = objective.gradient()
        for handed_out in (objective.params, gradient):
            for tensor in handed_out.values():
                tensor.fill_(7)
        assert objective.losses().equal(value)
        assert not objective.gradient()[1]["net.0.bias"].eq(7).any()
    assert at["net.0.bias"].tolist() == [1] * 4


def test_an_objective_raises_outside_its_context():
    module = Step()
    with probing(module, module.inputs()) as objective:
        along = objective.along(direction_of(module))
        along(1.0)
    with unchanged(module):
        for use in (lambda: along(1.0), objective.losses, objective.gradient):
            with pytest.raises(RuntimeError, match="inside the `with probing"):
                use()


def test_the_random_numbers_are_those_of_the_seed():
    module = Dropout()
    values = []
    for seed in (1, 1, 2):
        with unchanged(module), probing(module, module.inputs(), seed=seed) as objective:
            values.append(objective.losses().tolist())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (None, "None: this batch was skipped"),
        ({"accuracy": 1}, r"a dict of \['accuracy'\]"),
        ({"loss": None}, "None"),
        (torch.ones(3), r"a tensor of shape \(3,\)"),
        (1.0, "float"),
    ],
)
def test_a_step_must_return_its_loss(output, shown):
    module = Step()
    opening = probing(module, module.inputs(), loss_fn=lambda *_: output)
    error = pytest.raises(TypeError, match=f"one element.* Got {shown}")
    with unchanged(module), opening as objective, error:
        objective.losses()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_may_be_any_tensor_of_one_element(shape):
    module = Step()
    loss_fn = lambda module, batch: module.net(batch).mean().reshape(shape)  # noqa: E731
    with probing(module, module.inputs(), loss_fn=loss_fn) as objective:
        assert objective.losses().shape == (2,)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({"nobody": torch.ones(1)}, "only name parameters of the objective. Got 'nobody'"),
        ({"net.0.bias": torch.ones(2)}, r"shapes of the parameters. Got \(2,\)"),
        ({"teacher.bias": torch.ones(4)}, "only name parameters of the objective"),
    ],
)
def test_directions_must_fit(direction, message):
    module = Teacher()
    with unchanged(module), probing(module, module.inputs()) as objective:
        for use in (objective.losses, objective.gradient, lambda d, alpha: objective.along(d)):
            with pytest.raises(ValueError, match=message):
                use(direction, 1.0)
        assert objective.n_evaluations == 0


class HostReads(TorchDispatchMode):
    """Counts the numbers read from tensors: on an accelerator each waits for the device."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_slice_reads_no_number_from_the_device_before_its_end():
    module = Step()
    with probing(module, module.inputs()) as objective:
        loss = objective.along(direction_of(module))
        loss(0.1), loss(0.2)
        with HostReads() as reads:
            losses = [loss(alpha) for alpha in (-0.3, 0.0, 0.3)]
        assert reads.n == 0
        assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("by", ["losses", "each", "gradient"])
def test_a_step_may_return_every_loss_in_the_same_tensor(by):
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    kept = torch.zeros((), dtype=torch.float64)

    def loss(module, x):
        kept.copy_(module(x).detach().mean())
        return kept

    with probing(net, [torch.ones(1, 1), 2 * torch.ones(1, 1)], loss_fn=loss) as objective:
        along = objective.along({"weight": torch.ones(1, 1)})
        along(1.0)
        found = {
            "losses": objective.losses,
            "each": lambda: along.each([0.0])[0],
            "gradient": lambda: objective.gradient()[0],
        }[by]()
    assert found.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("seed", [0, 2**63, 2**70])
def test_any_seed_can_be_used(seed):
    module = Dropout()
    with unchanged(module), probing(module, module.inputs(), seed=seed) as objective:
        assert objective.losses().equal(objective.losses())


class Carries(torch.Tensor):
    """A tensor whose class overrides most operations, like MONAI's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.stack, torch.Tensor.reshape, torch.Tensor.detach, torch.zeros_like):
            raise TypeError("not with me")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_loss_may_be_of_a_tensor_subclass():
    class Returns(Step):
        def write(self, loss, batch):
            return loss.as_subclass(Carries)

    module = Returns()
    with unchanged(module), probing(module, module.inputs()) as objective:
        plain = Step().training_step(module.inputs()[0], 0)
        assert objective.losses()[0] == objective.gradient()[0][0] == plain.item()


class PerSample(Step):
    def write(self, loss, batch):
        def of_one(weights, x):
            return torch.func.functional_call(self.net, weights, (x[None],)).square().mean()

        weights = dict(self.net.named_parameters())
        gradients = torch.func.vmap(torch.func.grad(of_one), (None, 0))(weights, batch)
        return loss + sum(gradient.square().mean() for gradient in gradients.values())


def test_a_step_with_gradients_per_sample_is_measured():
    module = PerSample()
    expected = [module.training_step(batch, i).item() for i, batch in enumerate(module.inputs())]
    with unchanged(module), probing(module, module.inputs()) as objective:
        assert objective.losses().tolist() == pytest.approx(expected, rel=1e-6)
        assert objective.gradient()[0].tolist() == pytest.approx(expected, rel=1e-6)
