"""What a snapshot finds, restores and leaves as it is."""

import argparse
import collections
import random
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_landscape.engine.snapshot import Changes, Snapshot, put_back
from lightning_landscape.engine.tensors import same_bits


class Slotted:
    __slots__ = ("__private", "kept", "late")

    def __init__(self):
        self.kept, self.__private = 1, 0

    def write(self):
        self.__private += 1
        self.late = 2
        del self.kept


class SlottedChild(Slotted):
    __slots__ = ("more",)

    def __init__(self):
        super().__init__()
        self.more = []


class Mixed(Slotted):
    def __init__(self):
        super().__init__()
        self.free = 1


@dataclass(frozen=True)
class Frozen:
    seen: list = field(default_factory=list)
    n: int = 0


class AddingCounter(collections.Counter):
    def update(self, *args, **kwargs):
        super().update(*args, **kwargs)
        super().update({"calls": 1})

    def clear(self):
        raise RuntimeError("never")


class Lazily(dict):
    """Returns another object than it holds."""

    def values(self):
        return [object() for _ in self]

    def items(self):
        return [(key, object()) for key in self]

    def __len__(self):
        return 1 + super().__len__()


class ShoutingOrder(collections.OrderedDict):
    def __setitem__(self, key, value):
        super().__setitem__(key.upper(), value)


class History(list):
    def __init__(self):
        super().__init__([1])
        self.best = 0.0

    def __iter__(self):
        return reversed([*super().__iter__()])


class Proxy:
    """A proxy whose `__class__` is dict."""

    def __init__(self):
        self.kept = 1

    @property
    def __class__(self):
        return dict


class Running:
    def __init__(self):
        self.total, self.itself, self.by_name = 0, self, {"me": self}


def linked(n):
    node = None
    for _ in range(n):
        node = types.SimpleNamespace(next=node)
    return node


def last(node):
    while node.next is not None:
        node = node.next
    return node


def expanded():
    base = torch.zeros(3, 1)
    return [base, base.expand(3, 4), torch.ones(1).expand(2, 0)]


def in_place_with_graph(tensor):
    tensor += torch.ones(2, requires_grad=True) * 3


def module():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net.register_buffer("cache", None)
    net.note = 1
    net.register_forward_hook(print)
    return net


def rebind_buffer(net):
    net[1].running_mean = torch.ones(2)


def new_module(net):
    net.add_module("extra", nn.Linear(1, 1))
    net[1] = nn.Identity()


def new_attributes(net):
    net.note, net.more = 2, [3]


def fill(array, value):
    array[...] = value


CASES = {
    # containers
    "list append": (lambda: [1], lambda x: x.append(2)),
    "list item": (lambda: [1, 2], lambda x: x.__setitem__(0, 3)),
    "list emptied": (lambda: [1, 2], lambda x: x.clear()),
    "list filled": (list, lambda x: x.append(1)),
    "list inside a read-only view of a dict": (
        lambda: [types.MappingProxyType({"a": []})],
        lambda x: x[0]["a"].append(1),
    ),
    "list inside a tuple inside a dict": (lambda: {"a": (1, [2])}, lambda x: x["a"][1].append(3)),
    "list longer than what is searched": (lambda: [0] * 10_001, lambda x: x.append(1)),
    "dict item": (lambda: {"a": 1}, lambda x: x.update(a=2)),
    "dict order": (lambda: {"a": 1, "b": 2}, lambda x: x.update(a=x.pop("a"))),
    "OrderedDict order": (
        lambda: collections.OrderedDict(a=1, b=2),
        lambda x: x.move_to_end("a"),
    ),
    "OrderedDict that shouts": (lambda: ShoutingOrder(a=1), lambda x: x.clear()),
    "defaultdict": (lambda: collections.defaultdict(list, a=[]), lambda x: x["b"].append(1)),
    "Counter": (lambda: collections.Counter("ab"), lambda x: x.update("a")),
    "Counter with its own update": (lambda: AddingCounter("ab"), lambda x: x.update("a")),
    "dict that hands out other things": (
        lambda: Lazily(a=1),
        lambda x: dict.__setitem__(x, "b", 2),
    ),
    "deque with a limit": (lambda: collections.deque([1, 2], maxlen=2), lambda x: x.append(3)),
    "set": (lambda: {1}, lambda x: x.add(2)),
    "memoryview": (lambda: [memoryview(bytearray(2))], lambda x: x[0].__setitem__(0, 1)),
    "bytearray": (lambda: bytearray(b"ab"), lambda x: x.extend(b"c")),
    "list with attributes": (History, lambda x: setattr(x, "best", 1.0)),
    "list that walks backwards": (History, lambda x: x.append(2)),
    # objects
    "object that says it is a dict": (Proxy, lambda x: setattr(x, "kept", 2)),
    "slots": (Slotted, lambda x: x.write()),
    "slots of a parent": (SlottedChild, lambda x: x.write()),
    "slots and a dict": (Mixed, lambda x: (x.write(), setattr(x, "free", 2))),
    "frozen dataclass's list": (Frozen, lambda x: x.seen.append(1)),
    "frozen dataclass's field": (Frozen, lambda x: object.__setattr__(x, "n", 1)),
    "SimpleNamespace": (lambda: types.SimpleNamespace(n=0), lambda x: setattr(x, "n", 1)),
    "argparse.Namespace": (lambda: argparse.Namespace(n=0), lambda x: setattr(x, "n", 1)),
    "UserDict": (lambda: collections.UserDict(n=0), lambda x: x.update(n=1)),
    "new attribute": (lambda: types.SimpleNamespace(), lambda x: setattr(x, "n", 1)),
    "deleted attribute": (lambda: types.SimpleNamespace(n=0), lambda x: delattr(x, "n")),
    "cycle": (Running, lambda x: setattr(x.by_name["me"].itself, "total", 1)),
    "long linked list": (lambda: linked(3000), lambda x: setattr(last(x), "tail", 1)),
    # arrays
    "array": (lambda: np.zeros(2), lambda x: fill(x, 1)),
    "array's minus zero": (lambda: np.zeros(2), lambda x: fill(x, -0.0)),
    "array of no dimension": (lambda: np.array(1.0), lambda x: fill(x, 2)),
    "array, every other element": (lambda: np.zeros(6)[::2], lambda x: fill(x, 1)),
    "array resized": (
        lambda: np.zeros(2),
        lambda x: x.resize(3, refcheck=False),
    ),
    "object array": (lambda: np.array([[], None], dtype=object), lambda x: fill(x, 1)),
    "list in an object array": (
        lambda: np.array([[], [1]], dtype=object),
        lambda x: x[0].append(1),
    ),
    "structured array": (
        lambda: np.zeros(2, dtype=[("a", int), ("b", float)]),
        lambda x: fill(x["b"], 1),
    ),
    # tensors
    "tensor": (lambda: torch.zeros(2), lambda x: x.add_(1)),
    "tensor's data": (lambda: torch.zeros(2), lambda x: x.data.add_(1)),
    "tensor written with what it held": (lambda: torch.zeros(2), lambda x: x.add_(0)),
    "minus zero": (lambda: torch.zeros(2), lambda x: x.data.neg_()),
    "no dimension": (lambda: torch.tensor(1.0), lambda x: x.add_(1)),
    "not contiguous": (lambda: torch.zeros(4, 4)[::2, 1:3].t(), lambda x: x.add_(1)),
    "expanded": (expanded, lambda x: x[0].add_(1)),
    "overlapping": (lambda: torch.zeros(5).unfold(0, 3, 1), lambda x: x[0].fill_(1)),
    "bool": (lambda: torch.zeros(2, dtype=torch.bool), lambda x: x.logical_not_()),
    "int8": (lambda: torch.zeros(2, dtype=torch.int8), lambda x: x.add_(1)),
    "bfloat16": (lambda: torch.zeros(2, dtype=torch.bfloat16), lambda x: x.add_(1)),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), lambda x: x.add_(1j)),
    "conjugated": (lambda: torch.zeros(2, dtype=torch.complex64).conj(), lambda x: x.add_(1j)),
    "nan": (lambda: torch.tensor([float("nan"), 1]), lambda x: x.mul_(2)),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda x: x.add_(torch.ones(2, 2).to_sparse())),
    "resized": (lambda: torch.zeros(2), lambda x: x.resize_(3)),
    "other dtype": (lambda: torch.zeros(2), lambda x: setattr(x, "data", x.data.half())),
    "other storage": (lambda: torch.zeros(2), lambda x: setattr(x, "data", torch.ones(2))),
    "requires gradients": (lambda: torch.zeros(2), lambda x: x.requires_grad_()),
    "requires none": (
        lambda: torch.zeros(2, requires_grad=True),
        lambda x: x.requires_grad_(False),
    ),
    "in a graph": (lambda: torch.zeros(2), in_place_with_graph),
    "tensor in a list": (lambda: [torch.zeros(2)], lambda x: x[0].add_(1)),
    "parameter in a list": (lambda: [nn.Parameter(torch.zeros(2))], lambda x: x[0].data.add_(1)),
    # generators
    "torch generator": (torch.Generator, lambda x: torch.rand(1, generator=x)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda x: x.random()),
    "numpy bit generator": (lambda: np.random.PCG64(0), lambda x: x.random_raw()),
    "legacy generator": (lambda: np.random.RandomState(0), lambda x: x.rand()),
    "python generator": (lambda: random.Random(0), lambda x: x.random()),
    "Sobol sequence": (lambda: torch.quasirandom.SobolEngine(2), lambda x: x.draw(1)),
    # modules
    "buffer": (module, lambda x: x[1].running_mean.add_(1)),
    "buffer rebound": (module, rebind_buffer),
    "buffer new": (module, lambda x: x.register_buffer("late", torch.zeros(1), persistent=False)),
    "first buffer": (module, lambda x: x[0].register_buffer("late", torch.zeros(1))),
    "buffer that was None": (module, lambda x: setattr(x, "cache", torch.zeros(1))),
    "buffer deleted": (module, lambda x: x[1].__delattr__("running_mean")),
    "attributes": (module, new_attributes),
    "attribute deleted": (module, lambda x: delattr(x, "note")),
    "layers": (module, new_module),
    "parameter rebound": (
        module,
        lambda x: setattr(x[0], "weight", nn.Parameter(torch.zeros(2, 2))),
    ),
    "flag": (module, lambda x: x[0].train(False)),
    "first hook": (module, lambda x: x[0].register_forward_pre_hook(print)),
    "another hook": (module, lambda x: x.register_forward_hook(print)),
    "hooks removed": (module, lambda x: x._forward_hooks.clear()),
    "module in a list": (lambda: [module()], lambda x: x[0][1].running_var.add_(1)),
    "module shared": (lambda: [module()] * 2, lambda x: x[1][1].running_var.add_(1)),
}


def seen(value, known=None):
    """Return everything visible about an object in a form that can be compared."""
    known = set() if known is None else known
    if isinstance(value, torch.Tensor):
        plain = value.detach().to_dense() if value.layout is torch.sparse_coo else value.detach()
        content = plain.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()
        return str(value.dtype), tuple(value.shape), content, value.requires_grad, value.is_leaf
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.ndarray):
        return [seen(element, known) for element in value.ravel().tolist()]
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.BitGenerator):
        return str(value.state)
    if isinstance(value, (np.random.RandomState, random.Random)):
        return str(value.get_state() if hasattr(value, "get_state") else value.getstate())
    if id(value) in known:
        return "again"
    known.add(id(value))
    if isinstance(value, types.SimpleNamespace) and "next" in vars(value):
        return sorted(vars(last(value)))
    if isinstance(value, nn.Module):
        held = {key: seen(held, known) for key, held in vars(value).items()}
        return [held.pop("training"), sorted(held.items()), list(value._modules)]
    if callable(value):
        return "?"
    if isinstance(value, types.MappingProxyType):
        return seen(dict(value), known)
    if issubclass(type(value), dict):
        content = [(key, seen(item, known)) for key, item in dict_items(value)]
    elif isinstance(value, set):
        content = sorted(value)
    elif isinstance(value, (list, tuple, collections.deque)):
        content = [seen(item, known) for item in list_items(value)]
    else:
        plain = (int, float, str, bytearray, type(None))
        content = bytes(value) if isinstance(value, memoryview) else value
        content = content if isinstance(content, (*plain, bytes)) else "?"
    slots = ["_Slotted__private", "kept", "late", "more"]
    attributes = {key: getattr(value, key) for key in slots if hasattr(value, key)}
    attributes |= getattr(value, "__dict__", {})
    return str(content), {key: seen(held, known) for key, held in sorted(attributes.items())}


def dict_items(value):
    kind = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    return kind.items(value)


def list_items(value):
    return list.__iter__(value) if isinstance(value, list) else iter(value)


@pytest.mark.parametrize("prepared", [False, True], ids=["restore", "restorer"])
@pytest.mark.parametrize("name", CASES)
def test_a_write_is_found_named_and_restored(name, prepared):
    make, write = CASES[name]
    held = make()
    snapshot = Snapshot([("it", {"held": held})])
    before = seen(held)
    assert not snapshot.changed()
    write(held)
    assert seen(held) != before or name == "tensor written with what it held"
    changes = snapshot.changed()
    assert changes
    assert all(told.startswith("it") for told in snapshot.describe(changes))
    restore = snapshot.restorer(changes) if prepared else [lambda: snapshot.restore(changes)]
    for _ in range(2):  # restoring works a second time
        for call in restore:
            call()
        assert seen(held) == before
        write(held)
    snapshot.restore(snapshot.changed())
    assert seen(held) == before
    assert not snapshot.changed()


def test_a_name_is_the_path_to_the_change():
    net = module()
    net.meters = {"loss": types.SimpleNamespace(total=0)}
    snapshot = Snapshot([("", net)])
    net[1].running_mean.add_(1)
    net.meters["loss"].total = 1
    net.fresh = 0
    net[0].empty_no_more = []
    told = snapshot.describe(snapshot.changed())
    assert told == ["0.empty_no_more", "1.running_mean", "fresh", "meters.total"]


def test_an_empty_container_keeps_its_name():
    net = nn.Linear(1, 1)
    net.losses = []
    snapshot = Snapshot([("", net)])
    net.losses.append(1)
    assert snapshot.describe(snapshot.changed()) == ["losses"]


ITERATED = {
    "list": (list, lambda held: held),
    "deque": (collections.deque, lambda held: held),
    "dict": (lambda items: dict(enumerate(items)), dict.values),
    "ordered dict": (lambda items: collections.OrderedDict(enumerate(items)), lambda d: d.values()),
}


@pytest.mark.parametrize("name", ITERATED)
def test_a_loop_over_a_container_continues_while_an_entry_is_restored(name):
    make, values = ITERATED[name]
    held = make("abcd")
    if isinstance(held, dict):  # with a hole, as where an entry was deleted
        del held[1]
    expected = list(values(held))
    snapshot = Snapshot([("held", held)])
    reader = iter(values(held))
    found = [next(reader)]
    held[2] = "other"
    snapshot.restore(snapshot.changed())
    assert [*found, *reader] == expected


@given(st.sets(st.integers(0, 50), min_size=1))
def test_the_order_of_a_set_is_restored_after_elements_were_removed(held):
    before = list(held)
    snapshot = Snapshot([("held", held)])
    held.discard(before[0])
    snapshot.restore(snapshot.changed())
    assert list(held) == before


def test_containers_remain_the_same_objects():
    items = [object(), object()]
    holder = types.SimpleNamespace(items=items, pair=(items, items))
    first = list(items)
    snapshot = Snapshot([("it", holder)])
    holder.items = []
    items[:] = [object()]
    snapshot.restore(snapshot.changed())
    assert holder.items is items
    assert items[0] is first[0]
    assert items[1] is first[1]


@pytest.mark.parametrize("prepared", [False, True], ids=["restore", "restorer"])
def test_the_class_of_a_layer_is_restored(prepared):
    net = module()
    x = torch.ones(2, 2)
    before = net[0](x).tolist()
    snapshot = Snapshot([("", net)])
    nn.utils.parametrizations.orthogonal(net[0])  # makes a class for it
    changes = snapshot.changed()
    assert "0.__class__" in snapshot.describe(changes)
    restore = snapshot.restorer(changes) if prepared else [lambda: snapshot.restore(changes)]
    for call in restore:
        call()
    assert type(net[0]) is nn.Linear
    assert net[0](x).tolist() == before
    snapshot.restore(snapshot.changed())
    assert not snapshot.changed()


def test_parametrizations_of_a_layer_are_restored():
    net = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    before = net.weight.tolist()
    snapshot = Snapshot([("", net)])
    for write in (
        lambda: nn.utils.parametrize.remove_parametrizations(net, "weight"),
        lambda: nn.utils.parametrize.register_parametrization(net, "bias", nn.Tanh()),
    ):
        write()
        snapshot.restore(snapshot.changed())
        assert net.weight.tolist() == before
        assert not isinstance(getattr(type(net), "bias", None), property)
    assert not snapshot.changed()


def test_restoring_moves_no_version_counter():
    kept = torch.zeros(2)
    snapshot = Snapshot([("it", [kept])])
    kept.add_(1)
    version = kept._version
    snapshot.restore(snapshot.changed())
    assert (kept._version, kept.tolist()) == (version, [0, 0])


def test_a_kept_graph_can_still_go_backward():
    weight = torch.ones(2, requires_grad=True)
    hidden = weight * weight
    snapshot = Snapshot([("it", {"hidden": hidden, "weight": weight})])
    assert snapshot.keeps_graph()
    assert snapshot.leaves()[0] is weight
    with torch.no_grad():
        weight.data.add_(1)
        hidden.data.add_(1)
    snapshot.restore(snapshot.changed())
    hidden.sum().backward()
    assert weight.grad.tolist() == [2, 2]


def test_without_a_write_nothing_differs():
    tensors = [
        torch.tensor([float("nan"), -0.0]),
        torch.full((2, 2), float("nan")).to_sparse(),
        torch.eye(2).to_sparse().to_sparse_coo(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.zeros(2, device="meta"),
        torch.zeros(0),
        nn.Parameter(torch.ones(1).expand(3)),
        np.array([float("nan")]),
    ]
    assert not Snapshot([("it", tensors)]).changed()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_compressed_sparse_tensors_are_restored():
    held = torch.eye(2).to_sparse_csr()
    snapshot = Snapshot([("it", held)])
    assert not snapshot.changed()
    held.values().add_(1)
    snapshot.restore(snapshot.changed())
    assert held.to_dense().tolist() == [[1, 0], [0, 1]]


def test_inference_tensors_are_restored():
    with torch.inference_mode():
        held = torch.zeros(2)
    snapshot = Snapshot([("it", [held])])
    assert not snapshot.changed()
    with torch.inference_mode():
        held.add_(1)
    assert snapshot.changed()
    snapshot.restore(snapshot.changed())
    snapshot.restore(snapshot.changed(assume_written=True))
    assert held.tolist() == [0, 0]


def test_assuming_writes_concatenates_no_tensors(monkeypatch):
    held = [torch.zeros(2), torch.ones(2)]
    snapshot = Snapshot([("it", held)])
    held[0].data.add_(1)
    monkeypatch.setattr(torch, "cat", None)
    snapshot.restore(snapshot.changed(assume_written=True))
    assert [tensor.tolist() for tensor in held] == [[0, 0], [1, 1]]


def test_contents_of_hooks_only_tensors_are_not_saved():
    net = nn.Linear(2, 2)
    net.again = [net.weight]
    snapshot = Snapshot([("", net)], hooks_only=list(net.parameters()))
    net.weight.data.add_(1)
    assert not snapshot.changed()


def test_further_objects_can_be_included():
    first, second = [1], [torch.zeros(1)]
    snapshot = Snapshot([("first", first)])
    second.append(2)
    snapshot.include([("second", second)])
    assert not snapshot.changed()
    second[0].add_(1)
    second.append(3)
    assert snapshot.describe(snapshot.changed()) == ["second"]
    snapshot.restore(snapshot.changed())
    assert second[0].item() == 0
    assert second[1:] == [2]


def test_read_only_arrays_cannot_change():
    array = np.zeros(2)
    array.flags.writeable = False
    assert not Snapshot([("it", [array])]).changed()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), True),
        (torch.zeros(2), torch.zeros(2, 1), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), False),
        (torch.zeros(2, 2).t(), torch.zeros(2, 2), True),
        (torch.zeros(2), torch.zeros(2, requires_grad=True), True),
        (torch.ones(1, dtype=torch.complex64).conj(), torch.ones(1, dtype=torch.complex64), False),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2), False),
        (torch.zeros(2, device="meta"), torch.zeros(2, device="meta"), True),
        (torch.zeros(2, device="meta"), torch.zeros(2), False),
        (torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), False),
    ],
)
def test_same_bits(a, b, same):
    assert same_bits(a, b) is same
    assert same_bits(b, a) is same


def test_put_back_keeps_the_memory_of_a_tensor():
    owner = torch.zeros(2, 3)
    view = owner[:, 1]
    put_back([view], [torch.tensor([1.0, 2.0])])
    assert owner[:, 1].tolist() == [1, 2]


def test_changes_are_sets():
    a, b = Changes(tensors={1, 2}, keys={(0, "x")}), Changes(tensors={2}, values={0})
    assert a.merged(b) == Changes(tensors={1, 2}, values={0}, keys={(0, "x")})
    assert a.without(b) == Changes(tensors={1}, keys={(0, "x")})
    assert not a.without(a)


def test_attributes_are_restored_in_an_object_with_a_new_dict():
    meter = Running()
    snapshot = Snapshot([("it", meter)])
    before = dict(vars(meter))
    meter.__dict__ = {**before, "count": 1}
    learned = snapshot.changed()
    snapshot.restore(learned)
    for _ in range(2):
        calls = snapshot.restorer(learned)
        meter.__dict__ = {**before, "count": 2}
        for call in calls:
            call()
        assert vars(meter) == before
