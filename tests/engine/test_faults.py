"""After a failure in a probe, and for code that runs in the middle of one, nothing was moved."""

import random
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from hostile import HostileModule, Samples, differences, fit
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from probed import BatchNorm, Step, direction_of, everything, unchanged
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET

from lightning_landscape import AsymmetryMonitor, probing
from lightning_landscape.engine.isolation import isolated
from lightning_landscape.engine.tensors import same_bits

ERRORS = {
    "an error": ValueError("mine"),
    "one as torch raises": RuntimeError("mine"),
    "out of memory": torch.OutOfMemoryError("mine"),
    "out of host memory": MemoryError("mine"),
    "an interrupt": KeyboardInterrupt("mine"),
    "an exit": SystemExit("mine"),
    "a generator closed": GeneratorExit("mine"),
}

FAULTS = {"after": None, "calls": 0, "error": None}  # not restored by a probe


class Failing(HostileModule):
    """Fails at one call of its step, after it has written everywhere."""

    def __init__(self):
        super().__init__()
        self.auxiliary = lambda loss: None

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.net.eval()
        with torch.no_grad():
            self.net[4].bias.data = self.net[4].bias.data + 1
        FAULTS["calls"] += 1
        if FAULTS["calls"] == FAULTS["after"]:
            raise FAULTS["error"]
        return output


def hostile_batch():
    samples = Samples()
    return {"x": samples.x[:6].clone(), "y": samples.y[:6].clone()}


def fail(after, error):
    FAULTS.update(after=after, calls=0, error=error)


def use(objective, direction):
    """Make nine evaluations in all: five for losses, four for gradients."""
    for alpha in (0.0, 0.5, 1.0):
        objective.losses(direction, alpha)
    for alpha in (0.5, 1.0, 2.0):
        objective.gradient(direction, alpha)


def probe(module, mode="train"):
    with probing(module, [hostile_batch()], mode=mode) as objective:
        use(objective, direction_of(module))
        return objective.n_evaluations


def test_a_probe_of_the_faults_below_makes_nine_evaluations():
    module = Failing()
    fail(None, None)
    assert probe(module) == FAULTS["calls"] == 9


@pytest.mark.tried("faults", "out of memory, and an interrupt, at every evaluation of a probe")
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("after", range(1, 10))
def test_a_failure_at_any_evaluation_leaves_no_trace(after, mode):
    module = Failing()
    for name in ("out of memory", "an interrupt"):
        fail(after, ERRORS[name])
        with unchanged(module), pytest.raises(type(ERRORS[name]), match="mine"):
            probe(module, mode)


@pytest.mark.tried(
    "faults",
    "any exception from the user's step, `SystemExit` and `GeneratorExit` among them",
)
@pytest.mark.parametrize("after", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ERRORS)
def test_any_failure_leaves_no_trace(name, after):
    module = Failing()
    fail(after, ERRORS[name])
    with unchanged(module):
        try:
            probe(module)
        except type(ERRORS[name]) as error:
            assert error is ERRORS[name]  # noqa: PT017
        else:  # a step that cannot do without a graph raises at the second evaluation
            assert (name, after) in {("one as torch raises", 2), ("an error", 2)}


@pytest.mark.tried("faults", "a probe that goes on after a failure: its numbers are the same")
def test_after_a_failure_that_was_caught_the_numbers_are_the_same():
    module = Failing()
    direction = direction_of(module)
    fail(None, None)
    with probing(module, [hostile_batch()]) as objective:
        expected = objective.gradient(direction, 0.5)
    for after in range(1, 7):
        fail(after, ValueError("mine"))
        with unchanged(module), probing(module, [hostile_batch()]) as objective:
            for _ in range(3):
                try:
                    objective.losses(direction, 1.0)
                    objective.gradient(direction, 0.25)
                except ValueError:
                    pass
            assert differences(expected, objective.gradient(direction, 0.5)) == []


def raise_after_a_move(module, error, *, alpha=1.0):
    with probing(module, module.inputs()) as objective:
        for moved in (0.0, 0.1, alpha):
            objective.losses(direction_of(module), moved)
        raise error


@pytest.mark.tried(
    "faults", "a probe that is left in the middle, by an error or by a generator nobody finishes"
)
def test_a_failure_between_evaluations_leaves_no_trace():
    module = BatchNorm()
    with unchanged(module), pytest.raises(KeyError, match="mine"):
        raise_after_a_move(module, KeyError("mine"))


@pytest.mark.tried(
    "faults", "a probe that is left in the middle, by an error or by a generator nobody finishes"
)
def test_a_probe_in_an_unfinished_generator_leaves_no_trace():
    module = BatchNorm()

    def walk():
        with probing(module, module.inputs()) as objective:
            for alpha in (0.5, 1.0):
                yield objective.losses(direction_of(module), alpha)

    with unchanged(module):
        values = walk()
        next(values)
        values.close()


@pytest.mark.tried("faults", "losses and weights of NaN")
def test_a_loss_of_nan_is_kept_and_leaves_no_trace():
    class Nan(BatchNorm):
        def write(self, loss, batch):
            self.seen = super().write(loss, batch) * (
                float("nan") if self.net[0].bias[0] > 5 else 1
            )
            return self.seen

    module = Nan()
    direction = {"net.0.bias": torch.full((4,), 10.0)}
    with unchanged(module), probing(module, module.inputs()) as objective:
        start = objective.losses()
        assert objective.losses(direction, 1.0).isnan().all()
        assert objective.gradient(direction, 1.0)[0].isnan().all()
        assert objective.losses().equal(start)
        assert objective.losses({"net.2.bias": torch.full((2,), float("nan"))}, 1.0).isnan().all()
        assert objective.losses().equal(start)


@pytest.mark.tried("faults", "out of memory, and an interrupt, while a probe opens")
@pytest.mark.parametrize("k", range(1, 12))
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_failure_while_opening_leaves_no_trace(k, error, monkeypatch):
    module = HostileModule()
    module.auxiliary = None
    module.eval()  # to be switched
    clone, calls = torch.Tensor.clone, []

    def failing_clone(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * k:
            raise error("mine")
        return clone(self, *args, **kwargs)

    opening = isolated(module, mode="train", at={"net.4.bias": torch.ones(3)})
    with unchanged(module):
        monkeypatch.setattr(torch.Tensor, "clone", failing_clone)
        with pytest.raises(error, match="mine"):
            opening.__enter__()
        monkeypatch.undo()
    module.net[4].bias.data.fill_(10.0)
    with unchanged(module), probing(module, [hostile_batch()]) as objective:
        assert (objective.params["net.4.bias"] == 10.0).all()


class NoRoom(random.Random):
    """Raises an out-of-memory error when it is read."""

    def getstate(self):
        raise MemoryError("mine")


@pytest.mark.tried("faults", "out of memory, and an interrupt, while a probe opens")
def test_a_snapshot_that_fails_leaves_no_trace():
    module = HostileModule()
    module.auxiliary = None
    with unchanged(module):
        module.meter.history.append(NoRoom())
        with pytest.raises(MemoryError, match="mine"):
            probing(module, [hostile_batch()]).__enter__()
        module.meter.history.pop()


@pytest.mark.tried("faults", "no memory to compare in when a probe ends")
@pytest.mark.parametrize("failing", [False, True])
def test_without_memory_to_compare_everything_is_restored(failing, monkeypatch):
    module = BatchNorm()

    def comparing(a, b):
        raise torch.OutOfMemoryError("no room")

    def probe_until_memory_runs_out():
        with probing(module, module.inputs()) as objective:
            objective.losses(direction_of(module), 1.0)
            monkeypatch.setattr("lightning_landscape.engine.tensors.same_bits", comparing)
            if failing:
                raise ValueError("mine")

    error, message = (ValueError, "mine") if failing else (torch.OutOfMemoryError, "no room")
    with unchanged(module):
        with pytest.raises(error, match=message):
            probe_until_memory_runs_out()
        monkeypatch.undo()


# --------------------------------------------------------------- writes that depend on the weights


class Sometimes(Step):
    """Writes to its state only at weights far from the start."""

    def build(self):
        self.register_buffer("worst", torch.zeros(()))
        self.empty, self.table = [], {"n": 0}
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def write(self, loss, batch):
        if loss > 10:
            self.worst.copy_(loss.detach())
            self.empty.append(loss.item())
            self.table["n"] += 1
            self.frozen.weight.data.add_(1)
            batch.add_(1)
            torch.rand(1)


@pytest.mark.tried("faults", "a step that writes to its state at some weights only")
def test_a_write_at_later_weights_is_restored_and_named_once():
    module = Sometimes()

    def probe_far_away():
        with probing(module, module.inputs()) as objective:
            for alpha in (0.0, 0.1, 30.0, 40.0):
                objective.losses(direction_of(module), alpha)
            assert module.worst > 10

    with unchanged(module), pytest.warns(UserWarning, match="at some weights") as caught:
        probe_far_away()
    (warning,) = caught
    for name in ("worst", "empty", "table", "frozen.weight", "batch", "the torch generator"):
        assert name in str(warning.message)
    assert "probe of Sometimes" in str(warning.message)
    assert "All was put back" in str(warning.message)


class SometimesSlower(Sometimes):
    """Uses in its loss what it wrote at weights far from the start."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.worst


def test_verified_losses_do_not_depend_on_their_order():
    module = SometimesSlower()
    alphas = (40.0, 0.1, 30.0, 0.0)

    def losses(verify, alphas):
        with probing(module, module.inputs(), verify=verify) as objective:
            objective.losses(direction_of(module), 0.1)
            return [objective.losses(direction_of(module), alpha).tolist() for alpha in alphas]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward = losses("always", alphas)
        assert forward == losses("always", alphas[::-1])[::-1]
    with pytest.warns(UserWarning, match="may depend on the order"):
        assert losses("first", alphas) != forward


@pytest.mark.parametrize("module", [BatchNorm, Sometimes, HostileModule])
def test_a_recorded_write_causes_no_warning(module):
    module = module()
    module.auxiliary = lambda loss: None
    batches = [hostile_batch()] if isinstance(module, HostileModule) else module.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*self.log.*")
        with probing(module, batches) as objective:
            for alpha in (0.0, 0.1, -0.1):
                objective.losses(direction_of(module, scale=0.1), alpha)
                objective.gradient(direction_of(module, scale=0.1), alpha)


class OtherNan(Step):
    """Writes to nans in its state, far from the start alone."""

    def build(self):
        self.layer = nn.Linear(3, 4)
        self.register_buffer("mean", torch.full((4,), float("nan")))
        self.writes = -float("nan")

    def training_step(self, batch, batch_idx):
        if float(self.layer.weight.detach().abs().max()) > 10:
            self.mean.data.fill_(self.writes)
        return self.layer(batch).square().mean()


@pytest.mark.parametrize("writes", [-float("nan"), 1.0])
def test_a_nan_in_place_of_a_nan_is_put_back_and_not_named(writes):
    module = OtherNan()
    module.writes = writes

    def probe_far_away():
        with probing(module, module.inputs()) as objective:
            for alpha in (0.0, 0.1, 30.0, 40.0):
                objective.losses(direction_of(module), alpha)
            assert same_bits(module.mean, torch.full((4,), writes))

    with unchanged(module), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe_far_away()
    assert [str(one.message).count("wrote to mean") for one in caught] == [1] * (writes == 1.0)


@pytest.mark.tried("faults", "a step that writes to its state at some weights only")
def test_a_failure_causes_no_further_warning():
    module = Sometimes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with unchanged(module), pytest.raises(ValueError, match="mine"):
            raise_after_a_move(module, ValueError("mine"), alpha=30.0)


# --------------------------------------------------------------------- a checkpoint during a probe


class Saves(BatchNorm):
    """Saves its state in the middle of its step."""

    def build(self):
        super().build()
        self.teacher = nn.Linear(3, 4).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.notes = []

    def write(self, loss, batch):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.net[0].weight, 0.5)
        self.calls += 1
        self.notes.append(torch.rand(()))
        loss = super().write(loss, batch) + self.teacher(batch).mean()
        if SAVING:
            SAVING[0](self)
        return loss * (1 + self.notes[-1] * self.calls * len(self.notes))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = {
            "notes": list(self.notes),
            "weight": self.net[0].weight.detach().clone(),
            "draw": torch.rand(1),
        }


SAVING = []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    module = Saves()
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path_factory.mktemp("run"), **QUIET)
    trainer.fit(module, DataLoader(torch.cat(module.inputs()), batch_size=6))
    return trainer, module


def by_trainer(trainer, path):
    return lambda module: trainer.save_checkpoint(path)


def by_trainer_weights_only(trainer, path):
    return lambda module: trainer.save_checkpoint(path, weights_only=True)


def by_strategy(trainer, path):
    return lambda module: torch.save(
        {"state_dict": trainer.strategy.lightning_module_state_dict()}, path
    )


def by_signal(trainer, path):
    def handle(number, frame):
        trainer.save_checkpoint(path)

    signal.signal(signal.SIGUSR1, handle)
    return lambda module: signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def signal_handlers():
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)
    SAVING.clear()


@pytest.mark.tried(
    "faults", "a checkpoint in the middle of a probe, by a signal too: it holds what was before"
)
@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.parametrize("mode", ["train", "recalibrated"])
@pytest.mark.parametrize("how", [by_trainer, by_trainer_weights_only, by_strategy, by_signal])
def test_a_checkpoint_during_a_probe_has_the_state_from_before(
    how, mode, trained, tmp_path, signal_handlers
):
    trainer, module = trained
    direction, path = direction_of(module), tmp_path / "saved.ckpt"
    save = how(trainer, path)
    rng = torch.get_rng_state()
    save(module)
    torch.set_rng_state(rng)
    expected = torch.load(path, weights_only=False)
    with probing(module, module.inputs(), mode=mode) as objective:
        losses = [objective.losses(direction, alpha) for alpha in (0.0, 1.0, 2.0)]
        gradient = objective.gradient(direction, 1.0)
    with (
        unchanged(module),
        probing(module, module.inputs(), mode=mode, at={"net.0.bias": torch.ones(4)}) as moved,
    ):
        SAVING.append(save)
        moved.losses(direction, 1.0)
        assert_same_checkpoint(path, expected)
    with unchanged(module), probing(module, module.inputs(), mode=mode) as objective:
        for alpha, value in zip((0.0, 1.0, 2.0), losses, strict=True):
            path.unlink()
            assert same_bits(objective.losses(direction, alpha), value)
            assert_same_checkpoint(path, expected)
        path.unlink()
        assert differences(gradient, objective.gradient(direction, 1.0)) == []
        assert_same_checkpoint(path, expected)
        # and in between
        save(module)
        assert_same_checkpoint(path, expected)
        assert same_bits(objective.losses(direction, 2.0), losses[2])


def assert_same_checkpoint(path, expected):
    found = torch.load(path, weights_only=False)
    assert sorted(found) == sorted(expected)
    for part in {"state_dict", "mine", "optimizer_states", "lr_schedulers"} & set(expected):
        assert differences(found[part], expected[part]) == []
    assert all(same_bits(found["state_dict"][k], v) for k, v in expected["state_dict"].items())


@pytest.mark.tried(
    "faults", "a checkpoint in the middle of a probe, by a signal too: it holds what was before"
)
def test_a_state_dict_taken_during_a_probe_does_not_change(trained):
    trainer, module = trained
    expected = {key: value.clone() for key, value in module.state_dict().items()}
    with probing(module, module.inputs()) as objective:
        objective.losses(direction_of(module), 1.0)
        found = trainer.strategy.lightning_module_state_dict()
        objective.losses(direction_of(module), 2.0)
        assert differences(found, expected) == []
    assert "lightning_module_state_dict" not in vars(trainer.strategy)
    assert "save_checkpoint" not in vars(trainer)


# ------------------------------------------------------------------------------------- in training


class Poisoned(HostileModule):
    """Fails in some evaluations of a probe, never in training."""

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        if "log" in vars(self):  # it is a probe that asks
            FAULTS["calls"] += 1
            if FAULTS["calls"] % 13 == FAULTS["after"]:
                raise FAULTS["error"]
        return output


@pytest.mark.tried(
    "faults", "a probe that fails now and then while training: one warning, the same training"
)
@pytest.mark.parametrize(
    ("after", "error"),
    [
        (0, torch.OutOfMemoryError("mine")),
        (1, ValueError("mine")),
        (5, RuntimeError("mine")),
        (9, MemoryError("mine")),
    ],
    ids=str,
)
def test_training_goes_on_with_one_warning(after, error):
    fail(after, error)
    monitor = AsymmetryMonitor(
        every_n_steps=2, families=("gaussian",), n_directions=2, n_points=5, n_batches=1
    )
    with pytest.warns(UserWarning, match="AsymmetryMonitor failed.*mine") as caught:
        run = fit([monitor], module=Poisoned, max_epochs=1)
    ours = [w for w in caught if "AsymmetryMonitor" in str(w.message)]
    assert len(ours) == 1
    assert FAULTS["calls"] > 13
    assert differences(plain_run(), run) == []


def plain_run(cache={}):  # noqa: B006
    if not cache:
        cache["run"] = fit([], module=Poisoned, max_epochs=1)
    return cache["run"]


def test_on_error_raise_raises_a_failure():
    fail(4, ValueError("mine"))
    monitor = AsymmetryMonitor(every_n_epochs=1, n_directions=1, n_points=5, on_error="raise")
    with pytest.raises(ValueError, match="mine"):
        fit([monitor], module=Poisoned, max_epochs=1)


@pytest.mark.tried(
    "faults", "Ctrl-C in a probe after an epoch: the fit ends with the weights that were trained"
)
def test_an_interrupt_ends_the_fit_with_the_trained_weights(tmp_path):
    class Remembers(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.before = everything(pl_module)

        def on_exception(self, trainer, pl_module, exception):
            self.after = everything(pl_module)

    class Interrupted(Step):
        def write(self, loss, batch):
            if "log" in vars(self):
                FAULTS["calls"] += 1
                if FAULTS["calls"] == 7:
                    raise KeyboardInterrupt

    fail(None, None)
    watch = Remembers()
    monitor = AsymmetryMonitor(every_n_epochs=1, families=("gaussian",), n_directions=1, n_points=5)
    trainer = Trainer(max_epochs=1, callbacks=[watch, monitor], **QUIET)
    module = Interrupted()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, DataLoader(torch.cat(module.inputs()), batch_size=6))
    for state in (watch.before, watch.after):
        state["attributes"].pop("._current_fx_name")
    assert FAULTS["calls"] == 7
    assert differences(watch.before, watch.after) == []


@pytest.mark.tried("faults", "checkpoints that training writes between probes")
def test_checkpoints_that_training_writes_are_the_same(tmp_path):
    states = []
    for callbacks in ([], [AsymmetryMonitor(every_n_steps=1, n_directions=1, n_points=5)]):
        folder = tmp_path / str(len(states))
        saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1)
        module = BatchNorm()
        trainer = Trainer(
            max_epochs=1,
            callbacks=[*callbacks, saver],
            **{**QUIET, "enable_checkpointing": True},
        )
        trainer.fit(module, DataLoader(torch.cat(module.inputs()), batch_size=6))
        files = sorted(folder.glob("*.ckpt"))
        states.append([torch.load(file, weights_only=False)["state_dict"] for file in files])
    assert len(states[0]) == 2
    assert differences(*states) == []


def test_a_log_method_on_the_instance_is_restored():
    module = Step()
    module.__dict__["log"] = mine = lambda *args, **kwargs: None
    with probing(module, module.inputs()) as objective:
        objective.losses()
    assert module.__dict__["log"] is mine


READ_ONLY = """
import sys, numpy as np, torch
from torch import nn
from lightning_landscape import probing

np.save(sys.argv[1], np.ones((4, 3), dtype=np.float32))
mapped = lambda: torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
net = nn.Linear(3, 3)
net.register_buffer("table", mapped())
net.frozen = nn.Embedding.from_pretrained(mapped(), freeze=True)

def loss(module, x):
    if module.frozen.num_embeddings == 5:
        raise ValueError("mine")
    return module(x).square().mean()

for fails in (False, True):
    net.frozen.num_embeddings = 4 + fails
    try:
        average = {"bias": torch.ones(3)}
        with probing(net, [torch.ones(2, 3)], at=average, loss_fn=loss) as objective:
            objective.losses({"weight": torch.ones(3, 3)}, 1.0)
            objective.gradient()
    except ValueError as error:
        print("told of", error)
"""


@pytest.mark.slow
@pytest.mark.tried("faults", "weights and buffers mapped from a file that is read only")
def test_tensors_mapped_from_a_read_only_file_are_not_written_to(tmp_path):
    # in a process of its own, which writing there would end
    command = [sys.executable, "-W", "ignore", "-c", READ_ONLY, str(tmp_path / "table.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told of mine\n"), done.stderr
