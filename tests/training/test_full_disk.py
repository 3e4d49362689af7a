"""The disk is full, in a file, for good, or where a checkpoint goes: nothing is half there."""

import subprocess

import pytest
import torch
from hostile import differences
from injection import Files, Injected, assert_whole, disk_full_at, failing, run
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor, load_swa_weights


class Keeps(Files):
    """Keeps what the callbacks log too."""

    def __init__(self, folder):
        super().__init__(folder)
        self.names = set()

    def log_metrics(self, metrics, step=None):
        self.names |= set(metrics)
        super().log_metrics(metrics, step)


def callbacks():
    monitor = AsymmetryMonitor(
        every_n_epochs=1, families=["sign"], n_directions=1, n_points=5, n_batches=1
    )
    return [monitor, GradientBreakdownMonitor(every_n_epochs=1, directions="update", etas=[1.0])]


def train(folder, **options):
    logger = Keeps(folder)
    return run(callbacks(), max_epochs=2, limit_train_batches=3, logger=logger, **options), logger


@pytest.fixture(scope="module")
def plain():
    return run([], max_epochs=2, limit_train_batches=3).result


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of a few pages, where we may."""

    def mount(size):
        folder = tmp_path / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small disk")
        mounted.append(folder)
        return folder

    mounted = []
    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.tried(
    "faults", "a disk that fills up in the middle of the first, second or fourth file"
)
@pytest.mark.parametrize("n_bytes", [0, 100])
@pytest.mark.parametrize("n_writes", [1, 2, 4])
def test_a_disk_that_fills_up_costs_a_file_and_a_warning(n_writes, n_bytes, tmp_path, plain):
    with disk_full_at(n_writes, n_bytes) as written:
        found, logger = train(tmp_path)
    assert len(written) >= 10
    assert differences(plain, found.result) == []
    (warning,) = found.warned
    assert "No space left on device" in warning
    assert {"landscape/sign/rate", "breakdown/update/max"} <= logger.names
    assert_whole(tmp_path)
    whole = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(whole) == len(set(written[: n_writes - 1]))


@pytest.mark.tried("faults", "a real file system with no room for the files of the probes")
def test_a_disk_that_is_really_full_costs_one_warning(small_disk, plain):
    folder = small_disk("32k")
    found, logger = train(folder)
    assert differences(plain, found.result) == []
    (warning,) = found.warned
    assert "No space left on device" in warning
    assert {"landscape/sign/rate", "breakdown/update/max"} <= logger.names
    assert_whole(folder)


@pytest.mark.tried(
    "faults", "a full disk where checkpoints go: Lightning ends the fit, the one before is whole"
)
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_whole(small_disk):
    folder = small_disk("80k")
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    with pytest.raises(OSError, match="No space left on device"):
        run([SWA(0), saver], max_epochs=9, limit_train_batches=3, enable_checkpointing=True)
    first = Injected()
    load_swa_weights(folder / "epoch=0.ckpt", first)
    saved = torch.load(folder / "epoch=0.ckpt", weights_only=False)["state_dict"]
    assert differences(dict(saved), first.state_dict()) != []  # the average is not the last weights
    assert saved.keys() == first.state_dict().keys()


@pytest.mark.tried("faults", "out of memory while a checkpoint is saved with the average")
@pytest.mark.parametrize("at", [1, 2])
def test_a_checkpoint_is_saved_without_statistics_that_cannot_be_had(at, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    swa = SWA(0, validate=False, bn_batches=2)
    fault = failing(torch.OutOfMemoryError("mine"))
    options = {"max_epochs": 1, "limit_train_batches": 3, "enable_checkpointing": True}
    found = run([swa, saver], fault=fault, at=at, **options)
    plain = run([], max_epochs=1, limit_train_batches=3)
    assert differences(plain.result, found.result) == []
    (warning,) = found.warned
    assert "OutOfMemoryError: mine" in warning
    state = torch.load(tmp_path / "epoch=0.ckpt", weights_only=False)["callbacks"][swa.state_key]
    assert state["n_averaged"] == 1
    assert state["statistics"] == {}
