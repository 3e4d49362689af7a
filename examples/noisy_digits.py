"""Does averaging help? Digits with wrong labels
=============================================

A fifth of the training labels is scrambled. An ordinary LightningModule and Trainer: `SWA` and
`AsymmetryMonitor` are two more callbacks.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import SWA, AsymmetryMonitor


def noisy_digits(seed):
    """1297 training digits, a fifth of their labels drawn anew; 500 clean test digits."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x / 16 - 0.305) / 0.376, dtype=torch.float32)
    split = train_test_split(x, torch.tensor(y), test_size=500, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = split
    generator = torch.Generator().manual_seed(seed)
    scrambled = torch.rand(len(y_train), generator=generator) < 0.2
    noise = torch.randint(10, y_train.shape, generator=generator)
    y_train = torch.where(scrambled, noise, y_train)
    return TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        layers = []
        for _ in range(3):
            layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)]

    def rate(self, epoch):
        """Full for an eighth of the training, half of that to two thirds, then a cosine to 0."""
        done = epoch / self.trainer.max_epochs
        return 1.0 if done < 0.12 else 0.25 + 0.25 * math.cos(math.pi * max(0, 3.25 * done - 2.25))


@torch.no_grad()
def scores(model, *datasets):
    for x, y in (data.tensors for data in datasets):
        logits = model.eval().net(x)
        yield F.cross_entropy(logits, y).item()
        yield (logits.argmax(1) == y).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--epochs", type=int, default=65)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a network this small is fastest on one
    seed = seed_everything(0)
    train, test = noisy_digits(seed)
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    model = Digits()
    swa = SWA(start=0.25)
    monitor = AsymmetryMonitor(every_n_epochs=5, swa=swa, n_batches=8, validation=True)
    logger = TensorBoardLogger("lightning_logs", name="noisy_digits")
    trainer = Trainer(max_epochs=args.epochs, callbacks=[swa, monitor], logger=logger)
    trainer.fit(model, loader, DataLoader(test, batch_size=100))

    print("\nweights       train loss   train acc   test loss    test acc")
    print("last        " + "".join(f"{n:12.3f}" for n in scores(model, train, test)))
    with swa.averaged(model):
        print("SWA         " + "".join(f"{n:12.3f}" for n in scores(model, train, test)))
    print(f"\n{'directions':<16}{'area':>8}{'asymmetric':>14}{'95 % interval':>20}")
    for family in monitor.families:
        tag = f"landscape/{family.replace('@', '-')}/"
        names = (tag + name for name in ("area", "rate", "rate_low", "rate_high"))
        area, rate, low, high = (float(trainer.callback_metrics[name]) for name in names)
        print(f"{family:<16}{area:>+8.2f}{rate:>13.0%} {f'[{low:.0%}, {high:.0%}]':>19}")
    print(f"\n{swa.summary()}\n\ntensorboard --logdir {logger.log_dir}")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = 'pictures/01-average-better.png'
