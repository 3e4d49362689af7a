"""What both monitors share: when to probe, which batches to keep, what happens on failure."""

from __future__ import annotations

import math
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, get_args

from lightning_landscape._lightning import (
    ConfigurationError,
    logger_step,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_landscape.callbacks.budget import (
    Budget,
    Schedule,
    check_share,
    check_whole,
    predicted_cost,
)
from lightning_landscape.callbacks.names import Named
from lightning_landscape.callbacks.strategies import check_strategy
from lightning_landscape.engine.batches import KeptBatch
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.probing import (
    LossFn,
    ModuleObjective,
    check_loss_fn,
    loss_step,
    opened,
)
from lightning_landscape.params import Params

__all__ = ["Monitor", "OnError"]

OnError = Literal["warn", "raise"]

# twice what they took where measured; guesses until they are timed
_FIGURE_SECONDS, _FILE_SECONDS = 0.4, 0.1


class Monitor(Named):
    """A callback that probes the loss now and then while training goes on, and changes nothing.

    A subclass says what a probe is (`probe`) and may check more at the start of fit (`check`).
    """

    default_name: ClassVar[str]

    def __init__(
        self,
        schedule: Schedule,
        *,
        mode: Mode,
        loss_fn: LossFn | None,
        max_overhead: float | None,
        seed: int,
        on_error: OnError,
        name: str,
    ) -> None:
        super().__init__(name)
        if mode not in get_args(Mode):
            raise ConfigurationError(f"`mode` must be one of {list(get_args(Mode))}. Got {mode!r}.")
        if on_error not in get_args(OnError):
            raise ConfigurationError(
                f"`on_error` must be one of {list(get_args(OnError))}. Got {on_error!r}."
            )
        self.schedule = schedule
        self.mode: Mode = mode
        self.loss_fn = check_loss_fn(loss_fn)
        self.max_overhead = check_share(max_overhead)
        self.seed = check_whole("seed", seed, least=0)
        self.on_error: OnError = on_error
        self.n_steps = 0  # batches that advanced the trainer
        self._last_global_step = 0
        self._module: weakref.ref[Any] | None = None
        self._warned = False
        self._forecast = math.nan  # seconds the next probe will take, at least
        self._besides: float | None = None  # seconds besides evaluations and figures; None: untimed
        self._drawing: float | None = None  # seconds of the figures; None: untimed
        self._drawn = 0.0  # seconds of the figures of the last probe, 0 if there were none
        self._owed = 0.0  # seconds of probes since the last with figures, that had no time for them
        self._n_undrawn = 0
        self._evaluating = 0.0  # seconds of evaluations in the last probe, 0 if there were none
        self._least = 1.0  # the share of them that the next cannot do without
        self._promised: float | None = None  # what the first was said to take
        self._n_due, self._n_left_out = 0, 0
        self._budget = Budget(None, 0.0)
        self._period_began = 0.0

    @property
    def state_key(self) -> str:
        """What the state goes by in a checkpoint; one for each name."""
        return f"{type(self).__name__}(name={self.name!r})"

    @property
    def title(self) -> str:
        """What it is called in messages: with its name if it was given one."""
        return type(self).__name__ if self.name == self.default_name else self.state_key

    @abstractmethod
    def probe(self, trainer: Any, module: Any, step: int) -> None:
        """Measure and report, at the training step `step`."""

    @property
    def n_figures(self) -> int:
        """Figures drawn in one probe."""
        return 0

    @property
    def reporting(self) -> float:
        """Seconds a probe takes besides evaluations, with figures where it must not lack them.

        Under a budget there is a time for numbers alone, and as much for figures after that.
        """
        besides = _FILE_SECONDS if self._besides is None else self._besides
        return besides + (self._figures if self._owed > self._figures else 0.0)

    @property
    def _figures(self) -> float:
        """Seconds the figures of a probe take."""
        return self.n_figures * _FIGURE_SECONDS if self._drawing is None else self._drawing

    def check(self, trainer: Any, module: Any) -> None:
        """Raise if the settings do not fit the module."""
        loss_step(module, self.loss_fn)

    def forget(self) -> None:
        """Forget what was seen in another training."""
        self.n_steps = 0
        self._forecast, self._besides, self._drawing = math.nan, None, None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew at step 0 and with another module; a checkpoint is loaded after this."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        another = self._module is not None and self._module() is not pl_module
        if another or trainer.global_step == 0:
            self.forget()
        self._module = weakref.ref(pl_module)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be sent to another process."""
        return {**self.__dict__, "_module": None}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out what cannot work before training begins."""
        self.check(trainer, pl_module)
        self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clocks."""
        self._last_global_step = trainer.global_step
        self._budget = Budget(self.max_overhead, time.monotonic())
        self._period_began = self._budget.started
        self._n_due, self._n_left_out, self._n_undrawn, self._owed = 0, 0, 0, 0.0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so if a person would otherwise wait for numbers that did not come."""
        if self._n_left_out:
            rank_zero_info(
                f"{self.title}: {self._n_left_out} of {self._n_due} probes were left out to stay "
                f"within max_overhead={self.max_overhead}; one "
                f"{'was guessed to take' if self._besides is None else 'takes'} about "
                f"{self._forecast:.2g} s."
            )
        if self._n_undrawn:
            rank_zero_info(
                f"{self.title}: {self._n_undrawn} of {self._n_due - self._n_left_out} probes have "
                f"numbers and no figures, for which max_overhead={self.max_overhead} left no time."
            )
        if not self._n_due:
            rank_zero_info(
                f"{self.title}: no probe was due, the fit was shorter than {self.schedule}."
            )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and probe when one is due."""
        if self.advanced(trainer) and self.schedule.due_after_step(self.n_steps):
            self.run_probe(trainer, pl_module, logger_step(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Probe when one is due after this epoch, or once in a fast development run."""
        if self.schedule.due_after_epoch(trainer.current_epoch) or trainer.fast_dev_run:
            # the epoch loop has moved on to the step that comes next
            self.run_probe(trainer, pl_module, max(logger_step(trainer) - 1, 0))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as if uninterrupted."""
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.n_steps = state_dict["n_steps"]

    def advanced(self, trainer: Any) -> bool:
        """Return whether the batch that just ended made an optimizer step, and count it."""
        if trainer.global_step == self._last_global_step:
            return False
        self._last_global_step = trainer.global_step
        self.n_steps += 1
        return True

    def skipped(self, outputs: Any) -> bool:
        """Return whether the step gave no loss for the batch that just ended."""
        return self.loss_fn is None and not outputs

    def opened(
        self, trainer: Any, module: Any, batches: list[KeptBatch], *, at: Params | None = None
    ) -> AbstractContextManager[ModuleObjective]:
        """Open the module as an objective, in the way the settings say."""
        return opened(
            module,
            batches,
            at=at,
            trainer=trainer,
            loss_fn=self.loss_fn,
            mode=self.mode,
            seed=self.seed,
        )

    def run_probe(self, trainer: Any, module: Any, step: int) -> None:
        """Probe within the budget; a failure costs one warning, and the training never."""
        self._n_due += 1
        left_out, undrawn, began = self._n_left_out, self._n_undrawn, time.monotonic()
        if not self._affords(trainer, began):
            return
        self._evaluating = self._drawn = 0.0
        self.guarded(lambda: self.probe(trainer, module, step), "The probe")
        now = time.monotonic()
        if self._evaluating and self._n_left_out == left_out:  # else it was only opened
            self._learn_cost(now - began, undrawn=self._n_undrawn > undrawn)
        self._period_began = now

    def guarded(self, action: Callable[[], None], what: str) -> None:
        """Do something that must not stop the training, on the budget's time."""
        began = time.monotonic()
        try:
            action()
        except Exception as error:
            if self.on_error == "raise" and isinstance(error, StopIteration):
                raise RuntimeError(f"{what} of {self.title} failed") from error  # ends no epoch
            if self.on_error == "raise":
                raise
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"{what} of {self.title} failed: {type(error).__name__}: {error}. "
                    "Weights, buffers, random numbers and logs are as they were, and training goes "
                    "on; further failures are not reported. See it raised with on_error='raise'."
                )
        finally:
            self._budget.spent += time.monotonic() - began

    def announce(self, n_evaluations: int, seconds: float, trainer: Any, *, most: int = 0) -> bool:
        """Say once what a probe costs; return whether the budget allows this one.

        Args:
            n_evaluations: Evaluations in one probe.
            seconds: What one evaluation takes.
            trainer: Whose ranks all decide the same.
            most: Evaluations in the longest probe, where they differ.
        """
        now = time.monotonic()
        self._evaluating = n_evaluations * seconds
        self._forecast = self._evaluating + self.reporting
        if self._promised is None:
            self._promised = max(n_evaluations, most) * seconds
            period = now - self._period_began
            cost = predicted_cost(
                n_evaluations,
                seconds,
                self.schedule,
                period,
                most=most,
                limited=self.max_overhead is not None,
            )
            rarely = ", when there is time for them" if self.max_overhead is not None else ""
            on_top = f"; figures come on top{rarely}" if self.n_figures else ""
            rank_zero_info(f"\n{self.title}: {cost}{on_top}.")
        return self._affords(trainer, now)

    def draws(self, trainer: Any, began: float) -> bool:
        """Return whether to draw the figures of the probe that began then.

        Where nobody would see them there are none, and none where the budget has no time for them.
        """
        if not (trainer.loggers and trainer.is_global_zero):
            return False
        now = time.monotonic()
        affords = self._budget.plus(now - began).affords(self._figures, now)
        self._n_undrawn += not affords
        return affords

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Time what draws figures, apart from the rest of the probe."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._drawn += time.monotonic() - began

    def nearly_affords(self) -> bool:
        """Return whether it is worth preparing for a probe; ranks may differ."""
        return self._budget.affords(0.9 * self._forecast, time.monotonic())

    def cost_scalars(self, seconds: float) -> tuple[float, float]:
        """Return the seconds of a probe and the share of the fit that went into probes with it."""
        return seconds, self._budget.plus(seconds).overhead(time.monotonic())

    def _affords(self, trainer: Any, now: float) -> bool:
        """Return whether the budget allows the next probe, the same on every rank."""
        decision = self._budget.affords(self._forecast, now)
        if self.max_overhead is not None and trainer.world_size > 1:
            decision = trainer.strategy.reduce_boolean_decision(decision, all=True)
        self._n_left_out += not decision
        return decision

    def _learn_cost(self, took: float, *, undrawn: bool) -> None:
        """Expect of the next probe what this one took, and only half of what it was quicker."""
        self._besides = _settled(max(took - self._evaluating - self._drawn, 0.0), self._besides)
        if self._drawn:
            self._drawing = _settled(self._drawn, self._drawing)
        self._owed = self._owed + took if undrawn else 0.0
        self._forecast = self._least * self._evaluating + self.reporting
        self._correct(took)

    def _correct(self, took: float) -> None:
        """Say after the first probe if it took much longer than was said."""
        if self._promised is None:
            return
        if took > 1.5 * self._promised:
            rank_zero_info(
                f"{self.title}: the first probe took {took:.2g} s, figures and files included."
            )
        self._promised = math.inf


def _settled(seconds: float, before: float | None) -> float:
    return seconds if before is None else max(seconds, (seconds + before) / 2)
