"""Probes measure the batches that the step got, whoever changed them on their way."""

import copy

import pytest
import torch
from hostile import differences, fit
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor
from lightning_landscape.engine.evaluator import Evaluator

HOOKS = {"training_step", "validation_step"}


def double(batch):
    batch["x"].mul_(2.0)
    batch["added"] = batch["x"] + 1.0


class Regression(LightningModule):
    """Remembers the losses of its steps; one of its weights never moves."""

    rate = 0.0

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.returned, self.validated = [], []

    def loss(self, batch):
        return (self.net(batch["x"]) - batch.get("added", batch["x"]).sum(1)).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.returned.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("val_loss", loss, batch_size=len(batch["x"]))
        if not self.trainer.sanity_checking:
            self.validated.append(loss.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Later(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        double(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        double(batch)


class OwnHooks(Regression):
    def on_train_batch_start(self, batch, batch_idx):
        double(batch)

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        double(batch)


class BringsCallback(Regression):
    def configure_callbacks(self):
        return [Later()]


class BatchAlone(OwnHooks):
    def training_step(self, batch):
        return super().training_step(batch, 0)

    def validation_step(self, batch):
        return super().validation_step(batch, 0)


class ByHand(OwnHooks):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class TakesIterator(Regression):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        double(batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        double(batch)
        super().validation_step(batch, batch_idx)


class SeveralTimes(OwnHooks):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=self.rate, max_iter=3)


class Doubles(SingleDeviceStrategy):
    """Changes the batch in its own step, as late as anybody can."""

    def training_step(self, batch, *args):
        double(batch)
        return super().training_step(batch, *args)

    def validation_step(self, batch, *args):
        double(batch)
        return super().validation_step(batch, *args)


class AlsoBefore(Callback):
    """Puts a function of its own before the step."""

    def setup(self, trainer, pl_module, stage):
        step = trainer.strategy.training_step
        trainer.strategy.training_step = lambda batch, *args: double(batch) or step(batch, *args)


def loaders():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return [DataLoader([{"x": row} for row in rows], batch_size=4) for rows in (x[:12], x[12:])]


def train(module, *callbacks, **options):
    options = {**QUIET, "max_epochs": 1, "num_sanity_val_steps": 1, **options}
    trainer = Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, *loaders())
    return trainer


def monitors(**options):
    options = {"max_overhead": None, "on_error": "raise", **options}
    few = {"families": ("gaussian",), "n_directions": 1, "n_points": 5}
    return [
        SWA(start=0, every_n_steps=1),
        AsymmetryMonitor(every_n_epochs=2, n_batches=3, validation=True, **few, **options),
        GradientBreakdownMonitor(every_n_steps=3, directions="gradient", etas=(0.5,), **options),
    ]


@pytest.fixture
def probes(monkeypatch):
    """The losses of the first evaluation of each probe, which is made where the weights are."""
    found = []
    init, loss = Evaluator.__init__, Evaluator._loss

    def opened(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append([])

    def noted(self, index, batch):
        value = loss(self, index, batch)
        if len(found[-1]) < len(self._batches):
            found[-1].append(value.item())
        return value

    monkeypatch.setattr(Evaluator, "__init__", opened)
    monkeypatch.setattr(Evaluator, "_loss", noted)
    return found


MODULES = {
    "a callback further down": (Regression, [Later()], {}),
    "the module's own hooks": (OwnHooks, [], {}),
    "a callback that the module brings": (BringsCallback, [], {}),
    "a step that takes no index": (BatchAlone, [], {}),
    "windows of two batches": (OwnHooks, [], {"accumulate_grad_batches": 2}),
    "an optimizer that runs the step twice": (SeveralTimes, [], {}),
    "the strategy's own step": (Regression, [], {"strategy": Doubles(torch.device("cpu"))}),
}


@pytest.mark.parametrize("name", MODULES)
def test_losses_at_the_weights_are_those_the_steps_returned(name, probes):
    kind, further, options = MODULES[name]
    module = kind()
    trainer = train(module, *monitors(), *further, max_epochs=2, **options)
    returned = module.returned[:: 2 if kind is SeveralTimes else 1]
    first = [*returned[:3], *module.validated[:3]]
    # the batches at the end of the third and of the sixth step
    steps = [4] if "accumulate_grad_batches" in options else [2, 5]
    assert sorted(probes) == sorted([first, *([returned[i]] for i in steps)])
    metrics = trainer.callback_metrics
    assert metrics["swa/val_loss"] == pytest.approx(float(metrics["val_loss"]), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
@pytest.mark.parametrize("kind", [ByHand, TakesIterator])
def test_a_loss_function_gets_the_batches_of_the_steps(kind, probes):
    def loss_fn(module, batch):
        if kind is TakesIterator and "added" not in batch:  # there the step itself changes it
            double(batch)
        return module.loss(batch)

    module = kind()
    train(module, *monitors(loss_fn=loss_fn)[1:], max_epochs=2)
    seen = module.returned
    assert sorted(probes) == sorted([[*seen[:3], *module.validated[:3]], [seen[2]], [seen[5]]])


def test_weights_that_a_hook_changes_before_the_step_are_those_of_the_step(probes):
    class Clips(OwnHooks):
        rate = 2.0**-10

        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                self.net[0].weight.clamp_(-0.1, 0.1)

    module = Clips()
    train(module, monitors()[2])
    assert probes == [[module.returned[2]]]


def test_training_is_bit_identical_where_hooks_change_batches():
    class Changing(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch["x"].mul_(2.0)

    plain = fit([Changing()])
    swa, asymmetry, breakdown = monitors()
    assert differences(plain, fit([swa, asymmetry, breakdown, Changing()])) == []


class FromIterators(Regression):
    """Its batches are iterators, which it reads; it has a batch norm."""

    def __init__(self):
        super().__init__()
        self.net.append(nn.BatchNorm1d(1))

    def loss(self, batch):
        return super().loss({"x": next(batch)})

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.loss(batch).item())


def iterators():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return [
        DataLoader(rows, batch_size=4, collate_fn=lambda r: iter([torch.stack(r)]))
        for rows in (x[:12], x[12:])
    ]


def test_batches_that_are_iterators_are_measured_and_never_read(probes, monkeypatch):
    monkeypatch.setitem(globals(), "loaders", iterators)
    plain, watched = FromIterators(), FromIterators()
    watched.load_state_dict(plain.state_dict())
    train(plain, max_epochs=2)
    train(watched, *monitors()[1:], max_epochs=2)
    assert watched.returned == plain.returned
    assert len(watched.returned) == 6
    assert [len(losses) for losses in probes] == [1, 1, 6]


def test_a_probe_that_runs_out_of_items_does_not_end_the_epoch():
    class RunsOut(Regression):
        def loss(self, batch):
            return next(iter([])) if "log" in vars(self) else super().loss(batch)

    asymmetry = AsymmetryMonitor(every_n_steps=1, n_directions=1, n_points=5, on_error="raise")
    with pytest.raises(RuntimeError, match="of AsymmetryMonitor failed"):
        train(RunsOut(), asymmetry)


@pytest.mark.filterwarnings("ignore:.*returned `None`")  # Lightning says so once a process
def test_validation_batches_are_measured_where_a_step_skips_the_first(probes):
    class Skips(Regression):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

    module = Skips()
    train(module, monitors()[1], max_epochs=2)
    assert [len(losses) for losses in probes] == [5]  # two training batches, three of validation


def test_kept_batches_that_a_step_fails_on_are_replaced(probes, caplog):
    class Curriculum(Regression):
        """From the second epoch on its batches have targets, and it needs them."""

        def on_train_batch_start(self, batch, batch_idx):
            if self.current_epoch:
                batch["target"] = batch["x"].sum(1)

        def loss(self, batch):
            if self.training and self.current_epoch:
                assert "target" in batch, "no target"
            return super().loss(batch)

    asymmetry = AsymmetryMonitor(every_n_steps=2, n_batches=2, n_directions=1, n_points=5)
    caplog.set_level("INFO")
    with pytest.warns(UserWarning, match="no target") as warned:
        train(Curriculum(), asymmetry, max_epochs=3)
    assert len([w for w in warned if "AsymmetryMonitor" in str(w.message)]) == 1
    assert caplog.text.count("The next ones that are trained on take their place") == 1
    full = [len(losses) for losses in probes]
    assert full[0] == 2  # steps 2, 4 (fails), 6, 8
    assert full[1] == 0
    assert full[-1] == 2


def test_a_module_that_thaws_after_the_start_is_measured(probes):
    class Thaws(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.requires_grad_(False)

        def on_train_start(self, trainer, pl_module):
            pl_module.requires_grad_(True)

    train(Regression(), *monitors(), Thaws(), max_epochs=2)
    assert [len(losses) for losses in probes] == [1, 1, 6]


class Stops(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise self.error


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()])
def test_the_strategy_is_as_it_was_after_every_exit(error):
    strategies = []

    class Notes(Callback):
        def on_fit_start(self, trainer, pl_module):
            assert set(vars(trainer.strategy)) >= HOOKS
            strategies.append(trainer.strategy)

    try:
        train(Regression(), *monitors(), Notes(), *([Stops(error)] if error else []))
    except (ValueError, SystemExit):
        assert error
    assert not HOOKS & set(vars(strategies[0]))


def test_what_somebody_else_put_before_the_steps_still_runs_and_stays():
    calls = []

    class Puts(Callback):
        def setup(self, trainer, pl_module, stage):
            step = trainer.strategy.training_step
            trainer.strategy.training_step = lambda *a: calls.append(len(a)) or step(*a)

    for order in ([Puts(), *monitors()], [*monitors(), Puts()]):
        calls.clear()
        trainer = train(Regression(), *order)
        assert calls == [2, 2, 2]
        assert vars(trainer.strategy)["training_step"].__name__ == "<lambda>"


def test_what_somebody_else_put_before_the_steps_may_change_the_batch(probes):
    module = Regression()
    train(module, AlsoBefore(), monitors()[2])
    assert probes == [[module.returned[2]]]
    assert "training_step" not in vars(module)


def test_copies_of_the_strategy_have_plain_steps():
    copies = []

    class Copies(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert set(vars(trainer.strategy)) >= HOOKS
            copies.append(copy.deepcopy(trainer.strategy))

    train(Regression(), *monitors(), Copies())
    for twin in copies:
        assert vars(twin)["training_step"].__func__ is type(twin).training_step
