"""What averaging does, apart from what fresh batch-norm statistics do."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping
from test_swa import Line
from torch.utils.data import DataLoader, TensorDataset
from toys import QUIET

from lightning_landscape import SWA
from lightning_landscape.callbacks.swa_group import may_be_last
from lightning_landscape.measures.averaging import paired_stderr


class Validated(Line):
    """Learns at a rate; without batch norm if asked to."""

    def __init__(self, rate=0.05, normed=True):
        super().__init__()
        self.rate, self.n_validated = rate, 0
        if not normed:
            self.net[1] = torch.nn.Identity()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.late(self.net(x)).squeeze(1) - y).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))
        self.log("val_size", self.net[0].weight.norm())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Rows(Callback):
    """The metrics after each validation."""

    def __init__(self):
        self.rows = []

    def on_validation_end(self, trainer, pl_module):
        self.rows.append({n: float(v) for n, v in trainer.callback_metrics.items()})


def data(n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 8, generator=generator)
    return TensorDataset(x, x.sum(1) + torch.randn(n, generator=generator))


def train(*callbacks, module=None, **options):
    seed_everything(0, verbose=False)
    module, rows = module or Validated(), Rows()
    trainer = Trainer(**{"max_epochs": 5, **QUIET, **options}, callbacks=[*callbacks, rows])
    trainer.fit(module, DataLoader(data(48), batch_size=8), DataLoader(data(50), batch_size=10))
    return module, rows.rows


def test_at_a_rate_of_0_averaging_does_nothing():
    swa = SWA(0)
    _, rows = train(swa, module=Validated(rate=0.0))
    last = rows[-1]
    assert last["swa/val_loss"] - last["swa/control/val_loss"] == pytest.approx(0, abs=1e-6)
    assert abs(last["swa/val_loss"] - last["val_loss"]) > 1e-3  # what the statistics do
    assert "from fresh batch-norm statistics, 0 from averaging" in swa.summary()


def test_the_control_has_statistics_of_the_kept_batches():
    swa = SWA(0, bn_batches=6)
    module, rows = train(swa)
    norm = module.net[1]
    with torch.no_grad():
        inputs = [module.net[0](x) for x, _ in DataLoader(data(48), batch_size=8)]
        norm.running_mean.copy_(torch.stack([x.mean(0) for x in inputs]).mean(0))
        norm.running_var.copy_(torch.stack([x.var(0) for x in inputs]).mean(0))
        x, y = data(50).tensors
        expected = (module.late(module.eval().net(x)).squeeze(1) - y).square().mean()
    assert rows[-1]["swa/control/val_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_without_batch_norm_there_is_no_control_and_all_is_averaging():
    swa = SWA(0)
    _, rows = train(swa, module=Validated(normed=False))
    assert not [name for row in rows for name in row if "control" in name]
    split = next(split for split in swa._progress.splits if split.name == "val_loss")
    assert split.averaging == pytest.approx(rows[-1]["swa/val_loss"] - rows[-1]["val_loss"])
    assert split.n_batches == 5
    assert 0 < split.stderr < math.inf


def test_the_error_of_the_difference_is_paired_over_the_batches():
    swa = SWA(0, bn_batches=6)
    module, _ = train(swa, module=Validated(normed=False))
    losses = []
    for weights in (None, swa.weights):
        with torch.no_grad():
            if weights is not None:
                for name, p in module.named_parameters():
                    p.copy_(weights[name])
            batches = DataLoader(data(50), batch_size=10)
            losses.append(torch.stack([module.training_step(batch, 0) for batch in batches]))
    difference = (losses[1] - losses[0]).double()
    found = next(split for split in swa._progress.splits if split.name == "val_loss")
    assert found.stderr == pytest.approx(float(difference.std() / math.sqrt(5)), rel=1e-3)


def test_several_averages_share_one_control():
    class Counting(Validated):
        n = 0

        def validation_step(self, batch, batch_idx):
            Counting.n += 1  # of the class: what is run beside the live validation is put back
            super().validation_step(batch, batch_idx)

    _, rows = train(
        SWA(0, name="a"), SWA(0, name="b"), module=Counting(), max_epochs=1, num_sanity_val_steps=0
    )
    assert Counting.n == 4 * 5  # live, two averages, one control
    assert rows[-1]["a/control/val_loss"] == rows[-1]["b/control/val_loss"]


def test_the_control_runs_at_the_last_validation_and_now_and_then_before():
    _, rows = train(SWA(0), max_epochs=7, num_sanity_val_steps=0)
    assert [i for i, row in enumerate(rows) if "swa/control/val_loss" in row] == [0, 1, 3, 6]


def test_a_control_that_a_callback_follows_runs_at_every_validation():
    follower = EarlyStopping("swa/control/val_loss", patience=99)
    _, rows = train(SWA(0), follower, max_epochs=7, num_sanity_val_steps=0)
    assert sum("swa/control/val_loss" in row for row in rows) == 7


@pytest.mark.parametrize(
    ("callbacks", "options"),
    [
        ([EarlyStopping("val_size", patience=2, mode="max", min_delta=100.0)], {"max_epochs": 9}),
        ([], {"max_epochs": -1, "max_steps": 17}),
        ([], {"max_epochs": 3, "val_check_interval": 2}),
        ([], {"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 7}),
        ([], {"max_epochs": 7, "check_val_every_n_epoch": 3}),
    ],
    ids=["patience", "max_steps", "within epochs", "across epochs", "every third epoch"],
)
def test_the_last_validation_has_a_control_however_the_fit_ends(callbacks, options):
    _, rows = train(SWA(0, every_n_steps=1), *callbacks, **options)
    assert "swa/control/val_loss" in rows[-1]


def test_a_fit_that_is_stopped_may_end_after_each_validation():
    class Stopped:
        should_stop = True

    assert may_be_last(Stopped(), 1.0)


def test_a_summary_speaks_of_metrics_whose_better_side_is_known():
    swa = SWA(0)
    stopping = EarlyStopping("val_size", mode="max", patience=9)
    train(swa, stopping)
    better = {split.name: split.better for split in swa._progress.splits}
    assert better == {"val_loss": "lower", "val_size": "higher"}
    train(swa)
    assert [split.name for split in swa._progress.splits] == ["val_loss"]


def test_without_a_control_the_summary_says_that_it_is_confounded():
    swa = SWA(0)
    train(swa, max_epochs=5)
    split = swa._progress.splits[0]
    swa._progress.splits = [replace(split, control=math.nan)]
    assert "No verdict on averaging, because no control was run" in swa.summary()


@pytest.mark.parametrize(
    ("average", "gain", "says"),
    [
        ("latest", -0.5, "decaying the rate now would probably help too"),
        ("latest", 0.5, "would probably not help"),
        ("latest", 1e-3, ""),  # within its error
        ("equal", -0.5, ""),
    ],
)
def test_the_latest_weights_tell_about_decaying_the_rate(average, gain, says):
    swa = SWA(0, average=average, window=2)
    train(swa, max_epochs=5)
    split = swa._progress.splits[0]
    swa._progress.splits = [replace(split, average=split.control + gain, stderr=0.01, n_batches=5)]
    assert ("decaying the rate" in swa.summary()) == bool(says)
    assert says in swa.summary()


@pytest.mark.parametrize("watched", [False, True])
def test_a_summary_without_a_line_says_why(watched):
    swa, monitor = SWA(0), Callback()
    monitor.swa = "swa"
    train(swa, *([monitor] if watched else []))
    assert ("AsymmetryMonitor has made no probe" in swa.summary()) is watched
    assert ("no monitor follows it" in swa.summary()) is not watched


def test_an_error_needs_the_same_batches_twice():
    one = (torch.tensor([1.0]), torch.ones(1))
    two = (torch.tensor([1.0, 2.0]), torch.ones(2))
    for a, b in ((None, two), (two, None), (one, one), (one, two), (two, (two[0], 2 * two[1]))):
        assert math.isnan(paired_stderr(a, b)[0])


def test_an_error_of_unequal_batches_weighs_them():
    a = (torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([3.0, 1.0]))
    b = (torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 1.0]))
    # mean 1.75; shares 3/4, 1/4; off 9/16, 9/16; 2 / 1 * 2 * 81/256
    assert paired_stderr(a, b) == (pytest.approx(math.sqrt(2 * 2 * 81 / 256)), 2)
