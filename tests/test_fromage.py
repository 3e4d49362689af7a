"""Fromage against its formula: identities, a naive twin, and the places an optimizer has to fit."""

import copy
import math
import pickle
import sys

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from toys import QUIET

from lightning_landscape.fromage import Fromage, fromage
from lightning_landscape.measures.breakdown import trust_lr

laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
rates = st.floats(1e-3, 1.5)
shapes = st.sampled_from([(1,), (7,), (4, 5), (2, 3, 2), (190, 180)])


def draw(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def stepped(weight, grad, lr=0.01, **options):
    """The weight after one step; neither argument is touched."""
    param = nn.Parameter(weight.clone())
    param.grad = grad.clone()
    Fromage([param], lr, **options).step()
    return param.detach()


def naive(weight, grad, lr, prefactor=True):
    """The formula, in six lines that share nothing with the library."""
    size = 1.0
    if weight.norm() > 0 and grad.norm() > 0:
        size = weight.norm() / grad.norm()
    moved = weight - lr * size * grad
    return moved / math.sqrt(1 + lr**2) if prefactor else moved


@pytest.fixture(params=["cpu", "accelerator"])
def host(request, monkeypatch):
    """Run a test twice: numbers are read as floats, or stay tensors as on an accelerator."""
    module = sys.modules[Fromage.__module__]  # the package's `fromage` is the function
    monkeypatch.setattr(module, "_free_to_read", lambda tensor: request.param == "cpu")


# -- Lemma 2 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "cosine", "expected"),
    [
        (1, 1.0, 1.0),
        (2, 1.0, math.sqrt(2) - 1),
        (16, 1.0, 0.04427),
        (16, 0.5, 0.02566),
        (50, 0.1, 0.00191),
        (4, 0.0, 0.0),
        (4, -1.0, -1.0),
        (4, -1.0000001, -1.0),
    ],
)
def test_trust_lr_is_lemma_2(depth, cosine, expected):
    assert trust_lr(depth, cosine) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("depth", [0, -1, 0.5, math.nan])
def test_trust_lr_needs_a_layer(depth):
    with pytest.raises(ValueError, match=r"`depth` counts weight matrices.*at least 1"):
        trust_lr(depth)


# -- identities ------------------------------------------------------------------------------------


@laws
@given(seeds, rates, shapes)
def test_the_norm_changes_by_the_cosine_alone(seed, lr, shape):
    weight, grad = draw(seed, *shape), draw(seed + 1, *shape)
    cosine = (weight * grad).sum() / (weight.norm() * grad.norm())
    ratio = (stepped(weight, grad, lr).norm() / weight.norm()) ** 2
    assert ratio.item() == pytest.approx(1 - 2 * lr * cosine.item() / (1 + lr**2), abs=1e-12)


@laws
@given(seeds, rates)
def test_an_orthogonal_gradient_keeps_the_norm_and_turns_by_arctan_lr(seed, lr):
    weight, grad = draw(seed, 6, 5), draw(seed + 1, 6, 5)
    grad -= weight * (weight * grad).sum() / weight.norm() ** 2
    after = stepped(weight, grad, lr)
    angle = torch.acos((after * weight).sum() / (after.norm() * weight.norm()))
    assert after.norm().item() == pytest.approx(weight.norm().item(), rel=1e-12)
    assert angle.item() == pytest.approx(math.atan(lr), abs=1e-6)  # acos is flat near 1


@laws
@given(seeds, rates, shapes, st.floats(1e-8, 1e8))
def test_scaling_the_loss_changes_nothing(seed, lr, shape, scale):
    weight, grad = draw(seed, *shape), draw(seed + 1, *shape)
    torch.testing.assert_close(stepped(weight, scale * grad, lr), stepped(weight, grad, lr))


@laws
@given(seeds, rates, shapes, st.booleans())
def test_before_the_division_the_step_has_length_lr_times_the_norm(seed, lr, shape, maximize):
    weight, grad = draw(seed, *shape), draw(seed + 1, *shape)
    after = stepped(weight, grad, lr, maximize=maximize) * math.sqrt(1 + lr**2)
    assert (after - weight).norm().item() == pytest.approx(lr * weight.norm().item(), rel=1e-11)


@pytest.mark.parametrize(("prefactor", "growth"), [(True, 1.0), (False, (1 + 0.1**2) ** (30 / 2))])
def test_without_prefactor_a_weight_before_a_batch_norm_grows(prefactor, growth):
    weight = nn.Parameter(draw(0, 8, 5))
    start = weight.norm().item()
    x, y = draw(1, 32, 5), draw(2, 32, 8)
    optimizer = Fromage([weight], lr=0.1, prefactor=prefactor)
    for _ in range(30):
        optimizer.zero_grad()
        hidden = x @ weight.T  # torch's batch norm insists on an epsilon, which bends the law
        normal = (hidden - hidden.mean(0)) / hidden.std(0)
        (normal - y).pow(2).mean().backward()
        optimizer.step()
    # the gradient is orthogonal to every row, so Pythagoras gives the growth
    assert weight.norm().item() == pytest.approx(start * growth, rel=1e-9)


# -- the naive twin --------------------------------------------------------------------------------


@pytest.mark.parametrize("prefactor", [True, False])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_a_hundred_steps_equal_the_formula(foreach, prefactor):
    sizes = [(3, 4), (5,), (1,), (), (0, 3), (6, 1, 2), (190, 180)]  # the last one is large
    weights = [draw(k, *size) for k, size in enumerate(sizes)]
    weights[1].zero_()
    params = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Fromage(params, lr=0.02, foreach=foreach, prefactor=prefactor)
    for step in range(100):
        for k, param in enumerate(params):
            grad = draw(1000 * step + k, *param.shape)
            if step % 7 == k:
                grad.zero_()
            param.grad = None if step % 11 == k else grad
            if param.grad is not None:
                weights[k] = naive(weights[k], grad, 0.02, prefactor)
        optimizer.step()
    for param, weight in zip(params, weights, strict=True):
        torch.testing.assert_close(param.detach(), weight, rtol=1e-10, atol=1e-12)


# -- where a norm is nothing, or not a number ------------------------------------------------------


def test_a_zero_weight_takes_the_plain_step():
    after = stepped(torch.zeros(3), torch.tensor([1.0, 2.0, 2.0]), lr=0.5)
    torch.testing.assert_close(after, -0.5 * torch.tensor([1.0, 2.0, 2.0]) / math.sqrt(1.25))


def test_a_zero_gradient_shrinks_by_the_prefactor_only():
    weight = torch.tensor([3.0, -4.0])
    torch.testing.assert_close(stepped(weight, 0 * weight, 0.75), weight / 1.25)
    torch.testing.assert_close(stepped(weight, 0 * weight, 0.75, prefactor=False), weight)


@pytest.mark.usefixtures("host")
def test_a_gradient_at_the_edge_of_float32_is_no_infinite_step():
    for lr in (0.01, 2.0):
        after = stepped(torch.tensor([4.0]), torch.tensor([1e-40]), lr, prefactor=False)
        assert 0 < abs(after - 4.0) <= 4.0 * lr


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("size", [3, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_makes_its_tensor_nan(size, bad, dtype):
    params = [nn.Parameter(draw(k, size).to(dtype)) for k in range(2)]
    for param in params:
        param.grad = torch.ones_like(param)
    params[0].grad[1] = bad
    Fromage(params).step()
    assert params[0].isnan().all()
    assert params[1].isfinite().all()


def test_a_parameter_without_gradient_is_skipped():
    param = nn.Parameter(torch.ones(2))
    Fromage([param], p_bound=1.0).step()
    assert param.tolist() == [1.0, 1.0]


def test_a_sparse_gradient_is_an_error_and_nothing_has_moved():
    net = nn.ModuleList([nn.Linear(2, 2), nn.Embedding(5, 2, sparse=True)])
    (net[0](torch.ones(1, 2)) * net[1](torch.tensor([1]))).sum().backward()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"sparse gradients.*sparse=False"):
        Fromage([{"params": net[0].parameters()}, {"params": net[1].parameters()}]).step()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


# -- dtypes, layouts, devices ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 20), (200, 300)])
@pytest.mark.parametrize("transposed", [True, False])
def test_half_precision_is_computed_in_float32_and_rounded_once(shape, dtype, transposed):
    weight, grad = draw(0, *shape).to(dtype), draw(1, *shape).to(dtype)
    if transposed:
        weight, grad = weight.T, grad.T
    exact = naive(weight.double(), grad.double(), 0.05)
    rounded = stepped(weight, grad, 0.05)
    assert rounded.dtype == dtype
    # half a unit in the last place, and a float32 error for results that lie on the edge
    slack = 1e-6 * (weight.double().abs() + grad.double().abs())
    unit = torch.finfo(dtype).eps * torch.exp2(exact.abs().log2().floor()).clamp(min=2.0**-14)
    assert ((rounded.double() - exact).abs() <= 0.5 * unit + slack).all()


def test_half_norms_do_not_overflow():
    weight = torch.full((1000, 1000), 100.0, dtype=torch.float16)  # its norm is 1e5
    grad = torch.full((1000, 1000), 1e-3, dtype=torch.float16)
    after = stepped(weight, grad, 0.1)
    assert torch.equal(after, torch.full_like(weight, 90 / math.sqrt(1.01)))


@pytest.mark.parametrize("foreach", [True, False])
def test_complex_numbers_are_pairs(foreach):
    weight, grad = (torch.complex(draw(k, 4, 3), draw(k + 2, 4, 3)) for k in (0, 1))
    expected = torch.view_as_complex(
        naive(torch.view_as_real(weight), torch.view_as_real(grad), 0.1)
    )
    torch.testing.assert_close(stepped(weight, grad, 0.1, foreach=foreach), expected)
    lazy = grad.conj().resolve_conj().conj()  # the same numbers behind a conjugation flag
    torch.testing.assert_close(stepped(weight, lazy, 0.1, foreach=foreach), expected)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (64, 64, 5, 5)])
def test_any_memory_layout_gives_the_same_weights(shape):
    weight, grad = draw(0, *shape), draw(1, *shape)
    last = torch.channels_last
    expected = stepped(weight, grad)
    torch.testing.assert_close(stepped(weight.to(memory_format=last), grad), expected)
    after = stepped(weight.to(memory_format=last), grad.to(memory_format=last))
    torch.testing.assert_close(after, expected)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch keeps dtypes equal")
@pytest.mark.parametrize("size", [5, 40_000])
def test_a_gradient_may_have_a_wider_dtype_than_its_weight(size):
    param = nn.Parameter(draw(0, size).bfloat16())
    param.grad_dtype = None
    param.grad = draw(1, size).float()
    expected = naive(param.detach().double(), param.grad.double(), 0.01)
    Fromage([param]).step()
    torch.testing.assert_close(param.detach().double(), expected, rtol=0.005, atol=1e-4)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"foreach": False}], ids=str)
def test_numbers_read_or_kept_on_the_device_give_the_formula(dtype, options):
    weights = [draw(0, 5).to(dtype), draw(1, 4, 4).to(dtype), torch.zeros(3, dtype=dtype)]
    params = [nn.Parameter(weight.clone()) for weight in weights]
    grads = [draw(10 + k, *weight.shape).to(dtype) for k, weight in enumerate(weights)]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    Fromage(params, 0.1, **options).step()
    sign = -1 if options.get("maximize") else 1
    for param, weight, grad in zip(params, weights, grads, strict=True):
        expected = naive(weight.double(), sign * grad.double(), 0.1)
        torch.testing.assert_close(param.detach(), expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_off_the_cpu_reads_nothing_back(dtype):
    # meta tensors have no values: reading one is an error
    params = [nn.Parameter(torch.empty(300, 200, dtype=dtype, device="meta")) for _ in range(3)]
    optimizer = Fromage([{"params": params[:2]}, {"params": params[2:], "trust": False}])
    bounded = Fromage(params, p_bound=2.0)
    for param in params:
        param.grad = torch.empty_like(param)
        bounded.state[param]["first_norm"] = 1.0  # after the first step
    optimizer.step()
    bounded.step()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_waits_for_nothing_and_copies_nothing(dtype):
    params = [nn.Parameter(draw(0, 4096, 1024).to("cuda", dtype)), nn.Parameter(draw(1, 7).cuda())]
    for param in params:
        param.grad = torch.randn_like(param)
    expected = [naive(param.detach().double(), param.grad.double(), 0.01) for param in params]
    optimizer, bounded = Fromage(params), Fromage(params, p_bound=1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        extra = torch.cuda.max_memory_allocated() - before
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for param, weight in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach().double(), weight, rtol=0.005, atol=1e-4)
    bounded.step()  # reads the first norms
    torch.cuda.set_sync_debug_mode("error")
    try:
        bounded.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert extra < params[0].nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.usefixtures("host")
def test_a_step_never_holds_a_copy_of_the_largest_tensor(dtype, transposed):
    weight = torch.ones(1000, 700, dtype=dtype)
    param = nn.Parameter(weight.T if transposed else weight)
    param.grad = torch.ones_like(param)
    optimizer = Fromage([param], p_bound=1.0)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        optimizer.step()
    held = peak = 0
    for event in measured.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < param.nbytes


def test_distributed_tensors_step_like_plain_ones():
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        for dtype in (torch.float32, torch.bfloat16):
            weight, grad = draw(0, 6, 4).to(dtype), draw(1, 6, 4).to(dtype)
            param = nn.Parameter(distribute_tensor(weight.clone(), mesh, [Shard(0)]))
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
            Fromage([param], 0.1, p_bound=1.0).step()
            expected = stepped(weight, grad, 0.1, p_bound=1.0)
            torch.testing.assert_close(param.detach().full_tensor(), expected)
    finally:
        torch.distributed.destroy_process_group()


def shard_and_step(rank, address):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for dtype in (torch.float32, torch.bfloat16):
        weight, grad = draw(0, 301, 200).to(dtype), draw(1, 301, 200).to(dtype)
        for placement in (Shard(0), Shard(1), Replicate()):
            param = nn.Parameter(distribute_tensor(weight.clone(), mesh, [placement]))
            param.grad = distribute_tensor(grad, mesh, [placement])
            Fromage([param], 0.1, p_bound=0.99).step()
            expected = stepped(weight, grad, 0.1, p_bound=0.99)
            torch.testing.assert_close(param.detach().full_tensor(), expected)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_norm_of_a_sharded_tensor_is_that_of_the_whole(tmp_path):
    torch.multiprocessing.spawn(shard_and_step, (f"file://{tmp_path}/store",), nprocs=2)


# -- p_bound and trust -----------------------------------------------------------------------------


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (300, 200)])
def test_p_bound_holds_the_norm_at_a_multiple_of_the_first(shape, foreach):
    param = nn.Parameter(draw(0, *shape))
    first = param.norm().item()
    optimizer = Fromage([param], lr=0.3, p_bound=1.2, foreach=foreach)
    for step in range(6):
        param.grad = -param.detach()  # outwards
        optimizer.step()
        expected = min(1.2, (1.3 / math.sqrt(1.09)) ** (step + 1))
        assert param.norm().item() == pytest.approx(expected * first, rel=1e-12)


def test_p_bound_leaves_a_tensor_alone_that_starts_at_zero():
    free, bounded = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    optimizers = [Fromage([free]), Fromage([bounded], p_bound=1.0)]
    for step in range(5):
        free.grad = bounded.grad = draw(step, 4).float()
        for optimizer in optimizers:
            optimizer.step()
    assert bounded.norm() > 0
    assert torch.equal(free, bounded)


def test_p_bound_survives_a_checkpoint(tmp_path):
    def trained(steps, crash_at=None):
        param = nn.Parameter(draw(0, 6).bfloat16())
        optimizer = Fromage([param], lr=0.5, p_bound=1.1)
        for step in range(steps):
            if step == crash_at:
                torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
                optimizer = Fromage([param], lr=0.1)
                optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
            param.grad = -param.detach() + 0.1 * draw(step, 6).bfloat16()
            optimizer.step()
        return param

    assert torch.equal(trained(8), trained(8, crash_at=3))


def test_without_trust_a_group_takes_the_plain_step():
    matrix, vector = nn.Parameter(draw(0, 4, 4)), nn.Parameter(draw(1, 4))
    matrix.grad, vector.grad = draw(2, 4, 4), draw(3, 4)
    expected = naive(matrix.detach(), matrix.grad, 0.1), vector.detach() - 0.1 * vector.grad
    Fromage([{"params": [matrix]}, {"params": [vector], "trust": False}], lr=0.1).step()
    torch.testing.assert_close((matrix.detach(), vector.detach()), expected)


# -- what torch expects of an optimizer ------------------------------------------------------------


def test_the_closure_runs_first_with_gradients_and_its_loss_is_returned():
    param = nn.Parameter(torch.ones(2))
    optimizer = Fromage([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert param.tolist() == pytest.approx([0.9 / math.sqrt(1.01)] * 2)
    assert optimizer.step() is None


def test_an_optimizer_pickled_before_a_key_existed_still_steps():
    param = nn.Parameter(torch.ones(2))
    old = Fromage([param])
    for key in ("p_bound", "prefactor", "trust", "foreach", "maximize"):
        del old.param_groups[0][key]
    new = pickle.loads(pickle.dumps(old))
    (restored,) = new.param_groups[0]["params"]
    restored.grad = torch.ones(2)
    new.step()
    torch.testing.assert_close(restored.detach(), stepped(torch.ones(2), torch.ones(2)))


def test_groups_added_later_take_defaults_and_are_validated():
    optimizer = Fromage([nn.Parameter(torch.ones(1))], lr=0.5)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "p_bound": 2.0})
    assert optimizer.param_groups[1]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"`lr`.*at least 0.*Got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1})
    assert len(optimizer.param_groups) == 2


def test_a_scheduler_sets_the_rate():
    param = nn.Parameter(torch.ones(1))
    optimizer = Fromage([param], lr=0.75)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    for expected in (0.25 / 1.25, 0.25 / 1.25):  # the second step has rate 0
        param.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert param.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, r"`lr`.*finite and at least 0.*Got -0.1.*Try"),
        ({"lr": math.inf}, ValueError, r"`lr`.*finite"),
        ({"lr": math.nan}, ValueError, r"`lr`.*finite"),
        ({"lr": "depth"}, TypeError, r"`lr` must be a number.*fromage\(module, lr='depth'\)"),
        ({"lr": torch.tensor(0.1)}, TypeError, r"`lr` must be a number"),
        ({"p_bound": 0.0}, ValueError, r"`p_bound`.*above 0.*Got 0.0.*None"),
        ({"p_bound": math.inf}, ValueError, r"`p_bound`.*finite"),
        ({"p_bound": True}, TypeError, r"`p_bound` must be a number. Got True"),
        ({"p_bound": "depth"}, TypeError, r"^`p_bound` must be(?!.*fromage\().*Try 2.0, or None"),
        ({"prefactor": 1}, TypeError, r"`prefactor` must be True or False. Got 1"),
        ({"maximize": None}, TypeError, r"`maximize` must be True or False"),
        ({"foreach": "yes"}, TypeError, r"`foreach` must be True or False"),
    ],
)
def test_a_wrong_argument_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Fromage([nn.Parameter(torch.ones(1))], **options)


# -- the factory -----------------------------------------------------------------------------------


def mlp(depth=4):
    layers = [nn.Linear(3, 3) for _ in range(depth)]
    return nn.Sequential(*layers)


def test_the_factory_takes_every_parameter_and_passes_options_on():
    net = mlp()
    optimizer = fromage(net, 0.02, p_bound=3.0, maximize=True)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert (group["lr"], group["p_bound"], group["maximize"]) == (0.02, 3.0, True)


def test_vectors_sgd_gives_biases_a_group_without_trust():
    matrices, vectors = fromage(mlp(), vectors="sgd").param_groups
    assert (len(matrices["params"]), matrices["trust"]) == (4, True)
    assert (len(vectors["params"]), vectors["trust"]) == (4, False)
    (alone,) = fromage(nn.BatchNorm1d(3), vectors="sgd").param_groups
    assert alone["trust"] is False


def test_depth_counts_distinct_trainable_matrices():
    net = mlp(5)
    net[1].weight = net[0].weight
    net[2].weight.requires_grad_(False)
    rate = fromage(net, lr="depth").param_groups[0]["lr"]
    assert rate == pytest.approx(0.25 * (2 ** (1 / 3) - 1))
    with pytest.raises(ValueError, match=r"`lr='depth'` needs a trainable tensor.*Give `lr`"):
        fromage(nn.BatchNorm1d(3), lr="depth")


def test_plateau_divides_the_rate_when_the_metric_stalls():
    schedule = fromage(mlp(), 0.5, decay="plateau", monitor="loss")["lr_scheduler"]
    assert schedule["monitor"] == "loss"
    for _ in range(12):
        schedule["scheduler"].step(1.0)
    assert schedule["scheduler"].get_last_lr() == [0.05]
    assert fromage(mlp(), decay="plateau")["lr_scheduler"]["monitor"] == "val_loss"


def test_cosine_reaches_zero_at_the_last_step():
    built = fromage(mlp(), 0.5, decay="cosine", total_steps=4)
    scheduler = built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(4):
        built["optimizer"].step()
        scheduler.step()
        seen += scheduler.get_last_lr()
    assert seen == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)])


@pytest.mark.parametrize("module", [mlp(), L.LightningModule()], ids=["plain", "unattached"])
def test_cosine_without_a_length_is_an_error(module):
    module.register_parameter("w", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"length of the training.*Got None.*`total_steps`"):
        fromage(module, decay="cosine")
    with pytest.raises(ValueError, match=r"finite number of steps from 1. Got 0"):
        fromage(module, decay="cosine", total_steps=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": "none"}, r"`vectors` must be one of \['same', 'sgd'\]. Got 'none'"),
        (
            {"decay": "linear"},
            r"`decay` must be one of \[None, 'plateau', 'cosine'\]. Got 'linear'",
        ),
    ],
)
def test_an_unknown_choice_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        fromage(mlp(), **options)


def test_a_module_in_the_place_of_its_parameters_is_named():
    with pytest.raises(TypeError, match=r"Got Sequential: use Fromage\(module.parameters\(\)\)"):
        Fromage(mlp())


def test_a_module_without_parameters_is_named():
    with pytest.raises(ValueError, match=r"`module` must have parameters. ReLU has none"):
        fromage(nn.ReLU())


@pytest.mark.parametrize("steps", ["10", True, math.inf])
def test_a_number_of_steps_is_a_number(steps):
    with pytest.raises(ValueError, match=rf"finite number of steps from 1. Got {steps!r}"):
        fromage(mlp(), decay="cosine", total_steps=steps)


@pytest.mark.parametrize("options", [{"monitor": "loss"}, {"total_steps": 10}])
def test_what_is_of_a_decay_is_refused_without_one(options):
    with pytest.raises(ValueError, match=r"`monitor` and `total_steps` are of a `decay`.*None"):
        fromage(mlp(), **options)


def test_a_rate_that_is_no_fraction_gets_a_warning():
    with pytest.warns(UserWarning, match=r"`lr` is a relative step.*Got 5.0.*try 0.01"):
        fromage(mlp(), 5.0)


# -- in Lightning ----------------------------------------------------------------------------------


class Regression(L.LightningModule):
    def __init__(self, options=None):
        super().__init__()
        self.net, self.options = mlp(2), options

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch) - 1).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return fromage(self, 0.1, **self.options)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(draw(0, 24, 3, dtype=torch.float32), batch_size=4)


def trainer(tmp_path, **options):
    return L.Trainer(
        **QUIET,
        max_epochs=2,
        default_root_dir=tmp_path,
        **options,
    )


def test_cosine_takes_its_length_from_the_trainer(tmp_path):
    model = Regression({"decay": "cosine", "vectors": "sgd"})
    before = copy.deepcopy(model.state_dict())
    # two epochs of six batches, two to a step
    fit = trainer(
        tmp_path, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.5
    )
    fit.fit(model)
    assert fit.lr_scheduler_configs[0].scheduler.T_max == 6
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert all(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_plateau_watches_a_logged_metric(tmp_path):
    fit = trainer(tmp_path)
    fit.fit(Regression({"decay": "plateau", "monitor": "loss"}))
    assert fit.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_gradient_scaler_may_step_it():
    param = nn.Parameter(draw(0, 5).float())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = stepped(param.detach(), torch.arange(5.0))
    optimizer = Fromage([param])
    scaler.scale((param * torch.arange(5.0)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(param.detach(), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's use of jsonargparse
def test_the_command_line_builds_it_from_a_class_path(monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    class Bare(Regression):
        configure_optimizers = L.LightningModule.configure_optimizers

    monkeypatch.setattr("sys.argv", ["train"])
    options = {"lr": 0.25, "p_bound": 2.0, "prefactor": False}
    optimizer = {"class_path": "lightning_landscape.Fromage", "init_args": options}
    cli = LightningCLI(
        Bare,
        run=False,
        args={"optimizer": optimizer},
        save_config_callback=None,
        seed_everything_default=False,
    )
    built = cli.model.configure_optimizers()
    assert type(built) is Fromage
    assert options.items() <= built.param_groups[0].items()


def test_the_factory_wants_the_module_not_its_parameters():
    with pytest.raises(TypeError, match="the module itself, not its parameters"):
        fromage(nn.Linear(2, 2).parameters())
