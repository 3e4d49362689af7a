"""The average: what is in it, when, how it comes back from a checkpoint and is taken home."""

import copy
import pickle

import pytest
import torch
from hostile import (
    GAN,
    HostileModule,
    attributes,
    differences,
    rng_fingerprint,
)
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from toys import QUIET, Samples

from lightning_landscape import SWA, Slice, compare_ends, load_swa_weights, recalibrate_batch_norm


class Line(LightningModule):
    """One weight and a batch norm; six steps an epoch."""

    def __init__(self, late=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.late = None if late else nn.Linear(4, 1)

    def setup(self, stage):
        self.late = self.late or nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = (self.late(self.net(batch["x"])).squeeze(1) - batch["y"]).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Snapshots(Callback):
    """The naive twin: a deep copy of the weights after every step and epoch."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps.append(copied(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(copied(pl_module))


def copied(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def train(*callbacks, module=None, ckpt_path=None, shuffle=True, dataset=None, **options):
    seed_everything(0, verbose=False)
    module = module or Line()
    trainer = Trainer(**{"max_epochs": 4, **QUIET, **options}, callbacks=list(callbacks))
    loader = DataLoader(dataset or Samples(), batch_size=6, shuffle=shuffle)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module, trainer


def mean(snapshots):
    return {
        name: torch.stack([snapshot[name] for snapshot in snapshots]).mean(0)
        for name in snapshots[0]
    }


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"start": 0}, [0, 1, 2, 3]),
        ({"start": 2}, [2, 3]),
        ({"start": 0.75}, [3]),  # 0.75 * 4 = 3
        ({"start": 0.3}, [1, 2, 3]),  # 0.3 * 4 = 1.2, in the epoch 1
        ({"start": 0, "every_n_epochs": 2}, [1, 3]),  # after two epochs, after four
    ],
    ids=str,
)
def test_the_average_is_the_mean_of_the_weights_after_these_epochs(options, epochs):
    swa, twin = SWA(**options), Snapshots()
    train(swa, twin)
    assert swa.n_averaged == len(epochs)
    assert_same(swa.weights, mean([twin.epochs[i] for i in epochs]))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"start": 0, "every_n_steps": 5}, [5, 10]),
        ({"start": 0.5, "every_n_steps": 1}, [7, 8, 9, 10, 11, 12]),  # the second half of 12
        ({"start": 1, "every_n_steps": 4}, [8, 12]),  # not before epoch 1, which begins at step 7
    ],
    ids=str,
)
def test_the_average_is_the_mean_of_the_weights_after_these_steps(options, steps):
    swa, twin = SWA(**options), Snapshots()
    train(swa, twin, max_epochs=-1, max_steps=12)
    assert swa.n_averaged == len(steps)
    assert_same(swa.weights, mean([twin.steps[n - 1] for n in steps]))


def test_steps_are_counted_once_per_accumulation_window():
    swa, twin = SWA(0, every_n_steps=1), Snapshots()
    train(swa, twin, accumulate_grad_batches=3, max_epochs=1)
    assert swa.n_averaged == 2
    assert_same(swa.weights, mean([twin.steps[2], twin.steps[5]]))


def test_steps_are_counted_once_per_batch_of_a_gan():
    # Lightning's own callback counts two a batch here, and every second is odd: it never averages
    swa, twin = SWA(0, every_n_steps=2), Snapshots()
    train(swa, twin, module=GAN(), max_epochs=1)
    assert swa.n_averaged == 3
    assert_same(swa.weights, mean([twin.steps[1], twin.steps[3], twin.steps[5]]))


def test_an_exponential_average_follows_its_recursion():
    swa, twin = SWA(0, average="ema", decay=0.9), Snapshots()
    train(swa, twin)
    expected = twin.epochs[0]
    for snapshot in twin.epochs[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * snapshot[name] for name in expected}
    assert_same(swa.weights, expected)


def test_the_average_may_be_any_function():
    swa, twin = SWA(0, average=lambda average, new, n: torch.maximum(average, new)), Snapshots()
    train(swa, twin)
    stacked = {n: torch.stack([s[n] for s in twin.epochs]).amax(0) for n in twin.epochs[0]}
    assert_same(swa.weights, stacked)


def test_half_precision_is_averaged_in_single():
    # 2048 bfloat16 steps of 1/256 would be lost in bfloat16
    module = nn.Linear(1, 1, bias=False).bfloat16()
    swa = SWA(0)
    for value in (1.0, 1.0078125, 1.0078125, 1.0078125):
        module.weight.data.fill_(value)
        swa.update(module)
    assert swa.weights["weight"].dtype == torch.float32
    assert swa.weights["weight"].item() == (1.0 + 3 * 1.0078125) / 4


def test_frozen_weights_are_part_of_the_average():
    module = nn.Linear(2, 2).requires_grad_(False)
    swa = SWA(0)
    swa.update(module)
    assert_same(swa.weights, copied(module))


@pytest.mark.tried("steps", "layers made in setup")
def test_layers_made_in_setup_are_averaged():
    swa, twin = SWA(0), Snapshots()
    train(swa, twin, module=Line(late=True))
    assert_same(swa.weights, mean(twin.epochs))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm_is_averaged_by_its_own_parameters(wrap):
    # Lightning's and torch's averages deep-copy the module, which the old weight_norm refuses
    module = wrap(nn.Linear(3, 2))
    swa = SWA(0)
    scale = next(p for name, p in module.named_parameters() if p.shape == (2, 1))
    for value in (1.0, 3.0):
        scale.data.fill_(value)
        swa.update(module)
    with swa.averaged(module), torch.no_grad():
        module(torch.ones(1, 3))  # the old kind computes its weight when it is run
        torch.testing.assert_close(module.weight.norm(dim=1), torch.full((2,), 2.0))


def test_weights_handed_out_are_a_copy():
    module = nn.Linear(2, 2)
    swa = SWA(0)
    swa.update(module)
    swa.weights["weight"].zero_()
    assert_same(swa.weights, copied(module))


def test_before_anything_was_averaged_there_is_no_average():
    swa = SWA(start=2)
    for ask in (lambda: swa.weights, lambda: swa.apply_to(Line())):
        with pytest.raises(RuntimeError, match="averaged nothing yet"):
            ask()
    with pytest.raises(RuntimeError, match="averaged nothing yet"), swa.averaged(Line()):
        pass


def test_if_averaging_never_starts_one_warning_says_so():
    plain, _ = train()
    with pytest.warns(UserWarning, match="averaged nothing: the fit ended before start=9"):
        module, _ = train(SWA(start=9, apply_at_end=True))
    assert_same(copied(module), copied(plain))


def test_apply_at_end_leaves_the_average_in_the_module():
    swa = SWA(0, apply_at_end=True)
    module, _ = train(swa)
    assert_same(copied(module), swa.weights)


def test_averaged_holds_the_average_and_puts_everything_back_bit_for_bit():
    swa = SWA(0)
    module, _ = train(swa)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with swa.averaged(module) as same:
        assert same is module
        assert_same(copied(module), swa.weights)
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())
    with pytest.raises(ZeroDivisionError), swa.averaged(module):
        1 / 0  # noqa: B018
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())


def test_the_average_brings_batch_norm_statistics_of_its_own():
    swa = SWA(0, bn_batches=3)
    module, _ = train(swa, max_epochs=3)
    kept = [batch.data["x"] for batch in swa.averaging.kept]
    with swa.averaged(module), torch.no_grad():
        inputs = [module.net[0](x) for x in kept]
        # each batch norm's statistics: the mean over the batches of their means and variances
        expected_mean = torch.stack([x.mean(0) for x in inputs]).mean(0)
        expected_var = torch.stack([x.var(0) for x in inputs]).mean(0)
        torch.testing.assert_close(module.net[1].running_mean, expected_mean)
        torch.testing.assert_close(module.net[1].running_var, expected_var)


def test_a_start_in_mid_epoch_still_has_batches_to_estimate_statistics_on():
    swa = SWA(0.5, every_n_steps=1)  # from the fourth of six steps, all in the first epoch
    module, _ = train(swa, max_epochs=-1, max_steps=6)
    assert swa.n_averaged == 3
    with swa.averaged(module):  # would warn, and warnings are errors
        assert module.net[1].running_mean.abs().sum() > 0


def test_a_second_fit_of_the_same_module_goes_on_averaging():
    swa, module = SWA(0), Line()
    train(swa, module=module, max_epochs=2)
    train(swa, module=module, max_epochs=2)
    assert swa.n_averaged == 4


def test_a_fit_of_another_module_begins_anew():
    swa = SWA(0)
    train(swa)
    module, _ = train(swa, max_epochs=1)
    assert_same(swa.weights, copied(module))


@pytest.mark.parametrize(
    "copy",
    [copy.copy, copy.deepcopy, lambda swa: pickle.loads(pickle.dumps(swa))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_begins_anew_with_another_network(copy):
    swa = SWA(0)
    train(swa, max_epochs=3)
    before, twin = swa.weights, copy(swa)
    assert_same(twin.weights, before)
    module, _ = train(twin, max_epochs=1)
    assert twin.n_averaged == 1
    assert_same(twin.weights, copied(module))
    assert_same(swa.weights, before)


@pytest.mark.tried("faults", "an average that cannot be taken or validated: one warning")
def test_a_failing_update_costs_one_warning_and_no_training():
    plain, _ = train()
    with pytest.warns(UserWarning, match="could not run the average: ZeroDivisionError") as caught:
        module, _ = train(SWA(0, average=lambda average, new, n: 1 / 0))
    assert_same(copied(module), copied(plain))
    assert len([w for w in caught if "could not run" in str(w.message)]) == 1


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 4}, {"average": "ema"}], ids=str)
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_has_the_average_of_the_uninterrupted_one(tmp_path, options, epoch):
    def checkpoints():
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    still = {"shuffle": False, "dataset": Samples(noise=0), "enable_checkpointing": True}
    whole, resumed = SWA(1, **options), SWA(1, **options)
    train(whole, checkpoints(), **still)
    train(resumed, checkpoints(), **still, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert resumed.n_averaged == whole.n_averaged
    for name, tensor in whole.weights.items():
        assert torch.equal(resumed.weights[name], tensor)


@pytest.mark.parametrize("key", sorted(SWA().state_dict().keys() - {"average"}))
def test_a_checkpoint_that_lacks_a_key_is_loaded_with_a_warning(key):
    swa, older = SWA(0), SWA(0)
    train(swa)
    state = swa.state_dict()
    del state[key]
    with pytest.warns(UserWarning, match=rf"SWA\(name='swa'\): the checkpoint lacks \['{key}'\]"):
        older.load_state_dict(state)
    assert older.n_averaged == (0 if key in ("n_averaged", "weights") else 4)
    train(older, max_epochs=1)  # and goes on


@pytest.mark.tried("configuration", "two SWA callbacks in one Trainer")
def test_two_averages_keep_their_own_state(tmp_path):
    early, late = SWA(0, name="early"), SWA(2, name="late")
    module, trainer = train(early, late)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    for swa, n in ((early, 4), (late, 2)):
        assert swa.n_averaged == n
        fresh = Line()
        load_swa_weights(tmp_path / "both.ckpt", fresh, name=swa.name)
        assert_same(copied(fresh), swa.weights)
        with swa.averaged(module):
            found = differences(module.state_dict(), fresh.state_dict())
        assert found == ["/net.1.num_batches_tracked"]  # a count of the live module's, not averaged


def test_a_checkpoint_without_that_average_is_refused(tmp_path):
    module, trainer = train(SWA(0))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="with an average called 'other'"):
        load_swa_weights(tmp_path / "one.ckpt", module, name="other")


def test_torch_loads_the_average():
    swa = SWA(0)
    module, _ = train(swa)
    averaged = AveragedModel(module)
    averaged.load_state_dict(swa.averaged_model_state(module))
    assert int(averaged.n_averaged) == 4
    assert_same(copied(averaged.module), swa.weights)


@pytest.mark.filterwarnings("ignore:.*`self.trainer` reference is not registered")
def test_recalibrating_changes_nothing_but_the_statistics():
    module = HostileModule()
    batches = list(DataLoader(Samples(), batch_size=6))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rest, rng = attributes(module), rng_fingerprint()
    recalibrate_batch_norm(module, batches)
    changed = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"net.1.running_mean", "net.1.running_var"}
    assert differences(rest, attributes(module)) == []
    assert rng_fingerprint() == rng


class ByHand(Line):
    """Optimises by hand, and its `forward` does not take a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def forward(self, scale, x):
        return self.net(scale * x)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.late(self(1.0, batch["x"])).square().mean())
        optimizer.step()


@pytest.mark.tried("steps", "batch norm under manual optimisation, where forward takes no batch")
def test_a_loss_fn_runs_the_batches_that_batch_norm_is_estimated_on():
    swa = SWA(0, loss_fn=lambda module, batch: module(1.0, batch["x"]))
    module, _ = train(swa, module=ByHand(), shuffle=False, dataset=Samples(noise=0))
    inputs = [batch["x"] for batch in DataLoader(Samples(noise=0), batch_size=6)]
    with swa.averaged(module):
        means = torch.stack([module.net[0](x).mean(0) for x in inputs])
        assert torch.allclose(module.net[1].running_mean, means.mean(0), atol=1e-6)


@pytest.mark.tried("configuration", "SWA where batch norms need a loss_fn: refused at the start")
def test_a_loss_fn_that_batch_norm_needs_is_asked_for_at_the_start():
    with pytest.raises(MisconfigurationException, match="`loss_fn` is needed"):
        train(SWA(0, apply_at_end=True), module=ByHand())
    train(SWA(0), module=ByHand())  # nothing is validated, and nothing asked for


def test_statistics_are_estimated_on_batches_that_are_given():
    swa = SWA(0, validate=False)
    module, _ = train(swa)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batches = [Samples(noise=0)[slice(0, 6)], Samples(noise=0)[slice(6, 12)]]
    with swa.averaged(module, batches):
        means = torch.stack([module.net[0](batch["x"]).mean(0) for batch in batches])
        torch.testing.assert_close(module.net[1].running_mean, means.mean(0))
        recalibrate_batch_norm(module, batches[:1])
        module.net(batches[0]["x"])  # in training mode, which moves running statistics
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())
    with pytest.raises(ValueError, match="`batches` must hold at least one"):
        swa.averaged(module, []).__enter__()


def test_weights_are_handed_out_where_statistics_cannot_be_estimated():
    swa = SWA(0, validate=False, loss_fn=lambda module, batch: 1 / 0)
    module, _ = train(swa)
    swa.averaging.kept.clear()
    for use in (swa.apply_to, lambda module: swa.averaged(module).__enter__()):
        with pytest.warns(
            UserWarning, match="without batch-norm statistics of its own: ValueError"
        ):
            use(module)
        assert_same(copied(module), swa.weights)
    with pytest.warns(UserWarning, match="its own: ZeroDivisionError"):
        swa.averaged(module, [Samples(noise=0)[slice(0, 6)]]).__enter__()


def test_recalibrating_on_nothing_is_refused():
    with pytest.raises(ValueError, match="`batches` must hold at least one"):
        recalibrate_batch_norm(nn.BatchNorm1d(2), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "`start` must be an epoch"),
        ({"start": 1.0}, "`start` must be an epoch"),
        ({"start": True}, "`start` must be an epoch"),
        ({"every_n_epochs": 1, "every_n_steps": 1}, "exclude each other"),
        ({"every_n_steps": 0}, "`every_n_steps` must be a whole number"),
        ({"average": "median"}, "`average` must be"),
        ({"window": 0}, "`window` must be a whole number"),
        ({"decay": 1.0}, "`decay` must be"),
        ({"decay": "slow"}, "`decay` must be .* Got 'slow'"),
        ({"bn_batches": 0}, "`bn_batches` must be"),
        ({"device": "cud"}, "`device` must be one this machine has"),
        ({"name": ""}, "`name` must be a word"),
        ({"loss_fn": "loss"}, "`loss_fn` must be a function"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_once(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        SWA(**options)


def test_a_share_of_nothing_is_refused_at_the_start():
    with pytest.raises(MisconfigurationException, match="share of `max_epochs` or `max_steps`"):
        train(SWA(0.5), max_epochs=-1, max_time="00:00:00:01")


def test_the_summary_of_an_average_grows_with_what_is_known():
    swa, t = SWA(0), torch.tensor([-1.0, 0.0, 1.0, 2.0])
    line = compare_ends(Slice(t, torch.tensor([5.0, 1.0, 0.5, 1.5]), distance=2.0))
    assert swa.summary().endswith("has averaged nothing.")
    swa.update(nn.Linear(1, 1))
    assert "No verdict: the line to the average was not measured" in swa.summary()
    swa.remember_line([line], step=9)
    swa.update(nn.Linear(1, 1))  # the line stays that of its own step
    at_step = "At step 9, with 1 set of weights averaged, the line to the average"
    assert f"{at_step} (1 training batch in train mode):\nThe average is 2" in swa.summary()
    assert "no validation batches were measured" in swa.summary()
