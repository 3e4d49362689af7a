"""What both monitors share: when to probe, what it may cost, and what happens on failure."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from lightning_landscape._lightning import (
    as_configuration,
    logger_step,
    rank_zero_info,
)
from lightning_landscape.callbacks.budget import (
    AUTO_SHARE,
    Budget,
    Schedule,
    describe_cost,
    short,
)
from lightning_landscape.callbacks.named import Named, ended_by_hand
from lightning_landscape.checks import check_bool, check_choice, check_share, check_whole
from lightning_landscape.engine.batches import KeptBatch
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.lockstep import Lockstep
from lightning_landscape.engine.objective import ModuleObjective
from lightning_landscape.engine.probing import opened
from lightning_landscape.engine.steps import LossFn, loss_step
from lightning_landscape.measures.words import counted
from lightning_landscape.measures.words_answers import answer_cost
from lightning_landscape.params import Params
from lightning_landscape.reporting.output import Output

OnError = Literal["warn", "raise"]
MaxOverhead: TypeAlias = float | Literal["auto"] | None
Figures: TypeAlias = Literal["last", "all", False]

_OPENING = 5  # evaluations that it takes to open a module and to time one evaluation


class Monitor(Named):
    """A callback that probes the loss now and then while training goes on, and changes nothing.

    A subclass says what a probe is (`probe`) and how many evaluations it takes (`n_least`), and may
    check more at the start of fit (`check`).
    """

    default_name: ClassVar[str]
    step_share: ClassVar[float]  # what an evaluation of a batch takes of a training step
    last: Any  # what the last probe found; None or empty before the first

    def __init__(
        self,
        schedule: Schedule,
        mode: Mode,
        loss_fn: LossFn | None,
        max_overhead: MaxOverhead,
        seed: int,
        on_error: OnError,
        details: bool,
        figures: Figures,
        verbose: bool,
        name: str,
    ) -> None:
        super().__init__(name, schedule, loss_fn, verbose)
        with as_configuration():
            self.mode: Mode = check_choice("mode", mode, get_args(Mode))
            self.on_error: OnError = check_choice("on_error", on_error, get_args(OnError))
            self.figures: Figures = check_choice("figures", figures, ("last", "all", False))
            self.seed = check_whole("seed", seed, least=0)
            if max_overhead != "auto":
                check_share("max_overhead", max_overhead)
            self.details = check_bool("details", details)
        self.max_overhead: MaxOverhead = max_overhead
        self.budget = Budget()
        self._is_probed = False  # no batch was trained on since the last probe

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint; one for each name."""
        return f"{type(self).__name__}(name={self.name!r})"

    @property
    def title(self) -> str:
        """The name of the monitor in messages: with `name` if it was given one."""
        return type(self).__name__ if self.name == self.default_name else self.state_key

    @property
    def shares(self) -> bool:
        """Whether it shares a twentieth of the time with the other monitors of its Trainer."""
        return self.max_overhead == "auto" and not self.schedule.is_given

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward passes in one evaluation."""

    @property
    @abstractmethod
    def n_least(self) -> int:
        """Evaluations in the next probe, at least."""

    @abstractmethod
    def probe(self, trainer: Any, module: Any, step: int, *, is_last: bool = False) -> int:
        """Measure and report at the training step `step`.

        Args:
            trainer: The trainer.
            module: The module.
            step: The step of the user's own scalars.
            is_last: The fit has ended: the probe is made even if the budget does not afford it.

        Returns:
            How many evaluations were made; 0 if none, so that there is nothing to report.
        """

    def check(self, trainer: Any, module: Any) -> None:
        """Raise if the settings do not fit the module."""
        loss_step(module, self.loss_fn)

    @abstractmethod
    def forget(self) -> None:
        """Forget what was measured in another training."""

    @abstractmethod
    def forget_batches(self) -> None:
        """Forget the batches of an earlier fit, and what was measured on them."""

    def begin(self, trainer: Any, *, is_another: bool) -> None:
        """Forget what belongs to an earlier fit."""
        if is_another:
            self.budget.forget()
        if is_another or trainer.global_step == 0:
            self.forget()
        self.forget_batches()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out what cannot work before training begins."""
        self.check(trainer, pl_module)
        self._shared = Lockstep()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._is_probed = False
        self.budget.share = self._share(trainer)
        self.budget.start()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start to time the step."""
        self.budget.step_begins()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and probe when one is due."""
        self.budget.step_ended()
        self._is_probed = False
        if self.advanced(trainer) and self.schedule.due_after_step(self.n_steps):
            self.run_probe(trainer, pl_module, logger_step(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Probe when one is due after this epoch, or once in a fast development run."""
        if self.schedule.due_after_epoch(trainer.current_epoch) or trainer.fast_dev_run:
            self.run_probe(trainer, pl_module, last_step(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so if a person would otherwise wait for numbers that did not come."""
        left_out, share = self.budget.n_left_out, 100 * (self.budget.share or 0.0)
        if left_out["probe"] and self.schedule.is_fixed:
            n, takes = left_out["probe"], short(self.foretold())
            rank_zero_info(
                f"{self.title}: {counted(n, 'probe')} {'was' if n == 1 else 'were'} left out to "
                f"stay within {share:.3g} % of the time; one takes about {takes} s."
            )
        if left_out["figures"]:
            rank_zero_info(
                f"{self.title}: {counted(left_out['figures'], 'probe')} without figures, to stay "
                f"within {share:.3g} % of the time; the numbers are there."
            )
        if not (left_out["probe"] or self.budget.spent["probe"]):
            rank_zero_info(
                f"{self.title}: no probe was due, the fit was shorter than {self.schedule}"
                f"{self._steps_counted()}."
            )

    def _steps_counted(self) -> str:
        """Say what counts as a step: with several optimizers `global_step` is larger."""
        if self.schedule.every_n_steps is None:
            return ""
        return f" ({self.n_steps} so far: batches on which an optimizer stepped, each counted once)"

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the page of the run, after the last probe of every monitor; the first one does."""
        self._write_page(trainer)
        self.budget.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Tell what was measured, and write the page, if a person has ended the fit."""
        super().on_exception(trainer, pl_module, exception)
        if ended_by_hand(trainer, exception) and self.last:
            self.tell()
            self._write_page(trainer)

    def _say_cost(self) -> str:
        """Say in words what it took of the fit."""
        budget = self.budget
        return answer_cost(budget.total(), budget.overhead(), budget.share)

    def _write_page(self, trainer: Any) -> None:
        output = self.output(trainer, self.n_steps)
        self.guarded(output.page, "Writing the page", spends="figures")
        if self.verbose and self.budget.spent["probe"]:
            output.say_if_lost()

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
            lockstep=self._shared,
        )

    def run_probe(self, trainer: Any, module: Any, step: int) -> None:
        """Probe if the budget affords it, unless these weights were probed already."""
        if not self._is_probed and self.affords_probe(trainer, self.foretold()):
            self.run(trainer, module, step)

    def run(self, trainer: Any, module: Any, step: int, *, is_last: bool = False) -> None:
        """Probe, and remember what it took; a failure costs one warning, and the training never."""
        before = self.budget.spent_on("probe")

        def probe() -> None:
            if n_made := self.probe(trainer, module, step, is_last=is_last):
                self._is_probed = True
                self._learn_cost(n_made, self.budget.spent_on("probe") - before)

        self.guarded(probe, "The probe", spends="probe")

    def guarded(self, action: Callable[[], None], what: str, *, spends: str = "keeping") -> None:
        """Do something that must not stop the training, on the budget's time."""
        try:
            with self.budget.spending(spends):
                action()
        except Exception as error:
            if self.on_error == "raise" and isinstance(error, StopIteration):
                raise RuntimeError(f"{what} of {self.title} failed") from error  # ends no epoch
            if self.on_error == "raise":
                raise
            cause = describe_error(error)
            self._warn_once(
                f"failure of {self.title}",
                f"{what} of {self.title} failed: {cause}. "
                "Weights, buffers, random numbers and logs are as they were, and training goes on; "
                "further failures, and this one in other callbacks, are not reported. See it "
                "raised with on_error='raise'.",
                cause,
            )

    def inform_once(self, kind: str, message: str) -> None:
        """Say something once a fit."""
        if self._warn_once.first(f"{self.title}: {kind}"):
            rank_zero_info(message)

    def foretold(self) -> float:
        """Return the seconds that the next probe will take: as the last one did.

        Before one was timed it is what it takes to open the module and to time an evaluation, by
        what a training step takes.
        """
        seconds = self.budget.expected.get("evaluation")
        if seconds is not None:
            return self.n_least * seconds
        step = self.budget.expected.get("step", 0.0)
        return _OPENING * self.passes * self.step_share * step

    def affords_probe(self, trainer: Any, seconds: float) -> bool:
        """Return whether the budget allows a probe that takes so long, the same on every rank."""
        if self.budget.share is None or trainer.fast_dev_run:
            return True
        evenly = not self.schedule.is_fixed
        decision = self.budget.affords("probe", at_least=seconds, evenly=evenly)
        if trainer.world_size > 1:
            decision = trainer.strategy.reduce_boolean_decision(decision, all=True)
        self.budget.n_left_out["probe"] += not decision
        return decision

    def affords_figures(self, output: Output) -> bool:
        """Return whether somebody would see figures of this probe, and the budget allows them."""
        if not (self.figures and output.plots):
            return False
        affords = self.budget.affords("figures")
        self.budget.n_left_out["figures"] += not affords
        return affords

    def announce(self, evaluations: Sequence[int], seconds: float) -> None:
        """Say what a probe takes, before the first one is over."""
        budget = self.budget
        if budget.announced is None:
            budget.announced = seconds
            training = budget.elapsed() - budget.total()
            cost = describe_cost(
                evaluations,
                self.passes,
                seconds,
                self.schedule,
                period=training / (1 + budget.n_left_out["probe"]),
                share=budget.share,
            )
            rank_zero_info(f"\n{self.title}: {cost}.")

    def _learn_cost(self, n_made: int, took: float) -> None:
        """Remember what a probe took, and correct what was said of the first."""
        self.budget.expect("evaluation", took / n_made)
        said, self.budget.announced = self.budget.announced, math.nan
        if said is not None and not said / 1.3 <= took <= said * 1.3 and not math.isnan(said):
            rank_zero_info(f"{self.title}: the first probe took {short(took)} s.")

    def _share(self, trainer: Any) -> float | None:
        """Return the share of the time that probes may take; None for no limit."""
        if self.max_overhead != "auto":
            return self.max_overhead
        if not self.shares:
            return None
        return AUTO_SHARE / sum(isinstance(c, Monitor) and c.shares for c in trainer.callbacks)


def last_step(trainer: Any) -> int:
    """Return the step of the user's last scalars, once the batch they are of has ended."""
    return max(logger_step(trainer) - 1, 0)
