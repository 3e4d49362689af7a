"""`kill -9` in the middle of a probe or of a file, then on from the last checkpoint."""

import functools
import io
import multiprocessing
import signal
import tempfile
from pathlib import Path

import pytest
import torch
import victim
from hostile import differences
from injection import assert_whole

pytestmark = pytest.mark.slow

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["lightning.pytorch", "lightning_landscape", "matplotlib.figure"])


def train(folder, **options):
    """Train in a process of its own; return what came of it, or the signal it died of."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=victim.train_and_tell, args=(folder, sender, options))
    process.start()
    sender.close()
    try:
        told = receiver.recv_bytes()
    except EOFError:
        told = None
    process.join()
    if told is None:
        return signal.Signals(-process.exitcode)
    return torch.load(io.BytesIO(told), weights_only=False)


@functools.cache
def uninterrupted():
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder))


def without_calls(end):
    return {name: value for name, value in end.items() if name != "calls"}


def test_the_victim_trains_as_without_probes(tmp_path):
    alone = train(tmp_path, probes=False)
    for part in ("state_dict", "optimizers", "global_step"):
        assert differences(alone[part], uninterrupted()[part]) == []


def test_the_kills_below_come_early_and_late():
    assert uninterrupted()["calls"] > 250


@pytest.mark.tried(
    "faults", "kill -9 in the middle of a probe, then on from the last checkpoint: the same end"
)
@pytest.mark.parametrize("at", [9, 61, 140, 250])
def test_a_training_that_was_killed_in_a_probe_ends_as_if_it_had_not_been(at, tmp_path):
    assert train(tmp_path, kill_at=at) is signal.SIGKILL
    assert_whole(tmp_path)
    end = train(tmp_path)
    assert differences(without_calls(uninterrupted()), without_calls(end)) == []
    assert_whole(tmp_path)


@pytest.mark.tried(
    "faults", "kill -9 in the middle of writing a file, then on from the last checkpoint"
)
@pytest.mark.parametrize("n_bytes", [1000, 10**6])
@pytest.mark.parametrize("n", [2, 11])
def test_a_training_that_was_killed_in_a_file_leaves_only_whole_ones(n, n_bytes, tmp_path):
    assert train(tmp_path, at_file=(n, n_bytes)) is signal.SIGKILL
    (partial,) = tmp_path.rglob("*.partial")  # under a name that no one takes for a result
    assert partial.name.startswith(".")
    end = train(tmp_path)
    assert differences(without_calls(uninterrupted()), without_calls(end)) == []
    assert_whole(tmp_path)


@pytest.mark.tried("faults", "a limit on the size of files, kept by the kernel")
@pytest.mark.parametrize("largest", [1, 4000])
def test_files_that_the_kernel_cuts_short_are_not_there(largest, tmp_path):
    end = train(tmp_path, largest_file=largest)
    expected = uninterrupted()
    for part in ("state_dict", "optimizers", "global_step", "average"):
        assert differences(expected[part], end[part]) == []
    assert_whole(tmp_path)
    assert all(path.stat().st_size <= largest for path in tmp_path.rglob("*") if path.is_file())
    assert any(tmp_path.rglob("*.npz")) is (largest > 1)
