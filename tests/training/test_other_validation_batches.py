"""Validation batches that the training step cannot take cost no probe its other numbers."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader
from toys import Data, Plain, train

from lightning_landscape import SWA, AsymmetryMonitor

SMALL = {"every_n_epochs": 1, "n_batches": 3, "n_directions": 1, "n_points": 5}


class Pairs(Data):
    """Its validation batches are lists of two tensors, its training batches dicts."""

    def val_dataloader(self):
        return DataLoader([(torch.ones(8), torch.tensor(1))] * 6, batch_size=3)


class OfTwoKinds(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss({"x": batch[0], "y": batch[1]}))


def losses_of(monitor):
    return {name: found.slices[0].losses for name, found in monitor.last.surveys.items()}


def test_validation_batches_that_the_step_fails_on_are_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        alone = AsymmetryMonitor(**SMALL)
        plain, _ = train(alone, module=OfTwoKinds, data=Pairs(), max_epochs=3)
    both = AsymmetryMonitor(**SMALL, validation=True)
    with pytest.warns(UserWarning, match="fails on validation batches.*TypeError") as warned:
        probed, _ = train(both, module=OfTwoKinds, data=Pairs(), max_epochs=3)
    assert len([w for w in warned if "AsymmetryMonitor" in str(w.message)]) == 1
    assert both.history.keys() == alone.history.keys()
    assert [step for step, _ in both.history["gaussian"]] == [5, 11, 17]
    for name, losses in losses_of(alone).items():
        assert torch.equal(losses_of(both)[name], losses)
    for name, weight in plain.state_dict().items():
        assert torch.equal(probed.state_dict()[name], weight)


def test_a_step_that_fails_on_all_batches_is_not_blamed_on_validation():
    def fails(module, batch):
        raise LookupError("nowhere")

    monitor = AsymmetryMonitor(**SMALL, validation=True, loss_fn=fails)
    with pytest.warns(UserWarning, match="nowhere") as warned:
        train(monitor)
    assert not any("validation batches" in str(w.message) for w in warned)
    assert not monitor.kept.leaves_out_validation
    assert monitor.last is None


def test_the_summary_speaks_of_the_average_where_no_probe_was_made():
    def fails(module, batch):
        raise LookupError("nowhere")

    swa = SWA(start=0, verbose=False)
    monitor = AsymmetryMonitor(**SMALL, swa=swa, loss_fn=fails)
    with pytest.warns(UserWarning, match="nowhere"):
        train(swa, monitor)
    assert monitor.summary().startswith("AsymmetryMonitor has measured nothing.\nDoes averaging")
    assert "swa has averaged 2 sets of weights" in monitor.summary().replace(
        "SWA(name='swa')", "swa"
    )
