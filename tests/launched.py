"""Somebody's training script, which Lightning starts once for each process.

`python launched.py <strategy> <processes> <folder> <case> ...` trains the cases one after the other
and leaves what came of each in the folder; `ran` does so from a test.
"""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from hostile import EndsItsGroup, Ledger
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from toys import QUIET, Rows, Samples

from lightning_landscape import SWA, AsymmetryMonitor, Fromage, GradientBreakdownMonitor
from lightning_landscape.sharding import full

LONGEST = datetime.timedelta(seconds=60)


class Net(LightningModule):
    """Layers whose rows two processes cannot share evenly; float64, so that sums agree."""

    def __init__(self):
        super().__init__()
        torch.set_default_dtype(torch.float64)
        self.net = self.layers()
        torch.set_default_dtype(torch.float32)
        self.steps_seen = 0

    def layers(self):
        return nn.Sequential(
            nn.Sequential(nn.Linear(8, 7), nn.Tanh()), nn.LayerNorm(7), nn.Linear(7, 3)
        )

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed.fsdp import FSDPModule, fully_shard

            if not isinstance(self.net, FSDPModule):
                fully_shard(self.net[0])
                fully_shard(self.net)

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        self.steps_seen += 1
        loss = self.loss(batch)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self):
        # rank 0 of two sees the samples 0, 2, 4, ... and rank 1 the others
        data = TensorDataset(Samples().x.double(), Samples().y)
        mine = range(self.trainer.global_rank, len(data), self.trainer.world_size)
        return DataLoader(Subset(data, mine), batch_size=12 // self.trainer.world_size)

    val_dataloader = train_dataloader


class Normed(Net):
    """With running statistics, and other random numbers on each process."""

    def layers(self):
        return nn.Sequential(
            nn.Sequential(nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU()),
            nn.Dropout(0.3),
            nn.Linear(7, 3),
        )


class Fromaged(Net):
    def configure_optimizers(self):
        return Fromage(self.parameters(), lr=0.05, p_bound=1.1)


class FailsInProbes(Net):
    """Raises in the middle of a forward pass, at weights that a probe has moved."""

    n_probed = 0

    def training_step(self, batch, batch_idx):
        if not self.training:
            FailsInProbes.n_probed += 1  # of the class: a probe would put back its own
            if FailsInProbes.n_probed % 5 == 0:
                self.net[2].register_forward_pre_hook(_raise)
        return super().training_step(batch, batch_idx)


def _raise(*args):
    raise ZeroDivisionError("in the middle")


def monitors(swa=None, **options):
    probe = {"families": ("gaussian", "sign", "uniform@norm"), "n_directions": 2, "n_points": 5}
    return [
        AsymmetryMonitor(**{**probe, "every_n_steps": 2, "n_batches": 1, **options}, swa=swa),
        GradientBreakdownMonitor(
            every_n_steps=2,
            directions=("update", "gradient", "random"),
            mode=options.get("mode", "train"),
            on_error=options.get("on_error", "warn"),
        ),
    ]


def everything(**options):
    swa = SWA(0, validate=True, bn_batches=2)
    return [swa, *monitors(swa, validation=True, on_error="raise", **options)]


CASES = {
    "plain": (Net, list),
    "probed": (Net, everything),
    "probed in eval mode": (Net, lambda: everything(mode="eval")),
    "normed": (Normed, list),
    "normed, probed": (Normed, everything),
    "normed, recalibrated": (Normed, lambda: everything(mode="recalibrated")),
    "failing": (FailsInProbes, lambda: monitors(mode="eval", n_directions=1)),
    "applied": (Net, lambda: [SWA(0, apply_at_end=True)]),
    "fromage": (Fromaged, list),
    "resumed": (Net, lambda: [SWA(0)]),
}


def engine(name, devices):
    if name == "fsdp2":
        return ModelParallelStrategy(devices, 1, False, timeout=LONGEST)
    if name == "auto":
        return name
    return DDPStrategy(
        start_method={"ddp": "popen"}.get(name, name.removeprefix("ddp_")), timeout=LONGEST
    )


def train(case, strategy="auto", devices=1, *, checkpoint=None, max_epochs=2):
    module, callbacks = CASES[case]
    seed_everything(0, verbose=False)
    callbacks, ledger, rows = callbacks(), Ledger(), Rows()
    model = module()
    trainer = Trainer(
        **{**QUIET, "logger": rows},
        max_epochs=max_epochs,
        devices=devices,
        strategy=engine(strategy, devices),
        callbacks=[ledger, EndsItsGroup(), *callbacks],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    resumes = checkpoint is not None and checkpoint.exists()
    trainer.fit(model, ckpt_path=checkpoint if resumes else None)
    if checkpoint is not None and not resumes:
        trainer.save_checkpoint(checkpoint)
    return {
        "state": {name: full(tensor) for name, tensor in model.state_dict().items()},
        "optimizer": [
            {key: full(value) for key, value in state.items()}
            for optimizer in trainer.optimizers
            for state in optimizer.state.values()
        ],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "rows": rows.rows,
        "ledger": ledger.entries,
        "steps_seen": model.steps_seen,
        "averages": [
            {name: full(tensor) for name, tensor in swa.weights.items()}
            for swa in callbacks
            if isinstance(swa, SWA) and swa.n_averaged  # not where another process trained
        ],
    }


def ran(strategy, devices, folder, cases):
    """Train cases with this script and return what came of each."""
    command = [sys.executable, "-W", "ignore", __file__, strategy, str(devices), str(folder)]
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    process = subprocess.Popen(
        [*command, *cases],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return {case: torch.load(Path(folder) / f"{case}.pt", weights_only=False) for case in cases}


if __name__ == "__main__":
    strategy, devices, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    for case in cases:
        options = {}
        if case == "resumed":
            options["checkpoint"] = Path(folder) / "half.ckpt"
            train(case, strategy, int(devices), max_epochs=1, **options)
        result = train(case, strategy, int(devices), **options)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            torch.save(result, Path(folder) / f"{case}.pt")
    dist.barrier()
    dist.destroy_process_group()  # left to the end of the process it may abort it
