"""Hold a module still: every evaluation starts from one state, and none leaves a trace.

Inside `Isolation` the weights may be moved and the user's step called as often as one likes. Before
each evaluation `move` brings weights, state and random numbers back to one and the same start; at
the end all is as it was, bit for bit: weights, buffers, gradients, attributes, train/eval flags,
every random stream, the user's log.

Putting everything back each time would cost more than the forward pass. So the isolation *learns*
what an evaluation writes (`learn`, after the first few), puts back only that, compares everything
once at the end, and names in a warning what it had not learned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape._lightning import muted, rank_zero_warn
from lightning_landscape.engine.snapshot import Changes, Snapshot, put_back
from lightning_landscape.engine.weights import Path, Weights
from lightning_landscape.params import Params
from lightning_landscape.sharding import recover, reshard, sharded_modules

__all__ = [
    "Isolation",
    "Mode",
    "checkpoints_unmoved",
    "compiling_nothing",
    "isolated_rng",
    "rng_at",
    "unchanged_rng",
]

Mode = Literal["train", "eval", "recalibrated"]

_open: list[Isolation] = []


class Isolation:
    """A context in which a module can be moved and run without anybody noticing afterwards.

    Args:
        module: What to hold still.
        trainer: Whose loggers and checkpoints to keep out of it, if any.
        mode: `"train"` runs the module as training does (in train mode, if it was not training);
            `"eval"` and `"recalibrated"` run it in eval mode.
        at: Weights to start from; parameters it does not name start where they are.
        seed: Where every evaluation's random numbers start.

    Attributes:
        keeps_graph: Whether the module holds results that somebody may yet go backward from.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        trainer: Any | None = None,
        mode: Mode = "train",
        at: Params | None = None,
        seed: int = 0,
    ) -> None:
        self._module = module
        self._trainer = trainer
        self._mode: Mode = mode
        self._at = at or {}
        self._seed = seed
        self._failed = False
        self._is_open = False
        self._stack = ExitStack()
        self._learned = Changes()
        self._learned_rng: set[str] = set()
        self._leaves_gradients = False
        self._restore_state: list[Callable[[], None]] = []
        self._set_aside = False  # for another probe of the same weights

    def __enter__(self) -> Isolation:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(compiling_nothing())
            self._sharded = sharded_modules(self._module)
            reshard(self._sharded)
            self._ids = frozenset(map(id, self._module.parameters()))
            self._make_way()
            self._live_rng = stack.enter_context(isolated_rng(self._seed))
            self._start_rng = _rng_states()
            self._weights = weights = Weights(self._module)
            stack.callback(torch.clear_autocast_cache)
            stack.callback(weights.put_back)
            stack.enter_context(_flags_kept(self._module))
            stack.enter_context(muted(self._module, self._trainer))
            stack.enter_context(self._in_mode())
            weights.stand(self._at)
            self._snapshot = self._look()
            self.keeps_graph = self._snapshot.keeps_graph()
            pairs = zip(weights.names, weights.parameters, strict=True)
            self._trainable: dict[str, Tensor] = {n: p for n, p in pairs if p.requires_grad}
            self._gradients = _Gradients([*weights.parameters, *self._snapshot.leaves()])
            stack.callback(self._gradients.put_back)
            stack.enter_context(checkpoints_unmoved(self.as_before, self._trainer))
            stack.callback(self._finish)
            self._gradients.take_away()
            self._is_open = True
            _open.append(self)
            stack.callback(self._close)
            self.move(Path(), 0.0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        self._failed = error is not None
        self._stack.close()

    def include(self, name: str, value: object) -> None:
        """Hold something else still too, as it is now."""
        self._snapshot.include([(name, value)])

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable weights at the start, by name."""
        return {name: self._weights.start_of(name) for name in self.trainable}

    @property
    def live(self) -> dict[str, Tensor]:
        """The trainable weights as they were before, by name."""
        return {name: self._weights.live_of(name) for name in self.trainable}

    def handed_out(self) -> dict[str, Tensor]:
        """Return `params` for anybody to read, and to write to at no risk."""
        return {name: self._weights.copied(name) for name in self.trainable}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The live parameters that were trainable on opening, in the order of `params`."""
        return self._trainable

    def take_gradients_away(self) -> None:
        """Leave no gradient, and let those require one that did, whatever a step made of them."""
        self._gradients.take_away()

    def stand(self, at: Params | None = None) -> None:
        """Start from other weights from now on; by default from those it was opened at."""
        self._weights.put_back()
        self._weights.stand(self._at if at is None else at)

    def path(self, direction: Params) -> Path:
        """Prepare a direction to be walked often."""
        return self._weights.path(direction)

    def move(self, path: Path, alpha: float) -> None:
        """Start an evaluation: weights at `start + alpha * direction`, all else at the start."""
        if not self._is_open:
            raise RuntimeError(
                "An objective must be used inside the `with probing(...)` that made it: outside, "
                "nothing would put the weights back."
            )
        if len(_open) > 1 or self._set_aside or self._sharded:
            self._make_way()
        for restore in self._restore_state:
            restore()
        self._weights.move(path, alpha)
        torch.clear_autocast_cache()  # of weights elsewhere: within an outer autocast it is kept

    def learn(self, path: Path, alpha: float) -> None:
        """Look at what the evaluation since the last `move` wrote; put it all back.

        Written, not different: what stands at a fixed point here will drift elsewhere.
        """
        reshard(self._sharded)
        changes = self._snapshot.changed()
        self._snapshot.restore(changes)
        self._learned = self._learned.merged(changes)
        self._learned_rng |= _differing(self._start_rng, _rng_states())
        _set_rng_states(self._start_rng, self._learned_rng)
        self._weights.own |= self._weights.written(path, alpha)
        self._restore_state = self._snapshot.restorer(self._learned)
        self._leaves_gradients |= self._gradients.written()
        if self._leaves_gradients:
            self._restore_state.append(self._gradients.take_away)
        if self._learned_rng:
            states = {name: self._start_rng[name] for name in self._learned_rng}
            self._restore_state.append(lambda: _set_rng_states(states, set(states)))

    def leaks(self) -> list[str]:
        """Return the names of what evaluations wrote without being seen to; put it all back."""
        self._make_way()
        for restore in self._restore_state:
            restore()
        moved = self._weights.astray()
        unseen = _differing(self._start_rng, _rng_states()) - self._learned_rng
        self._weights.put_back()  # views of weights are part of the state
        changes = self._snapshot.changed()
        self._snapshot.restore(changes)
        return [
            *self._snapshot.describe(changes.without(self._learned)),
            *(f"the {name} generator" for name in sorted(unseen)),
            *(self._weights.names[i] for i in moved),
        ]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Let somebody look at the module in mid-probe: it is as it was before."""
        reshard(self._sharded)
        tensors = self._weights.tensors
        weights = [tensor.detach().clone() for tensor in tensors]
        now, rng = self._look(), _rng_states()
        self._put_all_back()
        _set_rng_states(self._live_rng, set(self._live_rng))
        try:
            yield
        finally:
            reshard(self._sharded)
            put_back(tensors, weights)
            now.restore(now.changed())
            _set_rng_states(rng, set(rng))

    def _close(self) -> None:
        self._is_open = False
        _open.remove(self)

    def _look(self) -> Snapshot:
        return Snapshot([("", self._module)], besides=self._weights.parameters)

    def _put_all_back(self, *, suspect: bool = False) -> None:
        (recover if suspect else reshard)(self._sharded)
        self._weights.put_back()
        self._snapshot.restore(self._snapshot.changed(suspect=suspect))

    def _make_way(self) -> None:
        """Let other probes of the same weights put everything back, and go on from there."""
        reshard(self._sharded)
        for other in _open:
            if other is not self and not self._ids.isdisjoint(other._ids):
                other._step_aside()
        if self._set_aside:
            self._set_aside = False
            self._snapshot.restore(self._snapshot.changed())
            self._weights.displaced = self._weights.everything

    def _step_aside(self) -> None:
        if not self._set_aside:
            self._put_all_back()
            self._set_aside = True

    @contextmanager
    def _in_mode(self) -> Iterator[None]:
        if self._mode != "train":
            # not by `eval()`: a module's own may do more, such as merge its weights into others
            for child in self._module.modules():
                child.training = False
            yield
        elif self._module.training:
            yield
        else:
            before = self._look()
            try:
                self._module.train()
                yield
            finally:
                before.restore(before.changed())

    def _finish(self) -> None:
        try:
            # what was cut short is no surprise, and may have left no memory to compare in
            leaks = [] if self._failed else self.leaks()
        except BaseException:
            self._failed = True
            raise
        finally:
            if self._failed:
                self._put_all_back(suspect=True)
        if leaks:
            rank_zero_warn(
                f"A probe of {type(self._module).__name__} wrote to {', '.join(leaks)} at some "
                "weights but not at the first it tried. All was put back; training is not "
                "affected, but the losses of this probe may depend on the order they were "
                "evaluated in."
            )


@contextmanager
def isolated_rng(seed: int) -> Iterator[dict[str, Any]]:
    """Start every global random stream at a seed, and put all back at the end as they were.

    What they were is yielded.

    Example:
        >>> with isolated_rng(1):
        ...     a = torch.rand(3)
        >>> with isolated_rng(1):
        ...     bool((a == torch.rand(3)).all())
        True
    """
    with unchanged_rng() as before:
        # not `torch.manual_seed`: it would also seed an accelerator that nobody has woken yet
        torch.default_generator.manual_seed(seed)
        if _cuda_is_up():
            torch.cuda.manual_seed_all(seed)
        elif torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield before


@contextmanager
def unchanged_rng() -> Iterator[dict[str, Any]]:
    """Put every global random stream back at the end as it was at the start, which is yielded."""
    before = _rng_states()
    try:
        yield before
    finally:
        _set_rng_states(before, set(before))


@contextmanager
def compiling_nothing() -> Iterator[None]:
    """Run what training has compiled, where it fits, and all else as it is written.

    One graph more can change training: it may take the place of another, and there is a limit to
    their number, beyond which nothing compiled is run any more.
    """
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


@contextmanager
def rng_at(states: dict[str, Any]) -> Iterator[None]:
    """Let the global random streams be as `unchanged_rng` found them, for a while."""
    with unchanged_rng():
        _set_rng_states(states, set(states))
        yield


def _rng_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }
    if _cuda_is_up():
        states["cuda"] = torch.cuda.get_rng_state_all()
    elif torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _cuda_is_up() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _set_rng_states(states: dict[str, Any], names: set[str]) -> None:
    setters: dict[str, Callable[[Any], object]] = {
        "torch": torch.set_rng_state,
        "numpy": np.random.set_state,
        "python": random.setstate,
        "cuda": torch.cuda.set_rng_state_all,
        "mps": torch.mps.set_rng_state,
    }
    for name in names:
        setters[name](states[name])


def _differing(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {name for name in a if not _same_state(a[name], b[name])}


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same_state, a, b))
    if isinstance(a[1], np.ndarray):
        return np.array_equal(a[1], b[1]) and (a[0], *a[2:]) == (b[0], *b[2:])
    return a == b


class _Gradients:
    """The gradients and the `requires_grad` of some tensors, kept while a step may write to them.

    A step that goes backward itself would add to what the user has accumulated.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._gradients = [tensor.grad for tensor in tensors]
        self._tracked = [tensor.requires_grad for tensor in tensors]

    def written(self) -> bool:
        """Return whether there are gradients again, or others require them; take them away."""
        pairs = zip(self._tensors, self._tracked, strict=True)
        written = any(t.grad is not None or t.requires_grad is not tracked for t, tracked in pairs)
        self.take_away()
        return written

    def take_away(self) -> None:
        """Leave no gradient, and let those require one that did."""
        self._set([None] * len(self._tensors))

    def put_back(self) -> None:
        """Leave the gradients that were there, the very same tensors."""
        self._set(self._gradients)

    def _set(self, gradients: Sequence[Tensor | None]) -> None:
        rows = zip(self._tensors, gradients, self._tracked, strict=True)
        for tensor, gradient, tracked in rows:
            tensor.requires_grad_(tracked)
            tensor.grad = gradient


@contextmanager
def _flags_kept(module: nn.Module) -> Iterator[None]:
    flags = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, training in flags:
            if child.training is not training:
                child.training = training


@contextmanager
def checkpoints_unmoved(
    as_before: Callable[[], AbstractContextManager[None]], trainer: Any | None
) -> Iterator[None]:
    """Save what was, not what was moved since: signal handlers save at any moment.

    Args:
        as_before: A context in which all is as it was.
        trainer: Whose checkpoints.
    """
    if trainer is None:
        yield
        return
    strategy, save, weights = (
        trainer.strategy,
        trainer.save_checkpoint,
        trainer.strategy.lightning_module_state_dict,
    )

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        with as_before():
            save(*args, **kwargs)

    def lightning_module_state_dict() -> dict[str, Any]:
        with as_before():
            return {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in weights().items()
            }

    with (
        _shadowed(trainer, "save_checkpoint", save_checkpoint),
        _shadowed(strategy, "lightning_module_state_dict", lightning_module_state_dict),
    ):
        yield


@contextmanager
def _shadowed(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        owner.__dict__.pop(name)
        if before is not None:
            owner.__dict__[name] = before
