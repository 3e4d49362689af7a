"""A logger that raises: in what the callbacks ask of it, and in what only Lightning asks."""

import functools
from types import SimpleNamespace

import pytest
from hostile import differences
from injection import PLAN, run
from toys import OURS, Rows

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor


def callbacks():
    monitor = AsymmetryMonitor(
        every_n_epochs=1, families=["sign"], n_directions=1, n_points=5, n_batches=1
    )
    breakdown = GradientBreakdownMonitor(every_n_epochs=1, directions="update", etas=[1.0])
    return [SWA(0), monitor, breakdown]


def train(callbacks, logger=None):
    return run(callbacks, logger=logger, max_epochs=2, limit_train_batches=3, limit_val_batches=1)


@functools.cache
def plain():
    return train([]).result


def broken(*args, **kwargs):
    raise ConnectionError("offline")


class Refusing(Rows):
    """Raises where it is asked for one thing, for what is not the user's own."""

    def __init__(self, **experiment):
        super().__init__()
        self.experiment = SimpleNamespace(**experiment)


class RefusesMetrics(Rows):
    def log_metrics(self, metrics, step=None):
        if any(name.startswith(OURS) for name in metrics):
            broken()
        super().log_metrics(metrics, step)


class RefusesItsExperiment(Rows):
    """Loses it once training is under way: Lightning asks for it at the start."""

    @property
    def experiment(self):
        return broken() if self.rows else object()


LOGGERS = {
    "metrics": RefusesMetrics,
    "images": lambda: Refusing(add_image=broken),
    "figures": lambda: Refusing(add_figure=broken),
    "text": lambda: Refusing(add_image=lambda *_, **__: None, add_text=broken),
    "experiment": RefusesItsExperiment,
}


@pytest.mark.tried("faults", "a logger that raises at metrics, figures, text or its experiment")
@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_raises_costs_one_warning_and_no_training(name):
    found = train(callbacks(), LOGGERS[name]())
    assert differences(plain(), found.result) == []
    (warning,) = found.warned
    assert "failed to log a landscape result: ConnectionError('offline')" in warning


class LosesItsFolder(Rows):
    """Does not know where files go once training is under way."""

    @property
    def save_dir(self):
        return broken() if self.rows else None


@pytest.mark.tried("faults", "a logger that raises when asked for its folder")
def test_a_logger_without_a_folder_costs_files_and_a_warning():
    found = train(callbacks(), LosesItsFolder())
    assert differences(plain(), found.result) == []
    (warning,) = found.warned  # of the logger, not of a probe
    assert "LosesItsFolder failed to log a landscape result: ConnectionError('offline')" in warning


class Dying(Rows):
    """Raises, from the n-th call on, in something that only Lightning asks of it."""

    def __init__(self, method, n):
        super().__init__()
        self.n_calls = 0

        def call(*args, **kwargs):
            self.n_calls += 1
            if self.n_calls >= n:
                broken()

        setattr(self, method, call)


@pytest.mark.tried(
    "faults", "a logger that raises in log_hyperparams, log_graph, save or finalize: as without"
)
@pytest.mark.parametrize("method", ["log_hyperparams", "log_graph", "save", "finalize"])
def test_what_only_lightning_asks_of_a_logger_is_asked_as_often_as_without(method):
    n = []
    for extra in ([], callbacks()):
        logger = Dying(method, 10**6)
        assert differences(plain(), train(extra, logger).result) == []
        n.append(logger.n_calls)
    assert n[0] == n[1] > 0


@pytest.mark.tried(
    "faults", "a logger that raises in log_hyperparams, log_graph, save or finalize: as without"
)
@pytest.mark.parametrize(("method", "n"), [("save", 4), ("finalize", 1)])
def test_a_logger_that_ends_the_fit_ends_it_where_it_would_without(method, n):
    ends = []
    for extra in ([], callbacks()):
        with pytest.raises(ConnectionError, match="offline"):
            train(extra, Dying(method, n))
        ends.append(PLAN["watch"].at_the_end)
    assert differences(*ends) == []
