"""Two hooks that Lightning lacks: right before a step runs, with the batch as the step gets it.

`on_train_batch_start` comes too early to copy a batch: callbacks further down the list, the
module's own hook and the strategy's may still change it. Nothing comes between these hooks and the
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_landscape._lightning import Callback, batch_place, is_batch_iterator
from lightning_landscape.undo import undone

_HOOKS = {"training_step": "before_training_step", "validation_step": "before_validation_step"}


class BeforeSteps(Callback):
    """A callback with the hooks `before_training_step` and `before_validation_step`.

    They are called once a batch, also where an optimizer runs the step several times. Where the
    step takes a `dataloader_iter`, they are called with the first batch that it takes from it.
    """

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Be called before a training step; the batch must be left as it is."""

    def before_validation_step(
        self, trainer: Any, pl_module: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        """Be called before a validation step; the batch must be left as it is."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put both hooks before the steps of the strategy, for this fit."""
        steps = trainer.strategy.__dict__
        if stage == "fit":
            for step in _HOOKS:
                if not isinstance(steps.get(step), _HookedStep):
                    steps[step] = _HookedStep(trainer, step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the strategy as it was."""
        steps = trainer.strategy.__dict__
        for step in _HOOKS:
            if isinstance(steps.get(step), _HookedStep):
                hidden = steps.pop(step).hidden
                if hidden is not None:
                    steps[step] = hidden

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Tear down: Lightning does not where training is cut short."""
        self.teardown(trainer, pl_module, "fit")


class _HookedStep:
    """A step of a strategy that calls the hooks of the trainer's callbacks first.

    It stands in the strategy's `__dict__` and hides the method of that name.
    """

    def __init__(self, trainer: Any, step: str) -> None:
        self._trainer = trainer
        self._step = step
        self.hidden: Any = trainer.strategy.__dict__.get(step)  # what somebody else put there
        self._run: Callable[..., Any] = getattr(trainer.strategy, step)
        home = getattr(type(trainer.strategy), step).__module__.partition(".")[0]
        self._is_lightnings = home in ("lightning", "pytorch_lightning")
        self._last = -1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        number, index = batch_place(self._trainer, self._step)
        if number == self._last and self._step == "training_step":  # an optimizer runs it again
            return self._run(*args, **kwargs)
        self._last = number
        if self._is_lightnings and self.hidden is None:
            return self._run(*self._reported(args, index), **kwargs)
        # somebody else's may change the batch itself: before the module's own step, which is hidden
        # until then
        module = self._trainer.lightning_module
        with undone() as undo:
            undo.keep_items(module.__dict__, self._step)
            step = getattr(module, self._step)

            def hooked(*args: Any, **kwargs: Any) -> Any:
                undo.run()
                return step(*self._reported(args, index), **kwargs)

            module.__dict__[self._step] = hooked
            return self._run(*args, **kwargs)

    def _reported(self, args: Sequence[Any], index: int) -> Sequence[Any]:
        """Call the hooks with the batch, or let an iterator do so; return the arguments."""
        first, *rest = args
        if is_batch_iterator(first):
            return _reporting(first, self._call_hooks), *rest
        self._call_hooks(first, *(rest or [index]))
        return args

    def _call_hooks(self, batch: Any, index: int, loader: int = 0) -> None:
        where = (index,) if self._step == "training_step" else (index, loader)
        for callback in self._trainer.callbacks:
            if isinstance(callback, BeforeSteps):
                hook = getattr(callback, _HOOKS[self._step])
                hook(self._trainer, self._trainer.lightning_module, batch, *where)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be the plain method in copies of the strategy."""
        return getattr, (self._trainer.strategy, self._step)


def _reporting(iterator: Any, report: Callable[..., None]) -> Any:
    """Return an iterator with all that another one has, which reports its first batch."""

    class Reporting(type(iterator)):
        def __next__(self) -> Any:
            found = super().__next__()
            if not reported:
                reported.append(True)
                report(*found)
            return found

    reported: list[bool] = []
    twin = object.__new__(Reporting)
    twin.__dict__ = iterator.__dict__
    return twin
