"""Everything from a file: the callbacks, the optimizer and the data of from_yaml.yaml.

    python examples/from_yaml.py fit --config examples/from_yaml.yaml
    python examples/from_yaml.py fit --trainer.callbacks.help AsymmetryMonitor

Needs `pip install "jsonargparse[signatures]"`, as every LightningCLI does.
"""

import noisy_digits
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

import lightning_landscape  # noqa: F401 (its callbacks go by their short names)


class Digits(noisy_digits.Digits):
    """The optimizer comes from the file."""

    configure_optimizers = LightningModule.configure_optimizers


class NoisyDigits(LightningDataModule):
    def __init__(self, batch_size: int = 64, seed: int = 0):
        """Scrambled training digits, clean test digits.

        Args:
            batch_size: Of a training batch.
            seed: Which labels are scrambled, and how.
        """
        super().__init__()
        self.batch_size = batch_size
        self.digits, self.clean = noisy_digits.noisy_digits(seed)

    def train_dataloader(self):
        return DataLoader(self.digits, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.clean, batch_size=100)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a network this small is fastest on one
    LightningCLI(Digits, NoisyDigits, seed_everything_default=0)
