"""The average of a fit that a person ends, and of one that a longer fit goes on from."""

import logging

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from toys import Classifier, Plain, train

from lightning_landscape import SWA, AsymmetryMonitor, load_swa_weights


class EndedAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Weights(Callback):
    """Remembers the weights at the end of each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(pl_module.net[0].weight.detach().clone())


def ended_by_hand(*callbacks, **options):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(*callbacks, EndedAt(15), max_epochs=9, **options)


def test_an_average_is_saved_when_a_person_ends_the_fit(tmp_path, caplog):
    swa = SWA(start=0, save_at_end=True)
    with caplog.at_level(logging.INFO):
        ended_by_hand(swa, module=Classifier, default_root_dir=tmp_path)
    (file,) = tmp_path.glob("swa-step=*.ckpt")
    kept = Classifier()
    load_swa_weights(file, kept)
    assert swa.n_averaged == 2
    for name, weight in swa.weights.items():
        assert torch.equal(kept.get_parameter(name), weight)
    assert kept.net[1].running_mean.abs().sum() > 0
    assert "wrote its average to" in caplog.text
    assert "has averaged 2 sets of weights" in caplog.text


def test_an_average_that_is_not_saved_is_told_of_when_a_fit_is_ended(caplog):
    with caplog.at_level(logging.INFO):
        ended_by_hand(swa := SWA(start=0), AsymmetryMonitor(swa=swa, every_n_epochs=9))
    assert caplog.text.count("has averaged 2 sets of weights") == 1
    assert "no checkpoint holds the final average" in caplog.text


def test_a_monitor_that_found_nothing_says_nothing_when_a_fit_is_ended(caplog):
    def fails(module, batch):
        raise LookupError("nowhere")

    swa = SWA(start=0)
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match="nowhere"):
        ended_by_hand(swa, AsymmetryMonitor(swa=swa, every_n_epochs=1, loss_fn=fails))
    assert caplog.text.count("has averaged 2 sets of weights") == 1
    assert "measured nothing" not in caplog.text


def test_a_callback_of_the_users_may_hold_the_average_of_an_ended_fit(caplog):
    class Holds(Callback):
        def __init__(self, swa):
            self.swa = swa

    with caplog.at_level(logging.INFO):
        ended_by_hand(swa := SWA(start=0), Holds(swa))
    assert caplog.text.count("has averaged 2 sets of weights") == 1


def test_nothing_is_said_of_an_average_that_had_not_begun(tmp_path, caplog):
    swa = SWA(start=8, save_at_end=True)
    with caplog.at_level(logging.INFO):
        ended_by_hand(swa, default_root_dir=tmp_path)
    assert "averaged" not in caplog.text
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_longer_fit_leaves_out_what_was_averaged_before_its_start(tmp_path):
    train(short := SWA(start=0.5), module=Plain, max_epochs=4, **checkpoints(tmp_path))
    (path,) = tmp_path.rglob("*.ckpt")
    swa, weights = SWA(start=0.5), Weights()
    with pytest.warns(UserWarning, match="2 sets of weights were averaged before start=0.5"):
        train(swa, weights, module=Plain, max_epochs=12, ckpt_path=path, **checkpoints(tmp_path))
    assert short.n_averaged == 2
    assert swa.n_averaged == 6
    mean = torch.stack(weights.seen[-6:]).double().mean(0)
    torch.testing.assert_close(swa.weights["net.0.weight"].double(), mean)


def test_a_fit_that_is_resumed_after_its_start_keeps_its_average(tmp_path, recwarn):
    train(SWA(start=1), module=Plain, max_epochs=3, **checkpoints(tmp_path))
    (path,) = tmp_path.rglob("*.ckpt")
    train(
        swa := SWA(start=1),
        module=Plain,
        max_epochs=5,
        ckpt_path=path,
        **checkpoints(tmp_path),
    )
    assert swa.n_averaged == 4
    assert not [w for w in recwarn if "were averaged before" in str(w.message)]


def test_an_average_of_another_kind_begins_anew(tmp_path):
    train(SWA(start=0), module=Plain, max_epochs=3, **checkpoints(tmp_path))
    (path,) = tmp_path.rglob("*.ckpt")
    ema = SWA(start=0, average="ema")
    with pytest.warns(UserWarning, match="the checkpoint has average='equal', this fit 'ema'"):
        train(ema, module=Plain, max_epochs=5, ckpt_path=path, **checkpoints(tmp_path))
    assert ema.n_averaged == 2


def checkpoints(folder):
    return {"enable_checkpointing": True, "default_root_dir": folder}
