"""A training in a process of its own, to be killed: always the same, from where it was saved."""

import io
import os
import resource
import signal
import warnings
from pathlib import Path

import torch
from injection import Files
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import QUIET, Rows

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

N_EPOCHS = 4


class Victim(LightningModule):
    """Batch norm, dropout, momentum; random numbers begin anew each batch, as a resume needs."""

    calls, kill_at = 0, None  # of probes

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
        )

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
        self.log("train_loss", loss)
        self.meet_the_killer()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(batch[0]).square().mean())
        self.meet_the_killer()

    def meet_the_killer(self):
        if type(self.trainer.logger).__name__ == "DummyLogger":
            Victim.calls += 1
            if Victim.calls == Victim.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def callbacks():
    swa = SWA(1)
    monitor = AsymmetryMonitor(
        every_n_epochs=1, families=["sign"], n_directions=1, n_points=5, swa=swa
    )
    breakdown = GradientBreakdownMonitor(every_n_steps=3, directions="update", etas=[1.0])
    return [swa, monitor, breakdown]


def kill_at_file(n, n_bytes):
    """Let the process die in the middle of its n-th file, or between writing and renaming it."""
    write, seen = Path.write_bytes, []

    def write_bytes(self, content):
        seen.append(self)
        write(self, content if len(seen) < n else content[:n_bytes])
        if len(seen) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write_bytes


def train(folder, *, probes=True, kill_at=None, at_file=None, largest_file=None):
    """Train from the last checkpoint in a folder, if there is one, to the end or to death."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    Victim.kill_at = kill_at
    if at_file is not None:
        kill_at_file(*at_file)
    if largest_file is not None:  # the kernel refuses what is longer, in the middle of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    saves = largest_file is None
    saved = folder / "last.ckpt"
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x), batch_size=6)
    own = callbacks() if probes else []
    saver = [ModelCheckpoint(folder, filename="{epoch}", save_last=True)] if saves else []
    logger = Files(folder) if probes else Rows()
    trainer = Trainer(
        **{**QUIET, "logger": logger, "enable_checkpointing": saves},
        max_epochs=N_EPOCHS,
        callbacks=[*own, *saver],
        num_sanity_val_steps=0,
    )
    module = Victim()
    trainer.fit(module, loader, loader, ckpt_path=saved if saved.exists() else None)
    return {
        "state_dict": dict(module.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "global_step": trainer.global_step,
        "average": own[0].state_dict() if own else {},
        "calls": Victim.calls,
    }


def train_and_tell(folder, pipe, options):
    """Do it in a process of its own, and send what came of it."""
    told = io.BytesIO()
    torch.save(train(folder, **options), told)
    pipe.send_bytes(told.getvalue())
