"""Is my step too large?
=====================

A 16-layer residual network on digits: three optimizers, three rates each::

    python examples/too_large_a_step.py         # under a minute on one core

`GradientBreakdownMonitor` looks at every fifth step the optimizer takes and says how far it went,
in units of the descent limit: the largest step that still descends on its batch. The table sets
that beside how often the loss over all the digits then rose over the five steps that followed.
"""

import argparse
import logging
import warnings

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_landscape import Fromage, GradientBreakdownMonitor

RUNS = {SGD: (0.01, 0.1, 0.3), Adam: (1e-4, 1e-3, 1e-2), Fromage: (1e-3, 1e-2, 1e-1)}
EVERY = 5


class Residual(LightningModule):
    def __init__(self, optimizer, lr, width=64, blocks=14):
        super().__init__()
        self.optimizer, self.lr = optimizer, lr
        self.first = nn.Linear(64, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, 10)

    def training_step(self, batch, batch_idx):
        x = self.first(batch[0])
        for block in self.blocks:
            x = x + block(F.relu(x))
        return F.cross_entropy(self.last(F.relu(x)), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


class Ledger(Callback):
    """After each probe: the step in units of the descent limit, and the loss over all digits."""

    def __init__(self, digits):
        self.digits, self.steps, self.losses = digits, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % EVERY == 0:
            found = trainer.callback_metrics
            limit = found["breakdown/update/descent_limit"]
            self.steps.append(found["breakdown/step/relative_update"] / limit)
            with torch.no_grad():
                self.losses.append(pl_module.training_step(self.digits, batch_idx))


def train(optimizer, lr, n_steps):
    """Return the steps in units of the descent limit, and the losses, one of each a probe."""
    seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    digits = torch.tensor(x / 16 - 0.305).float() / 0.376, torch.tensor(y)
    ledger = Ledger(digits)
    monitor = GradientBreakdownMonitor(every_n_steps=EVERY, directions=["update"])
    off = {f"enable_{x}": False for x in ("checkpointing", "progress_bar", "model_summary")}
    sampler = RandomSampler(y, replacement=True, num_samples=128 * n_steps)
    loader = DataLoader(TensorDataset(*digits), batch_size=128, sampler=sampler)
    trainer = Trainer(max_epochs=1, callbacks=[monitor, ledger], logger=False, **off)
    trainer.fit(Residual(optimizer, lr), loader)
    return torch.stack(ledger.steps).cpu(), torch.stack(ledger.losses).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--steps", type=int, default=150)
    n_steps = parser.parse_args().steps
    torch.set_num_threads(1)  # a network this small is fastest on one
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    print(f"{'':15}{'step / descent limit':^24}{'loss rose after a step':^30}{'loss':^16}")
    print(f"{'':15}{'first':>8}{'median':>8}{'> 1':>8}{'within':>15}{'beyond':>13}{'last':>12}")
    for optimizer, rates in RUNS.items():
        for lr in rates:
            steps, losses = train(optimizer, lr, n_steps)
            rose, before = losses.diff() > 0, steps[:-1]
            print(f"{optimizer.__name__:8} {lr:<6g}{steps[0]:8.2g}{steps.median():8.2g}", end="")
            print(f"{(steps > 1).double().mean():8.0%}", end="")
            for chosen in (before <= 1, before > 1):
                print(f"{int(rose[chosen].sum()):>8} of {int(chosen.sum()):<3}", end="")
            print(f"{losses[-1]:10.2g}", flush=True)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = 'pictures/10-rate-in-use.png'
