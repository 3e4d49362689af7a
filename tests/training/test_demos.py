"""The modules that come with Lightning itself, on data made here."""

import pytest
import torch
from compare import compare
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch.utils.data import DataLoader, TensorDataset

N_WORDS = 11


class SmallTransformer(LightningTransformer):
    def __init__(self):
        super().__init__(vocab_size=N_WORDS)
        self.model = Transformer(vocab_size=N_WORDS, ninp=8, nhid=8)

    prepare_data = LightningModule.prepare_data  # theirs downloads WikiText2


class SmallLSTM(LightningLSTM):
    """Carries its hidden state from batch to batch, and learns at a rate of 20."""

    def __init__(self):
        super().__init__(vocab_size=N_WORDS)
        self.model = SimpleLSTM(vocab_size=N_WORDS, ninp=8, nhid=8, nlayers=2)

    prepare_data = LightningModule.prepare_data


def fitted(module, *data, **options):
    trainer = Trainer(max_epochs=2, limit_train_batches=3, limit_val_batches=2, **options)
    trainer.fit(module, *data)
    return trainer, module


def text():
    words = torch.randint(N_WORDS, (24 * 5 + 1,))
    return TensorDataset(words[:-1].view(24, 5), words[1:].view(24, 5))


def boring(**options):
    return fitted(BoringModel(), BoringDataModule(), **options)


def transformer(**options):
    return fitted(SmallTransformer(), DataLoader(text(), batch_size=4, shuffle=True), **options)


def lstm(**options):
    data = text()
    loader = DataLoader(data, batch_sampler=SequenceSampler(data, batch_size=4))
    return fitted(SmallLSTM(), loader, **options)


DEMOS = [
    pytest.param(demo, id=demo.__name__, marks=pytest.mark.tried("clients", what))
    for demo, what in [
        (boring, "Lightning's BoringModel and its data module"),
        (transformer, "Lightning's transformer demo, on made-up words"),
        (lstm, "Lightning's LSTM demo, which carries its hidden state from batch to batch"),
    ]
]


@pytest.mark.parametrize("train", DEMOS)
def test_training_a_demo_is_bit_identical(train, tmp_path):
    compare(train, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"mode": "eval"}, {"mode": "recalibrated"}], ids=str)
@pytest.mark.parametrize("train", [boring, transformer, lstm])
def test_training_a_demo_is_bit_identical_in_every_mode(train, options, tmp_path):
    compare(train, tmp_path, **options)
