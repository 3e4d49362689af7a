"""The most memory one job holds at a time, in units of the parameters; a process for each.

    python memory.py slices

The resident set is what counts, and every tensor must come and go with its pages: the process gets
`MALLOC_MMAP_THRESHOLD_` low, the opposite of what times need.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import networks
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import (
    SWA,
    GradientBreakdownMonitor,
    evaluate_slice,
    probing,
    sample_direction,
    symmetric_grid,
)

WIDTHS = [1000] * 21  # 20 million parameters, 80 MB, in 20 tensors; a batch is 16 kB

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def available() -> bool:
    """Return whether the kernel says what a process held at most, and can be told to forget."""
    return os.access(_PEAK, os.W_OK) and "VmHWM" in _STATUS.read_text()


def measured(job: str) -> float:
    """Return the extra memory of a job, in units of the parameters, from a process of its own."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, job]
    done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    return float(done.stdout.splitlines()[-1])


def slices(module: networks.Classifier, batch: tuple[Tensor, Tensor]) -> object:
    """Open, draw a direction, evaluate along it, close."""
    generator = torch.Generator().manual_seed(0)
    with probing(module, [batch]) as objective:
        direction = sample_direction(
            objective.params, "gaussian", module=module, generator=generator
        )
        return evaluate_slice(objective, direction, symmetric_grid(0.6, 5))


def swa(module: networks.Classifier, batch: tuple[Tensor, Tensor]) -> object:
    """Keep an average and update it."""
    average = SWA(0)
    for _ in range(3):
        average.update(module)
    return average


def averaged_model(module: networks.Classifier, batch: tuple[Tensor, Tensor]) -> object:
    """The same with torch's."""
    average = AveragedModel(module)
    for _ in range(3):
        average.update_parameters(module)
    return average


def fit(module: networks.Classifier, batch: tuple[Tensor, Tensor], *callbacks: object) -> object:
    """Train for four steps of SGD."""
    data = TensorDataset(*(tensor.repeat(4, *[1] * (tensor.ndim - 1)) for tensor in batch))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    return trainer.fit(module, DataLoader(data, batch_size=len(batch[1])))


def breakdown(module: networks.Classifier, batch: tuple[Tensor, Tensor]) -> object:
    """The same with a monitor of the gradients; subtract `fit`."""
    monitor = GradientBreakdownMonitor(every_n_steps=2, on_error="raise")
    return fit(module, batch, monitor)


JOBS = {job.__name__: job for job in (slices, swa, averaged_model, fit, breakdown)}


def _bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _main(job: str) -> None:
    torch.set_num_threads(1)
    for widths in ([10] * 21, WIDTHS):  # the first time for what is imported and cached on the way
        module = networks.Classifier(networks.mlp(*widths))
        batch = torch.randn(4, widths[0]), torch.zeros(4, dtype=torch.long)
        with torch.no_grad():
            module.training_step(batch, 0)
        gc.collect()
        _PEAK.write_text("5")
        before = _bytes("VmRSS")
        _ = JOBS[job](module, batch)
    size = sum(parameter.nbytes for parameter in module.parameters())
    print((_bytes("VmHWM") - before) / size)


if __name__ == "__main__":
    _main(sys.argv[1])
