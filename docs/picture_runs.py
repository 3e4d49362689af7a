"""The trainings that the pictures are of: short, on digits, from fixed seeds."""

import copy
import logging
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from noisy_digits import Digits, noisy_digits
from sklearn.datasets import load_digits

from lightning_landscape import SWA, AsymmetryMonitor, Fromage, GradientBreakdownMonitor


@dataclass
class Run:
    """A training that is over.

    Attributes:
        module: The module with its last weights.
        start: The weights it began with.
        train: Training batches.
        validation: Validation batches.
        swa: The average.
        folder: The run's log.
    """

    module: Digits
    start: dict[str, torch.Tensor]
    train: list
    validation: list
    swa: SWA
    folder: Path

    def scalars(self, tag: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a tag."""
        log = EventAccumulator(str(self.folder))
        log.Reload()
        events = log.Scalars(tag)
        return [e.step for e in events], [e.value for e in events]


class Cosine(Digits):
    """The rate decays to 0 along half a cosine, over the whole training."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        epochs = self.trainer.max_epochs
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


class ConstantFromage(Digits):
    """Fromage at a constant rate: it hovers."""

    def configure_optimizers(self):
        return Fromage(self.parameters(), lr=0.05)


class Undecayed(Digits):
    """The rate is halved once and stays."""

    def rate(self, epoch):
        return 1.0 if epoch < 8 else 0.5


class Continued(Digits):
    """A fifth of the first rate, constant: the paper's way on from the average."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def clean_digits():
    """1297 training digits and 500 validation digits, with the labels they have."""
    train, validation = noisy_digits(0)
    x, y = load_digits(return_X_y=True)
    labels = {tuple(row): label for row, label in zip(x, y, strict=True)}
    raw = (train.tensors[0] * 0.376 + 0.305) * 16
    true = torch.tensor([labels[tuple(row)] for row in raw.round().double().tolist()])
    return TensorDataset(train.tensors[0], true), validation


def train(module, data, folder, name, *, epochs, swa, monitors=()):
    """Train a module and return the run."""
    quiet()
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data[0], batch_size=64, shuffle=True, drop_last=True, generator=generator)
    validation = DataLoader(data[1], batch_size=100)
    start = copy.deepcopy(dict(module.named_parameters()))
    logger = TensorBoardLogger(folder, name=name, version="")
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[swa, *monitors],
        logger=logger,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader, validation)
    start = {name: tensor.detach() for name, tensor in start.items()}
    return Run(module, start, list(loader), list(validation), swa, Path(logger.log_dir))


def quiet():
    """Keep Lightning's advice on short runs to itself."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def noisy(folder):
    """A fifth of the labels wrong, the rate decayed to 0, averaged from a quarter on."""
    seed_everything(0, verbose=False)
    swa = SWA(start=0.25)
    monitors = [
        AsymmetryMonitor(every_n_epochs=3, swa=swa, n_batches=8, validation=True, figures="all"),
        GradientBreakdownMonitor(every_n_steps=30, details=True),
    ]
    return train(Digits(), noisy_digits(0), folder, "digits", epochs=45, swa=swa, monitors=monitors)


def continued(folder):
    """Average at a high rate, then go on from the average at a lower one; `swa` is that average."""
    seed_everything(0, verbose=False)
    swa = SWA(start=15, validate=False)
    first = train(Undecayed(), noisy_digits(0), folder, "undecayed", epochs=45, swa=swa)
    module = Continued()
    module.load_state_dict(first.module.state_dict())
    swa.apply_to(module)
    seed_everything(1, verbose=False)
    other = SWA(start=5, validate=False)
    run = train(module, noisy_digits(0), folder, "continued", epochs=10, swa=other)
    return replace(run, swa=swa)


def annealed(folder):
    """Clean labels and a rate that ends at 0; the average is of the last five epochs."""
    seed_everything(0, verbose=False)
    swa = SWA(start=0.5, average="latest", window=5)
    return train(Cosine(), clean_digits(), folder, "annealed", epochs=20, swa=swa)


def hovering(folder):
    """Fromage at a constant rate; the average is of one set of weights, so it is the weights."""
    seed_everything(0, verbose=False)
    swa = SWA(start=0.5, average="latest", window=1)
    monitor = GradientBreakdownMonitor(every_n_steps=10, directions=["update"], details=True)
    data = clean_digits()
    return train(
        ConstantFromage(), data, folder, "hovering", epochs=20, swa=swa, monitors=[monitor]
    )


def narrow(folder):
    """A small network without batch norm beside the usual one: its valley is narrower."""
    seed_everything(0, verbose=False)
    module = Cosine()
    module.net = torch.nn.Sequential(
        torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)
    )
    return train(module, clean_digits(), folder, "narrow", epochs=20, swa=SWA(start=0.5))
