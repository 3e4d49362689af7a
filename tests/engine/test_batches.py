"""Copies of batches are private and complete, and call no method of the user's containers."""

import collections
import functools
import threading
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lightning_landscape import probing
from lightning_landscape.engine import batches as batches_file
from lightning_landscape.engine.batches import Batches, KeptBatch, bytes_of, clone_batch, keep_batch


def refuse(*args, **kwargs):
    raise AssertionError("a method of the user's was called")


class Attributed(dict):
    pass


class Strict(dict):
    __iter__ = __len__ = __getitem__ = __setitem__ = items = keys = values = update = refuse
    __copy__ = copy = refuse


class StrictList(list):
    __iter__ = __len__ = __getitem__ = __setitem__ = append = extend = refuse


class StrictTuple(tuple):
    __iter__ = __len__ = __getitem__ = refuse


class StrictTensor(torch.Tensor):
    clone = detach = to = refuse

    def __deepcopy__(self, memo):
        refuse()


Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: torch.Tensor
    names: list = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: torch.Tensor


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x):
        self.x = x


class CopiesItself:
    def __init__(self, x, copies=0):
        self.x, self.copies = x, copies

    def __deepcopy__(self, memo):
        return CopiesItself(self.x.clone(), self.copies + 1)


class ClonesItself:
    """Cannot be taken apart."""

    def __init__(self, x):
        self.x = x

    def __reduce_ex__(self, protocol):
        raise TypeError("not this way")

    def clone(self):
        return ClonesItself(self.x.clone())


def tensors(value):
    """Return all tensors inside a container that this file builds, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for child in dict.values(value) for t in tensors(child)]
    for base in (list, tuple, deque, set):
        if isinstance(value, base):
            return [t for child in base.__iter__(value) for t in tensors(child)]
    if isinstance(value, Slots):
        return tensors(value.x)
    if hasattr(value, "__dict__"):
        return [t for child in vars(value).values() for t in tensors(child)]
    return tensors(value.x) if hasattr(value, "x") else []


X = torch.arange(6.0)
KINDS = {
    "dict": lambda: {"x": X.clone(), "n": [1, "two", None]},
    "nested": lambda: ((X.clone(), [X.clone()]), {"y": {"z": X.clone()}}),
    "ordered": lambda: OrderedDict(b=X.clone(), a=X.clone()),
    "default": lambda: defaultdict(list, x=[X.clone()]),
    "deque": lambda: deque([X.clone()], maxlen=3),
    "strict dict": lambda: Strict(x=X.clone()),
    "strict list": lambda: StrictList([X.clone()]),
    "strict tuple": lambda: StrictTuple([X.clone()]),
    "strict tensor": lambda: X.clone().as_subclass(StrictTensor),
    "named tuple": lambda: Pair(X.clone(), X.clone()),
    "packed": lambda: pack_sequence([X.clone(), X[:2].clone()]),
    "return type": lambda: torch.max(X.reshape(2, 3), dim=1),
    "dataclass": lambda: Record(X.clone(), ["a"]),
    "frozen": lambda: Frozen(X.clone()),
    "frozen slots": lambda: FrozenSlots(X.clone()),
    "slots": lambda: Slots(X.clone()),
    "namespace": lambda: SimpleNamespace(x=X.clone(), lock=threading.Lock()),
    "user dict": lambda: UserDict(x=X.clone()),
    "copies itself": lambda: CopiesItself(X.clone()),
    "clones itself": lambda: ClonesItself(X.clone()),
    "partial": lambda: functools.partial(max, X.clone()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_of_the_same_class_and_shares_no_memory(kind):
    batch = KINDS[kind]()
    twin = clone_batch(batch)
    assert type(twin) is type(batch)
    assert twin is not batch
    base = torch.Tensor.as_subclass
    for mine, theirs in zip(tensors(twin), tensors(batch), strict=True):
        assert type(mine) is type(theirs)
        mine, theirs = base(mine, torch.Tensor), base(theirs, torch.Tensor)
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize(
    "batch",
    [
        Attributed(x=X),
        type("Items", (list,), {})([X]),
        type("Points", (tuple,), {})([X]),
        type("Names", (set,), {})(["a"]),
        X.clone().as_subclass(type("Image", (torch.Tensor,), {})),
        np.zeros(3).view(type("Column", (np.ndarray,), {})),
        Record(X),
        type("Days", (int,), {})(3),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_copy_has_copies_of_all_attributes(batch):
    batch.scale, batch.sizes = X.clone(), [3, 4]
    twin = clone_batch(batch)
    assert type(twin) is type(batch)
    assert torch.equal(twin.scale, X)
    assert twin.scale is not batch.scale
    assert twin.sizes == [3, 4]
    assert twin.sizes is not batch.sizes


def test_a_class_with_a_deepcopy_copies_itself():
    assert clone_batch([CopiesItself(X)])[0].copies == 1


def test_the_error_of_a_class_that_refuses_to_be_copied_is_raised():
    class Refuses:
        def __deepcopy__(self, memo):
            raise TypeError("not to be copied")

    with pytest.raises(TypeError, match="not to be copied"):
        clone_batch({"x": Refuses()})


class Single:
    """A singleton: the class returns its only object."""

    only = None

    def __new__(cls):
        if cls.only is None:
            cls.only = super().__new__(cls)
            cls.only.values = []
        return cls.only


def test_a_singleton_is_not_written_to():
    single = Single()
    values = single.values
    assert clone_batch([single])[0] is single
    assert single.values is values


def test_settings_of_containers_are_kept():
    assert clone_batch(defaultdict(list))["new"] == []
    assert clone_batch(deque([1], maxlen=2)).maxlen == 2
    assert list(clone_batch(OrderedDict(b=1, a=2))) == ["b", "a"]
    assert clone_batch(collections.Counter("aab")) == {"a": 2, "b": 1}


def test_the_copy_keeps_shared_objects_and_cycles():
    batch = {"x": X.clone(), "list": [1]}
    batch.update(again=batch["x"], same=batch["list"], itself=batch)
    twin = clone_batch(batch)
    assert twin["again"] is twin["x"]
    assert twin["same"] is twin["list"]
    assert twin["itself"] is twin


def test_tensors_that_overlap_in_memory_overlap_in_the_copy():
    x = torch.arange(24.0).reshape(4, 6)
    batch = {
        "x": x[1:],
        "row": x[2],
        "column": x.T[3],
        "bytes": x.view(torch.uint8),
        "y": X.clone(),
    }
    twin = clone_batch(batch)
    for name, tensor in batch.items():
        assert torch.equal(twin[name], tensor), name
        assert twin[name].stride() == tensor.stride()
    twin["row"].fill_(-1.0)
    assert twin["x"][1].tolist() == [-1.0] * 6
    assert twin["column"][2] == -1
    assert x.min() == 0


def test_a_view_is_copied_without_the_rest_of_its_storage():
    twin = clone_batch({"x": torch.zeros(1000, 10)[:2], "y": torch.zeros(1000)[5:]})
    assert twin["x"].untyped_storage().nbytes() == 2 * 10 * 4


def test_a_copy_keeps_requires_grad_and_leaves_the_graph():
    leaf = torch.ones(2, requires_grad=True)
    twin = clone_batch({"leaf": leaf, "result": leaf * 2, "plain": torch.ones(2)})
    assert [t.requires_grad for t in twin.values()] == [True, True, False]
    assert all(t.is_leaf for t in twin.values())


RARE = {
    "0-d array": lambda: np.array(3.0),
    "array of objects": lambda: np.array([None, X], dtype=object),
    "sparse": lambda: torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (3,)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "quantized": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "conjugate": lambda: torch.view_as_complex(torch.ones(2, 2)).conj(),
    "expanded": lambda: torch.ones(2).expand(3, 2),
}


@pytest.mark.filterwarnings("ignore")  # some of them are in prototype stage
@pytest.mark.parametrize("kind", RARE)
def test_rare_kinds_of_arrays_and_tensors_are_copied(kind):
    batch = RARE[kind]()
    twin = clone_batch([batch])[0]
    assert twin is not batch
    assert type(twin) is type(batch)
    assert str(twin) == str(batch)


def test_a_module_in_a_batch_is_shared():
    net = nn.Linear(1, 1)
    assert clone_batch({"net": net})["net"] is net


def test_an_iterator_is_copied_and_not_read():
    batch = iter([X, X + 1])
    twin = clone_batch(batch)
    assert [t.tolist() for t in twin] == [X.tolist(), (X + 1).tolist()]
    assert len(list(batch)) == 2


def test_every_evaluation_gets_all_items_of_an_iterator():
    kept = Batches([KeptBatch(clone_batch(iter([X, X])), 0)], torch.device("cpu"))
    for _ in range(2):
        assert [len(list(batch)) for _, batch in kept] == [2]
    net = nn.Linear(6, 1)

    def loss(module, batch):
        return sum(module(x).square().mean() for x in batch)

    with probing(net, [iter([X, X])], loss_fn=loss) as objective:
        first, again = objective.losses(), objective.losses()
    assert first.tolist() == again.tolist() == [pytest.approx(2 * net(X).square().item())]


def test_a_step_may_write_to_a_tensor_that_refuses_to_be_cloned():
    batch = X.clone().as_subclass(type("Image", (torch.Tensor,), {"clone": refuse}))
    net = nn.Linear(6, 1)

    def loss(module, batch):
        x = batch.as_subclass(torch.Tensor)
        x.mul_(2.0)
        return module(x).square().mean()

    with probing(net, [batch], loss_fn=loss) as objective:
        losses = [objective.losses().item() for _ in range(3)]
    assert losses == [pytest.approx(net(2 * X).square().item())] * 3


def test_a_generator_is_refused_and_not_read():
    batch = (x for x in [X])
    with pytest.raises(TypeError, match="with a generator, which cannot: let `collate_fn`"):
        clone_batch({"x": batch})
    assert len(list(batch)) == 1


def test_bytes_count_each_tensor_once():
    batch = Strict(x=torch.zeros(10), y=Slots(torch.zeros(2, dtype=torch.float64)))
    dict.__setitem__(batch, "again", dict.__getitem__(batch, "x"))
    assert bytes_of(batch) == 40 + 16
    assert bytes_of(None) == 0


def test_large_batches_are_kept_in_host_memory(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: moved.append(t.numel()) or t.clone())
    monkeypatch.setattr(batches_file, "_KEPT_ON_DEVICE", 100)
    small = keep_batch([], {"x": torch.zeros(20)}, 0)
    assert not moved
    keep_batch([small], {"x": torch.zeros(10)}, 1)
    assert moved == [10]


def test_a_tensordict_is_copied_with_its_batch_size():
    tensordict = pytest.importorskip("tensordict")
    batch = tensordict.TensorDict(
        {"x": torch.ones(4, 3), "in": {"y": torch.ones(4)}}, batch_size=[4]
    )
    twin = clone_batch({"td": batch, "n": 1})["td"]
    assert type(twin) is type(batch)
    assert twin.batch_size == batch.batch_size
    twin["x"].zero_()
    twin["in", "y"].zero_()
    assert batch["x"].sum() == 12
    assert batch["in", "y"].sum() == 4
