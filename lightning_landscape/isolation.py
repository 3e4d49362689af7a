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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape._lightning import muted, rank_zero_warn
from lightning_landscape.params import Params
from lightning_landscape.snapshot import Changes, Snapshot, put_back, same_bits

__all__ = ["Isolation", "Mode", "isolated_rng", "unchanged_rng"]

Mode = Literal["train", "eval", "recalibrated"]

Steps: TypeAlias = list[tuple[int, Tensor]]


class Isolation:
    """A context in which a module can be moved and run without anybody noticing afterwards.

    Args:
        module: What to hold still.
        trainer: Whose loggers and checkpoints to keep out of it, if any.
        mode: `"train"` runs the module as training does (all of it in train mode, if it was not
            training); `"eval"` and `"recalibrated"` run it in eval mode.
        at: Weights to start from; parameters it does not name start where they are.
        seed: Where every evaluation's random numbers start.
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
        self._stack = ExitStack()

    def __enter__(self) -> Isolation:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            self._live_rng = _rng_states()
            stack.enter_context(isolated_rng(self._seed))
            self._start_rng = _rng_states()
            self._names, self._tensors = _named(self._module)
            self._live = [tensor.detach().clone() for tensor in self._tensors]
            self._start = [self._starting_point(i) for i in range(len(self._names))]
            stack.callback(put_back, self._tensors, self._live)
            stack.enter_context(_gradients_away(self._tensors))
            stack.enter_context(_flags_kept(self._module))
            stack.enter_context(_checkpoints_unmoved(self, self._trainer))
            stack.enter_context(muted(self._module, self._trainer))
            if self._mode != "train":
                self._module.eval()
            elif not self._module.training:
                self._module.train()
            self._snapshot = Snapshot([("", self._module)], besides=self._tensors)
            stack.callback(self._finish)
            self._learned = Changes()
            self._learned_rng: set[str] = set()
            self._own: dict[int, Tensor] = {}  # weights that evaluations write themselves
            self._displaced = set(range(len(self._names))) if self._at else set()
            self._restore_state: list[Callable[[], None]] = []
            self.move([], 0.0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        self._failed = error is not None
        self._stack.close()

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable weights at the start, by name."""
        return {
            name: start
            for name, start, tensor in zip(self._names, self._start, self._tensors, strict=True)
            if tensor.requires_grad
        }

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The live trainable parameters, in the order of `params`."""
        pairs = zip(self._names, self._tensors, strict=True)
        return {name: tensor for name, tensor in pairs if tensor.requires_grad}

    def steps(self, direction: Params) -> Steps:
        """Prepare a direction: what it moves, where the weights are and as they are."""
        index = {name: i for i, name in enumerate(self._names)}
        placed = ((index[name], step.to(self._start[index[name]])) for name, step in direction.items())
        return [(i, step) for i, step in placed if step.count_nonzero()]

    def move(self, steps: Steps, alpha: float) -> None:
        """Start an evaluation: weights at `start + alpha * direction`, all else at the start."""
        for restore in self._restore_state:
            restore()
        moving = {i for i, _ in steps} if alpha else set()
        back = [i for i in self._displaced | self._own.keys() if i not in moving]
        put_back([self._tensors[i] for i in back], [self._start[i] for i in back])
        if alpha:
            for i, step in steps:
                torch.add(self._start[i], step, alpha=alpha, out=self._tensors[i].data)
        self._displaced = moving

    def learn(self, steps: Steps, alpha: float) -> None:
        """Look at what the evaluation since the last `move` wrote; put it all back.

        Written, not different: what stands at a fixed point here will drift elsewhere.
        """
        changes = self._snapshot.changed()
        self._snapshot.restore(changes)
        self._learned = self._learned.merged(changes)
        self._learned_rng |= _differing(self._start_rng, _rng_states())
        _set_rng_states(self._start_rng, self._learned_rng)
        self._own.update({i: self._start[i] for i in self._written_weights(steps, alpha)})
        self._restore_state = self._snapshot.restorer(self._learned)
        if self._learned_rng:
            states = {name: self._start_rng[name] for name in self._learned_rng}
            self._restore_state.append(lambda: _set_rng_states(states, set(states)))

    def leaks(self) -> list[str]:
        """Return the names of what evaluations wrote without being seen to; put it all back."""
        for restore in self._restore_state:
            restore()
        changes = self._snapshot.changed()
        self._snapshot.restore(changes)
        names = self._snapshot.describe(changes.without(self._learned))
        unseen = _differing(self._start_rng, _rng_states()) - self._learned_rng
        quiet = set(range(len(self._names))) - self._displaced - self._own.keys()
        moved = [i for i in sorted(quiet) if not same_bits(self._tensors[i], self._start[i])]
        return names + [f"the {name} generator" for name in sorted(unseen)] + [
            self._names[i] for i in moved
        ]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Let somebody look at the module in mid-probe: it is as it was before."""
        weights = [tensor.detach().clone() for tensor in self._tensors]
        now, rng = Snapshot([("", self._module)], besides=self._tensors), _rng_states()
        self._snapshot.restore(self._snapshot.changed())
        put_back(self._tensors, self._live)
        _set_rng_states(self._live_rng, set(self._live_rng))
        try:
            yield
        finally:
            put_back(self._tensors, weights)
            now.restore(now.changed())
            _set_rng_states(rng, set(rng))

    def _starting_point(self, i: int) -> Tensor:
        at = self._at.get(self._names[i])
        return self._live[i] if at is None else at.detach().to(self._live[i])

    def _written_weights(self, steps: Steps, alpha: float) -> list[int]:
        moving = dict(steps) if alpha else {}
        written = []
        for i, (tensor, start) in enumerate(zip(self._tensors, self._start, strict=True)):
            put = torch.add(start, moving[i], alpha=alpha) if i in moving else start
            if not same_bits(tensor, put):
                written.append(i)
        return written

    def _finish(self) -> None:
        try:
            leaks = self.leaks()
        finally:
            put_back(self._tensors, self._live)
        if leaks and not self._failed:  # what was cut short is no surprise
            rank_zero_warn(
                f"A probe of {type(self._module).__name__} wrote to {', '.join(leaks)} at some "
                "weights but not at the first it tried. All was put back; training is not affected, "
                "but the losses of this probe may depend on the order they were evaluated in."
            )


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Start every global random stream at a seed, and put all back as they were at the end.

    Example:
        >>> with isolated_rng(1):
        ...     a = torch.rand(3)
        >>> with isolated_rng(1):
        ...     bool((a == torch.rand(3)).all())
        True
    """
    with unchanged_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def unchanged_rng() -> Iterator[None]:
    """Put every global random stream back at the end as it was at the start."""
    before = _rng_states()
    try:
        yield
    finally:
        _set_rng_states(before, set(before))


def _rng_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    elif torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


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
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same_state, a, b))
    return a == b


def _named(module: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    named = dict(module.named_parameters())
    return list(named), list(named.values())


@contextmanager
def _gradients_away(tensors: list[nn.Parameter]) -> Iterator[None]:
    # a step that goes backward itself would add to what the user has accumulated
    gradients = [tensor.grad for tensor in tensors]
    free = [tensor.requires_grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, gradient, requires_grad in zip(tensors, gradients, free, strict=True):
            tensor.requires_grad_(requires_grad)
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
def _checkpoints_unmoved(isolation: Isolation, trainer: Any | None) -> Iterator[None]:
    """Save what was, not what a probe has moved: signal handlers save at any moment."""
    if trainer is None:
        yield
        return
    strategy, save, weights = (
        trainer.strategy,
        trainer.save_checkpoint,
        trainer.strategy.lightning_module_state_dict,
    )

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        with isolation.as_before():
            save(*args, **kwargs)

    def lightning_module_state_dict() -> dict[str, Any]:
        with isolation.as_before():
            return {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in weights().items()
            }

    with _shadowed(trainer, "save_checkpoint", save_checkpoint):
        with _shadowed(strategy, "lightning_module_state_dict", lightning_module_state_dict):
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
