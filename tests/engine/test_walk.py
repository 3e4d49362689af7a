"""What a snapshot searches, in unusual places too, and what it does not search."""

import array
import copy
import ctypes
import functools
import importlib
import io
import queue
import random
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from test_snapshot import Running
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from lightning_landscape.engine.snapshot import Snapshot
from lightning_landscape.engine.tensors import same_bits


class Run:
    """Like the run object of a logger."""

    __module__ = "wandb.sdk.wandb_run"

    def __init__(self):
        self.step = 0


class Worker(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.done = []
        self.may_end = threading.Event()

    def run(self):
        self.may_end.wait(60)
        self.done.append("a batch")


class Replay(Dataset):
    def __init__(self):
        self.served, self.states = [], torch.zeros(2)


class Shuffled(Sampler):
    def __init__(self):
        self.epoch = 0


class Pickled(torch.distributions.Normal):
    def __init__(self):
        super().__init__(torch.zeros(2), torch.ones(2))
        self.drawn = 0


class SlottedModule(nn.Module):
    __slots__ = ("count",)


class Equal:
    """Raises on `==`."""

    def __init__(self):
        self.seen = 0

    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise RuntimeError("not comparable")


def counting():
    n = 0

    def count():
        nonlocal n
        n += 1
        return n

    return count


def remembering(past=()):
    def step(value, known=[]):  # noqa: B006
        known.append(value)
        step.calls = getattr(step, "calls", 0) + 1
        return len(known), step.calls

    return step


def append_to(items, *, more):
    items.append(len(more))
    more[len(more)] = 1


class Key:
    def __init__(self):
        self.n = 0


def hooked(weight):
    weight.register_hook(lambda gradient: 2 * gradient)
    weight.register_post_accumulate_grad_hook(lambda weight: None)


def adam():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.ones(2)
    return {"optimizer": optimizer, "rate": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


def step(held):
    held["optimizer"].step()
    held["rate"].step()


def throughput():
    from lightning.fabric.utilities.throughput import Throughput

    return Throughput(window_size=3)


def set_local(local):
    local.n = 2


def local():
    made = threading.local()
    made.n = 1
    return made


def first(mapping):
    return next(iter(mapping))


HIDDEN = {
    "data set of the user's": (Replay, lambda x: x.served.append(1), lambda x: x.served),
    "tensor in a data set": (Replay, lambda x: x.states.add_(1), lambda x: x.states.tolist()),
    "sampler": (Shuffled, lambda x: setattr(x, "epoch", 1), lambda x: x.epoch),
    "distribution": (Pickled, lambda x: setattr(x, "drawn", 1), lambda x: x.drawn),
    "distribution's tensor": (Pickled, lambda x: x.loc.add_(1), lambda x: x.loc.tolist()),
    "slot of a module": (
        SlottedModule,
        lambda x: setattr(x, "count", 1),
        lambda x: hasattr(x, "count"),
    ),
    "what a closure rebinds": (counting, lambda x: x(), lambda x: x.__closure__[0].cell_contents),
    "defaults and attributes of a function": (
        remembering,
        lambda x: x(1),
        lambda x: (x.__defaults__, vars(x)),
    ),
    "what a partial holds": (
        lambda: functools.partial(append_to, [], more={}),
        lambda x: x(),
        lambda x: (x.args, x.keywords),
    ),
    "what a bound method is bound to": (
        lambda: Running().__init__,
        lambda x: setattr(x.__self__, "total", 1),
        lambda x: x.__self__.total,
    ),
    "what a built-in method is bound to": (
        lambda: [1].append,
        lambda x: x(2),
        lambda x: x.__self__,
    ),
    "key of a dict": (
        lambda: {Key(): 1},
        lambda x: setattr(first(x), "n", 1),
        lambda x: first(x).n,
    ),
    "dict with weak keys": (
        lambda: weakref.WeakKeyDictionary({KEPT: 0}),
        lambda x: x.update({KEPT: 1}),
        lambda x: list(x.values()),
    ),
    "set whose elements refuse ==": (
        lambda: {Equal(), 0},
        lambda x: x.add(2),
        lambda x: sorted(map(str, map(type, x))),
    ),
    "list whose elements refuse ==": (lambda: [Equal()], lambda x: x.append(2), len),
    "thread of the user's": (Worker, lambda x: x.done.append(1), lambda x: x.done),
    "values of a thread": (local, set_local, lambda x: x.n),
    "object in a structured array": (
        lambda: np.array([(1, [])], dtype=[("n", int), ("o", object)]),
        lambda x: x["o"][0].append(1),
        str,
    ),
    "masked array": (
        lambda: np.ma.array([1.0, 2.0], mask=[True, False]),
        lambda x: x.__setitem__(0, 5.0),
        lambda x: (x.data.tolist(), x.mask.tolist()),
    ),
    "array of numbers": (
        lambda: array.array("d", [1.0]),
        lambda x: x.append(2.0),
        lambda x: x.tolist(),
    ),
    "C number": (lambda: ctypes.c_int(1), lambda x: setattr(x, "value", 2), lambda x: x.value),
    "bytes in memory": (io.BytesIO, lambda x: x.write(b"a"), lambda x: (x.getvalue(), x.tell())),
    "text in memory": (io.StringIO, lambda x: x.write("a"), lambda x: (x.getvalue(), x.tell())),
    "children of a seed": (
        lambda: np.random.SeedSequence(1),
        lambda x: x.spawn(1),
        lambda x: x.n_children_spawned,
    ),
    "children of a generator": (
        lambda: np.random.default_rng(0),
        lambda x: x.spawn(1),
        lambda x: x.bit_generator.seed_seq.n_children_spawned,
    ),
    "optimizer of its own": (adam, step, lambda x: str(x["optimizer"].state_dict())),
    "schedule of its own": (adam, step, lambda x: str(x["rate"].state_dict())),
    "throughput of Lightning's": (
        throughput,
        lambda x: x.update(time=1.0, batches=1, samples=1),
        lambda x: [list(x._time), list(x._batches)],
    ),
    "hooks on a weight": (
        lambda: nn.Parameter(torch.ones(2)),
        hooked,
        lambda x: (x._backward_hooks, x._post_accumulate_grad_hooks),
    ),
    "attribute of a tensor": (
        lambda: torch.ones(2),
        lambda x: setattr(x, "note", 1),
        lambda x: dict(vars(x)),
    ),
    "nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
        lambda x: x.mul_(2),
        lambda x: [part.tolist() for part in x.unbind()],
    ),
    "masked tensor": (
        lambda: torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])),
        lambda x: x.get_data().add_(1),
        lambda x: x.get_data().tolist(),
    ),
    "mkldnn tensor": (
        lambda: torch.ones(2).to_mkldnn(),
        lambda x: x.mul_(2),
        lambda x: x.to_dense().tolist(),
    ),
}


KEPT = Key()


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("name", HIDDEN)
def test_state_in_unusual_places_is_found_and_restored(name):
    make, write, shown = HIDDEN[name]
    holder = types.SimpleNamespace(hidden=make(), beside=[1])
    before = copy.deepcopy(shown(holder.hidden))
    snapshot = Snapshot([("it", holder)])
    for _ in range(2):
        write(holder.hidden)
        holder.beside.append(2)
        assert str(shown(holder.hidden)) != str(before)
        changes = snapshot.changed()
        for call in snapshot.restorer(changes):
            call()
        assert str(shown(holder.hidden)) == str(before)
        assert holder.beside == [1]
    assert not snapshot.given_up


@pytest.mark.parametrize("folder", ["code", "profile", "queue", "signal", "platform"])
def test_a_project_folder_may_have_the_name_of_a_python_module(folder, monkeypatch, tmp_path):
    (tmp_path / f"{folder}.py").write_text("class Meter:\n    n = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder, raising=False)
    meter = importlib.import_module(folder).Meter()
    snapshot = Snapshot([("it", meter)])
    meter.n = 1
    snapshot.restore(snapshot.changed())
    assert meter.n == 0
    monkeypatch.delitem(sys.modules, folder)


class Stubborn(random.Random):
    def setstate(self, state):
        raise RuntimeError("never")


def test_only_what_cannot_be_restored_is_given_up_and_named():
    held = {"stubborn": Stubborn(0), "list": [1], "n": np.zeros(1)}
    snapshot = Snapshot([("it", held)])
    held["stubborn"].random()
    held["list"].append(2)
    held["n"][0] = 1
    snapshot.restore(snapshot.changed())
    assert (held["list"], held["n"].tolist()) == ([1], [0])
    assert list(snapshot.given_up) == ["it"]
    assert "RuntimeError: never (test_walk.py, line" in snapshot.given_up["it"]


def test_what_is_not_searched_is_listed_with_the_reason():
    holder = types.SimpleNamespace(lock=threading.Lock(), each=iter([1]), loader=DataLoader([1]))
    outside = Snapshot([("it", holder)]).outside
    assert outside["it.loader"] == "a data loader"
    assert "another thread" in outside["it.lock"]
    assert "iterator" in outside["it.each"]


class Unbound(Run):
    """An unbound proxy whose `__class__` raises."""

    __module__ = "wandb.sdk.wandb_run"

    @property
    def __class__(self):
        raise RuntimeError("working outside of a run")


def test_the_class_property_of_a_proxy_is_not_read():
    holder = types.SimpleNamespace(proxy=Unbound())
    assert "logging service" in Snapshot([("it", holder)]).outside["it.proxy"]


def test_a_running_thread_is_not_searched():
    worker = Worker()
    worker.start()
    assert "another thread" in Snapshot([("it", worker)]).outside["it"]
    worker.may_end.set()
    worker.join()


def test_a_thread_that_has_ended_stays_ended():
    worker = Worker()
    snapshot = Snapshot([("it", worker)])
    worker.may_end.set()
    worker.start()
    worker.join()
    snapshot.restore(snapshot.changed())
    assert worker.done == []
    assert not worker.is_alive()


FOREIGN = {
    "data set that is only read": (
        lambda: TensorDataset(torch.zeros(3)),
        lambda x: setattr(x, "n", 1),
        lambda x: x.n == 1,
    ),
    "run": (Run, lambda x: setattr(x, "step", 1), lambda x: x.step == 1),
    "lock": (threading.Lock, lambda x: x.acquire(), lambda x: x.locked()),
    "event": (threading.Event, lambda x: x.set(), lambda x: x.is_set()),
    "queue": (queue.Queue, lambda x: x.put(1), lambda x: x.qsize() == 1),
    "loader": (
        lambda: DataLoader(Replay()),
        lambda x: x.dataset.served.append(1),
        lambda x: x.dataset.served == [1],
    ),
    "entropy": (random.SystemRandom, lambda x: x.random(), lambda x: True),
    "iterator": (lambda: iter([1, 2]), next, lambda x: next(x) == 2),
    "names of a module": (lambda: vars(types), lambda x: x.update(n=1), lambda x: x.pop("n")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_objects_in_use_elsewhere_are_not_restored(name):
    make, use, was_used = FOREIGN[name]
    net = nn.Linear(1, 1)
    net.foreign = foreign = make()
    snapshot = Snapshot([("", net)])
    use(foreign)
    assert not snapshot.changed()
    snapshot.restore(snapshot.changed(assume_written=True))
    assert net.foreign is foreign
    assert was_used(foreign)


def test_lazy_modules_are_skipped():
    net = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert not Snapshot([("", net)]).changed()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(3, 2))]
)
def test_scripted_modules_hold_their_tensors_in_cpp(make):
    net = nn.Module()
    net.scripted = make(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    snapshot = Snapshot([("", net)], hooks_only=list(net.parameters()))
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net.scripted(torch.randn(5, 2))
    told = snapshot.describe(snapshot.changed())
    assert told[0] == "scripted.1.num_batches_tracked"
    snapshot.restore(snapshot.changed())
    assert all(same_bits(tensor, before[name]) for name, tensor in net.named_buffers())
