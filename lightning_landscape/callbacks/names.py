"""What the callbacks of one Trainer are told apart by."""

from __future__ import annotations

from typing import Any

from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.callbacks.before_steps import BeforeSteps
from lightning_landscape.callbacks.strategies import check_trainer
from lightning_landscape.reporting.output import Output, WarnOnce

__all__ = ["Named"]


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

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a name that another callback has; warn once together, not once each."""
        check_trainer(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)
        named = [callback for callback in trainer.callbacks if isinstance(callback, Named)]
        self._warn_once = named[0]._warn_once if named and named[0] is not self else WarnOnce()
        others = [other for other in trainer.callbacks if other is not self]
        twins = [o for o in others if isinstance(o, Named) and o.name == self.name]
        if stage == "fit" and twins:
            raise ConfigurationError(
                "`name` must be different for each of the callbacks of one Trainer. Got "
                f"{self.name!r} for {type(self).__name__} and {type(twins[0]).__name__}: give one "
                f"of them another, such as name='{self.name}2'."
            )

    def output(self, trainer: Any, step: int) -> Output:
        """Return where the results of one probe go."""
        return Output(trainer, self.name, step, self._warn_once)
