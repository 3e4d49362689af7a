"""When SWA acts: the hooks of its callback."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lightning_landscape._lightning import (
    logger_step,
    rank_zero_info,
    rank_zero_warn,
    validation_loader,
)
from lightning_landscape.callbacks.average import WeightAverage
from lightning_landscape.callbacks.named import Named, ended_by_hand
from lightning_landscape.callbacks.swa_files import save_average, state_key
from lightning_landscape.callbacks.swa_group import Outcome, SWAGroup
from lightning_landscape.callbacks.swa_settings import refuse_impatience, resolved_start
from lightning_landscape.callbacks.swa_validation import SecondPass
from lightning_landscape.engine.batch_norm import batch_norms
from lightning_landscape.engine.guards import describe_error
from lightning_landscape.engine.steps import user_step
from lightning_landscape.measures.averaging import MetricSplit
from lightning_landscape.measures.words import counted
from lightning_landscape.ranks import n_ranks


@dataclass
class Progress:
    """Where the averaging of a module has come to.

    Attributes:
        first_epoch: The first epoch that may be averaged.
        first_step: And the first step, counted from 1.
        last_epoch: The last epoch whose end was averaged.
        n_before: Number of sets averaged before this fit.
        n_saved: Number of sets averaged in the last checkpoint.
        is_watched: Whether a monitor measures the line to the average.
        outcome: What a validation found that has not ended yet.
        splits: How the average's metrics differed in the last validation.
        splits_at: Number of sets averaged then, and the training step.
        is_saving: Whether a checkpoint is being written.
    """

    first_epoch: int = 0
    first_step: int = 0
    last_epoch: int = -1
    n_before: int = 0
    n_saved: int = 0
    is_watched: bool = False
    outcome: Outcome | None = None
    splits: list[MetricSplit] = field(default_factory=list)
    splits_at: tuple[int, int] = (0, 0)
    is_saving: bool = False


class SWAHooks(Named):
    """A callback that averages, and validates and saves what it averaged.

    The first of several in a Trainer acts for all in what they do together, see `SWAGroup`.

    Attributes:
        averaging: The average, with its batch-norm statistics.
        first_epoch: The first epoch that may be averaged.
    """

    start: int | float
    validate: bool
    bn_batches: int
    apply_at_end: bool
    save_at_end: bool
    averaging: WeightAverage
    _progress: Progress
    _copied: bool = False  # copies and pickles do not know what module they averaged

    def _forget(self) -> None:
        self._progress = Progress()
        self.n_steps = 0

    @property
    def first_epoch(self) -> int:
        """The first epoch that may be averaged."""
        return self._progress.first_epoch

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint; one for each name."""
        return state_key(self.name)

    @property
    def n_averaged(self) -> int:
        """Number of sets of weights that were averaged."""
        return self.averaging.n_averaged

    @property
    def _has_averaged(self) -> bool:
        """Whether anything was averaged in this fit."""
        return self.n_averaged > self._progress.n_before

    def update(self, module: nn.Module) -> None:
        """Take the module's present weights into the average."""
        if self._module is None:
            self._module = weakref.ref(module)
        self.averaging.update(module)

    def begin(self, trainer: Any, *, is_another: bool) -> None:
        """Forget the average of another module."""
        if self._copied or is_another:
            self._forget()
        self._copied = False
        self._progress.last_epoch, self._progress.n_before = -1, self.n_averaged

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out when to begin; join the other SWA callbacks."""
        progress = self._progress
        progress.first_epoch, progress.first_step = resolved_start(self.start, trainer)
        used = (self.validate and trainer.enable_validation) or self.apply_at_end
        if self.loss_fn is None and (used or self.save_at_end) and batch_norms(pl_module):
            user_step(pl_module)  # refuses a step that needs a `loss_fn`
        members = [callback for callback in trainer.callbacks if isinstance(callback, SWAHooks)]
        first = members[0]
        progress.is_watched = bool(self._watchers(trainer))
        self._shared = SWAGroup(members) if first is self else first._shared
        self.averaging.kept = first.averaging.kept

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count steps from here; let checkpoints that follow the average wait for it."""
        super().on_train_start(trainer, pl_module)
        if self.n_averaged and not self._reached(trainer):
            rank_zero_warn(
                f"{self.state_key}: {counted(self.n_averaged, 'set')} of weights "
                f"{'was' if self.n_averaged == 1 else 'were'} averaged before "
                f"start={self.start} of this fit is reached, by a shorter one. They are left out: "
                "averaging begins anew at the start."
            )
            self.averaging.load_state_dict({})
            self._progress.n_before = self._progress.n_saved = 0
        for callback in trainer.checkpoint_callbacks:
            name = str(getattr(callback, "monitor", None))
            if name.startswith(f"{self.name}/"):  # a missing metric would stop the fit
                refuse_impatience(trainer, name, self.first_epoch)
                trainer.callback_metrics.setdefault(name, torch.tensor(math.nan))

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Keep the first batches of the epoch, where batch norms will need them."""
        self._lead(lambda group: group.keep(trainer, pl_module, batch, index))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after a step or, so that validation sees it, after the last batch of an epoch."""
        is_step = self.advanced(trainer) and self.schedule.due_after_step(self.n_steps)
        if is_step and self._reached(trainer):
            self._guarded(lambda: self.update(pl_module))
        if trainer.is_last_batch:
            self._end_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Average after an epoch that ended without a last batch, as with `max_steps`."""
        self._end_epoch(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to validate the averages, if there are some."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._lead(lambda group: group.begin(trainer, pl_module))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Copy the batch for the module's own hook of this name, which may write to it."""
        self._in_second_pass(lambda second_pass: second_pass.take_for_hook(batch))

    def before_validation_step(
        self, trainer: Any, pl_module: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        """Copy the batch before the live step can write to it."""
        self._in_second_pass(
            lambda second_pass: second_pass.take(batch, index, validation_loader(trainer, loader))
        )

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run the batches that wait through the averages, a handful at a time."""
        self._in_second_pass(SecondPass.catch_up)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the averages' metrics beside the user's own."""
        self._lead(lambda group: self._report(trainer, group))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare the average's metrics with the user's own, for the summary."""
        outcome, self._progress.outcome = self._progress.outcome, None
        if outcome is not None:
            self._guarded(lambda: self._compare(trainer, outcome))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Apply and save the average if asked to; say so if there is none."""
        if self.n_averaged == self._progress.n_before:
            rank_zero_warn(
                f"{self.state_key} averaged nothing: the fit ended before start={self.start}. The "
                "trained weights are as they are. Start earlier, or train longer."
            )
        self._finish(trainer, pl_module)
        if self.apply_at_end and self._has_averaged:
            self._guarded(lambda: self.averaging.apply_to(pl_module))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what the average does, and that it is on no disk: all checkpoints are written now."""
        progress = self._progress
        if not self._has_averaged:
            return
        if not progress.is_watched:
            self.tell()
        if self.n_averaged > progress.n_saved and not trainer.fast_dev_run:
            rank_zero_info(
                f"{self.state_key}: no checkpoint holds the final average. Save one now with "
                "trainer.save_checkpoint(path), or train with SWA(save_at_end=True)."
            )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Save the average if asked to, and say what it does, if a person has ended the fit."""
        if ended_by_hand(trainer, exception) and n_ranks() == 1:
            self._finish(trainer, pl_module)
            found = [getattr(one, "last", None) for one in self._watchers(trainer)]
            if self._has_averaged and found and not any(found):  # they have nothing to tell
                self.tell()
            self.on_fit_end(trainer, pl_module)
        super().on_exception(trainer, pl_module, exception)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save batch-norm statistics with the average they belong to."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if not state or not self.n_averaged:
            return
        self._progress.n_saved = self.n_averaged
        # several processes estimate at validations: somebody may save on one of them alone;
        # a step that saves is run to estimate, and would save, and be run to estimate
        if self.averaging.kept and not self._progress.is_saving and n_ranks() == 1:
            self._progress.is_saving = True
            try:
                self._guarded(lambda: self.averaging.refresh(pl_module))
            finally:
                self._progress.is_saving = False
        state.update(self.averaging.statistics_state())

    def _lead(self, act: Callable[[SWAGroup], None]) -> None:
        """Act for all SWA callbacks of the Trainer, if this is the first of them."""
        group = self._shared
        if group is not None and group.members[0] is self:
            self._guarded(lambda: act(group))

    def _in_second_pass(self, act: Callable[[SecondPass], None]) -> None:
        self._lead(lambda group: group.in_second_pass(act))

    def _report(self, trainer: Any, group: SWAGroup) -> None:
        if (outcome := group.finish()) is not None:
            for member in group.members:
                if member.name in outcome.averages:
                    member._log(trainer, outcome)

    def _log(self, trainer: Any, outcome: Outcome) -> None:
        self._progress.outcome = outcome
        metrics = dict(outcome.averages[self.name].metrics)
        for name in list(trainer.callback_metrics):
            if name.startswith(f"{self.name}/control/"):  # of an earlier validation
                del trainer.callback_metrics[name]
        if outcome.control is not None:
            metrics |= {f"control/{name}": v for name, v in outcome.control.metrics.items()}
        metrics["n_averaged"] = float(self.n_averaged)
        self.output(trainer, logger_step(trainer)).scalars(metrics)

    def _compare(self, trainer: Any, outcome: Outcome) -> None:
        self._progress.splits = outcome.splits(self.name, trainer)
        self._progress.splits_at = (self.n_averaged, logger_step(trainer))

    def _watchers(self, trainer: Any) -> list[Any]:
        """Return the callbacks that hold this average, as monitors of the line to it do."""
        holders = [callback for callback in trainer.callbacks if hasattr(callback, "swa")]
        return [one for one in holders if one.swa is self or one.swa == self.name]

    def _finish(self, trainer: Any, module: Any) -> None:
        """Bring the statistics of averages that are kept up to date, and save this average."""
        self._lead(lambda group: group.refresh(module))
        if self.save_at_end and self._has_averaged:
            self._guarded(lambda: self._save(trainer))

    def _save(self, trainer: Any) -> None:
        folder, state = trainer.log_dir or trainer.default_root_dir, self.state_dict()
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        path = save_average(folder, self.name, state, trainer.global_step)
        self._progress.n_saved = self.n_averaged
        rank_zero_info(f"{self.state_key} wrote its average to {path}, for load_swa_weights.")

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something that must not stop the training; warn once if it fails."""
        try:
            action()
        except Exception as error:
            cause = describe_error(error)
            self._warn_once(
                f"failure of {self.state_key}",
                f"{self.state_key} could not run the average: {cause}. Your own training and "
                "validation go on as without it; further failures, and this one in other "
                "callbacks, are not reported. To do without, use validate=False.",
                cause,
            )

    def _end_epoch(self, trainer: Any, module: Any) -> None:
        epoch = trainer.current_epoch
        if epoch == self._progress.last_epoch or not self.schedule.due_after_epoch(epoch):
            return
        if self._reached(trainer):
            self._progress.last_epoch = epoch
            self._guarded(lambda: self.update(module))

    def _reached(self, trainer: Any) -> bool:
        # the step under way counts, so that a share of the steps is that share of updates
        return (
            trainer.current_epoch >= self.first_epoch and self.n_steps >= self._progress.first_step
        )
