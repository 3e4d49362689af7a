"""Callbacks with a name that follow a training; those of one Trainer share warnings and a page."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import Any

from lightning_landscape._lightning import (
    ConfigurationError,
    as_configuration,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_landscape.callbacks.before_steps import BeforeSteps
from lightning_landscape.callbacks.budget import Schedule
from lightning_landscape.callbacks.strategies import check_strategy, check_trainer
from lightning_landscape.checks import check_bool
from lightning_landscape.engine.steps import LossFn, check_loss_fn
from lightning_landscape.reporting.output import Output, WarnOnce
from lightning_landscape.reporting.run_records import RunRecords


class Named(BeforeSteps):
    """A callback with a name: the first part of its tags, and what its state goes by.

    Args:
        name: Different from the names of the others in the same Trainer.
        schedule: When to act.
        loss_fn: Runs a batch in the place of `training_step`.
        verbose: Whether to print the summary at the end of fit.

    Attributes:
        n_steps: Optimizer steps so far, one for each batch that advanced the trainer.

    Raises:
        ConfigurationError: If it is empty; at the start of fit if another has it too.
    """

    def __init__(
        self, name: str, schedule: Schedule, loss_fn: LossFn | None, verbose: bool
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"`name` must be a word that is not empty. Got {name!r}.")
        self.name = name
        self.schedule = schedule
        self.loss_fn = check_loss_fn(loss_fn)
        with as_configuration():
            self.verbose = check_bool("verbose", verbose)
        self.n_steps = 0
        self._last_global_step = 0
        self._module: weakref.ref[Any] | None = None
        self._warn_once = WarnOnce()
        self._run_records = RunRecords()
        self._shared: Any = None  # what holds the processes together during a fit

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit, and cannot be sent to another process."""
        return {**self.__dict__, "_module": None, "_shared": None}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a name that another callback has; warn once, and write one page, together.

        Begin anew at step 0 and with another module; a checkpoint is loaded after this.
        """
        check_trainer(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)
        named = [callback for callback in trainer.callbacks if isinstance(callback, Named)]
        first = named[0] if named else self
        self._warn_once = WarnOnce() if first is self else first._warn_once
        if first is not self:
            self._run_records = first._run_records
        elif stage == "fit" and not trainer.global_step:
            self._run_records = RunRecords()
        if stage != "fit":
            return
        twins = [other for other in named if other is not self and other.name == self.name]
        if twins:
            raise ConfigurationError(
                "`name` must be different for each of the callbacks of one Trainer. Got "
                f"{self.name!r} for {type(self).__name__} and {type(twins[0]).__name__}: give one "
                f"of them another, such as name='{self.name}2'."
            )
        check_strategy(trainer, type(self).__name__)
        is_another = self._module is not None and self._module() is not pl_module
        self._module = weakref.ref(pl_module)
        if is_another or trainer.global_step == 0:
            self.n_steps = 0
        self.begin(trainer, is_another=is_another)

    @abstractmethod
    def begin(self, trainer: Any, *, is_another: bool) -> None:
        """Forget what belongs to an earlier fit.

        Args:
            trainer: The trainer.
            is_another: Whether that fit was of another module.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as if uninterrupted."""
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; what an older checkpoint lacks starts anew, with a warning."""
        if missing := sorted(self.state_dict().keys() - state_dict.keys()):
            rank_zero_warn(
                f"{self.state_key}: the checkpoint lacks {missing}, as one of an older version "
                "may; they start anew."
            )
        self.n_steps = state_dict.get("n_steps", 0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count steps from here."""
        self._last_global_step = trainer.global_step

    def advanced(self, trainer: Any) -> bool:
        """Return whether the batch that just ended made an optimizer step, and count it."""
        if trainer.global_step == self._last_global_step:
            return False
        self._last_global_step = trainer.global_step
        self.n_steps += 1
        return True

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the other processes."""
        super().teardown(trainer, pl_module, stage)
        if self._shared is not None:
            self._shared.close()
        self._shared = None

    @abstractmethod
    def summary(self) -> str:
        """Return in words what was measured so far, and what to do."""

    def tell(self) -> None:
        """Print the summary, on the first process, if a person wants it."""
        if self.verbose:
            rank_zero_info(f"\n{self.summary()}")

    def output(self, trainer: Any, step: int, **options: Any) -> Output:
        """Return where the results of one probe go."""
        return Output(trainer, self.name, step, self._warn_once, self._run_records, **options)


def ended_by_hand(trainer: Any, exception: BaseException) -> bool:
    """Return whether a person has ended a fit."""
    return isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit"
