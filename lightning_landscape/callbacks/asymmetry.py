"""The callback that watches, while you train, whether you sit in an asymmetric valley."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor

from lightning_landscape._lightning import (
    ConfigurationError,
    as_configuration,
    batch_size,
    rank_zero_info,
)
from lightning_landscape.callbacks.base import Monitor, OnError
from lightning_landscape.callbacks.budget import Schedule, check_whole
from lightning_landscape.callbacks.names import Named
from lightning_landscape.engine.batch_norm import batch_norms
from lightning_landscape.engine.batches import KeptBatch, clone_batch, keep_batch
from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.engine.probing import LossFn, ModuleObjective
from lightning_landscape.measures.asymmetry import scoring_grid
from lightning_landscape.measures.directions import Normalize, split_family
from lightning_landscape.measures.line import compare_ends
from lightning_landscape.measures.sequential import FIRST, check_precision, sequential_design
from lightning_landscape.measures.slices import Slice, evaluate_slice, line_grid, split_batches
from lightning_landscape.measures.survey import Survey, survey
from lightning_landscape.params import Params, difference, group_names, trainable
from lightning_landscape.ranks import lowest, lowest_of_each
from lightning_landscape.reporting.arrays import survey_arrays
from lightning_landscape.reporting.figures_asymmetry import plot_history, plot_line, plot_slices
from lightning_landscape.reporting.output import Output
from lightning_landscape.reporting.results import record_surveys
from lightning_landscape.reporting.scalars import family_scalars, line_scalars

if TYPE_CHECKING:
    from lightning_landscape.callbacks.swa import SWA

__all__ = ["AsymmetryMonitor"]

_UNITS = {
    "filter": "relative to the weights (filter norm)",
    "layer": "relative to the weights (layer norm)",
    "model": "relative to the weights (norm of the group)",
    "none": "L2 norm",
}

_LINE_OVERHANG = 4.0  # with 2 the outward ratio is noisier, see the measurements in the README


class AsymmetryMonitor(Monitor):
    """Probe the loss along random directions while a LightningModule trains, and score asymmetry.

    Add it to the Trainer's callbacks; change nothing else. Training stays bit-identical: weights,
    buffers, optimizer state, random numbers, data order, the user's own log.

    Each probe draws `n_directions` directions a family, the same ones every time, evaluates the
    loss on the first `n_batches` of the fit at `n_points` alphas from `-radius` to `radius`, and
    logs

    - `landscape/<family>/rate`, `rate_low`, `rate_high`: the share of asymmetric directions with
      its exact 95 % interval; a direction that still leads downhill (`off_minimum`, their share)
      or that the batches cannot resolve does not count as asymmetric;
    - `landscape/<family>/area`, `area_corrected`, `ratio`: medians over the directions of the
      scores of `score_asymmetry`; `area_low`, `area_high`: the 95 % interval of that median, from 6
      directions on;
    - figures of the slices and of their history over training, and the raw slices as `.npz`;
    - with `swa`, the line from the current weights to the average, under `landscape/swa/`;
    - `landscape/seconds` and `landscape/overhead`: what it cost, and as a share of the fit so far.

    One probe costs exactly `len(families) * n_directions * n_points` evaluations (312 by default),
    31 more for the line once anything was averaged, and two more to learn what the step writes to.
    An evaluation is a forward pass over each kept batch; two with `mode="recalibrated"`. The first
    log line says what that takes here.

    With `n_directions="auto"` a family draws until its rate is known to `precision`: 17 directions
    where all or none are asymmetric, 104 where half are, at the default. `rate_low` and `rate_high`
    are then the interval of `SequentialDesign`, which such looking does not spoil, and
    `landscape/<family>/n_directions` is how many it took. The first 8 directions are evaluated
    whole, and all but the rate is about them alone. The others are evaluated in pairs, inwards from
    the ends, and left as soon as `cannot_count` knows that they do not count: they tell the rate
    what it would know anyway, and no other number, for those that are left are not like the others.
    `max_overhead` decides before the first how many directions a probe can afford, 8 or more; the
    interval may then be wider, and holds all the same.

    Args:
        every_n_epochs: Probe after every so many epochs; by default after each.
        every_n_steps: Or after every so many optimizer steps.
        families: How directions are drawn: `"<distribution>[@<group>]"`, see `sample_direction`.
        n_directions: Directions a family; `"auto"` for as many as `precision` needs.
        n_points: Alphas a direction; 4 k + 1.
        radius: How far to walk, in units of `normalize`.
        normalize: How long directions are, see `sample_direction`.
        swa: An `SWA` callback of the same Trainer whose average to draw the line to; or its name,
            such as `"swa"`, where it cannot be handed over, as in a YAML file.
        n_batches: Training batches to keep and evaluate: the first of the fit, also of a resumed
            one, or as many as there are.
        validation: Whether to keep and evaluate as many validation batches too.
        mode: How the network is run, see `probing`.
        loss_fn: `loss_fn(module, batch)` in the place of `training_step`; needed with manual
            optimisation and `dataloader_iter`.
        max_overhead: The share of the fit's wall time that probes may take, such as 0.05; a probe
            that would go over it is left out, and figures where there is no time for them. None
            for no limit.
        seed: Seed of the directions and of the random numbers inside evaluations.
        on_error: `"warn"`: a probe that fails restores everything, warns once, and training goes
            on. `"raise"`: it raises.
        precision: With `n_directions="auto"`, half of the width that the interval of the rate shall
            have, from 0.03 up; otherwise of no effect.
        name: The first part of its tags. Tells several monitors of one Trainer apart, there and in
            checkpoints and files.

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
        n_batches: int = 2,
        validation: bool = False,
        mode: Mode = "train",
        loss_fn: LossFn | None = None,
        max_overhead: float | None = None,
        seed: int = 0,
        on_error: OnError = "warn",
        precision: float = 0.1,
        name: str = default_name,
    ) -> None:
        super().__init__(
            Schedule.of(every_n_epochs, every_n_steps),
            mode=mode,
            loss_fn=loss_fn,
            max_overhead=max_overhead,
            seed=seed,
            on_error=on_error,
            name=name,
        )
        if swa is not None and not isinstance(swa, str) and not _averages(swa):
            raise ConfigurationError(
                "`swa` must be a lightning_landscape.SWA callback, or None. Got "
                f"{getattr(swa, '__name__', type(swa).__name__)}."
            )
        self.families = (families,) if isinstance(families, str) else tuple(families)
        self.n_directions: int | Literal["auto"] = n_directions
        self.precision = precision
        self.n_batches = n_batches
        self.normalize: Normalize = normalize
        self.swa = swa
        self._swa = None if isinstance(swa, str) else swa  # by name it is found at the start
        self.validation = validation
        self.alphas = _checked_grid(radius, n_points)
        _check(self.families, n_directions, precision, n_batches, normalize)
        self._moving = self.families  # those with something to move in the module at hand
        self._train: list[KeptBatch] = []
        self._validation: list[KeptBatch] = []
        self._history: dict[str, list[tuple[int, Tensor]]] = {}
        self._has_renewed = False  # said that kept batches are replaced
        self._said_so = False  # that validation batches are missing
        self._paced = 0.0  # seconds an evaluation took in the last probe, with its directions

    @property
    def n_evaluations(self) -> int:
        """Evaluations in one probe, besides those to learn from; with `"auto"` the most."""
        further = self._n_most - self._n_whole
        return self._n_least + len(self._moving) * further * (len(self.alphas) - 1)

    @property
    def _n_least(self) -> int:
        line = len(_line()) if self._swa is not None and self._swa.n_averaged else 0
        return len(self._moving) * self._n_whole * len(self.alphas) + line

    @property
    def _n_whole(self) -> int:
        """Directions a family whose slices are always whole."""
        return FIRST if self.n_directions == "auto" else self.n_directions

    @property
    def _n_most(self) -> int:
        """Directions a family at most."""
        if self.n_directions == "auto":
            return sequential_design(self.precision).n_most
        return self.n_directions

    @property
    def n_figures(self) -> int:
        """Figures in one probe: slices and history of each family, and the line."""
        return 2 * len(self._moving) + (self._swa is not None and self._swa.n_averaged > 0)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the batches of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._train, self._validation = [], []

    def forget(self) -> None:
        """Forget what was seen in another training."""
        super().forget()
        self._history, self._paced = {}, 0.0

    def check(self, trainer: Any, module: Any) -> None:
        """Find out which families move anything, and whether the average is being kept."""
        super().check(trainer, module)
        if isinstance(self.swa, str):
            self._swa = _find_swa(self.swa, trainer.callbacks)
        elif self.swa is not None and self.swa not in trainer.callbacks:
            raise ConfigurationError(
                "`swa` must be a callback of the same Trainer, or it averages nothing. "
                "Use Trainer(callbacks=[swa, AsymmetryMonitor(swa=swa)]); in a YAML file its name, "
                "`swa: swa`."
            )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return  # all may thaw later
        with as_configuration():
            self._moving = tuple(family for family in self.families if _moves(family, module))
        for family in self.families:
            if family not in self._moving:
                rank_zero_info(
                    f"AsymmetryMonitor: {family!r} is left out, {type(module).__name__} has no "
                    "trainable parameters in that group."
                )

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Keep the first batches of the fit."""
        if len(self._train) < self.n_batches:
            self.guarded(lambda: self._keep(self._train, batch, index), "Keeping a batch")
            if len(self._train) == 1:
                self._refuse_lone_samples(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of a batch that the step skipped, and probe when one is due."""
        if self.skipped(outputs) and self._train and self._train[-1].index == batch_idx:
            self._train.pop()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def before_validation_step(
        self, trainer: Any, pl_module: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        """Keep the first validation batches of the fit."""
        wanted = self.validation and trainer.state.fn == "fit" and not trainer.sanity_checking
        if wanted and len(self._validation) < self.n_batches:
            self.guarded(lambda: self._keep(self._validation, batch, index), "Keeping a batch")

    @contextmanager
    def opened(
        self, trainer: Any, module: Any, batches: list[KeptBatch], *, at: Params | None = None
    ) -> Iterator[ModuleObjective]:
        """Open the module on kept batches; if its step fails on them, keep the next ones instead.

        A step may expect what only later batches have.
        """
        try:
            with super().opened(trainer, module, batches, at=at) as objective:
                yield objective
        except MEMORY:
            raise
        except Exception:
            self._train, self._validation = [], []
            if not self._has_renewed:
                self._has_renewed = True
                rank_zero_info(
                    f"{self.title}: a probe failed on the batches it had kept. The next ones that "
                    "are trained on take their place, now and whenever it fails again."
                )
            raise

    def probe(self, trainer: Any, module: Any, step: int) -> None:
        """Evaluate all slices, then report them."""
        began = time.monotonic()
        result = self._measure(trainer, module)
        if result is None:
            return
        draws = self.draws(trainer, began)
        output = self.output(trainer, step)
        scalars: dict[str, float] = {}
        for family, measured in result.families.items():
            scalars |= self._report_family(output, family, measured, draws=draws)
        if result.line:
            scalars |= self._report_line(output, result.line, draws=draws)
        output.arrays(self.name, survey_arrays(result.families, result.line))
        seconds, overhead = self.cost_scalars(time.monotonic() - began)
        cost = {"seconds": seconds, "overhead": overhead}
        output.scalars({**scalars, **cost})
        record_surveys(output, result.families, result.line, cost)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that its figure goes on after a restart."""
        history = {
            family: {
                "steps": [step for step, _ in rows],
                "rises": torch.stack([rises for _, rises in rows]),
            }
            for family, rows in self._history.items()
        }
        return {**super().state_dict(), "alphas": self.alphas, "history": history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a history on another grid is left behind."""
        super().load_state_dict(state_dict)
        if torch.equal(state_dict["alphas"], self.alphas):
            self._history = {
                family: list(zip(rows["steps"], rows["rises"], strict=True))
                for family, rows in state_dict["history"].items()
            }

    def _measure(self, trainer: Any, module: Any) -> _Result | None:
        self._moving = tuple(family for family in self.families if _moves_now(family, module))
        if self.validation and not self._validation and not self._said_so:
            self._said_so = True
            rank_zero_info(
                "AsymmetryMonitor: validation=True, and no validation batch was seen yet: this "
                "probe is on training batches only."
            )
        # as many of each kind as every rank has: their losses are gathered together
        kept = [len(self._train), len(self._validation)]
        n_train, n_validation = lowest_of_each(kept, module.device)
        batches = [*self._train[:n_train], *self._validation[:n_validation]]
        if not n_train:
            return None
        with self.opened(trainer, module, batches) as objective:
            if not self.n_evaluations:
                return None
            objective.learn()
            most = self.n_evaluations
            if not self.announce(self._n_least, objective.seconds, trainer, most=most):
                return None
            began, made = time.monotonic(), objective.n_evaluations
            n_most = self._affordable(max(objective.seconds, self._paced), module.device)
            validation = [False] * n_train + [True] * n_validation
            families = (
                {}
                if not self._moving
                else survey(
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
            )
            line: list[Slice] = []
            if self._swa is not None and self._swa.n_averaged:
                direction = difference(self._swa.weights, objective.params)
                joint = evaluate_slice(objective, direction, _line(), label="swa")
                line = split_batches(joint, validation)
            self._evaluating = time.monotonic() - began
            made = objective.n_evaluations - made
            self._least, self._paced = self._n_least / made, self._evaluating / made
        return _Result(families, line)

    def _affordable(self, seconds: float, device: torch.device) -> int:
        """Return how many directions a family may draw, fixed before what they show is known."""
        if self.n_directions != "auto" or self.max_overhead is None:
            return self._n_most
        spare = self._budget.left(time.monotonic()) - self._n_least * seconds - self.reporting
        one_more = len(self._moving) * (len(self.alphas) - 1) * seconds
        further = int(max(spare, 0.0) // one_more) if one_more else self._n_most
        return lowest(min(self._n_whole + further, self._n_most), device)

    def _report_family(
        self, output: Output, family: str, measured: Survey, *, draws: bool
    ) -> dict[str, float]:
        train, validation = measured.slices, measured.validation
        scores, rate = measured.scores, measured.rate
        history = self._history.setdefault(family, [])
        history.append((output.step, _median_rise(train)))
        if draws:
            with self.drawing():
                unit, step = _UNITS[self.normalize], output.step
                options = {"validation": validation, "unit": unit, "step": step}
                output.figure(family, lambda: plot_slices(family, train, scores, rate, **options))
                steps, rises = zip(*history, strict=True)
                rises = torch.stack(rises)
                output.figure(
                    f"history/{family}", lambda: plot_history(family, steps, self.alphas, rises)
                )
        drawn = {f"{family}/n_directions": rate["n"]}
        return family_scalars(measured) | (drawn if self.n_directions == "auto" else {})

    def _report_line(self, output: Output, line: list[Slice], *, draws: bool) -> dict[str, float]:
        scores = [compare_ends(part) for part in line]
        assert self._swa is not None
        self._swa.remember_line(scores, output.step)
        if draws:
            with self.drawing():
                validation = line[1] if len(line) > 1 else None
                options = {"validation": validation, "step": output.step}
                if validation is not None:
                    options["validation_score"] = scores[1]
                output.figure("swa/line", lambda: plot_line(line[0], scores[0], **options))
        return line_scalars(*scores)

    def _keep(self, kept: list[KeptBatch], batch: Any, index: int) -> None:
        others = [*self._train, *self._validation]
        kept.append(keep_batch(others, batch, index, calibrates=kept is self._train))

    def _refuse_lone_samples(self, trainer: Any, module: Any) -> None:
        """Say at the start that a batch norm cannot take its statistics from one sample."""
        if self.mode == "eval" or not batch_norms(module) or not self._train:
            return
        if batch_size(clone_batch(self._train[0].data)) != 1:  # it reads an iterator to its end
            return
        try:
            with self.opened(trainer, module, self._train) as objective:
                objective.losses()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                return  # the probe will fail too, and say so
            raise ConfigurationError(
                f"`mode` must be 'eval' where a batch norm sees batches of one sample: "
                f"{self.mode!r} needs the statistics of a batch. Got: {error}. Use mode='eval', or "
                "a larger batch_size."
            ) from error
        except Exception:
            return  # the probe will fail too, and say so


@dataclass(frozen=True)
class _Result:
    """What a family was found to be, and the line, `[train]` or `[train, validation]`."""

    families: dict[str, Survey]
    line: list[Slice] = field(default_factory=list)


def _averages(callback: object) -> bool:
    return hasattr(type(callback), "averaged")


def _find_swa(name: str, callbacks: Sequence[Any]) -> SWA:
    averages = [c for c in callbacks if isinstance(c, Named) and _averages(c)]
    found = [swa for swa in averages if swa.name == name]
    if not found:
        raise ConfigurationError(
            f"`swa` must be the name of an SWA callback of the same Trainer. Got {name!r}, and it "
            f"has {[swa.name for swa in averages] or 'none'}: add SWA(name={name!r})."
        )
    return cast("SWA", found[0])  # names differ


def _line() -> Tensor:
    return line_grid(_LINE_OVERHANG)


def _median_rise(slices: list[Slice]) -> Tensor:
    means = torch.stack([line.mean for line in slices])
    centre = means[:, means.shape[1] // 2, None]
    return (means - centre).nanmedian(dim=0).values


def _moves(family: str, module: Any) -> bool:
    return bool(group_names(trainable(module), split_family(family)[1], module))


def _moves_now(family: str, module: Any) -> bool:
    """Return whether a family moves anything at present: layers freeze and thaw."""
    try:
        return _moves(family, module)
    except ValueError:  # a pattern, all of whose parameters are frozen by now
        return False


def _checked_grid(radius: float, n_points: int) -> Tensor:
    with as_configuration():
        return scoring_grid(radius, n_points)


def _check(
    families: tuple[str, ...],
    n_directions: int | Literal["auto"],
    precision: float,
    n_batches: int,
    normalize: Normalize,
) -> None:
    if not families:
        raise ConfigurationError("`families` must name at least one, such as 'gaussian'. Got none.")
    with as_configuration():
        for family in families:
            split_family(family)
    if len(set(families)) != len(families):
        raise ConfigurationError(f"`families` must not repeat one. Got {list(families)}.")
    if isinstance(n_directions, str) and n_directions != "auto":
        raise ConfigurationError(
            f"`n_directions` must be a whole number from 1 up or 'auto'. Got {n_directions!r}."
        )
    if n_directions != "auto":
        check_whole("n_directions", n_directions)
    with as_configuration():
        check_precision(precision)
    check_whole("n_batches", n_batches)
    if normalize not in get_args(Normalize):
        raise ConfigurationError(
            f"`normalize` must be one of {list(get_args(Normalize))}. Got {normalize!r}."
        )
