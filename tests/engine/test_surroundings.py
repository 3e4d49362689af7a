"""Grad modes, autocast, default dtypes and kept graphs around a probe make no difference."""

import pytest
import torch
from hostile import differences
from probed import BatchNorm, Step, direction_of, unchanged
from torch import nn

from lightning_landscape import probing
from lightning_landscape.measures.slices import evaluate_slice, symmetric_grid


def test_an_accelerator_that_is_not_initialised_is_not_seeded():
    module = Step()
    torch.manual_seed(7)
    queued = torch.cuda._lazy_seed_tracker.get_calls()
    with probing(module, module.inputs()) as objective:
        objective.losses()
    now = torch.cuda._lazy_seed_tracker.get_calls()
    assert [id(call) for call in now] == [id(call) for call in queued]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_around_a_probe_do_not_matter(around):
    module = BatchNorm()
    direction = direction_of(module)
    with probing(module, module.inputs()) as objective:
        expected = objective.gradient(direction, 0.5)
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        batches = module.inputs()
        with unchanged(module), probing(module, batches) as objective:
            assert objective.losses(direction, 0.5).equal(expected[0])
            for _ in range(3):
                assert differences(expected, objective.gradient(direction, 0.5)) == []
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_a_grad_mode_that_a_step_leaves_reaches_no_other_evaluation():
    entered = []

    class TogglesGradMode(Step):
        def write(self, loss, batch):
            entered.append(torch.is_grad_enabled())
            torch.set_grad_enabled(not torch.is_grad_enabled())

    module = TogglesGradMode()
    with probing(module, module.inputs()[:1]) as objective:
        objective.losses(direction_of(module), 0.5)
        entered.clear()
        evaluate_slice(objective, direction_of(module), symmetric_grid(0.5, 5))
        assert entered == [False] * 5
    assert torch.is_grad_enabled()


@pytest.mark.tried("steps", "a step that freezes or unfreezes a layer where the loss is high")
@pytest.mark.parametrize("trained", [True, False])
def test_what_one_evaluation_freezes_is_restored_in_the_next(trained):
    class Freezes(Step):
        def build(self):
            self.net[2].bias.requires_grad_(trained)

        def write(self, loss, batch):
            self.net[2].bias.requires_grad_(trained == (loss.item() < 100))

    plain, module = Step(), Freezes()
    plain.net[2].bias.requires_grad_(trained)
    direction, found = direction_of(plain), []
    for kind in (plain, module):
        with unchanged(kind), probing(kind, kind.inputs()) as objective:
            objective.losses(direction, 0.5)
            objective.gradient(direction, 0.5)
            objective.losses(direction, 1e4)
            found.append(objective.gradient(direction, 1.0))
    assert ("net.2.bias" in found[1][1]) is trained
    assert differences(*found) == []


@pytest.mark.tried("precision", "probing inside a region of autocast, which keeps cast weights")
def test_an_outer_autocast_keeps_no_casts_of_moved_weights():
    module = Step()
    direction, grid = direction_of(module), symmetric_grid(0.5, 5)
    batches = module.inputs()

    def cast():
        return torch.autocast("cpu", torch.bfloat16)

    def loss_fn(module, batch):
        return module.training_step(batch, 0).float()

    def within(module, batch):
        with cast():
            return loss_fn(module, batch)

    with probing(module, batches, loss_fn=within) as objective:
        expected = evaluate_slice(objective, direction, grid), objective.gradient(direction, 0.5)
    with cast(), torch.no_grad():
        before = loss_fn(module, batches[0])
        with probing(module, batches, loss_fn=loss_fn) as objective:
            found = evaluate_slice(objective, direction, grid), objective.gradient(direction, 0.5)
        with probing(module, batches, at=direction, loss_fn=loss_fn) as objective:
            objective.losses()
        assert loss_fn(module, batches[0]).equal(before)
    assert found[0].losses.equal(expected[0].losses)
    assert differences(expected[1], found[1]) == []


def test_the_default_dtype_does_not_matter():
    module = BatchNorm()
    with probing(module, module.inputs()) as objective:
        expected = objective.gradient()
    batches = module.inputs()
    torch.set_default_dtype(torch.float64)
    try:
        with probing(module, batches) as objective:
            assert differences(expected, objective.gradient()) == []
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.tried("steps", "a graph kept across batches, gone backward through after a probe")
def test_a_graph_kept_across_batches_survives():
    gradients = []
    for probes in (False, True):
        module = Step()
        module.state = None
        first, second = module.inputs()

        def step(module, batch):
            output = module.net(batch)
            module.state = output if module.state is None else output + module.state
            return module.state.square().mean()

        loss = step(module, first)
        if probes:
            with probing(module, [second], loss_fn=step) as objective:
                objective.losses(direction_of(module), 1.0)
                objective.gradient(direction_of(module), 1.0)
                objective.gradient()
        (loss + step(module, second)).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    assert differences(*gradients) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.tried("precision", "a plain module compiled as a whole, probed without a Trainer")
def test_a_compiled_module_gives_the_numbers_of_the_plain_one():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    compiled = torch.compile(net, backend="eager")
    loss_fn = lambda module, batch: module(batch).square().mean()  # noqa: E731
    with probing(net, Step().inputs(), loss_fn=loss_fn, mode="eval") as objective:
        expected = objective.gradient(direction_of(net), 0.5)
    prefixed = {f"_orig_mod.{name}": step for name, step in direction_of(net).items()}
    with (
        unchanged(net),
        probing(compiled, Step().inputs(), loss_fn=loss_fn, mode="eval") as objective,
    ):
        value, _ = objective.gradient(prefixed, 0.5)
        assert value.equal(expected[0])
    assert net.training
