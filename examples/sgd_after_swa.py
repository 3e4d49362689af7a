"""The protocol of the Asymmetric Valleys paper
============================================

Average, continue from the average, draw the line.

Train with SGD and average (epochs 15 to 44), then continue from the average with SGD at a tenth of
the rate, and evaluate the loss on the line from where that leads (t = 0) to the average (t = 1).
Nothing is chosen by test loss: every seed's last weights are what they are.
"""

import argparse
import logging

import torch
from lightning.pytorch import Trainer, seed_everything
from noisy_digits import Digits, noisy_digits, scores
from torch.utils.data import DataLoader

from lightning_landscape import (
    SWA,
    compare_ends,
    difference,
    evaluate_slice,
    line_grid,
    probing,
)


class Continued(Digits):
    """The same network at a constant rate, a tenth of the first."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


class High(Digits):
    """The same network, whose rate is halved after 8 epochs and stays there."""

    def rate(self, epoch):
        return 1.0 if epoch < 8 else 0.5


def fit(module, train, test, epochs, *callbacks):
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    trainer.fit(module, loader, DataLoader(test, batch_size=250))
    return module


def run(seed, epochs):
    """Return the line on train batches, the line on test batches, and both networks' scores."""
    seed_everything(seed)
    train, test = noisy_digits(seed)
    swa = SWA(start=epochs // 3)
    average = fit(High(), train, test, epochs, swa)
    swa.apply_to(average)
    after = Continued()
    after.load_state_dict(average.state_dict())
    fit(after, train, test, epochs * 4 // 9)
    lines = []
    for data in (train, test):
        batches = list(DataLoader(data, batch_size=250))
        with probing(after, batches, mode="train") as objective:
            direction = difference(swa.weights, objective.params)
            lines.append(compare_ends(evaluate_slice(objective, direction, line_grid(4.0))))
    return *lines, list(scores(average, test)), list(scores(after, test))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=45)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    print("SGD after SWA (t = 0) to SWA (t = 1); gap is L(SWA) - L(SGD), ± 1 standard error\n")
    print("seed  outward ratio      train gap           test gap       shift   test accuracy")
    print("                                                                    SGD  ->   SWA")
    for seed in range(args.seeds):
        train, test, swa, sgd = run(seed, args.epochs)
        gaps = "  ".join(f"{s.gap:+8.4f} ± {s.gap_stderr:.4f}" for s in (train, test))
        shift = test.minimum - train.minimum
        accuracies = f"{sgd[1]:.3f} -> {swa[1]:.3f}"
        print(f"{seed:4d}{train.outward_ratio:15.1f}  {gaps}{shift:+9.2f}   {accuracies}")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = 'pictures/04-flat-side.png'
