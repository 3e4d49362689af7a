"""Keep an average of the weights while training goes on, and change nothing.

No scheduler is replaced, no epoch added, no weights swapped, no initial weights ever handed out.

References:
    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson (2018), Averaging weights leads to wider optima
    and better generalization, arXiv:1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_landscape._lightning import as_configuration, rank_zero_warn
from lightning_landscape.callbacks.average import Average, WeightAverage
from lightning_landscape.callbacks.budget import Schedule
from lightning_landscape.callbacks.swa_hooks import SWAHooks
from lightning_landscape.callbacks.swa_settings import (
    checked_average,
    checked_device,
    checked_start,
)
from lightning_landscape.checks import check_bool, check_whole
from lightning_landscape.engine.steps import LossFn
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.words import counted
from lightning_landscape.measures.words_answers import answer_averaging
from lightning_landscape.measures.words_average import (
    average_answer,
    average_verdict,
    describe_average,
    describe_latest,
)
from lightning_landscape.measures.words_line import describe_line
from lightning_landscape.params import Params
from lightning_landscape.sharding import full

__all__ = ["SWA"]

_MOST_METRICS = 3  # that a summary speaks of


class SWA(SWAHooks):
    """Average the weights while a LightningModule trains; read, validate and keep the average.

    Changes nothing by default: no learning rate, no extra epoch, no swapped weights. The average is
    kept in float32 or wider as a mapping from parameter names to tensors.

    An update costs one pass over the weights. With `validate` each validation batch also goes
    through the average, and batch-norm statistics are estimated for it on `bn_batches` training
    batches first, since the running statistics of the live weights are wrong for the average.
    A control, under `<name>/control/<metric>`, is the current weights with statistics estimated in
    the same way: the metric of the average minus that of the control is the effect of averaging.
    The control runs in modules with batch norm, at the first, second, fourth, ... validation of an
    average and at each that may be the last. It costs another validation. The module's validation
    hooks run once more for the average and for the control. So what they print or write to files
    appears two or three times.

    Args:
        start: When averaging begins. A whole number is an epoch, from 0. A fraction below 1 is a
            share of `max_epochs`, rounded down, or of `max_steps` if that is not set.
        every_n_epochs: Average after epochs n, 2n, ... that are not before the start; by default
            after each. A validation after an epoch uses the average with that epoch's weights.
        every_n_steps: Average after optimizer steps n, 2n, ... instead.
        average: `"equal"`, the mean; `"ema"`, an exponential moving average; `"latest"`, the mean
            of the last `window` sets; or a function of the average so far, the new weights and
            their count so far, a tensor each, that returns the new average.
        decay: With `"ema"`: the weight of the average so far.
        window: How many sets of weights `"latest"` keeps; it holds one copy more, their mean.
        validate: Whether to validate the average too, under `<name>/<metric>`.
        bn_batches: Training batches to estimate batch-norm statistics on: the first of the epoch.
            Several SWA callbacks in a Trainer share the largest number.
        device: The device of the average, such as `"cpu"`; that of the weights by default.
        apply_at_end: Whether to leave the averaged weights in the module at the end of fit. The one
            option that changes what you trained.
        save_at_end: Whether to write the average to `<name>-step=<step>.ckpt` in the run's folder
            at the end of fit, for `load_swa_weights`.
        name: The first part of its metrics' names; must be unique in a Trainer. It is also used in
            checkpoints and file names.
        loss_fn: `loss_fn(module, batch)` runs a batch to estimate batch-norm statistics on, where
            `training_step` cannot be called (manual optimisation, `dataloader_iter`).
        verbose: Whether to print the summary at the end of fit, if no monitor with `swa=` prints
            it.

    Raises:
        ConfigurationError: A `MisconfigurationException` and `ValueError`, if a setting is out of
            range; at the start of fit if `start` is a fraction and neither `max_epochs` nor
            `max_steps` is set, or if `loss_fn` is needed.

    References:
        Izmailov et al. (2018), arXiv:1803.05407.

    Example:
        >>> swa = SWA(start=0.5)
        >>> module = nn.Linear(1, 1, bias=False)
        >>> for value in (1.0, 4.0):
        ...     _ = module.weight.data.fill_(value)
        ...     swa.update(module)
        >>> swa.n_averaged, swa.weights["weight"].item(), module.weight.item()
        (2, 2.5, 4.0)
        >>> with swa.averaged(module):
        ...     module.weight.item()
        2.5
    """

    def __init__(
        self,
        start: int | float = 0.75,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        average: Average = "equal",
        decay: float = 0.999,
        window: int = 5,
        validate: bool = True,
        bn_batches: int = 8,
        device: str | None = None,
        apply_at_end: bool = False,
        save_at_end: bool = False,
        name: str = "swa",
        loss_fn: LossFn | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(name, Schedule.of(every_n_epochs, every_n_steps), loss_fn, verbose)
        self.start = checked_start(start)
        self.average: Average = checked_average(average, decay)
        self.decay = decay
        with as_configuration():
            self.validate = check_bool("validate", validate)
            self.apply_at_end = check_bool("apply_at_end", apply_at_end)
            self.save_at_end = check_bool("save_at_end", save_at_end)
            self.window = check_whole("window", window)
            self.bn_batches = check_whole("bn_batches", bn_batches)
        self.device = checked_device(device)
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.averaging = WeightAverage(
            self.average,
            decay=self.decay,
            window=self.window,
            device=self.device,
            who=self.state_key,
            loss_fn=self.loss_fn,
        )
        self.line: list[LineScore] = []  # the last one measured, on train and validation batches
        self._line_mode = ""
        self._line_at = (0, 0)  # how many were averaged then, and the training step

    @property
    def weights(self) -> Params:
        """A copy of the average, by parameter name, in float32 or wider.

        Raises:
            RuntimeError: Before anything was averaged.
        """
        self._check_not_empty()
        return {name: tensor.clone() for name, tensor in self.averaging.weights.items()}

    @contextmanager
    def averaged(
        self, module: nn.Module, batches: Iterable[Any] | None = None
    ) -> Iterator[nn.Module]:
        """Put the average and its batch-norm statistics into a module for a while.

        The module's weights and buffers are restored at the end, whatever is done inside.

        Args:
            module: The module that was trained, or another with the same parameters.
            batches: Batches as a dataloader yields them, to estimate batch-norm statistics on; by
                default those that were kept in training.

        Yields:
            The module.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters, or `batches` is empty.
        """
        self._check_not_empty()
        with self.averaging.held(module, batches):
            yield module

    def apply_to(self, module: nn.Module) -> None:
        """Set a module to the average and its batch-norm statistics.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters.
        """
        self._check_not_empty()
        self.averaging.apply_to(module)

    def averaged_model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a state dict for `torch.optim.swa_utils.AveragedModel(module)` to load.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters.
        """
        with self.averaged(module):
            state = {f"module.{name}": full(t).clone() for name, t in module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.n_averaged), **state}

    def summary(self) -> str:
        """Return in words what the average changes in the validation metrics.

        They are those of the last validation, on all its batches. The line to the average, which
        `AsymmetryMonitor(swa=swa, validation=True)` measures on a few batches, is added.
        """
        if not self.n_averaged:
            return f"{self.state_key} has averaged nothing."
        found = self.on_metrics() or [
            answer_averaging({}),
            "No verdict on the validation metrics: no validation of the average ran.",
        ]
        found.insert(1, f"{self.state_key} has averaged {_sets(self.n_averaged)}.")
        if self.line:
            found.append(self._describe_line())
        elif self._progress.is_watched:
            found.append(
                "No verdict: the line to the average was not measured, because AsymmetryMonitor "
                "has made no probe since averaging began. Its schedule and `max_overhead` say "
                "when it does."
            )
        else:
            found.append(
                "No verdict: the line to the average was not measured, because no monitor "
                "follows it. Use AsymmetryMonitor(swa=swa, validation=True)."
            )
        return "\n".join(found)

    def on_metrics(self) -> list[str]:
        """Return sentences on the last validation: an answer first; none before a validation."""
        splits = self._progress.splits[:_MOST_METRICS]
        if not splits:
            return []
        n, step = self._progress.splits_at
        found = [
            answer_averaging({split.name: average_answer(split) for split in splits}),
            f"In the validation at step {step}, with {_sets(n)} averaged:",
            *map(describe_average, splits),
        ]
        if self.average == "latest" and average_verdict(splits[0]) in ("better", "worse"):
            found.append(describe_latest(splits[0]))
        return found

    def _describe_line(self) -> str:
        splits = self._progress.splits
        n, step = self._line_at
        kinds = zip(self.line, ("training", "validation"), strict=False)
        batches = " and ".join(counted(score.n_batches, f"{kind} batch") for score, kind in kinds)
        decides = "; what decides is the validation above, of all batches" if splits else ""
        return (
            f"At step {step}, with {_sets(n)} averaged, the line to the average ({batches} in "
            f"{self._line_mode} mode{decides}):\n"
            + describe_line(*self.line, advise=not splits or average_answer(splits[0]) == "better")
        )

    def remember_line(self, scores: list[LineScore], step: int, mode: str = "train") -> None:
        """Keep the line to the average, on train and validation batches, for the summary."""
        self.line, self._line_at, self._line_mode = scores, (self.n_averaged, step), mode

    def __getstate__(self) -> dict[str, Any]:
        """Remember that it is a copy, which knows no module."""
        return {**super().__getstate__(), "_copied": True}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on as if uninterrupted."""
        return {
            **super().state_dict(),
            **self.averaging.state_dict(),
            "last_epoch": self._progress.last_epoch,
            "average": self._kind,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; tensors move to their device at the next update."""
        state = {"average": self._kind, **state_dict}
        super().load_state_dict(state)
        if state["average"] == self._kind:
            self.averaging.load_state_dict(state)
        else:
            rank_zero_warn(
                f"{self.state_key}: the checkpoint has average={state['average']!r}, this fit "
                f"{self._kind!r}. Averaging begins anew."
            )
        self._progress.last_epoch = state_dict.get("last_epoch", -1)
        self._progress.n_saved = self.n_averaged

    @property
    def _kind(self) -> str:
        return self.average if isinstance(self.average, str) else "a function"

    def _check_not_empty(self) -> None:
        if not self.n_averaged:
            raise RuntimeError(
                f"{self.state_key} has averaged nothing yet (start={self.start}), and initial "
                "weights are no average. Ask again after training has passed the start."
            )


def _sets(n: int) -> str:
    return f"{counted(n, 'set')} of weights"
