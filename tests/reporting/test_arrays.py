"""The file of a probe: what is in it comes back bit for bit, and so do files of version 0.1."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_landscape import Slice, load_slices, symmetric_grid
from lightning_landscape.reporting.arrays import npz_content, slice_arrays

GRID = symmetric_grid(0.6, 5)


def lines(n, label):
    noise = torch.randn(n, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    sign = 0.25 if label == "swa" else math.nan
    return [Slice(GRID, loss, 0.1 + k, "eval", label, sign) for k, loss in enumerate(noise)]


def test_slices_of_all_families_come_back_bit_for_bit(tmp_path):
    kinds = ("uniform@norm", "uniform@norm, validation", "swa")
    written = [line for n, kind in enumerate(kinds, 1) for line in lines(n, kind)]
    arrays = {}
    for n, kind in enumerate(kinds, 1):
        arrays |= slice_arrays(kind, lines(n, kind))
    path = tmp_path / "landscape-step=9.npz"
    path.write_bytes(npz_content({"step": 9, **arrays}))
    again = load_slices(path)
    assert str([line.to_dict() for line in again]) == str([line.to_dict() for line in written])
    assert load_slices(str(path))[0].losses.dtype == torch.float64


def test_a_file_of_version_0_1_is_read(tmp_path):
    (line,) = lines(1, "sign")
    np.savez(
        tmp_path / "sign-step=5.npz",
        alphas=GRID.numpy(),
        losses=line.losses.numpy()[None],
        distance=np.array([line.distance]),
        mode=np.array("eval"),
        label=np.array(["sign"]),
        step=np.array(5),
    )
    assert load_slices(tmp_path / "sign-step=5.npz")[0].to_dict() == line.to_dict()


def test_a_file_without_slices_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(npz_content({"update/max": 1.0}))
    with pytest.raises(ValueError, match=r"`path` must lead to a file with slices.*update/max"):
        load_slices(tmp_path / "x.npz")


def test_reading_slices_needs_no_lightning():
    code = "import lightning_landscape as l, sys; l.load_slices; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
