"""Hold a module still: every evaluation starts from one state, and none leaves a trace.

Inside `isolated` the weights may be moved and the user's step may be called any number of times.
`move` starts an evaluation: it restores state and random numbers, and sets the weights. At the end
everything is restored bit for bit: weights, buffers, gradients, attributes, train/eval flags, every
random stream, the user's log.

Comparing everything each time would cost more than the forward pass. So `record` compares only
after the first few evaluations, and keeps a list of what they wrote. `move` restores what is on
this list. At the end everything is compared once. What was not on the list is restored, and named
in a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_landscape._lightning import mute, rank_zero_warn
from lightning_landscape.engine.checkpoints import compiling_nothing, save_unmoved, state_restored
from lightning_landscape.engine.gradients import Gradients
from lightning_landscape.engine.optimizers import keep_optimizers
from lightning_landscape.engine.rng import differing_rng, rng_states, seed_all, set_rng_states
from lightning_landscape.engine.roots import roots_of
from lightning_landscape.engine.snapshot import Changes, Snapshot
from lightning_landscape.engine.walk import UNREMARKABLE
from lightning_landscape.engine.weights import Path, Weights
from lightning_landscape.params import Params
from lightning_landscape.sharding import recover, reshard, sharded_modules
from lightning_landscape.undo import Undo

Mode = Literal["train", "eval", "recalibrated"]

_open: list[Isolation] = []


@contextmanager
def isolated(
    module: nn.Module,
    *,
    trainer: Any | None = None,
    mode: Mode = "train",
    at: Params | None = None,
    seed: int = 0,
) -> Iterator[Isolation]:
    """Hold a module still. Inside it may be moved and run; afterwards nothing has changed.

    Args:
        module: The module.
        trainer: Its trainer, if any. Loggers get nothing, checkpoints get the unmoved weights.
        mode: `"train"` runs the module as training does (in train mode, if it was not training);
            `"eval"` and `"recalibrated"` run it in eval mode.
        at: Weights to start from; parameters that it does not name start as they are.
        seed: The seed of every evaluation's random numbers.

    Yields:
        The isolation.
    """
    isolation = Isolation(module, trainer=trainer, mode=mode, at=at, seed=seed)
    try:
        with isolation:
            yield isolation
    finally:
        isolation.close(failed=True)  # does something only if closing was interrupted


class Isolation:
    """A module that is held still, as `isolated` yields it.

    Attributes:
        keeps_graph: Whether the module holds a tensor with a graph: training may still go backward
            through it.
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
        self._undo = Undo()
        self._recorded = Changes()
        self._recorded_rng: set[str] = set()
        self._leaves_gradients = False
        self._restore_state: list[Callable[[], None]] = []
        self._suspended = False  # while another isolation of the same weights is in use
        self._position = (Path(), 0.0)
        self._leaks: list[str] = []

    def __enter__(self) -> Isolation:
        try:
            self._begin()
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        self.close(failed=error is not None)

    def close(self, *, failed: bool) -> None:
        """Restore everything. Call it again if it was interrupted.

        Args:
            failed: Whether something raised: then all is restored, and no leak is reported.
        """
        self._failed |= failed
        self._undo.run()

    def _begin(self) -> None:
        # closing undoes all this in reverse order: it compares and restores state, then weights
        undo = self._undo
        undo.enter(torch.inference_mode(False))
        undo.enter(compiling_nothing())
        self._sharded = sharded_modules(self._module)
        reshard(self._sharded)
        self._ids = frozenset(map(id, self._module.parameters()))
        self._suspend_others()
        self._live_rng = rng_states()
        undo.add(lambda: set_rng_states(self._live_rng))
        self._start_rng = seed_all(self._seed)
        self._weights = weights = Weights(self._module)
        undo.add(torch.clear_autocast_cache)
        undo.add(weights.restore)
        undo.add(_flags_of(self._module))
        if self._trainer is not None:
            keep_optimizers(self._trainer, undo)
        mute(self._module, self._trainer, undo)
        if self._set_mode() or self._at:
            weights.start_at(self._at)
        self._snapshot = self._snapshot_now()
        if self._snapshot.iterators:
            before = self._snapshot
            undo.add(lambda: before.restore(before.changed()))
            before.hide_iterators()
            self._snapshot = self._snapshot_now()
        for array in self._snapshot.uncopied:
            undo.add(partial(array.setflags, write=True))
            array.setflags(write=False)
        self.keeps_graph = self._snapshot.keeps_graph()
        pairs = zip(weights.names, weights.parameters, strict=True)
        self._trainable: dict[str, Tensor] = {n: p for n, p in pairs if p.requires_grad}
        self._gradients = Gradients([*weights.parameters, *self._snapshot.leaves()])
        undo.add(self._gradients.restore)
        save_unmoved(self.as_before, self._trainer, undo)
        undo.add(self._warn)
        undo.add(self._finish)
        self._gradients.remove()
        self._is_open = True
        undo.add(self._unregister)
        _open.append(self)
        self.move(Path(), 0.0)

    def include(self, name: str, value: object) -> None:
        """Add an object to what is restored, as it is now."""
        self._snapshot.include([(name, value)])

    @property
    def outside(self) -> dict[str, str]:
        """What is not searched, by name, and why; without constants and classes."""
        found = self._snapshot.outside
        return {name: why for name, why in found.items() if why not in UNREMARKABLE}

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable weights at the start, by name."""
        return {name: self._weights.start_of(name) for name in self.trainable}

    @property
    def live(self) -> dict[str, Tensor]:
        """The trainable weights as they were on opening, by name."""
        return {name: self._weights.live_of(name) for name in self.trainable}

    def copied_params(self) -> dict[str, Tensor]:
        """Return a copy of `params` that the caller may write to."""
        return {name: self._weights.copy_of_start(name) for name in self.trainable}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The live parameters that were trainable on opening, in the order of `params`."""
        return self._trainable

    def remove_gradients(self) -> None:
        """Remove all gradients, and restore each `requires_grad`."""
        self._gradients.remove()

    def start_at(self, at: Params | None = None) -> None:
        """Start later evaluations from other weights; by default from those of the opening."""
        self._weights.restore()
        self._weights.start_at(self._at if at is None else at)

    def path(self, direction: Params) -> Path:
        """Prepare a direction for `move`."""
        return self._weights.path(direction)

    def move(self, path: Path, alpha: float) -> None:
        """Start an evaluation: weights at `start + alpha * direction`, all else at the start."""
        if not self._is_open:
            raise RuntimeError(
                "An objective must be used inside the `with probing(...)` that made it: outside, "
                "nothing would put the weights back."
            )
        if len(_open) > 1 or self._suspended or self._sharded:
            self._suspend_others()
        for restore in self._restore_state:
            restore()
        self._position = (path, alpha)
        self._weights.move(path, alpha)
        torch.clear_autocast_cache()  # an outer autocast keeps casts of other weights

    def record(self, path: Path, alpha: float) -> None:
        """Record what the evaluation since the last `move` wrote, and restore it.

        It records writes, not differences: a buffer may be rewritten with the same value here and
        with another value at other weights.
        """
        reshard(self._sharded)
        changes = self._snapshot.changed()
        self._snapshot.restore(changes)
        self._recorded = self._recorded.merged(changes)
        self._recorded_rng |= differing_rng(self._start_rng, rng_states())
        set_rng_states(self._start_rng, self._recorded_rng)
        self._weights.written_by_step |= self._weights.written(path, alpha)
        self._restore_state = self._snapshot.restorer(self._recorded)
        self._leaves_gradients |= self._gradients.written()
        if self._leaves_gradients:
            self._restore_state.append(self._gradients.remove)
        if self._recorded_rng:
            states = {name: self._start_rng[name] for name in self._recorded_rng}
            self._restore_state.append(lambda: set_rng_states(states))

    def leaks(self) -> list[str]:
        """Restore everything; return the names of what was written and not recorded."""
        self._suspend_others()
        for restore in self._restore_state:
            restore()
        moved = self._weights.not_at_start()
        unseen = differing_rng(self._start_rng, rng_states()) - self._recorded_rng
        self._weights.restore()  # views of weights are part of the state
        changes = self._snapshot.changed()
        unseen_places = self._snapshot.describe(changes.without(self._recorded))
        self._snapshot.restore(changes)
        return [
            *unseen_places,
            *(f"the {name} generator" for name in sorted(unseen)),
            *(self._weights.names[i] for i in moved),
        ]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Restore the state before the probe, inside: for code that runs in the middle of it."""
        weights = self._weights
        tensors, parameters = weights.tensors, weights.parameters
        with state_restored(self._module, self._trainer, tensors, parameters):
            self._restore_all()
            set_rng_states(self._live_rng)
            yield

    def _unregister(self) -> None:
        self._is_open = False
        _open[:] = [other for other in _open if other is not self]

    def _snapshot_now(self) -> Snapshot:
        roots = roots_of(self._module, self._trainer)
        return Snapshot(roots, hooks_only=self._weights.parameters)

    def _restore_all(self, *, assume_written: bool = False) -> None:
        (recover if assume_written else reshard)(self._sharded)
        self._weights.restore()
        self._snapshot.restore(self._snapshot.changed(assume_written=assume_written))

    def _suspend_others(self) -> None:
        """Suspend other isolations of the same weights, and resume this one if it is suspended."""
        reshard(self._sharded)
        for other in list(_open):
            if other is not self and not self._ids.isdisjoint(other._ids):
                other._suspend()
        if self._suspended:
            self._suspended = False
            self._snapshot.restore(self._snapshot.changed())
            self._weights.displaced = self._weights.everything

    def _suspend(self) -> None:
        if self._suspended:
            return
        weights = self._weights
        if weights.written(*self._position) - weights.written_by_step:
            # The weights were set since by other code: this isolation was never closed. It must
            # not restore its old weights any more.
            self._unregister()
            return
        self._restore_all()
        self._suspended = True

    def _set_mode(self) -> bool:
        """Set the train/eval flags; return whether `module.train()` ran, which may move weights."""
        if self._mode != "train":
            # not `module.eval()`: an override may do more, such as merge weights into others
            for child in self._module.modules():
                set_training(child, False)
        elif not self._module.training:
            before = self._snapshot_now()
            self._undo.add(lambda: before.restore(before.changed()))
            self._module.train()
            return True
        return False

    def _finish(self) -> None:
        try:
            # after a failure a difference is expected, and there may be no memory to compare
            if not self._failed:
                self._leaks = self.leaks()
        except BaseException:
            self._failed = True
            raise
        finally:
            if self._failed:
                self._restore_all(assume_written=True)

    def _warn(self) -> None:
        name, given_up = type(self._module).__name__, self._snapshot.given_up
        if given_up:
            shown = "; ".join(f"{what}: {why}" for what, why in sorted(given_up.items()))
            rank_zero_warn(
                f"A probe of {name} could not restore everything the module holds. If the step "
                f"writes to what follows, training is affected; all else was put back. {shown}"
            )
        if leaks := self._leaks:
            rest = "All that could be" if given_up else "All"
            rank_zero_warn(
                f"A probe of {name} wrote to {', '.join(leaks)} at some weights but not at the "
                f"first. {rest} was put back and training is not affected, but the losses of this "
                "probe may depend on the order of its evaluations."
            )


def _flags_of(module: nn.Module) -> Callable[[], None]:
    """Return a function that restores the train/eval flags."""
    flags = [(child, child.training) for child in module.modules()]

    def put_back_flags() -> None:
        for child, training in flags:
            if child.training is not training:
                set_training(child, training)

    return put_back_flags


def set_training(module: nn.Module, training: bool) -> None:
    """Set the train/eval flag of one module, without calling a `__setattr__` of the user's."""
    if "training" in module.__dict__:
        module.__dict__["training"] = training
    else:  # a scripted one
        module.training = training
