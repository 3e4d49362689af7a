"""The callback that watches, while you train, whether your step is too large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from lightning_landscape._lightning import as_configuration, logger_step
from lightning_landscape.callbacks.base import Figures, MaxOverhead, Monitor, OnError
from lightning_landscape.callbacks.breakdown_report import (
    StepHistory,
    StepReport,
    describe_steps,
    plot_step,
)
from lightning_landscape.callbacks.budget import Schedule
from lightning_landscape.callbacks.costs import LAST_PROBE, TimedObjective
from lightning_landscape.callbacks.kept import Window, ends_epoch, ends_fit
from lightning_landscape.checks import check_bool
from lightning_landscape.engine.batches import keep_batch
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.steps import LossFn
from lightning_landscape.measures.breakdown import etas_of, measure_breakdown
from lightning_landscape.measures.directions import sample_direction, seeded_generator
from lightning_landscape.measures.gradients import Start, gradient_direction
from lightning_landscape.measures.learning_rates import rates_in_use
from lightning_landscape.measures.steps import (
    Update,
    measure_step,
    optimizer_steps,
    successive_cosine,
)
from lightning_landscape.objective import Objective
from lightning_landscape.params import Params, trainable
from lightning_landscape.ranks import everybody
from lightning_landscape.reporting.arrays import breakdown_arrays
from lightning_landscape.reporting.output import Output
from lightning_landscape.reporting.results import breakdown_data
from lightning_landscape.reporting.scalars import as_markdown, breakdown_text
from lightning_landscape.sharding import reshard, sharded_modules

__all__ = ["GradientBreakdownMonitor"]

_RANDOM = 1  # the stream of the random direction, apart from that of the evaluations


class GradientBreakdownMonitor(Monitor):
    """Measure, every so many steps, if the last optimizer step was too large, and for which layer.

    Add it to the Trainer's callbacks; change nothing else. Training stays bit-identical.

    Each probe starts at the weights **before** the last optimizer step, and measures along
    `directions`, on the batch of that step (the last batch of an accumulation window):

    - `"update"`: the optimizer's step, with momentum, decay and clipping. `eta` is a fraction of
      it: at `eta = 1` the weights are exactly those after the step;
    - `"gradient"`: the paper's figure 1, every tensor by the same relative step `eta`;
    - `"random"`: the same relative step in a random direction, the same one each time.

    For each direction it logs

    - `breakdown/<direction>/max`: how much the gradient of a layer changed, relative to its size,
      the largest over the layers; `layer/<name>` for each; `model`, what deep relative trust
      (model) says; `excess`, the largest breakdown / model. All at `eta = 1`, or at the last eta
      if 1 is not measured;
    - `breakdown/<direction>/descent_limit`, `break_even`, `trust_lr`: the relative step at which
      the loss stops falling, at which it is back at its start, and which Lemma 2 promises under the
      model. The first two are of one batch, and mostly follow the learning rate in mid-training;
    - a figure, its history over training (layers x steps), a text panel with the summary and a
      table of the layers, and all numbers as `.npz`.

    And of the step itself, at no extra pass, under `breakdown/step/`:

    - `relative_update`, `relative_gradient`: the largest `||dW|| / ||W||` and `||g|| / ||W||`;
    - `weight_gradient_cosine`: the one farthest from 0;
    - `successive_cosine`: between this step and the one before.

    Each of several optimizers has its own report under `breakdown/<optimizer>/`: the submodule that
    contains all its parameters, or its number. A step that changed no weight has no `"update"`.

    One probe costs exactly `1 + sum(len(etas))` gradient evaluations (13 by default): one at the
    start, shared by all directions, and one per eta and direction, for each optimizer; three more
    record what the step writes to. The weights are copied before a probed step and before the step
    ahead of it; with `every_n_epochs` at every step if the end of the epoch is not known (iterable
    datasets, manual optimisation). A probe holds at most six copies of the weights.

    Args:
        every_n_epochs: Measure the last step of every so many epochs.
        every_n_steps: Measure every n-th optimizer step instead; by default every 100th, and the
            last one of a fit that would end without a probe.
        directions: Directions to measure along: any of `"update"`, `"gradient"`, `"random"`.
        etas: Step sizes, ascending, above 0; for all directions, or a mapping from direction to
            etas. By default `DEFAULT_ETAS`: (.25, .5, 1, 2, 4) of the update, relative steps from
            1e-4 to 1e-1 for the others.
        mode: How the network is run, see `probing`.
        loss_fn: `loss_fn(module, batch)` instead of `training_step`; needed with manual
            optimisation and `dataloader_iter`. One loss judges the steps of all optimizers.
        max_overhead: The share of the fit's wall time that probes may take; a probe that would go
            over it is left out. `"auto"` and None as in `AsymmetryMonitor`.
        seed: Seed of the random direction and of the random numbers inside evaluations.
        on_error: `"warn"`: a probe that fails restores everything, warns once, and training goes
            on. `"raise"`: it raises.
        layers: Whether loggers get a scalar for each layer.
        details: Whether loggers get every number as a scalar, as in `AsymmetryMonitor`.
        figures: Which loggers get which figures, as there.
        verbose: Whether to print the summary at the end of fit.
        name: The first part of its tags; must be unique in a Trainer.

    Raises:
        ConfigurationError: A `MisconfigurationException` and `ValueError`, at construction or at
            the start of fit, if a setting is out of range or does not fit the module.

    References:
        Bernstein, Vahdat, Yue, Liu (2020), On the distance between two neural networks and the
        stability of learning, arXiv:2002.03432.

    Example:
        >>> monitor = GradientBreakdownMonitor(every_n_steps=50, directions=["update"])
        >>> monitor.n_evaluations
        6
    """

    default_name = "breakdown"
    step_share = 0.9

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        directions: Sequence[str] = ("update", "gradient"),
        etas: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        mode: Mode = "train",
        loss_fn: LossFn | None = None,
        max_overhead: MaxOverhead = "auto",
        seed: int = 0,
        on_error: OnError = "warn",
        layers: bool = False,
        details: bool = False,
        figures: Figures = "last",
        verbose: bool = True,
        name: str = default_name,
    ) -> None:
        schedule = Schedule.of(every_n_epochs, every_n_steps, default=Schedule(every_n_steps=100))
        super().__init__(
            schedule, mode, loss_fn, max_overhead, seed, on_error, details, figures, verbose, name
        )
        self.directions = (directions,) if isinstance(directions, str) else tuple(directions)
        with as_configuration():
            self.etas = etas_of(self.directions, etas)
            self.layers = check_bool("layers", layers)
        self._is_last_chance = False  # the fit ends with this step, and none was measured
        self.forget()
        self.forget_batches()

    @property
    def n_evaluations(self) -> int:
        """Gradient evaluations in a probe of one optimizer."""
        return 1 + sum(map(len, self.etas.values()))

    @property
    def n_least(self) -> int:
        """Gradient evaluations in the next probe, at least."""
        return self.n_evaluations

    @property
    def passes(self) -> int:
        """Forward passes in one evaluation, each with the backward pass."""
        return 1

    @property
    def history(self) -> dict[str, list[tuple[int, dict[str, float]]]]:
        """The step of every probe and the breakdown of each layer, by direction."""
        return self._history.breakdown

    def forget(self) -> None:
        """Forget what was measured in another training."""
        self._history = StepHistory()

    def forget_batches(self) -> None:
        """Forget the batches of an earlier fit, and what was measured on them."""
        self._windows: dict[int, Window] = {}  # by the number of steps made before them
        self.last: list[StepReport] = []

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Copy the weights and the batch if this step will be probed."""
        self._is_last_chance = self._ends_unmeasured(trainer, pl_module, index, 0)
        due = self._is_last_chance or self._due(trainer, pl_module, index, ahead=0)
        unmeasured = self._is_last_chance or self._ends_unmeasured(trainer, pl_module, index, 1)
        wanted = due or self._due(trainer, pl_module, index, ahead=1)
        # lazy layers have no weights before the first pass
        if not (unmeasured or (wanted and self._nearly_affords(trainer))) or any(
            map(is_lazy, pl_module.parameters())
        ):
            self._windows = {}
            return
        self.guarded(
            lambda: self._keep(trainer, pl_module, batch if due else None, index), "Keeping a batch"
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Discard a batch that the step skipped, and run a probe that is due."""
        n_before, window = self.n_steps, self._windows.get(self.n_steps)
        if window is not None and self.skipped(outputs):
            window.batch = None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ended = batch_idx + 1 == trainer.num_training_batches or ends_fit(trainer, ahead=-1)
        if not (self._is_last_chance and ended) or self.last or self.n_steps == n_before:
            return
        if everybody(self.foretold() <= LAST_PROBE, pl_module.device):
            self.run(trainer, pl_module, logger_step(trainer), is_last=True)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; say so if one loss judges the steps of several optimizers."""
        super().on_train_start(trainer, pl_module)
        if (n := len(trainer.optimizers)) > 1:
            self.inform_once(
                "one loss",
                f"{self.title}: the steps of {n} optimizers are judged by one loss. For another, "
                "use a second GradientBreakdownMonitor with its `loss_fn` and `name`.",
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Plot the last probe."""
        super().on_train_end(trainer, pl_module)
        self._windows = {}
        if self.last and self.figures == "last":
            output = self.output(trainer, self.last[0].step, figures="tensorboard")
            self.guarded(lambda: self._plot(output, pl_module), "Plotting", spends="figures")
        self.tell()

    def summary(self) -> str:
        """Return in words what the last probe measured, its step, and what to do."""
        if not self.last:
            return f"{self.title} has measured nothing."
        cost = self._say_cost()
        return f"{describe_steps(self.last, self._history)}\n{cost}"

    def probe(self, trainer: Any, module: Any, step: int, *, is_last: bool = False) -> int:
        """Measure the step just taken, then report it."""
        began = self.budget.total()
        reports, n_made = self._measure(trainer, module, step, is_last=is_last)
        if reports:
            self._report(trainer, module, reports, began)
        return n_made

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that its figure goes on after a restart."""
        return {**super().state_dict(), **self._history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state_dict)
        self._history.load_state_dict(state_dict)

    def _nearly_affords(self, trainer: Any) -> bool:
        """Return whether it is worth preparing for a probe; ranks may differ."""
        almost = 0.9 * self.foretold()
        return trainer.fast_dev_run or self.budget.affords("probe", at_least=almost)

    def _due(self, trainer: Any, module: Any, batch_idx: int, *, ahead: int) -> bool:
        """Return whether the step of this window, or of one ahead, will be probed."""
        if self.schedule.due_after_step(self.n_steps + 1 + ahead):
            return True
        if not (self.schedule.due_after_epoch(trainer.current_epoch) or trainer.fast_dev_run):
            return False
        unforeseen = math.isinf(trainer.num_training_batches) or not module.automatic_optimization
        return unforeseen or ends_epoch(trainer, batch_idx, ahead) or ends_fit(trainer, ahead)

    def _ends_unmeasured(self, trainer: Any, module: Any, batch_idx: int, ahead: int) -> bool:
        """Return whether the fit will end with a step though the default has measured none."""
        if self.last or self.schedule.is_given:
            return False
        is_last_epoch = 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1
        ends = is_last_epoch and ends_epoch(trainer, batch_idx, ahead)
        return module.automatic_optimization and (ends or ends_fit(trainer, ahead))

    def _keep(self, trainer: Any, module: Any, batch: Any | None, index: int) -> None:
        """Keep the weights once a window, they do not move inside it; of its batches the last."""
        reshard(sharded_modules(module))
        if self.n_steps not in self._windows:
            self._windows = {n: w for n, w in self._windows.items() if n == self.n_steps - 1}
            before = {name: p.detach().clone() for name, p in trainable(module).items()}
            self._windows[self.n_steps] = Window(before)
        if batch is not None:
            window = self._windows[self.n_steps]
            window.batch = keep_batch([], batch, index)
            window.rates = rates_in_use(trainer.optimizers, trainable(module))

    def _measure(
        self, trainer: Any, module: Any, step: int, *, is_last: bool
    ) -> tuple[list[StepReport], int]:
        """Return what was found of the step just taken, and how many evaluations it took."""
        window = self._windows.get(self.n_steps - 1)
        if not everybody(window is not None and window.batch is not None, module.device):
            return [], 0
        assert window is not None
        assert window.batch is not None
        window.forget_missing(dict(module.named_parameters()))
        reshard(sharded_modules(module))
        earlier = self._windows.pop(self.n_steps - 2, None)
        batch, window.batch = window.batch, None
        began = self.budget.spent_on("probe")
        with self.opened(trainer, module, [batch], at=window.before) as live:
            after = live.live
            steps = self._steps(trainer, module, window, earlier, after)
            if not steps:
                return [], 0
            del earlier  # the weights before the last step: one copy of them less from here on
            n_evaluations = 1 + len(steps) * (self.n_evaluations - 1)

            def announce(seconds: float) -> None:
                opening = self.budget.spent_on("probe") - began - 2 * seconds
                self.announce([n_evaluations], opening + n_evaluations * seconds)

            objective: Any = TimedObjective(live, announce)
            start = Start.of(live, window.before)
            each = max(self.budget.expected.get("evaluation", 0.0), live.seconds)
            if not is_last and not self.affords_probe(trainer, n_evaluations * each):
                self.budget.expect("evaluation", each)
                return [], 0
            reports = []
            for who, (moved, cosine) in steps.items():
                sizes = measure_step(window.before, after, start.gradient, moved, successive=cosine)
                rate = next((window.rates[n] for n in moved if n in window.rates), math.nan)
                for name in self.directions:
                    if name != "update" or moved.moves:
                        direction = self._direction(name, live, start, moved)
                        found = measure_breakdown(
                            objective, direction, self.etas[name], start=start
                        )
                        reports.append(StepReport(step, who, name, found, sizes, rate))
            return reports, live.n_evaluations

    def _steps(
        self, trainer: Any, module: Any, window: Window, earlier: Window | None, after: Params
    ) -> dict[str, tuple[Update, float]]:
        """Return the step of each optimizer, and its cosine with the one before it."""
        before = window.before
        steps = optimizer_steps(trainer.optimizers, trainable(module), before, after)
        if "update" in self.directions and not any(step.moves for step in steps.values()):
            self.inform_once(
                "standstill",
                "GradientBreakdownMonitor: a step changed no weight, as when a loss scaler skips "
                "it: it has no 'update' to measure. Further ones are not mentioned.",
            )
            if self.directions == ("update",):
                return {}
        previous = earlier.before if earlier else {}
        return {
            who: (step, successive_cosine(previous, before, after, step))
            for who, step in steps.items()
        }

    def _direction(self, name: str, objective: Objective, start: Start, step: Update) -> Params:
        if name == "update":
            return step
        if name == "gradient":
            everywhere = gradient_direction(objective, start=start)
        else:
            generator = seeded_generator(self.seed, _RANDOM)
            everywhere = sample_direction(start.params, "gaussian", generator=generator)
        return {own: everywhere[own] for own in step}

    def _report(self, trainer: Any, module: Any, reports: list[StepReport], began: float) -> None:
        """Hand out the numbers; plot where somebody sees it and the budget affords it."""
        self.last = reports
        which = "all" if self.figures == "all" else "others"
        output = self.output(trainer, reports[0].step, figures=which)
        scalars: dict[str, float] = {}
        arrays: dict[str, Any] = {}
        for report in reports:
            self._history.add(report)
            scalars |= report.scalars(layers=self.layers)
            arrays |= breakdown_arrays(report.label, report.found, report.sizes, self.mode)
            output.text(f"{report.label}/summary", breakdown_text(report.found, report.sizes))
            data = breakdown_data(report.found, report.sizes, mode=self.mode)
            output.record("breakdown", report.label, data)
        output.arrays(self.name, arrays)
        if self.affords_figures(output):
            with self.budget.spending("figures"):
                self._plot(output, module)
        scalars["seconds"] = self.budget.total() - began
        output.scalars(scalars, logged=self._logs)
        output.text("summary", as_markdown(self.summary()))

    def _logs(self, tag: str) -> bool:
        """Return whether loggers get a number."""
        few = (f"{self.directions[0]}/max", "/critical_rate")
        return self.details or "/layer/" in tag or tag.endswith(few)

    def _plot(self, output: Output, module: Any) -> None:
        for report in self.last:
            plot_step(output, report, self._history, list(trainable(module)), mode=self.mode)
