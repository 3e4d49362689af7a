"""The module, the data and the quiet Trainer of most tests; the hostile ones are in hostile.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset

OURS = ("landscape/", "swa/", "breakdown/")  # how the tags of our callbacks begin

# options of a Trainer that shows nothing, writes nothing and logs every step
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "log_every_n_steps": 1,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

# the batch index of every training step that a `Classifier` ran, in training or in a probe;
# at module level, because a probe restores the attributes of the module
CALLS: list[int] = []


class Samples(Dataset):
    """Three classes in eight dimensions, augmented by the global random numbers as datasets are."""

    def __init__(self, n=36, dtype=torch.float32, *, noise=0.01):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 8, generator=generator, dtype=dtype)
        self.y = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i] + self.noise * torch.randn(8) if self.noise else self.x[i]
        return {"x": x, "y": self.y[i]}


class Data(LightningDataModule):
    """Six training batches and two validation batches of `Samples`, six in each."""

    batch_size = 6

    def train_dataloader(self):
        return DataLoader(Samples(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Samples(12), batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Classifier(LightningModule):
    """A small network with a batch norm and dropout; tests change one thing about it each."""

    lr = 0.1

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)
        )
        self.build()

    def build(self):
        """Change the network, or add to it."""

    def forward(self, x):
        return self.net(x)

    def parts(self, batch):
        return batch["x"], batch["y"]

    def loss(self, batch):
        x, y = self.parts(batch)
        return F.cross_entropy(self(x.to(self.dtype)), y)

    def training_step(self, batch, batch_idx):
        CALLS.append(batch_idx)
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=6)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Plain(Classifier):
    """Two linear layers: no state and no random numbers, so the mode changes nothing."""

    def build(self):
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def loss_of(module, batch):
    """Return the loss of a `Classifier`, as a `loss_fn` does."""
    return module.loss(batch)


class Rows(Logger):
    """Remembers every row that was logged, without the numbers of our callbacks."""

    name = "rows"
    version = 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        own = {k: v for k, v in metrics.items() if not k.startswith(OURS)}
        if own:
            self.rows.append((step, own))

    def log_hyperparams(self, *args, **kwargs):
        pass


class AllRows(Rows):
    """Remembers every row that was logged, with the numbers of our callbacks."""

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def train(*callbacks, module=Classifier, data=None, ckpt_path=None, **options):
    """Fit from seed 0 with some callbacks.

    Args:
        *callbacks: Given to the Trainer.
        module: A module, or a function that makes one once the seed is set.
        data: What `Trainer.fit` takes as its second argument; a new `Data` if None.
        ckpt_path: The checkpoint to go on from.
        **options: Trainer options; they replace those of `QUIET` and the two epochs.

    Returns:
        The module and the trainer.
    """
    seed_everything(0, verbose=False)
    CALLS.clear()
    module = module if isinstance(module, LightningModule) else module()
    trainer = Trainer(**{"max_epochs": 2, **QUIET, **options}, callbacks=list(callbacks))
    trainer.fit(module, Data() if data is None else data, ckpt_path=ckpt_path)
    return module, trainer
