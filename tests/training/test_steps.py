"""Steps and batches of every shape: training stays bit-identical, and all is measured.

Each module changes one thing about a `Classifier`; each is trained plainly and with all callbacks.
"""

import collections
import datetime
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hostile import (
    GAN,
    assert_invisible_and_at_work,
    differences,
    fit,
    gan_loss,
)
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, default_collate
from toys import Classifier, Samples, loss_of

from lightning_landscape import (
    SWA,
    AsymmetryMonitor,
    GradientBreakdownMonitor,
)

SHORT = {"limit_train_batches": 4}

pytestmark = [
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings(
        # advice on old or unusual ways that people use all the same
        "ignore:`torch.nn.utils.weight_norm` is deprecated",
        "ignore:`training_step` returned `None`",
        "ignore:`LightningModule.configure_optimizers` returned `None`",
        "ignore:Lazy modules are a new feature",
        "ignore:.*contains an uninitialized parameter",
        "ignore:None of the inputs have requires_grad",
        "ignore:Your `IterableDataset` has `__len__`",
        "ignore:.*`dataloader_iter` argument in the `training_step`",
        "ignore:You are using the `dataloader_iter` step flavor",
        "ignore:The provided params to be frozen already exist",
    ),
]


def tried(what, *values):
    return pytest.param(*values, id=what, marks=pytest.mark.tried("steps", what))


# --- steps --------------------------------------------------------------------------------------


class ReturnsDict(Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "more": torch.ones(2)}


class SkipsSome(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


class Synced(Classifier):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, sync_dist=True, on_step=True, on_epoch=True, batch_size=6)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True, batch_size=8)


class Recurrent(Classifier):
    """An LSTM whose state goes on from batch to batch, cut off from the graph."""

    def build(self):
        self.lstm = nn.LSTM(1, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.state = None

    def forward(self, x):
        output, state = self.lstm(x[..., None], self.state if self.training else None)
        if self.training:
            self.state = tuple(part.detach() for part in state)
        return self.net(output[:, -1])


class KeepsGraph(Classifier):
    """Goes back through the batch before."""

    def build(self):
        self.before = None

    def training_step(self, batch, batch_idx):
        loss, mean = super().training_step(batch, batch_idx), self.net[0](batch["x"]).mean()
        if self.before is not None:
            loss = loss + (mean - self.before).square()
        self.before = mean if batch_idx % 2 == 0 else None
        return loss


class TruncatedByHand(Classifier):
    """Steps its optimizer after every other sample in time."""

    def build(self):
        self.automatic_optimization = False
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.net = self.net[4]

    def chunks(self, batch):
        state = None
        for chunk in batch["x"][..., None].split(4, dim=1):
            output, state = self.lstm(chunk, state)
            state = tuple(part.detach() for part in state)
            yield F.cross_entropy(self.net(output[:, -1].repeat(1, 2)), batch["y"])

    def loss(self, batch):
        return sum(self.chunks(batch)) / 2

    def training_step(self, batch, batch_idx):
        for loss in self.chunks(batch):
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()


class Tied(Classifier):
    def build(self):
        self.again = nn.Linear(8, 16)
        self.again.weight = self.net[0].weight
        self.head = self.net[4]

    def forward(self, x):
        return self.net(x) + 0.1 * self.head(self.again(x))


class OldWeightNorm(Classifier):
    def build(self):
        self.net[0] = nn.utils.weight_norm(self.net[0])


class WeightNorm(Classifier):
    def build(self):
        nn.utils.parametrizations.weight_norm(self.net[0])


class Lazy(Classifier):
    def build(self):
        self.net = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

    def loss(self, batch):
        return F.cross_entropy(self(batch["x"]), batch["y"])


class Checkpointed(Classifier):
    reentrant = False

    def forward(self, x):
        body = lambda x: self.net[:4](x)  # noqa: E731
        return self.net[4](checkpoint(body, x, use_reentrant=self.reentrant))


class CheckpointedReentrantly(Checkpointed):
    reentrant = True

    def parts(self, batch):
        return batch["x"].clone().requires_grad_(), batch["y"]


class PartlyFrozen(Classifier):
    def build(self):
        self.net[0].requires_grad_(False)


class Thaws(Classifier):
    def on_train_batch_start(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx >= 2)


class FreezesInMidBatch(Classifier):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx % 2 == 1)


class Finetuned(Classifier):
    def build(self):
        self.backbone, self.head = self.net[:4], self.net[4]
        del self.net

    def forward(self, x):
        return self.head(self.backbone(x))

    def configure_callbacks(self):
        return [BackboneFinetuning(1, backbone_initial_lr=0.01, verbose=False)]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class GrowsAHead(Classifier):
    """Has one more layer from the second epoch on."""

    def build(self):
        self.head = None

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.grow()

    def grow(self):
        self.head = nn.Linear(3, 3)
        self.optimizers().add_param_group({"params": list(self.head.parameters())})

    def forward(self, x):
        return self.net(x) if self.head is None else self.head(self.net(x))


class GrowsInItsStep(GrowsAHead):
    def on_train_epoch_start(self):
        pass

    def training_step(self, batch, batch_idx):
        if self.head is None and batch_idx == 2:
            self.grow()
        return super().training_step(batch, batch_idx)


class ShrinksInItsStep(GrowsAHead):
    def build(self):
        self.head = nn.Linear(3, 3)

    def on_train_epoch_start(self):
        pass

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            self.head = None
        return super().training_step(batch, batch_idx)


class StepsInBackward(Classifier):
    def on_fit_start(self):
        for parameter in self.parameters():
            optimizer = torch.optim.SGD([parameter], lr=self.lr)
            parameter.register_post_accumulate_grad_hook(partial(self.step_one, optimizer))

    def step_one(self, optimizer, parameter):
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize(
    ("module", "options"),
    [
        tried("a dict with the loss", ReturnsDict, {}),
        tried("None, to skip a batch", SkipsSome, {"without": [2, 6]}),
        tried("self.log(sync_dist=True)", Synced, {}),
        tried("an LSTM with a state kept from batch to batch", Recurrent, {}),
        tried("backpropagation through two batches", KeepsGraph, {}),
        tried("truncated backpropagation by hand", TruncatedByHand, {"loss_fn": loss_of}),
        tried("a GAN by hand", GAN, {"loss_fn": gan_loss}),
        tried("tied weights", Tied, {}),
        tried("the old weight_norm", OldWeightNorm, {}),
        tried("the new weight_norm", WeightNorm, {}),
        tried("lazy modules, run in the sanity check", Lazy, {}),
        tried("gradient checkpoints", Checkpointed, {}),
        tried("gradient checkpoints, reentrant", CheckpointedReentrantly, {}),
        tried("a frozen layer", PartlyFrozen, {}),
        tried("a layer that thaws between batches", Thaws, {}),
        tried("a layer that freezes after a batch", FreezesInMidBatch, {}),
        tried("BackboneFinetuning", Finetuned, {}),
        tried("a layer that is added at an epoch", GrowsAHead, {}),
        tried("a layer that is added within a step", GrowsInItsStep, {}),
        tried("a layer that is taken away within a step", ShrinksInItsStep, {}),
        tried("optimizers that step in the backward pass", StepsInBackward, {}),
    ],
)
def test_with_this_step_training_is_bit_identical_and_all_is_measured(module, options):
    assert_invisible_and_at_work(module=module, **SHORT, **options)


@pytest.mark.tried("steps", "lazy modules, run first by a training step")
def test_a_lazy_module_is_measured_from_its_second_step_on():
    options = {"num_sanity_val_steps": 0, "without": [1]}
    assert_invisible_and_at_work(module=Lazy, **SHORT, **options)


@pytest.mark.tried("steps", "None, to skip a batch, in an accumulation window")
def test_a_window_whose_last_batch_was_skipped_is_not_measured():
    options = {"accumulate_grad_batches": 2, "without": [1, 3]}
    _, measured = assert_invisible_and_at_work(module=SkipsSome, **SHORT, **options)
    assert measured == {"update": 2, "gradient": 2}


@pytest.mark.tried("steps", "a GAN by hand with a loss_fn for each of its optimizers")
def test_each_optimizer_of_a_gan_has_numbers_of_its_own():
    _, measured = assert_invisible_and_at_work(module=GAN, loss_fn=gan_loss, **SHORT)
    parts = [f"{net}/{d}" for net in ("generator", "discriminator") for d in ("update", "gradient")]
    assert measured == dict.fromkeys(parts, 8)


@pytest.mark.slow
@pytest.mark.tried("steps", "self.log(sync_dist=True), in two processes")
def test_a_log_that_waits_for_the_other_ranks_does_not_wait_for_ever():
    def two():
        ddp = DDPStrategy(start_method="fork", timeout=datetime.timedelta(seconds=60))
        return {"strategy": ddp, "devices": 2, "use_distributed_sampler": False}

    callbacks = [
        SWA(0),
        AsymmetryMonitor(every_n_epochs=1, n_directions=1, n_points=5, on_error="raise"),
        GradientBreakdownMonitor(every_n_steps=2, on_error="raise"),
    ]
    plain = fit([], module=Synced, **SHORT, **two())
    watched = fit(callbacks, module=Synced, **SHORT, **two())
    for part in ("state_dict", "callback_metrics", "global_step"):
        assert differences(plain[part], watched[part]) == []


# --- batches ------------------------------------------------------------------------------------


@dataclass
class Batch:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class FrozenBatch:
    x: Tensor
    y: Tensor


class CustomBatch:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return CustomBatch(self.x.to(device), self.y.to(device))


NamedBatch = collections.namedtuple("NamedBatch", "x y")


class Attributes(Classifier):
    def parts(self, batch):
        return batch.x, batch.y


class BringsFrozen(Attributes):
    """Lightning itself does not know how to move a frozen dataclass."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return FrozenBatch(batch.x.to(device), batch.y.to(device))


class Pairs(Classifier):
    def parts(self, batch):
        return batch[0], batch[1]


class Nested(Classifier):
    def parts(self, batch):
        return batch["a"][0]["x"], batch["b"][0][1]


def collated(make):
    def collate(samples):
        columns = default_collate(samples)
        return make(columns["x"], columns["y"])

    return lambda: (
        DataLoader(Samples(), batch_size=6, shuffle=True, collate_fn=collate),
        DataLoader(Samples(24), batch_size=8, collate_fn=collate),
    )


@pytest.mark.parametrize(
    ("module", "make"),
    [
        tried("tuples", Pairs, lambda x, y: (x, y)),
        tried("lists", Pairs, lambda x, y: [x, y]),
        tried("named tuples", Attributes, NamedBatch),
        tried("dataclasses", Attributes, Batch),
        tried("frozen dataclasses, with a transfer hook", BringsFrozen, FrozenBatch),
        tried("a class of one's own with `.to`", Attributes, CustomBatch),
        tried("nested", Nested, lambda x, y: {"a": [{"x": x}], "b": ((0, y), "name", None)}),
        tried(
            "with strings, arrays and None",
            Classifier,
            lambda x, y: {"x": x, "y": y, "ids": ["a"] * len(y), "n": np.arange(3), "z": None},
        ),
    ],
)
def test_with_these_batches_training_is_bit_identical_and_is_measured(module, make):
    assert_invisible_and_at_work(module=module, loaders=collated(make), validation=True, **SHORT)


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter([Samples(self.n)[i] for i in range(self.n)])


class SizedStream(Stream):
    def __len__(self):
        return self.n


class Several(Classifier):
    """Takes the batches of several dataloaders together, as far as there are any."""

    def parts(self, batch):
        if "x" in batch:
            return batch["x"], batch["y"]
        found = [part for part in getattr(batch, "values", lambda: batch)() if part is not None]
        return tuple(torch.cat([part[key] for part in found]) for key in ("x", "y"))


class SeveralToValidate(Several):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)


class TakesIterator(Classifier):
    def forward(self, x):  # the average's statistics are estimated by calling the module
        return self.net(x["x"] if isinstance(x, dict) else x)

    def training_step(self, dataloader_iter):
        return self.loss(next(dataloader_iter)[0])


def of(n, batch_size, **options):
    return DataLoader(Samples(n), batch_size=batch_size, **options)


def joint(mode):
    return CombinedLoader({"a": of(24, 6), "b": of(16, 8)}, mode)


@pytest.mark.parametrize(
    ("module", "loaders", "options"),
    [
        tried("a list of dataloaders", Several, lambda: ([of(24, 6), of(16, 8)], of(24, 8)), {}),
        *(
            tried(
                f"CombinedLoader(mode={mode!r}), validation batches likewise",
                Several,
                lambda mode=mode: (joint(mode), joint(mode)),
                {"validation": True},
            )
            for mode in ("min_size", "max_size_cycle", "max_size")
        ),
        tried(
            "several validation dataloaders, one after the other",
            SeveralToValidate,
            lambda: (of(24, 6), [of(24, 8), of(12, 6)]),
            {"validation": True},
        ),
        tried(
            "CombinedLoader(mode='sequential') for validation",
            SeveralToValidate,
            lambda: (of(24, 6), joint("sequential")),
            {"validation": True},
        ),
        tried(
            "an iterable dataset",
            Classifier,
            lambda: (DataLoader(Stream(20), 6), DataLoader(Stream(24), 8)),
            {},
        ),
        tried(
            "an iterable dataset that knows its length, in accumulation windows",
            Classifier,
            lambda: (DataLoader(SizedStream(20), 6), DataLoader(SizedStream(24), 8)),
            {"accumulate_grad_batches": 3},
        ),
    ],
)
def test_with_these_loaders_training_is_bit_identical_and_is_measured(module, loaders, options):
    assert_invisible_and_at_work(module=module, loaders=loaders, **options)


@pytest.mark.tried("steps", "a step that takes a `dataloader_iter`")
def test_a_step_that_takes_a_dataloader_iter_is_measured_on_its_batch():
    # also the first of an epoch, before which Lightning's hooks are shown none
    seen, taken = [], []

    class Notes(TakesIterator):
        def loss(self, batch):
            taken.append(batch["y"])
            return super().loss(batch)

    def noting(module, batch):
        seen.append(batch["y"])
        return Classifier.loss(module, batch)

    options = {"loss_fn": noting, "max_epochs": 2}
    options |= {"loaders": lambda: (of(24, 6), of(24, 8)), "num_sanity_val_steps": 0}
    assert_invisible_and_at_work(module=TakesIterator, **options)
    seen.clear()
    breakdown = GradientBreakdownMonitor(every_n_steps=3, loss_fn=noting, on_error="raise")
    fit([breakdown], module=Notes, loaders=lambda: (of(24, 6), of(24, 8)), max_epochs=1)
    third = taken[2 + 2]  # after two of the sanity check
    assert seen
    assert all(torch.equal(y, third) for y in seen)
