"""Modules built of other people's parts: equivariant, of TensorDicts, with teachers and queues.

Data are made here, nothing is downloaded.
"""

import pytest
import torch
import torch.nn.functional as F
from compare import compare
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_landscape import Fromage

pytestmark = pytest.mark.clients


class Client(LightningModule):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=4)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(module, data, options, *, collate=None):
    trainer = Trainer(max_epochs=2, **options)
    half = len(data) // 2
    loaders = [
        DataLoader(rows, batch_size=4, shuffle=shuffle, collate_fn=collate)
        for rows, shuffle in ((data[:half], True), (data[half:], False))
    ]
    trainer.fit(module, *loaders)
    return trainer, module


class Points:
    """A batch of point clouds in one: a class of its own, with slots and `to`, that is no dict."""

    __slots__ = ("cloud", "energy", "position")

    def __init__(self, position, cloud, energy):
        self.position, self.cloud, self.energy = position, cloud, energy

    def __len__(self):
        raise TypeError("points or clouds?")

    def to(self, device):
        return Points(*(part.to(device) for part in (self.position, self.cloud, self.energy)))

    @classmethod
    def of(cls, rows):
        cloud = torch.arange(len(rows)).repeat_interleave(5)
        return cls(torch.cat([x for x, _ in rows]), cloud, torch.stack([e for _, e in rows]))


def e3nn(**options):
    """Train an equivariant network on energies and on forces, gradients taken in the step."""
    client = pytest.importorskip("e3nn")
    from e3nn import o3
    from e3nn.nn import BatchNorm

    assert client
    sphere, hidden = o3.Irreps.spherical_harmonics(2), o3.Irreps("4x0e + 2x1o")

    class Potential(Client):
        def __init__(self):
            super().__init__()
            self.product = o3.FullyConnectedTensorProduct(sphere, sphere, hidden)
            self.norm = BatchNorm(hidden)
            self.square = o3.FullyConnectedTensorProduct(hidden, hidden, "4x0e")
            self.out = nn.Linear(4, 1)  # e3nn keeps its own weights in vectors

        def loss(self, batch):
            with torch.enable_grad():
                x = batch.position.requires_grad_()
                features = (
                    o3.spherical_harmonics(sphere, x, normalize=True) * x.norm(dim=1)[:, None]
                )
                hidden = self.norm(self.product(features, features))
                energy = torch.zeros(len(batch.energy)).index_add(
                    0, batch.cloud, self.out(self.square(hidden, hidden)).squeeze(1)
                )
                (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return F.mse_loss(energy, batch.energy) + 0.1 * (force + x).square().mean()

    clouds = torch.randn(24, 5, 3)
    data = [(x, x.square().sum()) for x in clouds]
    return fit(Potential(), data, options, collate=Points.of)


def tensordict(**options):
    """Train a TensorDictModule, which writes what it computes into its batch."""
    client = pytest.importorskip("tensordict")
    from tensordict.nn import TensorDictModule

    class Policy(Client):
        def __init__(self):
            super().__init__()
            net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
            self.net = TensorDictModule(net, in_keys=[("seen", "x")], out_keys=["value"])

        def loss(self, batch):
            value = self.net(batch)["value"].squeeze(1)
            batch["error"] = (value - batch["seen", "reward"]).square()
            return batch["error"].sum() / batch.batch_size[0]

        def configure_optimizers(self):
            return Fromage(self.parameters(), lr=0.01)

    x = torch.randn(24, 4)
    seen = client.TensorDict({"x": x, "reward": x.sum(1)}, batch_size=[24])
    rows = client.TensorDict({"seen": seen}, batch_size=[24])
    return fit(Policy(), list(rows), options, collate=torch.stack)


def kornia(**options):
    """Train on images that hooks of the module augment and normalise, in place, before the step."""
    client = pytest.importorskip("kornia")
    flip = client.augmentation.RandomHorizontalFlip(p=0.5)
    turn = client.augmentation.RandomAffine(degrees=20.0, translate=(0.1, 0.1))

    class Augmented(Client):
        def __init__(self):
            super().__init__()
            self.augment = nn.Sequential(flip, turn)
            self.net = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
            )

        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return [self.augment(x) if self.trainer.training else x, y]

        def normalize(self, batch):
            batch[0] = client.enhance.normalize(batch[0], torch.tensor(0.5), torch.tensor(0.25))

        def on_train_batch_start(self, batch, batch_idx):
            self.normalize(batch)

        def on_validation_batch_start(self, batch, batch_idx):
            self.normalize(batch)

        def loss(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    images = torch.rand(24, 3, 8, 8)
    data = [(image, (image.mean() > 0.5).long()) for image in images]
    return fit(Augmented(), data, options)


def self_supervised(**options):
    """Train against a momentum teacher and a queue of its embeddings."""
    client = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss

    ema = pytest.importorskip("ema_pytorch")
    assert client

    class Contrast(Client):
        def __init__(self):
            super().__init__()
            self.student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
            self.teacher = ema.EMA(self.student, beta=0.9, update_every=1, update_after_step=0)
            self.queue = CrossBatchMemory(NTXentLoss(), embedding_size=4, memory_size=16)

        def loss(self, batch):
            if self.training:
                self.teacher.update()
            views = [batch["x"] + 0.1 * torch.randn_like(batch["x"]) for _ in range(2)]
            with torch.no_grad():
                keys = self.teacher(views[0])
            queries, index = self.student(views[1]), batch["index"]
            both, labels = torch.cat([queries, keys]), torch.cat([index, index])
            fresh = torch.arange(len(both)) >= len(queries)
            return self.queue(both, labels, enqueue_mask=fresh)

    data = [{"x": torch.randn(8), "index": torch.tensor(i)} for i in range(24)]
    return fit(Contrast(), data, options)


CLIENTS = {
    "e3nn: an equivariant potential, on energies and forces": (e3nn, {}),
    "tensordict: a step that writes into its TensorDict, Fromage": (tensordict, {}),
    "tensordict: batch norm recalibrated": (tensordict, {"mode": "recalibrated"}),
    "kornia: images that hooks augment and normalise": (kornia, {}),
    "ema-pytorch, pytorch-metric-learning: a momentum teacher, a queue": (self_supervised, {}),
}


@pytest.mark.parametrize(
    ("train", "options"),
    [
        pytest.param(train, options, id=what, marks=pytest.mark.tried("clients", what))
        for what, (train, options) in CLIENTS.items()
    ],
)
def test_training_a_client_is_bit_identical(train, options, tmp_path, record_property):
    record_property("probes", compare(train, tmp_path, **options))
