"""Loggers as people run them: several, none, those that fail, and W&B, MLflow and Comet offline.

The clients themselves run with `-m clients`, where they are installed: `pip install wandb
mlflow-skinny sqlalchemy alembic comet_ml`.
"""

import csv
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from hostile import differences, rng_fingerprint
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor

AREA = "landscape/gaussian/area"


def callbacks():
    swa = SWA(0)
    return [
        swa,
        AsymmetryMonitor(
            every_n_epochs=1, families=["gaussian"], n_directions=2, n_points=5, swa=swa
        ),
        GradientBreakdownMonitor(directions=["update"], every_n_steps=3),
    ]


def train(logger, *given, **options):
    return toys.train(*given, **{"max_epochs": 1, "logger": logger, **options})[1]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


ARRAYS = ["breakdown-step=2.npz", "breakdown-step=5.npz", "landscape-step=5.npz"]


# --- those that Lightning brings ----------------------------------------------------------------


@pytest.mark.tried("loggers", "CSVLogger: scalars in its rows, figures as PNG files beside it")
def test_a_csv_file_gets_the_scalars_and_the_figures_lie_beside_it(tmp_path):
    train(CSVLogger(tmp_path, name="", version="one"), *callbacks())
    with open(tmp_path / "one" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert {"train_loss", AREA, "breakdown/update/max", "swa/n_averaged"} <= {*rows[0]}
    assert [row["step"] for row in rows if row[AREA]] == ["5"]
    assert [row["step"] for row in rows if row["breakdown/update/max"]] == ["2", "5"]
    found = files(tmp_path / "one" / "landscape")
    assert [name for name in found if name.endswith("npz")] == ARRAYS
    assert {"landscape-gaussian-step=5.png", "breakdown-update-step=2.png"} <= {*found}


@pytest.mark.tried("loggers", "several loggers at once: numbers to all, figures to all that can")
@pytest.mark.parametrize("csv_first", [False, True])
def test_of_several_loggers_all_get_numbers_and_all_that_can_get_figures(tmp_path, csv_first):
    loggers = [
        TensorBoardLogger(tmp_path / "board", name="", version=""),
        CSVLogger(tmp_path / "csv", name="", version=""),
        TensorBoardLogger(tmp_path / "again", name="", version=""),
    ]
    train(loggers[1::-1] + loggers[2:] if csv_first else loggers, *callbacks())
    for name in ("board", "again"):
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        assert {AREA, "breakdown/update/max"} <= {*events.Tags()["scalars"]}
        assert {"landscape/gaussian", "breakdown/update"} <= {*events.Tags()["images"]}
    assert AREA in (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0]
    # raw numbers once, beside the first; no PNG, as there is a logger that shows figures
    first, *others = ("csv", "board", "again") if csv_first else ("board", "csv", "again")
    assert files(tmp_path / first / "landscape") == [*ARRAYS, "report.html"]
    assert not any((tmp_path / other / "landscape").exists() for other in others)


@pytest.mark.tried("loggers", "`logger=False`: numbers in `callback_metrics`, nothing on disk")
def test_without_a_logger_there_are_numbers_and_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = train(False, *callbacks())
    assert torch.isfinite(trainer.callback_metrics[AREA])
    assert files(tmp_path) == []


@pytest.mark.tried("names", "the TensorBoardLogger of `pytorch_lightning` in a `lightning` Trainer")
def test_a_logger_of_the_other_name_has_its_files_in_its_own_version(tmp_path):
    twin = pytest.importorskip("pytorch_lightning.loggers")
    train(twin.TensorBoardLogger(tmp_path, name="a", version=3), *callbacks())
    assert files(tmp_path / "a" / "version_3" / "landscape") == [*ARRAYS, "report.html"]


# --- services, by what they can do --------------------------------------------------------------


class Service(Logger):
    """A logger of runs that have an id, as those of W&B, MLflow and Comet."""

    def __init__(self, save_dir, version, experiment=None, **methods):
        super().__init__()
        self._save_dir, self._version = save_dir, version
        self._experiment = experiment
        self.rows = []
        self.__dict__.update(methods)

    name = "project"

    @property
    def version(self):
        return self._answer(self._version)

    @property
    def experiment(self):
        return self._answer(self._experiment)

    @property
    def save_dir(self):
        return self._save_dir and str(self._save_dir)

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def _answer(self, said):
        if isinstance(said, Exception) and self.rows:  # a server that is lost once training began
            raise said
        return said


def keeping():
    """Return a function that keeps what it is called with, and the list."""
    calls = []
    return lambda *args, **options: calls.append((args, options)), calls


@pytest.mark.tried(
    "loggers", "several runs of a service in one folder: no run overwrites another's"
)
def test_two_runs_of_a_service_keep_their_files_apart(tmp_path):
    for run in ("first", "second"):
        train(Service(tmp_path, run), callbacks()[2])
    for run in ("first", "second"):
        assert {*ARRAYS[:2]} < {*files(tmp_path / "project" / run / "landscape")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]


@pytest.mark.tried("loggers", "a service without a folder: files lie where its checkpoints do")
def test_the_files_of_a_run_on_a_server_lie_beside_its_checkpoints(tmp_path):
    checkpoint = ModelCheckpoint()
    options = {"default_root_dir": tmp_path, "enable_checkpointing": True}
    train(Service(None, "id"), checkpoint, *callbacks(), **options)
    folder = tmp_path / "project" / "id"
    assert Path(checkpoint.dirpath) == folder / "checkpoints"
    assert set(ARRAYS) <= {*files(folder / "landscape")}


@pytest.mark.tried(
    "loggers", "a service by what it can do: W&B's pictures, MLflow's and Comet's figures"
)
@pytest.mark.parametrize("kind", ["wandb", "mlflow", "comet", "neither"])
def test_a_service_gets_figures_in_the_way_it_takes_them(tmp_path, kind):
    keep, calls = keeping()
    figures = SimpleNamespace(log_figure=keep)
    logger = {
        "wandb": lambda: Service(tmp_path, "id", object(), log_image=keep),
        "mlflow": lambda: Service(tmp_path, "id", figures, run_id="id"),
        "comet": lambda: Service(tmp_path, "id", figures),
        "neither": lambda: Service(tmp_path, "id"),
    }[kind]()
    train(logger, *callbacks())
    shown = {
        str(options.get("key") or args[2 if kind == "mlflow" else 0]) for args, options in calls
    }
    shown = {name.removesuffix("/step=5.png") for name in shown}
    named = {"landscape/gaussian", "landscape/history/gaussian", "breakdown/update"}
    pictures = [name for name in files(tmp_path / "project" / "id") if name.endswith("png")]
    if kind == "neither":
        assert "landscape/landscape-gaussian-step=5.png" in pictures
    else:
        assert named <= shown
        assert pictures == []
    assert [step for step, row in logger.rows if AREA in row] == [5]


class Down(ConnectionError):
    """What a client raises whose server does not answer."""


def refuse(*args, **options):
    raise Down("no answer")


@pytest.mark.tried(
    "loggers", "a logger that fails in any of its parts: one warning, and training goes on"
)
@pytest.mark.parametrize(
    "broken",
    [
        lambda folder: Service(folder, "id", object(), log_image=refuse),
        lambda folder: Service(folder, "id", SimpleNamespace(log_figure=refuse), run_id="id"),
        lambda folder: Service(folder, Down("no answer")),
    ],
    ids=["pictures", "figures", "its version"],  # for the others see test_broken_loggers.py
)
def test_a_logger_that_fails_costs_one_warning_and_the_others_get_theirs(tmp_path, broken):
    good = Service(tmp_path, "good")
    bad = broken(tmp_path)
    with pytest.warns(UserWarning, match=r"failed to log a landscape result: Down\('no") as caught:
        trainer = train([bad, good], callbacks()[2])
    assert [str(w.message) for w in caught if "landscape" in str(w.message)][1:] == []
    assert trainer.global_step == 6
    for logger in (bad, good):
        assert [step for step, row in logger.rows if "breakdown/update/max" in row] == [2, 5]


# --- the clients themselves, offline ------------------------------------------------------------


def wandb(folder):
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project="landscape", offline=True, save_dir=folder)


def mlflow(folder):
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(
        tracking_uri=f"sqlite:///{folder}/runs.db", artifact_location=f"file:{folder}/artifacts"
    )


def comet(folder):
    from lightning.pytorch.loggers import CometLogger

    return CometLogger(offline_directory=str(folder))


CLIENTS = {"wandb": wandb, "mlflow": mlflow, "comet_ml": comet}


@pytest.fixture
def client(request, tmp_path, monkeypatch):
    """Return the logger of a client that reaches nobody, named by the parameter."""
    pytest.importorskip(request.param)
    if request.param == "mlflow":
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    # CometLogger(online=False) is disabled altogether, so that it is told by its own setting
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    return CLIENTS[request.param]


def clients(*names):
    return pytest.mark.parametrize("client", names, indirect=True)


theirs = pytest.mark.filterwarnings("default")  # theirs are not ours to mend


@pytest.mark.clients
@theirs
@pytest.mark.tried("clients", "W&B, offline: numbers, pictures, files of the run")
@clients("wandb")
def test_wandb_has_the_numbers_and_the_pictures(tmp_path, client):
    logger = client(tmp_path)
    train(logger, *callbacks())
    assert np.isfinite(logger.experiment.summary[AREA])
    logger.experiment.finish()
    pictures = [name for name in files(tmp_path / "wandb") if name.endswith(".png")]
    for figure in ("landscape/gaussian", "landscape/swa/line", "breakdown/update"):
        assert any(f"media/images/{figure}_" in name for name in pictures), figure
    assert any("media/html/landscape/report_" in name for name in files(tmp_path / "wandb"))
    assert files(tmp_path / "landscape" / logger.version / "landscape") == [*ARRAYS, "report.html"]


@pytest.mark.clients
@theirs
@pytest.mark.tried("clients", "MLflow, in an SQLite file: numbers, figures, files of the run")
@clients("mlflow")
def test_mlflow_has_the_numbers_and_the_figures(tmp_path, client):
    logger = client(tmp_path)
    train(logger, *callbacks())
    history = logger.experiment.get_metric_history(logger.run_id, AREA)
    assert [point.step for point in history] == [5]
    kept = "\n".join(files(tmp_path / "artifacts"))
    for figure in ("landscape/gaussian", "landscape/swa/line", "breakdown/update"):
        assert re.search(rf"{figure}/step=5\.png", kept), figure
    assert "landscape/report.html" in kept
    assert files(tmp_path / logger.name / logger.version / "landscape") == [*ARRAYS, "report.html"]


@pytest.mark.clients
@theirs
@pytest.mark.tried("clients", "Comet, offline: numbers, figures, files of the run")
@clients("comet_ml")
def test_comet_has_the_numbers_and_the_figures(tmp_path, client):
    logger = client(tmp_path)
    train(logger, *callbacks())
    logger.experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as kept:
        said = [json.loads(line) for line in kept.read("messages.json").splitlines()]
    numbers = {m["payload"]["metric"]["metricName"] for m in said if m["type"] == "metric_msg"}
    assert {AREA, "breakdown/update/max"} <= numbers
    uploads = [m["payload"] for m in said if m["type"] == "file_upload"]
    assert "landscape/report.html" in {u["additional_params"].get("fileName") for u in uploads}
    figures = {u["additional_params"].get("figName") for u in uploads}
    assert {"landscape/gaussian", "landscape/swa/line", "breakdown/update"} <= figures
    assert files(tmp_path / str(logger.name) / logger.version / "landscape") == [
        *ARRAYS,
        "report.html",
    ]


@pytest.mark.clients
@theirs
@pytest.mark.tried("clients", "W&B, MLflow, Comet: training is bit-identical with the callbacks")
@clients(*CLIENTS)
def test_training_with_a_client_is_bit_identical(tmp_path, client):
    def run(name, *given):
        folder = tmp_path / name
        folder.mkdir()
        logger = client(folder)
        trainer = train(logger, *given, max_epochs=2)
        outcome = trainer.lightning_module.state_dict(), rng_fingerprint()
        if hasattr(logger.experiment, "finish"):
            logger.experiment.finish()
        return outcome

    assert differences(run("plain"), run("probed", *callbacks())) == []
