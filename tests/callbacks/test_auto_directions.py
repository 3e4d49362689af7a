"""`n_directions="auto"`: as many directions as the rate needs, in as few evaluations as will do."""

import datetime
import logging

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hostile import EndsItsGroup, differences
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET, Rows, Samples

from lightning_landscape import AsymmetryMonitor, load_slices
from lightning_landscape.callbacks import costs
from lightning_landscape.callbacks.budget import Budget
from lightning_landscape.callbacks.costs import ProbePlan
from lightning_landscape.measures import survey as survey_module
from lightning_landscape.measures.sequential import sequential_design

AUTO = {
    "n_directions": "auto",
    "families": ("sign",),
    "n_points": 9,
    "n_batches": 1,  # of two, Student's quantile would resolve no direction
    "precision": 0.2,
    "on_error": "raise",
}
evaluated: list[int] = []


class Net(LightningModule):
    """Asymmetric along some of its directions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        evaluated.append(batch_idx)
        return F.cross_entropy(self.net(batch["x"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch["x"]), batch["y"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def train(*callbacks, **options):
    seed_everything(0, verbose=False)
    evaluated.clear()
    module = Net()
    options = {**QUIET, "max_epochs": 4, "logger": Rows(), **options}
    trainer = Trainer(**options, callbacks=list(callbacks))
    loader = DataLoader(Samples(), batch_size=6, shuffle=True)
    trainer.fit(module, loader, DataLoader(Samples(12), batch_size=4))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return module, {name: v for name, v in metrics.items() if name.startswith("landscape/")}


def of_family(metrics):
    start = "landscape/sign/"
    return {tag[len(start) :]: value for tag, value in metrics.items() if tag.startswith(start)}


@pytest.mark.tried("steps", "as many directions as the interval of the rate needs")
@pytest.mark.parametrize("validation", [False, True])
def test_the_rate_is_of_all_directions_and_all_else_of_eight(validation):
    auto = AsymmetryMonitor(every_n_epochs=4, validation=validation, **AUTO)
    found = of_family(train(auto)[1])
    n = int(found.pop("n_directions"))
    whole, eight = (
        of_family(
            train(
                AsymmetryMonitor(
                    every_n_epochs=4, validation=validation, **{**AUTO, "n_directions": number}
                )
            )[1]
        )
        for number in (n, 8)
    )
    assert 8 < n <= 27
    assert 0 < found["rate"] < 1  # else nothing is told apart here
    k = round(n * found["rate"])
    design = sequential_design(0.2)
    assert design.stops(k, n)
    assert found.pop("rate") == whole["rate"]
    ends = found.pop("rate_low"), found.pop("rate_high")
    assert ends == pytest.approx(design.interval(k, n), abs=1e-6)
    assert found == {name: eight[name] for name in found}
    assert set(eight) - set(found) == {"rate", "rate_low", "rate_high"}


def test_it_costs_at_most_what_it_says_and_less_than_whole_slices():
    monitor = AsymmetryMonitor(every_n_epochs=4, **AUTO)
    train()
    plain = len(evaluated)
    _, metrics = train(monitor)
    n = of_family(metrics)["n_directions"]
    spent = len(evaluated) - plain - 2  # one batch, two evaluations to learn from
    assert 8 * 9 < spent < n * 9 - (n - 8)  # of those in pairs, the centre is known
    assert spent <= monitor.n_evaluations == 8 * 9 + 19 * 8


@pytest.mark.tried("steps", "training with n_directions='auto'")
def test_training_is_bit_identical_whatever_number_it_draws():
    plain, _ = train(max_epochs=3)
    probed, metrics = train(AsymmetryMonitor(every_n_steps=5, **AUTO), max_epochs=3)
    assert differences(plain.state_dict(), probed.state_dict()) == []
    assert "landscape/sign/n_directions" in metrics


def test_how_many_were_drawn_is_only_logged_where_it_is_no_setting():
    _, metrics = train(AsymmetryMonitor(**{**AUTO, "n_directions": 2}), max_epochs=1)
    assert "landscape/sign/n_directions" not in metrics


def test_files_hold_the_eight_whole_slices(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="")
    train(AsymmetryMonitor(every_n_epochs=2, **AUTO), max_epochs=2, logger=logger)
    slices = load_slices(f"{logger.log_dir}/landscape/landscape-step=11.npz")
    assert [len(line.alphas) for line in slices] == [9] * 8
    assert not any(line.n_nonfinite for line in slices)


def test_the_cost_is_said_as_a_range(caplog):
    with caplog.at_level(logging.INFO):
        train(AsymmetryMonitor(**AUTO), max_epochs=2)
    lines = [r.getMessage() for r in caplog.records if "one probe" in r.getMessage()]
    assert len(lines) == 1
    assert "one probe = 72 to 224 evaluations, about" in lines[0]


@pytest.mark.tried("configuration", "n_directions='auto' within max_overhead")
@pytest.mark.parametrize(
    ("seconds", "n"), [(9.5, 1), (72.5, 8), (80.5, 9), (81.0, 9), (100.0, 11), (1e6, 27)]
)
def test_a_budget_cuts_the_sampling_off_at_what_it_affords(seconds, n):
    # every evaluation takes a second; 72 for eight whole slices, 8 a direction more
    plan = ProbePlan(n_families=1, n_points=9, n_whole=8, n_most=27)
    assert plan.directions_within(seconds, 1.0) == n


def test_directions_that_take_longer_than_evaluations_count_too(monkeypatch, clock):
    for owner, name, seconds in (
        (survey_module, "sample_direction", 0.05),
        (costs, "sample_direction", 0.05),
        (Net, "training_step", 0.001),
        (Net, "on_train_batch_start", 1.0),
    ):
        monkeypatch.setattr(owner, name, clock.taking(seconds, getattr(owner, name)))
    monitor = AsymmetryMonitor(every_n_epochs=1, max_overhead=0.05, **{**AUTO, "precision": 0.05})
    overheads = []

    class Overhead(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            overheads.append(monitor.budget.overhead())

    train(monitor, Overhead(), max_epochs=25)
    assert len(monitor.history["sign"]) > 2
    assert max(overheads) <= 0.055  # of slices that are left early only the sampling is whole


def test_a_probe_cut_off_by_its_budget_has_a_wider_interval(monkeypatch):
    monkeypatch.setattr(ProbePlan, "directions_within", lambda *_: 9)
    _, metrics = train(AsymmetryMonitor(every_n_epochs=4, max_overhead=0.99, **AUTO))
    found = of_family(metrics)
    assert found["n_directions"] == 9
    assert found["rate_high"] - found["rate_low"] > 0.4
    k = round(9 * found["rate"])
    ends = found["rate_low"], found["rate_high"]
    assert ends == pytest.approx(sequential_design(0.2).interval(k, 9), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_directions": "many"}, "whole number from 1 up or 'auto'. Got 'many'"),
        ({"n_directions": "auto", "precision": 0.5}, "`precision` must be half"),
        ({"precision": 0.0}, "`precision` must be half"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_construction(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        AsymmetryMonitor(**options)


# -- several processes -----------------------------------------------------------------------------


class Compare(Callback):
    """Holds what each rank found against what the first did."""

    def on_train_end(self, trainer, pl_module):
        mine = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("landscape/sign/")
        }
        ranks = [None] * trainer.world_size
        dist.all_gather_object(ranks, mine)
        assert len(mine) > 6
        assert ranks == [mine] * trainer.world_size


class Sharded(Net):
    validation_step = LightningModule.validation_step

    def train_dataloader(self):
        mine = range(self.trainer.global_rank, 24, self.trainer.world_size)
        return DataLoader(torch.utils.data.Subset(Samples(24), mine), batch_size=6)


@pytest.mark.slow
@pytest.mark.tried("distributed", "n_directions='auto' on two ranks with batches of their own")
@pytest.mark.parametrize("max_overhead", [None, 0.5])
def test_all_ranks_draw_the_same_number_of_directions(monkeypatch, max_overhead):
    # where there is a budget, the second rank has nothing left for a ninth direction
    monkeypatch.setattr(Budget, "affords", lambda self, kind, **options: True)
    monkeypatch.setattr(Budget, "left", lambda self: 0.0 if dist.get_rank() else 1e9)
    seed_everything(0, verbose=False)
    monitor = AsymmetryMonitor(max_overhead=max_overhead, **{**AUTO, "precision": 0.1})
    trainer = Trainer(
        max_epochs=3,
        devices=2,
        strategy=DDPStrategy(start_method="fork", timeout=datetime.timedelta(seconds=60)),
        callbacks=[EndsItsGroup(), monitor, Compare()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **QUIET,
    )
    trainer.fit(Sharded())
    found = of_family({name: float(v) for name, v in trainer.callback_metrics.items()})
    low, high = (8, 8) if max_overhead else (17, 104)
    assert low <= found["n_directions"] <= high
