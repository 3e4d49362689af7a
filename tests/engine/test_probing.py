"""An objective made from a module leaves no trace, alone or beside others."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hostile import GAN, HostileModule, Samples, differences, gan_loss, rng_fingerprint
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from probed import BatchNorm, Dropout, MutatedBatch, Step, Teacher, Tied, direction_of, unchanged
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lightning_landscape import probing
from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.engine import saved_state
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.probing import opened


def test_a_gan_is_probed_through_its_loss():
    gan = GAN()
    batch = {"x": torch.randn(6, 8)}
    with unchanged(gan), probing(gan, [batch], loss_fn=gan_loss) as objective:
        assert objective.losses().isfinite().all()
        assert objective.gradient()[0].equal(objective.losses())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_hostile_module_leaves_no_trace():
    module = HostileModule()
    samples = Samples()
    batch = {"x": samples.x[:6], "y": samples.y[:6]}
    with unchanged(module), probing(module, [batch, batch]) as objective:
        first = objective.losses(direction_of(module), 0.5)
        objective.gradient(direction_of(module), 1.0)
        assert objective.losses(direction_of(module), 0.5).equal(first)


def test_at_gives_the_weights_at_alpha_0():
    module = Tied()
    shifted = {name: p.detach() + 0.5 for name, p in module.named_parameters()}
    with unchanged(module), probing(module, module.inputs(), at=shifted) as objective:
        assert differences(dict(objective.params), shifted) == []
        there = objective.losses(), objective.gradient()[1]
        objective.losses({"net.0.bias": torch.ones(4)}, 1.0)
        assert objective.losses().equal(there[0])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(shifted[name])
    with probing(module, module.inputs()) as objective:
        assert differences(there, (objective.losses(), objective.gradient()[1])) == []


def test_at_may_name_some_weights_and_frozen_ones_in_another_dtype():
    module = Teacher()
    at = {
        "net.0.weight": torch.zeros(4, 3, dtype=torch.float64),
        "teacher.bias": torch.ones(4, dtype=torch.bfloat16),
    }
    with unchanged(module), probing(module, module.inputs(), at=at) as objective:
        objective.losses(direction_of(module), 1.0)
        start = objective.losses()
        assert objective.params["net.0.weight"].dtype == torch.float32
        assert "teacher.bias" not in objective.params
    module.net[0].weight.data.zero_()
    module.teacher.bias.data.fill_(1)
    with probing(module, module.inputs()) as objective:
        assert objective.losses().equal(start)


def test_views_of_weights_cause_no_warning():
    module = Tied()
    with unchanged(module), probing(module, module.inputs()) as objective:
        for alpha in (0.0, 1.0):
            objective.losses({"net.2.bias": torch.ones(2)}, alpha)
        objective.losses({"net.0.weight": torch.ones(4, 3)}, 1.0)


def test_a_probe_at_other_weights_resumes_after_another_probe():
    module = BatchNorm()
    at = {"net.0.weight": torch.ones(4, 3)}
    with probing(module, module.inputs(), at=at) as outer:
        expected = outer.losses()
        with probing(module, module.inputs()) as inner:
            assert not inner.losses().equal(expected)
            assert outer.losses().equal(expected)
        assert outer.losses().equal(expected)


def test_two_open_probes_of_one_module_do_not_disturb_each_other():
    module = BatchNorm()
    direction, (first, second) = direction_of(module), module.inputs()
    alone = []
    for batch, mode in ((first, "train"), (second, "eval")):
        with probing(module, [batch], mode=mode) as objective:
            alone.append([objective.losses(direction, alpha).item() for alpha in (0.0, 1.0)])
    with unchanged(module), probing(module, [first]) as outer:
        values = [[outer.losses().item()], []]
        outer.losses(direction, 1.0)
        with probing(module, [second], mode="eval") as inner:
            assert differences(dict(outer.params), dict(inner.params)) == []
            values[1].append(inner.losses().item())
            values[0].append(outer.losses(direction, 1.0).item())
            values[1].append(inner.losses(direction, 1.0).item())
            again = outer.losses().item()
            inner.losses(direction, 0.5)
        assert outer.losses().item() == again == alone[0][0]
        outer.losses(direction, 0.5)
        with probing(module, [second], mode="eval") as inner:  # and closed without a word between
            inner.losses(direction, 0.5)
    assert values == alone


def test_open_probes_of_two_modules_are_independent():
    a, b = Dropout(), Dropout()
    b.net[0].bias.data.add_(1)
    expected = []
    for module in (a, b):
        with probing(module, module.inputs()) as objective:
            expected.append(objective.losses())
    with probing(a, a.inputs()) as first, probing(b, b.inputs()) as second:
        for _ in range(2):
            assert second.losses().equal(expected[1])
            assert first.losses().equal(expected[0])


def test_batches_are_copied_before_anything_else():
    module = MutatedBatch()
    batches = module.inputs()
    with probing(module, batches) as objective:
        value = objective.losses()
        batches[0]["x"].zero_()
        assert objective.losses().equal(value)
    assert list(batches[1]) == ["x", "y", "n"]
    assert batches[1]["x"].equal(module.inputs()[1]["x"])


def test_copies_of_a_batch_share_nothing():
    @dataclasses.dataclass(frozen=True)
    class Pair:
        x: torch.Tensor
        names: list

    held = Pair(torch.ones(2, requires_grad=True), ["a"])
    twin = clone_batch({"pair": held, "view": torch.zeros(4)[1:3].expand(3, 2)})
    twin["pair"].names.append("b")
    with torch.no_grad():
        twin["pair"].x.add_(1)
    assert held.names == ["a"]
    assert held.x.tolist() == [1, 1]
    assert twin["pair"].x.requires_grad
    assert twin["view"].shape == (3, 2)


def test_transfer_hooks_run_once():
    class Transfers(Step):
        def build(self):
            self.transferred = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.transferred += 1
            return batch * 2

        def write(self, loss, batch):
            return loss * (1 + self.transferred)

    module = Transfers()
    with unchanged(module), probing(module, module.inputs()) as objective:
        value = [objective.losses() for _ in range(3)]
    assert value[0].equal(value[1])
    assert value[0].equal(value[2])
    assert value[0][0].item() == Step().training_step(2 * module.inputs()[0], 0).item()
    with opened(
        module,
        [KeptBatch(2 * batch, 0) for batch in module.inputs()],
        trainer=None,
        loss_fn=None,
        mode="train",
        seed=0,
    ) as objective:
        assert objective.losses().equal(value[0])


def test_a_step_may_take_only_the_batch():
    class Short(Step):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    with probing(Short(), Step().inputs()) as objective:
        short = objective.losses()
    with probing(Step(), Step().inputs()) as objective:
        assert objective.losses().equal(short)


def opening(module, batches, **options):
    def open_it():
        with probing(module, batches, **options):
            raise AssertionError("this must not be reached")

    return open_it


def frozen():
    return Step().requires_grad_(False)


def stepless():
    return type("Stepless", (LightningModule,), {"training_step": None})()


def meta():
    with torch.device("meta"):
        return nn.Linear(2, 2)


def lazy():
    module = Step()
    module.net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    return module


class TakesIterator(Step):
    def training_step(self, dataloader_iter):
        raise AssertionError


def any_loss(module, batch):
    raise AssertionError


BAD = {
    "mode": (lambda: (Step(), {"mode": "test"}), "`mode` must be one of .*'test'"),
    "verify": (lambda: (Step(), {"verify": "never"}), "`verify` must be one of .*'never'"),
    "no batches": (lambda: (Step(), {"batches": []}), "`batches` must hold at least one batch"),
    "unknown names": (
        lambda: (Step(), {"at": {"nobody": torch.ones(1)}}),
        r"`at` must name parameters .*\['nobody'\]; known are \['net.0.weight'",
    ),
    "wrong shape": (
        lambda: (Step(), {"at": {"net.0.bias": torch.ones(1)}}),
        r"`at` must have the shapes .*\(1,\) for 'net.0.bias', which has \(4,\)",
    ),
    "nothing to move": (lambda: (frozen(), {}), "at least one parameter that requires gradients"),
    "nothing at all": (
        lambda: (nn.ReLU(), {"loss_fn": any_loss}),
        "at least one parameter that requires gradients",
    ),
    "no step": (lambda: (nn.Linear(1, 1), {}), "`loss_fn` is needed .*Linear has none"),
    "manual": (lambda: (GAN(), {}), "`loss_fn` is needed .*GAN optimises manually"),
    "iterator": (lambda: (TakesIterator(), {}), "`loss_fn` is needed .*dataloader_iter"),
    "lazy": (lambda: (lazy(), {}), r"must hold its weights.*\['net.0.weight', 'net.0.bias'\]"),
    "meta": (
        lambda: (meta(), {"loss_fn": any_loss}),
        r"must hold its weights.*\['weight', 'bias'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_clear_error(name):
    make, message = BAD[name]
    module, options = make()
    opens = opening(module, **{"batches": Step().inputs(), **options})
    rng = rng_fingerprint()
    with pytest.raises(ConfigurationError, match=message):
        opens()
    assert rng_fingerprint() == rng


def test_verify_always_names_what_is_not_searched():
    module = Step()
    module.stream = open(os.devnull)  # noqa: SIM115
    with (
        module.stream,
        pytest.warns(UserWarning, match=r"does not restore.*stream: an iterator"),
        probing(module, module.inputs(), verify="always"),
    ):
        pass


class HoldsMuch(Step):
    def build(self):
        self.register_buffer("queue", torch.zeros(9))
        self.near = torch.zeros(2)
        self.data = {"tensor": torch.zeros(9), "array": np.zeros(9), "few": np.zeros(1)}

    def write(self, loss, batch):
        self.queue += 1
        self.near += 1
        self.data["few"] += 1
        self.data[self.writes] += 1


@pytest.mark.parametrize("writes", ["tensor", "array", "few"])
def test_a_write_to_what_is_too_large_to_copy_is_reported(writes, monkeypatch):
    monkeypatch.setattr(saved_state, "MOST_BYTES", 20)
    module = HoldsMuch()
    module.writes = writes
    before = module.data["array"].copy()
    told = {
        "tensor": pytest.warns(UserWarning, match=r"data: it was written to, and is too large"),
        "array": pytest.raises(ValueError, match="read-only"),
        "few": contextlib.nullcontext(),
    }
    with told[writes], probing(module, module.inputs()) as objective:
        objective.losses()
    assert module.queue.sum() == module.near.sum() == module.data["few"].sum() == 0
    assert (module.data["array"] == before).all()
    assert module.data["array"].flags.writeable


class HoldsIterators(Step):
    def build(self):
        self.held = iter(DataLoader(range(9)))
        self.inside = {"deep": [itertools.count(), (i for i in range(9))]}
        self.reads = None

    def iterators(self):
        return [self.held, *self.inside["deep"]]

    def write(self, loss, batch):
        if self.reads is not None:
            next(self.iterators()[self.reads])


def test_iterators_that_a_module_holds_are_not_read():
    module = HoldsIterators()
    held = module.iterators()
    for module.reads, name in enumerate(("held", "inside", "inside")):
        with (
            pytest.raises(RuntimeError, match=f"reads `{name}`.*Pass a `loss_fn`"),
            probing(module, module.inputs()) as objective,
        ):
            objective.losses()
    module.reads = None
    with unchanged(module), probing(module, module.inputs()) as objective:
        objective.losses()
    assert all(map(operator.is_, held, module.iterators()))
    assert list(map(next, held)) == [0, 0, 0]


Pair = collections.namedtuple("Pair", "first second")
HELD = {  # how it is held, and how it is read
    "tuple": (lambda it: (it,), lambda held: next(held[0])),
    "tuple in a tuple": (lambda it: (1, (it,)), lambda held: next(held[1][0])),
    "named tuple": (lambda it: Pair(it, 1), lambda held: next(held.first)),
    "method": (lambda it: it.__next__, lambda held: held()),
    "partial": (lambda it: functools.partial(next, it), lambda held: held()),
    "object array": (lambda it: np.array([it, None]), lambda held: next(held[0])),
    "combined loader": (
        lambda it: iter(CombinedLoader(DataLoader([3, 4]))),
        lambda held: next(held)[0],
    ),
}


@pytest.mark.parametrize("how", HELD)
def test_an_iterator_is_not_read_however_it_is_held(how):
    hold, read = HELD[how]

    class Holds(Step):
        def write(self, loss, batch):
            read(self.held)

    module = Holds()
    module.held = held = hold(iter([3, 4]))
    with (
        pytest.raises(RuntimeError, match="reads `held`, an iterator that the module holds"),
        probing(module, module.inputs()) as objective,
    ):
        objective.losses()
    assert module.held is held
    assert int(read(held)) == 3


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_the_generator_of_a_loader_in_the_module_is_restored(where):
    class Iterates(Step):
        def build(self):
            generator = torch.Generator().manual_seed(3)
            if where == "loader":
                self.loader = DataLoader(range(9), shuffle=True, generator=generator)
            else:
                sampler = RandomSampler(range(9), generator=generator)
                self.loader = DataLoader(range(9), sampler=sampler)

        def write(self, loss, batch):
            return loss * next(iter(self.loader)).item()

    module, other = Iterates(), Iterates()
    with probing(module, module.inputs()) as objective:
        objective.losses()
    assert list(module.loader) == list(other.loader)


def test_an_iterator_that_cannot_be_hidden_raises():
    module = Step()
    module.draw = lambda it=iter([3, 4]): next(it)  # noqa: B008
    with (
        unchanged(module),
        pytest.raises(RuntimeError, match="holds `draw`, an iterator, where a probe cannot"),
        probing(module, module.inputs()),
    ):
        raise AssertionError("this must not be reached")
    assert module.draw() == 3


def test_another_thread_may_read_an_iterator_while_a_module_is_probed():
    module, read = HoldsIterators(), []
    with probing(module, module.inputs()):
        ahead = threading.Thread(target=lambda: read.extend(map(next, module.iterators())))
        ahead.start()
        ahead.join()
    assert [*read, *map(next, module.iterators())] == [0, 0, 0, 1, 1, 1]


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("never")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("mine"), "ValueError: mine (test_probing.py, line"),
        (ValueError(), "ValueError, without a message (test_probing.py, line"),
        (Mute(), "Mute, whose message cannot be read (test_probing.py, line"),
    ],
)
def test_an_exception_is_described_by_type_text_and_line(error, told):
    with pytest.raises(type(error)) as raised:
        raise error
    assert describe_error(raised.value).startswith(told)


def test_the_line_named_is_the_innermost_of_the_users_code():
    with pytest.raises(RuntimeError) as raised:
        F.linear(torch.ones(2), torch.ones(3, 3))
    assert "(test_probing.py, line" in describe_error(raised.value)
