"""The callback that watches, while you train, whether you sit in an asymmetric valley."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_landscape._lightning import as_configuration, rank_zero_info, rank_zero_warn
from lightning_landscape.callbacks.asymmetry_report import (
    LandscapeProbe,
    add_rises,
    history_of,
    is_one_of_few,
    plot_probe,
    state_of,
)
from lightning_landscape.callbacks.asymmetry_settings import (
    check_swa,
    families_that_move,
    find_swa,
    moves_now,
    n_weights,
    refuse_lone_samples,
)
from lightning_landscape.callbacks.base import Figures, MaxOverhead, Monitor, OnError, last_step
from lightning_landscape.callbacks.budget import Schedule, short
from lightning_landscape.callbacks.costs import ProbePlan, TimedObjective, seconds_besides
from lightning_landscape.callbacks.kept import KeptBatches
from lightning_landscape.callbacks.swa import SWA
from lightning_landscape.checks import check_bool, check_choice, check_whole
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.objective import ModuleObjective
from lightning_landscape.engine.steps import LossFn
from lightning_landscape.measures.asymmetry import scoring_grid
from lightning_landscape.measures.directions import Normalize
from lightning_landscape.measures.line import LINE, evaluate_line
from lightning_landscape.measures.survey import checked_families, numbers_of_directions, survey
from lightning_landscape.objective import Objective
from lightning_landscape.ranks import lowest
from lightning_landscape.reporting.arrays import survey_arrays
from lightning_landscape.reporting.results import probe_data
from lightning_landscape.reporting.scalars import as_markdown

__all__ = ["AsymmetryMonitor"]


class AsymmetryMonitor(Monitor):
    """Measure, while a LightningModule trains, whether its weights lie in an asymmetric valley.

    Add it to the Trainer's callbacks; change nothing else. Training stays bit-identical.

    A probe evaluates the loss along `n_directions` random directions per family, the same each
    time, on the first `n_batches` of the fit, at `n_points` alphas from `-radius` to `radius`. It
    returns

    - `landscape/<family>/rate`, `rate_low`, `rate_high`: the share of asymmetric directions and its
      95 % interval; off-minimum and unresolved directions count as not asymmetric;
    - `landscape/<family>/area`, `area_low`, `area_high`: the median over the directions of the
      score of `score_asymmetry`, and its 95 % interval from 6 directions on;
    - with `swa`, the line from the current weights to the average, under `landscape/swa/`;
    - figures of slices and history, a summary in words, the slices as `.npz`;
    - `landscape/seconds` and `landscape/overhead`: what it cost, and as a share of the fit so far.

    One probe costs `len(families) * n_directions * n_points` evaluations (312 by default). The line
    costs 31 more once there is an average. Two more find out what the step writes to. An evaluation
    is a forward pass over each kept batch. `mode="recalibrated"` adds another pass over the
    training batches. The log gives the time in seconds during the first probe.

    Args:
        every_n_epochs: Probe after every so many epochs.
        every_n_steps: Probe after every so many optimizer steps instead. Without either, as often
            as `max_overhead` allows. The last weights of a fit are always probed. If this takes
            longer than the budget and ten seconds, fewer directions are sampled, at least 3.
        families: How directions are sampled: `"<distribution>[@<group>]"`, see `sample_direction`.
        n_directions: Directions per family; `"auto"` for as many as `precision` needs, 17 to 104 at
            the default. The first 8 are evaluated at all alphas. Only the rate counts the others.
        n_points: Alphas per direction; 4 k + 1.
        radius: The largest alpha, in the unit of `normalize`.
        normalize: The length of the directions, see `sample_direction`.
        swa: An `SWA` callback of the same Trainer to measure the line to; or the name of one, such
            as `"swa"`, for a YAML file.
        n_batches: Training batches to keep and evaluate: the first batches of the fit (also of a
            resumed one), at most one epoch.
        validation: Whether to evaluate as many validation batches too, if the training step can.
        mode: How the network is run, see `probing`.
        loss_fn: `loss_fn(module, batch)` instead of `training_step`; needed with manual
            optimisation and `dataloader_iter`.
        max_overhead: The share of the fit's wall time that probes may take. `"auto"` is 0.05 for
            all such monitors together if no frequency is given, and no limit if one is given.
            None for no limit.
        seed: Seed of the directions and of the random numbers inside evaluations.
        on_error: `"warn"`: a probe that fails restores everything, warns once, and training goes
            on. `"raise"`: it raises.
        precision: With `n_directions="auto"`, half the width of the rate's interval at which
            sampling stops, at least 0.03; no effect otherwise.
        details: Whether loggers get every number as a scalar, and not only `rate`, `area` and their
            intervals, the line's `gap`, and `overhead`. Other callbacks always see all of them.
        figures: `"last"`: figures of the last probe for TensorBoard, of every probe for other
            loggers. `"all"`: of every probe for every logger. False: none.
        verbose: Whether to print the summary at the end of fit.
        name: The first part of its tags; must be unique in a Trainer. Also used in checkpoints and
            file names.

    Raises:
        ConfigurationError: A `MisconfigurationException` and `ValueError`, at construction or at
            the start of fit, if a setting is out of range or does not fit the module.

    References:
        He, Huang, Yuan (2019), Asymmetric Valleys, arXiv:1902.00744.

    Example:
        >>> monitor = AsymmetryMonitor(every_n_epochs=5, families=("gaussian", "uniform@norm"))
        >>> monitor.n_evaluations
        208
    """

    default_name = "landscape"
    step_share = 0.4

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        families: Sequence[str] = ("gaussian", "uniform@norm", "sign"),
        n_directions: int | Literal["auto"] = 8,
        n_points: int = 13,
        radius: float = 0.6,
        normalize: Normalize = "filter",
        swa: str | SWA | None = None,
        n_batches: int = 4,
        validation: bool = False,
        mode: Mode = "train",
        loss_fn: LossFn | None = None,
        max_overhead: MaxOverhead = "auto",
        seed: int = 0,
        on_error: OnError = "warn",
        precision: float = 0.1,
        details: bool = False,
        figures: Figures = "last",
        verbose: bool = True,
        name: str = default_name,
    ) -> None:
        as_afforded = Schedule.of() if max_overhead is None else Schedule()
        schedule = Schedule.of(every_n_epochs, every_n_steps, default=as_afforded)
        super().__init__(
            schedule, mode, loss_fn, max_overhead, seed, on_error, details, figures, verbose, name
        )
        self.n_directions: int | Literal["auto"] = n_directions
        self.precision = precision
        with as_configuration():
            self.validation = check_bool("validation", validation)
            self.families = checked_families(families)
            numbers_of_directions(n_directions, precision=precision)
            self.n_batches = check_whole("n_batches", n_batches)
            self.normalize: Normalize = check_choice("normalize", normalize, get_args(Normalize))
            self.swa = check_swa(swa)
            self.alphas = scoring_grid(radius, n_points)
        self._swa = None if isinstance(swa, str) else swa  # by name it is found at the start
        self._moving = self.families  # those with something to move in the module at hand
        self.forget()
        self.forget_batches()

    @property
    def n_evaluations(self) -> int:
        """Evaluations in one probe; with `"auto"` the most."""
        return self._plan.n_evaluations

    @property
    def n_least(self) -> int:
        """Evaluations in the next probe, at least."""
        return self._plan.n_least

    @property
    def passes(self) -> int:
        """Forward passes in one evaluation."""
        n_train = len(self.kept.train) or self.n_batches
        n_kept = n_train + (len(self.kept.validation) or self.n_batches * self.validation)
        return n_kept + (n_train if self.mode == "recalibrated" else 0)

    @property
    def _average(self) -> SWA | None:
        """The average to measure the line to, once there is one."""
        swa = self._swa
        return swa if swa is not None and swa.n_averaged else None

    @property
    def _plan(self) -> ProbePlan:
        """What the next probe evaluates."""
        n_whole, n_most = numbers_of_directions(self.n_directions, precision=self.precision)
        n_line = 0 if self._average is None else len(LINE)
        return ProbePlan(len(self._moving), len(self.alphas), n_whole, n_most, n_line)

    def forget_batches(self) -> None:
        """Forget the batches of an earlier fit, and what was measured on them."""
        self.kept = KeptBatches(self.n_batches)
        self.last: LandscapeProbe | None = None

    def forget(self) -> None:
        """Forget what was measured in another training."""
        self.history: dict[str, list[tuple[int, Tensor]]] = {}

    def check(self, trainer: Any, module: Any) -> None:
        """Raise if a family or `swa` does not fit; leave out families that move nothing."""
        super().check(trainer, module)
        self._swa = find_swa(self.swa, trainer.callbacks)
        with as_configuration():
            self._moving = families_that_move(self.families, module)

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Keep the first batches of the fit."""
        kept = self.kept
        if kept.wants_training(trainer.current_epoch):
            self.guarded(lambda: kept.keep(kept.train, batch, index), "Keeping a batch")
            if len(kept.train) == 1:
                opened = partial(self.opened, trainer, pl_module, kept.all)
                refuse_lone_samples(opened, pl_module, kept.train[0], self.mode)

    def before_validation_step(
        self, trainer: Any, pl_module: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        """Keep the first validation batches of the fit."""
        kept, in_fit = self.kept, trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.validation and in_fit and kept.wants_validation(trainer.global_step):
            self.guarded(lambda: kept.keep(kept.validation, batch, index), "Keeping a batch")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Discard a batch that the step skipped, and run a probe that is due."""
        if self.skipped(outputs):
            self.kept.let_go(batch_idx)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Probe the last weights, unless that was done, and plot the last probe."""
        super().on_train_end(trainer, pl_module)
        if not self._is_probed:
            self.run(trainer, pl_module, last_step(trainer), is_last=True)
        result = self.last
        if result is not None and self.figures == "last":
            output = self.output(trainer, result.step, figures="tensorboard")
            plot = partial(plot_probe, output, result, self.history, self.alphas)
            self.guarded(plot, "Plotting", spends="figures")
        self.tell()

    def summary(self) -> str:
        """Return in words what the last probe measured, its step, and what to do."""
        swa = [] if self._swa is None else [self._swa.summary()]
        if self.last is None:
            return "\n".join([f"{self.title} has measured nothing.", *swa])
        cost = self._say_cost()
        return "\n".join(filter(None, [self.last.describe(), *swa, cost]))

    def probe(self, trainer: Any, module: Any, step: int, *, is_last: bool = False) -> int:
        """Measure the slices and the line, then report them."""
        began = self.budget.total()
        self._moving = tuple(family for family in self.families if moves_now(family, module))
        kept = self.kept.on_every_rank(module.device)
        if not kept.train or not self.n_least:
            return 0
        if self.validation and not kept.validation and not self.kept.leaves_out_validation:
            self.inform_once(
                "no validation batch",
                f"{self.title}: validation=True, and no validation batch was seen yet: this probe "
                "is on training batches only.",
            )
        measure = partial(self._measure, trainer, module, step, is_last)
        with self.kept.replaced_on_failure(self._tell_of_replaced):
            result, n_made = self.kept.attempt(measure, kept, self._tell_of_left_out)
        if result is not None:
            self._report(trainer, result, began)
        return n_made

    def _measure(
        self, trainer: Any, module: Any, step: int, is_last: bool, kept: KeptBatches
    ) -> tuple[LandscapeProbe | None, int]:
        """Return what was found, None if the budget affords nothing, and how many evaluations."""
        began = self.budget.spent_on("probe")
        with self.opened(trainer, module, kept.all) as objective:
            objective.prepare()
            opening = self.budget.spent_on("probe") - began
            n_most = self._affordable(trainer, module, objective, is_last=is_last)
            if not n_most:
                return None, 0
            announce = partial(self._announce, objective, module, opening, n_most)
            timed: Any = TimedObjective(objective, announce)
            found = self._survey(timed, module, step, n_most, kept.is_validation)
            return found, objective.n_evaluations

    def _tell_of_replaced(self) -> None:
        self.inform_once(
            "batches are replaced",
            f"{self.title}: a probe failed on the batches it had kept. The next ones that are "
            "trained on take their place, now and whenever it fails again.",
        )

    def _tell_of_left_out(self, error: Exception) -> None:
        rank_zero_warn(
            f"{self.title}: the training step fails on validation batches, so this fit is measured "
            f"on training batches only: {describe_error(error)}. Use a `loss_fn` that takes both "
            "kinds, or validation=False."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that its figure goes on after a restart."""
        return {**super().state_dict(), "alphas": self.alphas, "history": state_of(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; a history on another grid is discarded."""
        super().load_state_dict(state_dict)
        alphas = state_dict.get("alphas")
        if alphas is not None and torch.equal(alphas, self.alphas):
            self.history = history_of(state_dict.get("history", {}))

    def _affordable(
        self, trainer: Any, module: Any, objective: ModuleObjective, *, is_last: bool
    ) -> int:
        """Return how many directions per family to sample; 0 if the budget affords no probe.

        Decided before anything is measured, so that what the directions show has no part in it.
        """
        plan, budget = self._plan, self.budget
        if budget.share is None or trainer.fast_dev_run:
            return plan.n_most
        each = max(budget.expected.get("evaluation", 0.0), objective.seconds)
        if "evaluation" not in budget.expected and self._moving:
            each += seconds_besides(
                objective, module, self._moving[0], self.normalize, plan.n_points
            )
        if not is_last and not self.affords_probe(trainer, plan.n_least * each):
            budget.expect("evaluation", each)
            return 0
        n = lowest(plan.affordable(budget.left(), each, is_last=is_last), module.device)
        if n < plan.n_whole:
            rank_zero_info(
                f"{self.title}: the probe of the last weights takes {n} of {plan.n_whole} "
                f"directions; a whole one would take about {short(plan.n_least * each)} s."
            )
        return n

    def _announce(
        self, objective: ModuleObjective, module: Any, opening: float, n_most: int, direction: float
    ) -> None:
        """Say what a whole probe takes, from what a direction of the first family took."""
        if n_most < self._plan.n_whole:
            return
        plan, moved = self._plan, [n_weights(objective, one, module) for one in self._moving]
        seconds = opening + plan.seconds(direction, objective.seconds, moved)
        self.announce([plan.n_least, plan.n_evaluations], seconds)

    def _survey(
        self, objective: Objective, module: Any, step: int, n_most: int, validation: list[bool]
    ) -> LandscapeProbe:
        surveys = {}
        if self._moving:
            surveys = survey(
                objective,
                self._moving,
                module=module,
                n_directions=self.n_directions,
                n_points=len(self.alphas),
                radius=float(self.alphas[-1]),
                normalize=self.normalize,
                seed=self.seed,
                precision=self.precision,
                n_most=n_most,
                validation=validation,
            )
        average = self._average
        to = None if average is None else average.weights
        line = [] if to is None else evaluate_line(objective, to, validation, label="swa")
        return LandscapeProbe(step, surveys, line)

    def _report(self, trainer: Any, found: LandscapeProbe, began: float) -> None:
        """Hand out the numbers; plot where somebody sees it and the budget affords it."""
        self.last = found
        which = "all" if self.figures == "all" else "others"
        output = self.output(trainer, found.step, figures=which)
        add_rises(self.history, found)
        if self._swa is not None and found.line:
            self._swa.remember_line(found.line_scores, found.step, self.mode)
        output.arrays(self.name, survey_arrays(found.surveys, found.line))
        if self.affords_figures(output):
            with self.budget.spending("figures"):
                plot_probe(output, found, self.history, self.alphas)
        cost = {"seconds": self.budget.total() - began, "overhead": self.budget.overhead()}
        scalars = found.scalars(with_number=self.n_directions == "auto")
        output.scalars({**scalars, **cost}, logged=lambda tag: self.details or is_one_of_few(tag))
        for record in (*probe_data(found.surveys, found.line), ("cost", "probe", cost)):
            output.record(*record)
        if self._swa is not None and (said := "\n".join(self._swa.on_metrics())):
            output.record("words", "swa", {"text": said})
        output.text("summary", as_markdown(self.summary()))
