"""Callbacks with a name, and what those of one Trainer share: warnings once, one page."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.callbacks.before_steps import BeforeSteps
from lightning_landscape.callbacks.strategies import check_trainer
from lightning_landscape.reporting.output import Output, WarnOnce
from lightning_landscape.reporting.run_records import RunRecords


class Named(BeforeSteps):
    """A callback with a name: the first part of its tags, and what its state goes by.

    Args:
        name: Different from the names of the others in the same Trainer.

    Raises:
        ConfigurationError: If it is empty; at the start of fit if another has it too.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"`name` must be a word that is not empty. Got {name!r}.")
        self.name = name
        self._warn_once = WarnOnce()
        self._run_records = RunRecords()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a name that another callback has; warn once, and write one page, together."""
        check_trainer(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)
        named = [callback for callback in trainer.callbacks if isinstance(callback, Named)]
        first = named[0] if named else self
        self._warn_once = WarnOnce() if first is self else first._warn_once
        if first is not self:
            self._run_records = first._run_records
        elif stage == "fit" and not trainer.global_step:
            self._run_records = RunRecords()
        twins = [other for other in named if other is not self and other.name == self.name]
        if stage == "fit" and twins:
            raise ConfigurationError(
                "`name` must be different for each of the callbacks of one Trainer. Got "
                f"{self.name!r} for {type(self).__name__} and {type(twins[0]).__name__}: give one "
                f"of them another, such as name='{self.name}2'."
            )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the other processes."""
        super().teardown(trainer, pl_module, stage)
        self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the other processes."""
        super().on_exception(trainer, pl_module, exception)
        self._leave()

    @abstractmethod
    def _leave(self) -> None:
        """Give up what is shared with the other processes."""

    def output(self, trainer: Any, step: int, **options: Any) -> Output:
        """Return where the results of one probe go."""
        return Output(trainer, self.name, step, self._warn_once, self._run_records, **options)
