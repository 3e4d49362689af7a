"""Other people's modules, trained the way their users do: plain, and watched by all we have.

`pip install -e ".[dev,clients]" -c constraints.txt`, then `pytest -m clients`. Those that are not
installed are skipped. Data are made here, nothing is downloaded.
"""

import numpy as np
import pytest
import torch
from compare import compare
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_landscape import SWA, AsymmetryMonitor, Fromage

pytestmark = pytest.mark.clients

N_SERIES, LENGTH = 4, 40


def series_table():
    """Return four short, noisy sines with a known covariate, in long form."""
    pandas = pytest.importorskip("pandas")
    rng, t = np.random.default_rng(0), np.arange(LENGTH)
    parts = [
        pandas.DataFrame(
            {
                "series": str(k),
                "t": t,
                "price": rng.normal(size=LENGTH),
                "y": 5 + np.sin(t / 3 + k) + 0.1 * rng.normal(size=LENGTH),
            }
        )
        for k in range(N_SERIES)
    ]
    return pandas.concat(parts, ignore_index=True)


def pytorch_forecasting(model, *, univariate=False, **settings):
    """Train a `lightning.pytorch` module that overrides `log` and draws into the logger."""

    def train(**options):
        client = pytest.importorskip("pytorch_forecasting")
        covariates = {
            "time_varying_known_reals": ["price"],
            "static_categoricals": ["series"],
        }
        data = client.TimeSeriesDataSet(
            series_table(),
            time_idx="t",
            target="y",
            group_ids=["series"],
            max_encoder_length=8,
            min_encoder_length=8 if univariate else 4,
            max_prediction_length=3,
            time_varying_unknown_reals=["y"],
            **({} if univariate else covariates),
        )
        module = getattr(client, model).from_dataset(data, **settings)
        trainer = Trainer(
            max_epochs=2,
            limit_train_batches=3,
            limit_val_batches=2,
            gradient_clip_val=0.1,
            **options,
        )
        loaders = [data.to_dataloader(train=t, batch_size=4, num_workers=0) for t in (True, False)]
        # monotone constraints take gradients inside the step, and refuse to do so with cuDNN on
        with torch.backends.cudnn.flags(enabled="monotone_constraints" not in settings):
            trainer.fit(module, *loaders)
        return trainer, module

    return train


def gluonts(estimator, **settings):
    """Train through an estimator that builds module, Trainer and checkpoints by itself."""

    def train(**options):
        client = pytest.importorskip("gluonts.torch")
        from gluonts.dataset.pandas import PandasDataset

        table = series_table().assign(
            time=lambda frame: (
                np.datetime64("2020-01-01") + frame.t.to_numpy() * np.timedelta64(1, "D")
            )
        )
        data = PandasDataset.from_long_dataframe(
            table, item_id="series", timestamp="time", target="y", freq="D"
        )
        model = getattr(client, estimator)(
            prediction_length=3,
            context_length=6,
            freq="D",
            batch_size=4,
            num_batches_per_epoch=3,
            trainer_kwargs={"max_epochs": 2, **options},
            **settings,
        )
        trained = model.train_model(data, data)
        return trained.trainer, trained.trained_net

    return train


def chemprop(**options):
    """Train a graph network whose loss is a torchmetrics metric."""
    pytest.importorskip("chemprop")
    from chemprop import data, models, nn

    rng = np.random.default_rng(0)
    smiles = ["C" * n + end for n in range(1, 7) for end in ("O", "N", "=O", "Cl")]
    points = [data.MoleculeDatapoint.from_smi(smile, [rng.normal()]) for smile in smiles]
    dataset = data.MoleculeDataset(points)
    module = models.MPNN(
        nn.BondMessagePassing(d_h=8, depth=2, dropout=0.1),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=8, hidden_dim=8),
        batch_norm=True,
        metrics=[nn.metrics.RMSE(), nn.metrics.MAE()],
    )
    trainer = Trainer(max_epochs=3, limit_train_batches=3, limit_val_batches=2, **options)
    loaders = [
        data.build_dataloader(dataset, batch_size=6, num_workers=0, shuffle=shuffle)
        for shuffle in (True, False)
    ]
    trainer.fit(module, *loaders)
    return trainer, module


def neuralforecast(model, **settings):
    """Train a `pytorch_lightning` module that is given its Trainer's options, and seeds itself."""

    def train(**options):
        client = pytest.importorskip("neuralforecast")
        from neuralforecast import models
        from neuralforecast.tsdataset import TimeSeriesDataset
        from pytorch_lightning import Callback

        assert client
        trainers = []

        class Catch(Callback):
            def on_fit_start(self, trainer, pl_module):
                trainers.append(trainer)

        table = series_table()[["series", "t", "y"]]
        data = TimeSeriesDataset.from_df(table, id_col="series", time_col="t", target_col="y")[0]
        options["callbacks"].append(Catch())
        module = getattr(models, model)(
            h=3,
            input_size=8,
            max_steps=6,
            val_check_steps=3,
            batch_size=2,
            windows_batch_size=8,
            **settings,
            **options,
        )
        module.fit(data, val_size=6)
        return trainers[0], module

    return train


def scvi(model, *, prepare=None, plan=None, **settings):
    """Train through a model with a Trainer, data splitter and training plan of its own."""

    def train(**options):
        client = pytest.importorskip("scvi")
        from anndata import AnnData

        client.settings.seed = 0
        rng = np.random.default_rng(0)
        data = AnnData(rng.poisson(2.0, size=(40, 12)).astype(np.float32))
        data.obs["batch"] = ["a", "b"] * 20
        data.obs["labels"] = ["x", "y", "z", "y"] * 10
        data.obsm["proteins"] = rng.poisson(3.0, size=(40, 4)).astype(np.float32)
        kind = getattr(client.model, model)
        kind.setup_anndata(data, batch_key="batch", **(prepare or {}))
        trained = kind(data, n_latent=3)
        for name in ("devices", "default_root_dir"):
            options.pop(name)
        trained.train(
            max_epochs=3,
            batch_size=10,
            check_val_every_n_epoch=1,
            train_size=0.6,
            plan_kwargs=plan,
            **settings,
            **options,
        )
        return trained.trainer, trained.trainer.lightning_module or trained.module

    return train


def plan_loss(plan, batch):
    outputs, _, loss = plan.forward(batch, loss_kwargs=plan.loss_kwargs)
    return loss.loss + plan.loss_adversarial_classifier(outputs["z"], batch["batch"])


TFT = "TemporalFusionTransformer"
SEMI_SUPERVISED = {"labels_key": "labels", "unlabeled_category": "z"}
# two optimizers stepped by hand, and a scheduler that is stepped in `on_validation_epoch_end`
TOTALVI = scvi(
    "TOTALVI",
    prepare={"protein_expression_obsm_key": "proteins"},
    plan={"lr_patience": 0, "lr_factor": 0.5, "lr_threshold": 1e9},
    adversarial_classifier=True,
)

CLIENTS = {
    "pytorch-forecasting: TFT, Fromage, draws predictions into TensorBoard": (
        pytorch_forecasting(TFT, hidden_size=4, optimizer=Fromage, log_interval=2),
        {},
    ),
    "pytorch-forecasting: TFT, takes gradients inside its step": (
        pytorch_forecasting(TFT, hidden_size=4, monotone_constraints={"price": 1}),
        {},
    ),
    "pytorch-forecasting: N-BEATS": (
        pytorch_forecasting(
            "NBeats", univariate=True, widths=[8, 8], num_blocks=[1, 1], log_interval=1
        ),
        {"mode": "eval"},
    ),
    "pytorch-forecasting: DeepAR, samples in validation": (
        pytorch_forecasting("DeepAR", hidden_size=4),
        {},
    ),
    "gluonts: DeepAR": (gluonts("DeepAREstimator", hidden_size=4), {}),
    "gluonts: TFT, after every epoch": (
        gluonts("TemporalFusionTransformerEstimator", hidden_dim=4, variable_dim=4),
        {"every_n_epochs": 1, "every_n_steps": None},
    ),
    "chemprop: message passing with batch norm": (chemprop, {}),
    "chemprop: message passing, batch norm recalibrated": (chemprop, {"mode": "recalibrated"}),
    "neuralforecast (pytorch_lightning): NHITS, Fromage": (
        neuralforecast("NHITS", optimizer=Fromage),
        {},
    ),
    "neuralforecast (pytorch_lightning): LSTM": (
        neuralforecast("LSTM", encoder_hidden_size=4, decoder_hidden_size=4),
        {},
    ),
    "scvi-tools: SCVI, Fromage, logs to its logger directly": (
        scvi("SCVI", plan={"optimizer": "Custom", "optimizer_creator": Fromage, "on_step": True}),
        {},
    ),
    "scvi-tools: SCANVI, trained in two goes": (scvi("SCANVI", prepare=SEMI_SUPERVISED), {}),
    "scvi-tools: TOTALVI, two optimizers by hand": (TOTALVI, {"loss_fn": plan_loss}),
}


@pytest.mark.parametrize(
    ("train", "options"),
    [
        pytest.param(train, options, id=what, marks=pytest.mark.tried("clients", what))
        for what, (train, options) in CLIENTS.items()
    ],
)
def test_training_a_client_is_bit_identical(train, options, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)  # some write where they stand
    record_property("probes", compare(train, tmp_path, **options))


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.tried("clients", "scvi-tools: TOTALVI without a loss_fn says what to do")
def test_a_client_that_optimises_by_hand_says_what_it_needs():
    with pytest.raises(
        MisconfigurationException, match="AdversarialTrainingPlan optimises manually"
    ):
        TOTALVI(callbacks=[SWA(), AsymmetryMonitor()], devices=1, default_root_dir="")
