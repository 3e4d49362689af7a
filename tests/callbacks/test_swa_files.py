"""The average on disk: saved, said to be lost, loaded, or refused in one sentence."""

import argparse
import pathlib
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_swa import Line, assert_same, copied, train
from torch import nn

from lightning_landscape import SWA, load_swa_weights


def saved(tmp_path, content):
    path = tmp_path / "some.ckpt"
    torch.save(content, path)
    return path


def state(**replaced):
    swa = SWA(0)
    swa.update(nn.Linear(1, 1))
    return {"callbacks": {swa.state_key: {**swa.state_dict(), **replaced}}}


@pytest.mark.parametrize("logger", [False, True])
def test_an_average_saved_at_the_end_is_loaded_with_its_statistics(tmp_path, logger, caplog):
    swa = SWA(0, save_at_end=True, validate=False)
    options = {"logger": CSVLogger(tmp_path)} if logger else {"default_root_dir": tmp_path}
    module, trainer = train(swa, **options)
    (path,) = tmp_path.rglob("swa-step=24.ckpt")
    assert path.parent == pathlib.Path(trainer.log_dir or tmp_path)
    assert f"wrote its average to {path}" in caplog.text
    fresh = Line()
    load_swa_weights(path, fresh)
    assert_same(copied(fresh), swa.weights)
    with swa.averaged(module):
        assert torch.equal(fresh.net[1].running_var, module.net[1].running_var)


LOST = "no checkpoint holds the final average"


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (lambda path: [SWA(0)], True),
        (lambda path: [SWA(0, save_at_end=True)], False),
        (lambda path: [SWA(0), ModelCheckpoint(path)], False),
        (lambda path: [SWA(0), ModelCheckpoint(path, every_n_epochs=3)], True),
        (lambda path: [SWA(1, every_n_epochs=2), ModelCheckpoint(path, every_n_epochs=4)], False),
    ],
    ids=["no checkpoint", "saved at the end", "each epoch", "before the end", "the last epoch"],
)
def test_an_average_that_no_file_holds_is_said_to_be_lost(tmp_path, caplog, make, lost):
    callbacks = make(tmp_path)
    enabled = len(callbacks) > 1
    train(*callbacks, default_root_dir=tmp_path, enable_checkpointing=enabled)
    assert (LOST in caplog.text) is lost
    assert not lost or "SWA(save_at_end=True)" in caplog.text


def test_a_disk_that_is_full_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="could not run the average"):
        train(SWA(0, save_at_end=True), default_root_dir=tmp_path / "file")


class Custom:
    pass


@pytest.mark.parametrize(
    "value", [pathlib.Path("a"), argparse.Namespace(lr=1), Custom(), torch.nn.ReLU()], ids=repr
)
def test_a_file_with_python_objects_is_loaded_only_if_trusted(tmp_path, value):
    path = saved(tmp_path, {"hyper_parameters": {"a": value}, **state()})
    with pytest.raises(ValueError, match=r"some.ckpt with a \S+.*weights_only=False"):
        load_swa_weights(path, nn.Linear(1, 1))
    load_swa_weights(path, nn.Linear(1, 1), weights_only=False)


class Harmful:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("touched"),)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="weights_only=False"):
        load_swa_weights(saved(tmp_path, {"a": Harmful(), **state()}), nn.Linear(1, 1))
    assert not (tmp_path / "touched").exists()


def truncated(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "FileNotFoundError"),
        (lambda path: path.mkdir(), "IsADirectoryError"),
        (lambda path: path.write_bytes(b""), "EOFError"),
        (lambda path: path.write_text("epoch: 3"), "cannot be read"),
        (truncated, "cannot be read: RuntimeError"),
        (lambda path: path.write_bytes(pickle.dumps([1])), "bad.ckpt"),
        (lambda path: torch.save([1], path), "no checkpoint of Lightning's"),
        (lambda path: torch.save({"callbacks": [1]}, path), "no checkpoint of Lightning's"),
        (lambda path: torch.save({"callbacks": {}}, path), r"it has the callbacks \[\]"),
        (lambda path: torch.save(state(n_averaged=0), path), "had averaged nothing yet"),
        (lambda path: torch.save(state(weights={}), path), "had averaged nothing yet"),
        (lambda path: torch.save(state(weights={"weight": torch.ones(1, 1)}), path), r"\['bias'\]"),
        (lambda path: torch.save(state(weights=[1]), path), "is none of SWA's"),
        (lambda path: torch.save(state(weights={"weight": 1}), path), "is none of SWA's"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, write, message, weights_only):
    path = tmp_path / "bad.ckpt"
    write(path)
    with pytest.raises(ValueError, match=message):
        load_swa_weights(path, nn.Linear(1, 1), weights_only=weights_only)
