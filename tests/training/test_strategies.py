"""Lightning's engines for several processes: the numbers of one, or a refusal that says why."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hostile import differences
from launched import Net, monitors, ran, train
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from toys import QUIET

from lightning_landscape import (
    SWA,
    AsymmetryMonitor,
    GradientBreakdownMonitor,
    difference,
    gradient_direction,
    load_swa_weights,
    measure_breakdown,
    probing,
    sample_direction,
)
from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.measures.steps import Update
from lightning_landscape.params import l2_norm
from lightning_landscape.sharding import full, is_sharded, reshard, sharded_modules

# what two runs are compared in, besides the numbers that come from probes
TRAINING = ("state", "optimizer", "rows", "ledger", "steps_seen")
NOT_MEASURED = ("landscape/seconds", "landscape/overhead", "breakdown/seconds")

FSDP2 = ["plain", "probed", "probed in eval mode", "normed", "normed, probed"]
FSDP2 += ["normed, recalibrated", "failing", "applied", "resumed", "fromage"]


@pytest.fixture(scope="module")
def fsdp2_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def fsdp2(fsdp2_folder):
    return ran("fsdp2", 2, fsdp2_folder, FSDP2)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return ran("ddp", 2, tmp_path_factory.mktemp("ddp"), ["plain", "probed", "failing"])


def tried(what):
    return [pytest.mark.slow, pytest.mark.tried("distributed", what)]


FSDP2_TRIED = tried("FSDP2 (`ModelParallelStrategy`, `fully_shard`), two processes")
DDP_TRIED = tried("`ddp`, two processes that Lightning starts from the user's script")


def same_training(results, plain, probed):
    for kind in TRAINING:
        assert differences(results[plain][kind], results[probed][kind]) == [], kind


def same_scores(several, one):
    names = [name for name in one if "/" in name and name not in NOT_MEASURED]
    assert set(several) == set(one)
    assert {"landscape/swa/gap", "landscape/swa/val/gap", "swa/val_loss"} <= {*names}
    assert {"breakdown/update/max", "breakdown/gradient/descent_limit"} <= {*names}
    for name in names:
        both = several[name], one[name]
        if not all(map(math.isfinite, both)):
            assert str(both[0]) == str(both[1]), name
        else:
            assert both[0] == pytest.approx(both[1], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize(
    ("engine", "plain", "probed"),
    [
        *(
            pytest.param("fsdp2", plain, probed, marks=FSDP2_TRIED)
            for plain, probed in [
                ("plain", "probed"),
                ("plain", "probed in eval mode"),
                ("normed", "normed, probed"),
                ("normed", "normed, recalibrated"),
            ]
        ),
        pytest.param("ddp", "plain", "probed", marks=DDP_TRIED),
    ],
)
def test_training_with_all_callbacks_is_bit_identical(engine, plain, probed, request):
    results = request.getfixturevalue(engine)
    same_training(results, plain, probed)
    assert "landscape/gaussian/area" in results[probed]["metrics"]
    assert "breakdown/update/max" in results[probed]["metrics"]


@pytest.mark.parametrize(
    ("engine", "case"),
    [
        pytest.param("fsdp2", "probed", marks=FSDP2_TRIED),
        pytest.param("fsdp2", "probed in eval mode", marks=FSDP2_TRIED),
        pytest.param("ddp", "probed", marks=DDP_TRIED),
    ],
)
def test_scores_are_those_of_one_process_on_the_joined_batches(engine, case, request):
    two, one = request.getfixturevalue(engine)[case], train(case)
    same_scores(two["metrics"], one["metrics"])
    for name, average in one["averages"][0].items():
        torch.testing.assert_close(two["averages"][0][name], average, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "engine",
    [pytest.param("fsdp2", marks=FSDP2_TRIED), pytest.param("ddp", marks=DDP_TRIED)],
)
def test_a_probe_that_fails_at_moved_weights_leaves_training_as_it_was(engine, request):
    results = request.getfixturevalue(engine)
    same_training(results, "plain", "failing")
    assert not any("/" in name for name in results["failing"]["metrics"])


@pytest.mark.slow
@pytest.mark.tried("distributed", "FSDP2: the average left in the module, saved, loaded, resumed")
def test_an_average_of_shards_is_applied_saved_whole_and_resumed(fsdp2, fsdp2_folder):
    applied, resumed = fsdp2["applied"], fsdp2["resumed"]
    assert differences(applied["state"], applied["averages"][0]) == []
    assert differences(applied["averages"], resumed["averages"]) == []
    alone, first = Net(), train("resumed", max_epochs=1)["averages"][0]
    load_swa_weights(str(fsdp2_folder / "half.ckpt"), alone)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(parameter.detach(), first[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.tried("distributed", "FSDP2: Fromage, whose norms are those of whole tensors")
def test_fromage_steps_shards_as_it_steps_whole_tensors(fsdp2):
    for name, weights in train("fromage")["state"].items():
        torch.testing.assert_close(fsdp2["fromage"]["state"][name], weights, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp_spawn", marks=pytest.mark.tried("distributed", "`ddp_spawn`")),
        pytest.param("ddp_fork", marks=pytest.mark.tried("distributed", "`ddp_fork`")),
    ],
)
def test_training_in_started_processes_is_bit_identical(strategy, ddp):
    probed = train("probed", strategy, 2)
    assert differences(ddp["plain"]["state"], probed["state"]) == []
    same_scores(probed["metrics"], train("probed")["metrics"])


# -- what is refused ---------------------------------------------------------------------------

CALLBACKS = [AsymmetryMonitor, GradientBreakdownMonitor, SWA]


def refused(make, strategy, match):
    trainer = SimpleNamespace(strategy=strategy, global_step=0, callbacks=[])
    with pytest.raises(ConfigurationError, match=match):
        make().setup(trainer, Net(), "fit")


@pytest.mark.parametrize("make", CALLBACKS)
@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        pytest.param(
            kind, reason, marks=pytest.mark.tried("distributed", f"{kind.__name__}: refused")
        )
        for kind, reason in [
            (FSDPStrategy, "Got FSDPStrategy: FSDP1 keeps .* fully_shard"),
            (DeepSpeedStrategy, "Got DeepSpeedStrategy: DeepSpeed's engine .* fully_shard"),
            (XLAStrategy, "Got XLAStrategy: XLA records .* Use a GPU or CPU"),
            (SingleDeviceXLAStrategy, "Got SingleDeviceXLAStrategy: XLA records"),
        ]
    ],
)
def test_engines_whose_weights_cannot_be_moved_are_refused(make, strategy, reason):
    # never constructed: that needs packages which are not there
    refused(make, object.__new__(strategy), reason)


def model_parallel(tensor_parallel_size):
    strategy = object.__new__(ModelParallelStrategy)
    size = SimpleNamespace(size=lambda: tensor_parallel_size)
    strategy._device_mesh = {"tensor_parallel": size}
    return strategy


@pytest.mark.tried("distributed", "tensor parallelism: refused")
def test_tensor_parallelism_is_refused():
    refused(SWA, model_parallel(2), r"2 processes share each batch .* tensor_parallel_size=1")


@pytest.mark.usefixtures("alone")
def test_a_torch_that_cannot_recover_is_refused(monkeypatch):
    SWA().setup(
        SimpleNamespace(strategy=model_parallel(1), global_step=0, callbacks=[]), Net(), "fit"
    )
    monkeypatch.delattr(FSDPModule, "reset_iter_state")
    refused(SWA, model_parallel(1), "Use torch 2.13 or newer")
    with (
        pytest.raises(ConfigurationError, match=r"must not be sharded .* Use torch 2\.13"),
        probing(sharded(), [batch()], loss_fn=loss_fn),
    ):
        pass


def test_the_refusal_comes_before_training_starts():
    class DeepSpeedStrategy(SingleDeviceStrategy):
        pass

    module = Net()
    trainer = Trainer(
        **QUIET,
        strategy=DeepSpeedStrategy(torch.device("cpu")),
        callbacks=monitors(),
        max_epochs=1,
    )
    with pytest.raises(ConfigurationError, match="AsymmetryMonitor can work with"):
        trainer.fit(module)
    assert module.steps_seen == 0


# -- shards, without other processes -----------------------------------------------------------


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 2)).double()


def sharded():
    return fully_shard(net())


def loss_fn(module, batch):
    return module(batch).square().mean()


def batch():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measured(module):
    """Everything that is measured of a module."""
    generator = torch.Generator().manual_seed(2)
    with probing(module, [batch()], loss_fn=loss_fn) as objective:
        found = {}
        for family in ("gaussian", "sign@*weight*", "rademacher"):
            direction = sample_direction(objective.params, family, generator=generator)
            found[family] = [
                objective.losses(direction, alpha).item() for alpha in (-1.0, 0.0, 1.0)
            ]
            found[family] += [round(l2_norm(direction), 12)]  # summed in another order
        step = gradient_direction(objective)
        found["breakdown"] = measure_breakdown(objective, step, [0.1, 0.5]).to_dict()
        found["gradient"] = {n: full(g).tolist() for n, g in objective.gradient()[1].items()}
    return found


@pytest.mark.usefixtures("alone")
def test_a_sharded_module_has_the_losses_and_gradients_of_a_whole_one():
    assert differences(measured(net()), measured(sharded())) == []


@pytest.mark.usefixtures("alone")
def test_a_forward_pass_before_the_probe_does_not_hide_the_shards():
    module, plain = sharded(), net()
    with torch.no_grad():
        module(batch())
    assert not is_sharded(next(module.parameters()))  # the trap: whole, and not what is moved
    assert differences(measured(plain), measured(module)) == []
    assert is_sharded(next(module.parameters()))
    with torch.no_grad():
        assert torch.equal(module(batch()), plain(batch()))


@pytest.mark.usefixtures("alone")
def test_gradients_that_were_accumulated_stay():
    module = sharded()
    loss_fn(module, batch()).backward()
    before = [parameter.grad for parameter in module.parameters()]
    contents = [full(gradient).clone() for gradient in before]
    measured(module)
    after = [parameter.grad for parameter in module.parameters()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert differences(contents, [full(gradient) for gradient in after]) == []


@pytest.mark.usefixtures("alone")
def test_an_average_of_shards_is_that_of_whole_tensors():
    averages = []
    for module in (net(), sharded()):
        swa = SWA()
        for _ in range(2):
            swa.update(module)
            with torch.no_grad():
                loss_fn(module, batch())  # leaves the outermost module whole
            reshard(sharded_modules(module))
            for parameter in module.parameters():
                parameter.data.mul_(3)
        swa.update(module)
        resumed = SWA()
        resumed.load_state_dict(swa.state_dict())
        resumed.update(module)
        with swa.averaged(module), torch.no_grad():
            inside = loss_fn(module, batch())
        with torch.no_grad():
            outside = loss_fn(module, batch())
        state = {name: full(t) for name, t in swa.averaged_model_state(module).items()}
        averages.append([swa.state_dict(), resumed.state_dict(), inside, outside, state])
    assert differences(*averages) == []


@pytest.mark.usefixtures("alone")
def test_whole_directions_and_points_are_cut_to_the_shards():
    module, whole = sharded(), dict(net().named_parameters())
    step = {name: torch.ones_like(tensor) for name, tensor in whole.items()}
    at = {name: 2 * tensor.detach() for name, tensor in whole.items()}
    with (
        probing(net(), [batch()], loss_fn=loss_fn, at=at) as one,
        probing(module, [batch()], loss_fn=loss_fn, at=at) as other,
    ):
        assert torch.equal(one.losses(step, 0.5), other.losses(step, 0.5))
        back = difference(whole, other.params)
        assert torch.equal(one.losses(), other.losses())
        assert l2_norm(back) == pytest.approx(l2_norm(whole))


@pytest.mark.usefixtures("alone")
def test_a_step_of_shards_knows_whether_it_moved():
    before = {name: p.detach() for name, p in sharded().named_parameters()}
    assert not Update(before, before).moves
    assert Update(before, {name: 2 * p for name, p in before.items()}).moves


class Hoarder(nn.Module):
    """Keeps the whole weights it has seen: between passes there is nothing in them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2).double()
        self.kept = []

    def forward(self, x):
        self.kept += [self.layer.weight, self.layer.weight.t()]
        return self.layer(x)


@pytest.mark.usefixtures("alone")
def test_whole_weights_that_a_module_has_kept_are_left_alone():
    module = fully_shard(Hoarder())
    with torch.no_grad():
        module(batch())
    kept = list(module.kept)
    measured(module)  # reading what was freed would end the process
    assert all(a is b for a, b in zip(kept, module.kept, strict=True))


class Recurrent(nn.Module):
    """Has a list of its weights beside them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 3).double()

    def forward(self, x):
        return self.lstm(x)[0].clone()


@pytest.mark.usefixtures("alone")
def test_a_sharded_recurrent_layer_is_measured_like_a_whole_one():
    assert differences(measured(Recurrent()), measured(fully_shard(Recurrent()))) == []
