"""Every precision, and compiled modules: training stays bit-identical, the numbers are right."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hostile import (
    Classifier,
    HostileModule,
    Samples,
    assert_invisible_and_at_work,
    differences,
    fit,
)
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn
from torch.utils.data import DataLoader

from lightning_landscape import (
    SWA,
    AsymmetryMonitor,
    GradientBreakdownMonitor,
    probing,
)
from lightning_landscape._lightning import precision_context
from lightning_landscape.engine.batches import clone_batch
from lightning_landscape.engine.compiled import is_compiled
from lightning_landscape.engine.evaluator import loss_scale

pytestmark = pytest.mark.usefixtures("no_figures")

SHORT = {"limit_train_batches": 3}


def tried(what, value, *marks):
    return pytest.param(value, id=what, marks=[pytest.mark.tried("precision", what), *marks])


# --- precision ----------------------------------------------------------------------------------


def scaled(scale=2.0**10):
    """Return a plugin for 16-mixed precision on a CPU, with a real GradScaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@pytest.mark.parametrize(
    "options",
    [
        tried("32-true", {"precision": "32-true"}),
        tried("64-true", {"precision": "64-true"}),
        tried("bf16-mixed", {"precision": "bf16-mixed"}),
        tried("bf16-true", {"precision": "bf16-true"}),
        tried("16-true", {"precision": "16-true"}),
        tried("16-mixed with a GradScaler, on a CPU", {"plugins": lambda: [scaled()]}),
    ],
)
def test_in_this_precision_training_is_bit_identical_and_all_is_measured(options):
    assert_invisible_and_at_work(module=Classifier, **SHORT, **options)


@pytest.mark.parametrize(
    "options",
    [
        tried("CUDA", {}),
        tried("bf16-mixed on CUDA", {"precision": "bf16-mixed"}),
        tried("16-mixed with its GradScaler on CUDA", {"precision": "16-mixed"}),
        tried("bf16-true on CUDA", {"precision": "bf16-true"}),
    ],
)
@pytest.mark.parametrize("module", [Classifier, HostileModule])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_training_is_bit_identical_down_to_its_random_numbers(module, options):
    assert_invisible_and_at_work(module=module, accelerator="gpu", devices=1, **SHORT, **options)


@pytest.mark.tried("precision", "a plain Precision that somebody gave an autocast of their own")
def test_a_context_set_on_the_precision_plugin_is_used():
    plugin = Precision()
    trainer = SimpleNamespace(precision_plugin=plugin)
    with precision_context(trainer):
        assert not torch.is_autocast_enabled("cpu")
    plugin.forward_context = lambda: torch.autocast("cpu", torch.bfloat16)
    with precision_context(trainer):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.tried("precision", "a step that the GradScaler skips, gradients having overflowed")
def test_a_step_that_the_scaler_skips_is_reported_as_no_update(caplog):
    caplog.set_level("INFO")
    plugins = []

    def fresh():
        plugins.append(scaled(2.0**20))
        return plugins[-1:]

    breakdown = GradientBreakdownMonitor(every_n_steps=1, on_error="raise")
    plain = fit([], module=Classifier, plugins=fresh, **SHORT)
    assert differences(plain, fit([breakdown], module=Classifier, plugins=fresh, **SHORT)) == []
    n_skipped = round(math.log2(2.0**20 / plugins[-1].scaler.get_scale()))  # halved each time
    assert 0 < n_skipped < 6
    steps = {name: [step for step, _ in rows] for name, rows in breakdown.history.items()}
    assert steps["gradient"] == [0, 1, 2, 3, 4, 5]
    assert steps["update"] == steps["gradient"][n_skipped:]
    assert caplog.text.count("changed no weight") == 1


class Compares(Classifier):
    """Probes the next training batch, and keeps the gradient of training on it."""

    def build(self):
        self.net = nn.Sequential(nn.Linear(8, 64), *(nn.Linear(64, 64) for _ in range(4)))

    def loss(self, batch):
        return 1e-3 * F.cross_entropy(self(batch["x"]), batch["y"])

    def on_train_batch_start(self, batch, batch_idx):
        with probing(self, [clone_batch(batch)]) as objective:
            gradient = objective.gradient()[1]
        self.probed = gradient

    def on_before_optimizer_step(self, optimizer):
        trained = {name: p.grad.clone() for name, p in self.named_parameters()}
        PAIRS.append((self.probed, trained))


PAIRS = []


@pytest.mark.tried("precision", "gradients so small that half precision loses them unscaled")
def test_the_gradient_of_half_precision_does_not_vanish():
    PAIRS.clear()
    loaders = lambda: (DataLoader(Samples(), batch_size=36), DataLoader(Samples(), 36))  # noqa: E731
    fit([], module=Compares, loaders=loaders, plugins=lambda: [scaled(2.0**16)], **SHORT)
    assert len(PAIRS) == 2
    for probed, trained in PAIRS:
        assert any(gradient.any() for gradient in trained.values())
        for name, gradient in trained.items():
            assert (probed[name] - gradient).norm() <= 0.01 * gradient.norm()


def test_losses_are_scaled_less_than_in_training_or_not_at_all():
    class Holder:
        precision_plugin = scaled(2.0**16)

    assert loss_scale(Holder()) == 2.0**10
    assert loss_scale(None) == 1.0
    Holder.precision_plugin.scaler = None
    assert loss_scale(Holder()) == 1.0
    Holder.precision_plugin.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert loss_scale(Holder()) == 1.0


# --- compilation --------------------------------------------------------------------------------


class Body(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Submodule(Classifier):
    backend = "eager"

    def build(self):
        self.net = torch.compile(Body(self.net), backend=self.backend)


class InPlace(Submodule):
    def build(self):
        self.net = Body(self.net)
        self.net.compile(backend=self.backend)


class Function(Submodule):
    def build(self):
        self.loss = torch.compile(self.loss, backend=self.backend)


class Whole(Submodule):
    """Logs nothing: torch cannot compile Lightning's `log`."""

    def build(self):
        pass

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.loss(batch)


COMPILED = [
    tried("torch.compile of a submodule", Submodule),
    tried("module.compile() of a submodule", InPlace, pytest.mark.slow),
    tried("torch.compile of a method", Function),
    tried("torch.compile of the whole LightningModule", Whole, pytest.mark.slow),
]


def compiled(kind, backend):
    """Return what makes a module, each with nothing compiled before."""

    def make():
        torch.compiler.reset()
        module = type(kind.__name__, (kind,), {"backend": backend})()
        return torch.compile(module, backend=backend) if kind is Whole else module

    return make


class Graphs:
    """A backend that counts its graphs, and how often each is run."""

    def __init__(self):
        self.runs = []

    def __call__(self, graph, example):
        index = len(self.runs)
        self.runs.append(0)

        def run(*args):
            self.runs[index] += 1
            return graph(*args)

        return run


def other_shapes():
    """Return batches of 6 and a last one of 2; for validation of 8 and a last one of 5."""
    return DataLoader(Samples(20), batch_size=6), DataLoader(Samples(21), batch_size=8)


@pytest.mark.parametrize("kind", COMPILED)
def test_a_probe_compiles_nothing(kind):
    # one more graph can change training, and with too many nothing compiled is run any more
    plain, watched = Graphs(), Graphs()
    fit([], module=compiled(kind, plain), loaders=other_shapes)
    callbacks = [
        SWA(0),
        AsymmetryMonitor(
            every_n_epochs=1, n_directions=1, n_points=5, validation=True, mode="recalibrated"
        ),
        GradientBreakdownMonitor(every_n_steps=1, on_error="raise"),
    ]
    fit(callbacks, module=compiled(kind, watched), loaders=other_shapes)
    assert len(plain.runs) == len(watched.runs) > 0
    if kind is not Whole:  # the step is probed as training has compiled it
        assert sum(watched.runs) > 5 * sum(plain.runs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.tried("precision", "compiled, on batches of another shape than training's")
def test_a_compiled_module_is_probed_on_batches_of_any_shape(kind):
    assert_invisible_and_at_work(
        module=compiled(kind, Graphs()), loaders=other_shapes, validation=True, **SHORT
    )


@pytest.mark.parametrize("kind", [Submodule, InPlace, Function])
def test_a_compiled_module_is_detected(kind):
    # its losses are taken with a graph too: else it would be run as it is written
    assert is_compiled(kind())
    assert not is_compiled(Classifier())


def test_a_method_compiled_in_its_class_is_detected():
    class Decorated(Classifier):
        @torch.compile(backend="eager")
        def loss(self, batch):
            return super().loss(batch)

    class Inherits(Decorated):
        pass

    assert is_compiled(Inherits())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.tried("precision", "compiled by inductor, batches of several shapes")
def test_training_compiled_by_inductor_is_bit_identical(kind):
    assert_invisible_and_at_work(
        module=compiled(kind, "inductor"), loaders=other_shapes, validation=True
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.tried("precision", "compiled by inductor on CUDA")
def test_training_compiled_on_a_gpu_is_bit_identical(kind):
    options = {"accelerator": "gpu", "devices": 1, "loaders": other_shapes, "validation": True}
    assert_invisible_and_at_work(module=compiled(kind, "inductor"), **options)
