"""Keep an average of the weights while training goes on, and change nothing.

No scheduler is replaced, no epoch added, no weights swapped, no initial weights ever handed out.

References:
    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson (2018), Averaging weights leads to wider optima
    and better generalization, arXiv:1803.05407.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_landscape._lightning import (
    ConfigurationError,
    attached_trainer,
    logger_step,
    rank_zero_warn,
    validation_loader,
)
from lightning_landscape.callbacks.budget import Schedule, check_whole
from lightning_landscape.callbacks.names import Named
from lightning_landscape.callbacks.strategies import check_strategy
from lightning_landscape.callbacks.swa_validation import SecondPass
from lightning_landscape.engine.batch_norm import batch_norms, estimate_batch_norm, runner
from lightning_landscape.engine.batches import KeptBatch, keep_batch
from lightning_landscape.engine.probing import LossFn, check_loss_fn, loss_step
from lightning_landscape.engine.snapshot import put_back
from lightning_landscape.measures.line import LineScore, describe_line
from lightning_landscape.params import Params
from lightning_landscape.sharding import (
    distribute_like,
    full,
    local,
    reshard,
    shard_of,
    sharded_modules,
)

__all__ = ["SWA", "Average", "load_swa_weights"]

# it returns a Tensor; a LightningCLI would refuse functions that are not annotated to
Average: TypeAlias = Literal["equal", "ema"] | Callable[[Tensor, Tensor, int], Any]


class SWA(Named):
    """Average the weights while a LightningModule trains; read, validate and keep the average.

    Changes nothing by default: no learning rate, no extra epoch, no swapped weights. The average is
    kept in float32 or wider as a mapping from parameter names to tensors.

    An update costs one pass over the weights. With `validate` each validation batch also goes
    through the average, and batch-norm statistics are re-estimated for it on `bn_batches` training
    batches first, since the running statistics of the live weights are wrong for the average.

    Args:
        start: When to begin: a whole number is an epoch (0 is the first), a fraction below 1 a
            share of the trainer's `max_epochs`, rounded down, or else of `max_steps`.
        every_n_epochs: Average after epochs n, 2n, ... that are not before the start; by default
            after each. What is validated after an epoch includes that epoch's weights.
        every_n_steps: Or after optimizer steps n, 2n, ...
        average: `"equal"`, the mean; `"ema"`, an exponential moving average; or a function of the
            average so far, the new weights and their count so far, a tensor each, that returns the
            new average.
        decay: Of the exponential moving average: the weight of the past.
        validate: Whether to validate the average too, under `swa/<name>`.
        bn_batches: Training batches to re-estimate batch-norm statistics on: the first of the
            epoch.
        device: Where the average lives, such as `"cpu"`; beside the weights by default.
        apply_at_end: Whether to leave the averaged weights in the module at the end of fit. The one
            option that changes what you trained.
        name: Tells several SWA callbacks apart in checkpoints, and is the prefix of their metrics.
        loss_fn: `loss_fn(module, batch)` runs a batch to estimate batch-norm statistics on, where
            `training_step` cannot be called (manual optimisation, `dataloader_iter`) and
            `module(batch)` is not the way either.

    Raises:
        ConfigurationError: A `MisconfigurationException` and `ValueError`, if a setting is out of
            range or a fraction has nothing to be a share of.

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
        validate: bool = True,
        bn_batches: int = 8,
        device: str | None = None,
        apply_at_end: bool = False,
        name: str = "swa",
        loss_fn: LossFn | None = None,
    ) -> None:
        super().__init__(name)
        self.start = _checked_start(start)
        self.schedule = Schedule.of(every_n_epochs, every_n_steps)
        if not callable(average) and average not in ("equal", "ema"):
            raise ConfigurationError(
                f"`average` must be 'equal', 'ema' or a function. Got {average!r}."
            )
        if not 0 <= decay < 1:
            raise ConfigurationError(f"`decay` must be at least 0 and below 1. Got {decay!r}.")
        self.average: Average = average
        self.decay = decay
        self.validate = validate
        self.bn_batches = check_whole("bn_batches", bn_batches)
        self.device = _checked_device(device)
        self.loss_fn = check_loss_fn(loss_fn)
        self.apply_at_end = apply_at_end
        self._start_epoch, self._start_step = 0, 0
        self._module: weakref.ref[nn.Module] | None = None
        self._forget()

    def _forget(self) -> None:
        self._average: dict[str, Tensor] = {}
        self._n_averaged = 0
        self._n_steps = 0
        self._last_epoch = -1  # the last one whose end was averaged
        self._statistics: dict[str, Tensor] = {}
        self._statistics_of = 0  # the n_averaged they were estimated for
        self._kept: dict[int, KeptBatch] = {}  # by their place in the epoch
        self._epoch_seen, self._n_seen = -1, 0
        self._n_before = 0  # how many were averaged before this fit
        self._last_global_step = 0
        self._second_pass: SecondPass | None = None
        self._saving = False
        self._warned = False
        self.line: list[LineScore] = []  # the last one measured, on train and validation batches
        self._line_at = (0, 0)  # how many were averaged then, and the training step

    @property
    def state_key(self) -> str:
        """What the state goes by in a checkpoint; one for each name."""
        return f"SWA(name={self.name!r})"

    @property
    def n_averaged(self) -> int:
        """How many sets of weights are in the average."""
        return self._n_averaged

    @property
    def weights(self) -> Params:
        """A copy of the average, by parameter name, in float32 or wider.

        Raises:
            RuntimeError: Before anything was averaged.
        """
        return {name: tensor.clone() for name, tensor in self._known().items()}

    def update(self, module: nn.Module) -> None:
        """Take the module's present weights into the average."""
        reshard(sharded_modules(module))
        live = {
            name: p.detach()
            for name, p in module.named_parameters()
            if p.is_floating_point() or p.is_complex()
        }
        for name, tensor in live.items():
            if name not in self._average:
                self._average[name] = _wide(tensor, self.device, copy=True)
            # one from a checkpoint is whole
            self._average[name] = distribute_like(self._average[name], tensor)
        averages = [self._average[name] for name in live]
        news = [_wide(live[name], self._average[name].device) for name in live]
        if self._n_averaged:
            self._take_in(averages, news)
        self._n_averaged += 1

    @contextmanager
    def averaged(self, module: nn.Module) -> Iterator[nn.Module]:
        """Hold the average in a module, batch-norm statistics and all, and put back what was there.

        Args:
            module: The module that was trained, or another with the same parameters.

        Yields:
            The module.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters.
        """
        replaced = self._replacements(module)
        targets, before = list(replaced), [tensor.detach().clone() for tensor in replaced]
        try:
            put_back(targets, list(replaced.values()))
            yield module
        finally:
            reshard(sharded_modules(module))
            put_back(targets, before)

    def apply_to(self, module: nn.Module) -> None:
        """Leave the average in a module, batch-norm statistics and all.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters.
        """
        replaced = self._replacements(module)
        put_back(list(replaced), list(replaced.values()))

    def averaged_model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a state dict for `torch.optim.swa_utils.AveragedModel(module)` to load.

        Raises:
            RuntimeError: Before anything was averaged.
            ValueError: If the module has other parameters.
        """
        with self.averaged(module):
            state = {f"module.{name}": full(t).clone() for name, t in module.state_dict().items()}
        return {"n_averaged": torch.tensor(self._n_averaged), **state}

    def summary(self) -> str:
        """Say in words what the last line to the average showed, and no more than it supports.

        The line is measured by `AsymmetryMonitor(swa=swa, validation=True)`.
        """
        if not self._n_averaged:
            return f"{self.state_key} has averaged nothing yet."
        if not self.line:
            return (
                f"{self.state_key} has averaged {self._n_averaged} sets of weights.\n"
                "No verdict: the line to the average was not measured. "
                "Use AsymmetryMonitor(swa=swa, validation=True)."
            )
        n, step = self._line_at
        return f"At step {step}, with {n} sets of weights averaged:\n{describe_line(*self.line)}"

    def remember_line(self, scores: list[LineScore], step: int) -> None:
        """Keep the line to the average, on train and validation batches, for the summary."""
        self.line, self._line_at = scores, (self._n_averaged, step)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew with another module; a checkpoint is loaded after this."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        if self._module is not None and self._module() is not pl_module:
            self._forget()
        self._module = weakref.ref(pl_module)
        self._last_epoch, self._n_before = -1, self._n_averaged
        if trainer.global_step == 0:
            self._n_steps = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be sent to another process."""
        return {**self.__dict__, "_module": None, "_second_pass": None}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out when to begin."""
        self._start_epoch, self._start_step = _resolved_start(self.start, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count steps from here; let checkpoints that follow the average wait for it."""
        self._last_global_step = trainer.global_step
        for callback in trainer.checkpoint_callbacks:
            name = str(getattr(callback, "monitor", None))
            if name.startswith(f"{self.name}/"):  # a missing metric would stop the fit
                self._refuse_impatience(trainer, name)
                trainer.callback_metrics.setdefault(name, torch.tensor(math.nan))

    def before_training_step(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Keep the first batches of the epoch, where batch norms will need them."""
        if trainer.current_epoch != self._epoch_seen:
            self._epoch_seen, self._n_seen = trainer.current_epoch, 0
        # from the start of the epoch in which averaging may begin
        wanted = self._n_seen < self.bn_batches and trainer.current_epoch >= self._start_epoch
        if wanted and batch_norms(pl_module):
            self._guarded(lambda: self._keep(batch, index))
        self._n_seen += 1

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after a step or, so that validation sees it, after the last batch of an epoch."""
        if trainer.global_step != self._last_global_step:
            self._last_global_step = trainer.global_step
            self._n_steps += 1
            if self.schedule.due_after_step(self._n_steps) and self._reached(trainer):
                self._guarded(lambda: self.update(pl_module))
        if trainer.is_last_batch:
            self._end_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Average after an epoch that ended without a last batch, as with `max_steps`."""
        self._end_epoch(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to validate the average, if there is one."""
        self._second_pass = None
        in_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.validate and self._n_averaged and in_fit:
            self._guarded(lambda: self._begin(trainer, pl_module))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Copy the batch for the module's own hook of this name, which may write to it."""
        if (second_pass := self._second_pass) is not None:
            self._guarded(lambda: second_pass.take_for_hook(batch))

    def before_validation_step(
        self, trainer: Any, pl_module: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        """Copy the batch before the live step can write to it."""
        if (second_pass := self._second_pass) is not None:
            which = validation_loader(trainer, loader)
            self._guarded(lambda: second_pass.take(batch, index, which))

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Run the batches that wait through the average, a handful at a time."""
        if self._second_pass is not None:
            self._guarded(self._second_pass.catch_up)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the average's metrics beside the user's own."""
        if self._second_pass is not None:
            self._guarded(lambda: self._report(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Apply the average if asked to; say so if there is none."""
        if self._n_averaged == self._n_before:
            rank_zero_warn(
                f"{self.state_key} averaged nothing: the fit ended before start={self.start}. The "
                "trained weights are as they are. Start earlier, or train longer."
            )
        elif self.apply_at_end:
            self._guarded(lambda: self.apply_to(pl_module))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save batch-norm statistics with the average they belong to."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        # a step that saves is run to estimate, and would save, and be run to estimate
        if state and self._n_averaged and self._kept and not self._saving:
            self._saving = True
            try:
                self._guarded(lambda: state.update(statistics=self._batch_norm(pl_module)))
            finally:
                self._saving = False
            state["statistics_of"] = self._statistics_of

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on as if uninterrupted."""
        return {
            "n_averaged": self._n_averaged,
            "n_steps": self._n_steps,
            "last_epoch": self._last_epoch,
            "weights": {name: full(tensor).clone() for name, tensor in self._average.items()},
            "statistics": dict(self._statistics),
            "statistics_of": self._statistics_of,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; tensors find their device at the next update."""
        self._n_averaged = state_dict["n_averaged"]
        self._n_steps = state_dict["n_steps"]
        self._last_epoch = state_dict["last_epoch"]
        self._average = {name: tensor.clone() for name, tensor in state_dict["weights"].items()}
        self._statistics = dict(state_dict["statistics"])
        self._statistics_of = state_dict["statistics_of"]

    def _begin(self, trainer: Any, module: Any) -> None:
        statistics = self._batch_norm(module)
        if batch_norms(module) and not statistics:
            return  # it would be validated with statistics that are wrong for it
        self._second_pass = SecondPass(module, trainer, weights=self._average, buffers=statistics)

    def _report(self, trainer: Any) -> None:
        assert self._second_pass is not None
        metrics = self._second_pass.finish()
        self._second_pass = None
        output = self.output(trainer, logger_step(trainer))
        output.scalars({**metrics, "n_averaged": float(self._n_averaged)})

    def _keep(self, batch: Any, index: int) -> None:
        others = [kept for i, kept in self._kept.items() if i != self._n_seen]
        self._kept[self._n_seen] = keep_batch(others, batch, index)

    def _refuse_impatience(self, trainer: Any, name: str) -> None:
        n_before = self._start_epoch // (trainer.check_val_every_n_epoch or 1)
        for callback in trainer.callbacks:
            if getattr(callback, "monitor", None) != name:
                continue
            who = f"{type(callback).__name__}(monitor={name!r})"
            if getattr(callback, "check_finite", False):
                raise ConfigurationError(
                    f"`check_finite` of {who} must be False: there is no average before the start, "
                    "and until then the metric is nan."
                )
            patience = getattr(callback, "patience", n_before + 1)
            if patience <= n_before:
                raise ConfigurationError(
                    f"`patience` of {who} must be more than {n_before}, the validations before the "
                    f"average begins: until then the metric is nan, which is no improvement. Got "
                    f"{patience}: be more patient, or let SWA start earlier."
                )

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something that must not stop the training; give up on this validation if it fails."""
        try:
            action()
        except Exception as error:
            self._second_pass = None
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"{self.state_key} could not run the average: {type(error).__name__}: {error}. "
                    "Your own training and validation go on as without it; further failures are "
                    "not reported. To do without, use validate=False."
                )

    def _end_epoch(self, trainer: Any, module: Any) -> None:
        epoch = trainer.current_epoch
        if epoch == self._last_epoch or not self.schedule.due_after_epoch(epoch):
            return
        if self._reached(trainer):
            self._last_epoch = epoch
            self._guarded(lambda: self.update(module))

    def _reached(self, trainer: Any) -> bool:
        # the step under way counts, so that a share of the steps is that share of updates
        return trainer.current_epoch >= self._start_epoch and self._n_steps >= self._start_step

    def _take_in(self, averages: list[Tensor], news: list[Tensor]) -> None:
        if callable(self.average):
            for average, new in zip(averages, news, strict=True):
                average.copy_(self.average(average, new, self._n_averaged))
        else:
            share = 1 - self.decay if self.average == "ema" else 1 / (self._n_averaged + 1)
            torch._foreach_lerp_(averages, news, share)

    def _known(self) -> dict[str, Tensor]:
        if not self._n_averaged:
            raise RuntimeError(
                f"{self.state_key} has averaged nothing yet (start={self.start}), and initial "
                "weights are no average. Ask again after training has passed the start."
            )
        return self._average

    def _replacements(self, module: nn.Module) -> dict[Tensor, Tensor]:
        """Return the module's tensors and what the average has for them."""
        average = self._known()
        reshard(sharded_modules(module))
        tensors: dict[str, Tensor] = dict(module.named_parameters())
        if missing := [name for name in average if name not in tensors]:
            raise ValueError(
                f"`module` must have the parameters that were averaged. It lacks {missing[:3]}: is "
                f"{type(module).__name__} the module that was trained?"
            )
        with torch.no_grad():
            replaced = {
                local(tensors[name]): shard_of(value, tensors[name]).to(local(tensors[name]))
                for name, value in average.items()
            }
            buffers = dict(module.named_buffers())
            for name, value in self._batch_norm(module).items():
                replaced[buffers[name]] = value.to(buffers[name])
        return replaced

    def _batch_norm(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the average's batch-norm statistics, estimated anew if it has moved on."""
        if self._statistics_of != self._n_averaged and batch_norms(module):
            if not self._kept:
                rank_zero_warn(
                    f"{self.state_key} has no training batches to estimate batch-norm statistics "
                    "on: those of the live weights stay, and are wrong for the average. Use "
                    "recalibrate_batch_norm(module, batches)."
                )
                return {}
            self._statistics = estimate_batch_norm(
                module,
                [self._kept[i] for i in sorted(self._kept)],
                at=self._average,
                step=loss_step(module, self.loss_fn) if self.loss_fn else runner(module),
                trainer=attached_trainer(module),
            )
            self._statistics_of = self._n_averaged
        return self._statistics


def load_swa_weights(checkpoint_path: str, module: nn.Module, *, name: str = "swa") -> None:
    """Load the average that an `SWA` callback saved in a checkpoint into a module.

    Batch-norm statistics come with it where they were estimated by then.

    Args:
        checkpoint_path: A checkpoint that Lightning wrote.
        module: A module with the parameters that were averaged.
        name: The name of the SWA callback.

    Raises:
        ValueError: If the checkpoint has no average of that name, or the module other parameters.
    """
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    swa = SWA(name=name)
    states = checkpoint.get("callbacks", {})
    if not states.get(swa.state_key, {}).get("n_averaged"):
        found = (
            f"its {swa.state_key} had averaged nothing yet"
            if swa.state_key in states
            else f"it has the callbacks {list(states)}"
        )
        raise ValueError(
            f"`checkpoint_path` must lead to a checkpoint with an average called {name!r}. Got "
            f"{checkpoint_path}: {found}."
        )
    swa.load_state_dict(states[swa.state_key])
    swa.apply_to(module)


def _wide(tensor: Tensor, device: Any = None, *, copy: bool = False) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(device=device or tensor.device, dtype=dtype, copy=copy)


def _checked_device(device: str | None) -> str | None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"`device` must be one this machine has, such as 'cpu', or None. Got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return device


def _checked_start(start: float) -> int | float:
    whole = isinstance(start, int) and not isinstance(start, bool)
    if (whole and start >= 0) or (isinstance(start, float) and 0 <= start < 1):
        return start
    raise ConfigurationError(
        "`start` must be an epoch, a whole number from 0 up, or a share of the training, a "
        f"fraction from 0 to below 1. Got {start!r}."
    )


def _resolved_start(start: int | float, trainer: Any) -> tuple[int, int]:
    """Return the first epoch and the first step, 0 being the first, that may be averaged."""
    if isinstance(start, int):
        return start, 0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return math.floor(start * trainer.max_epochs + 1e-9), 0
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return 0, math.floor(start * trainer.max_steps + 1e-9) + 1
    raise ConfigurationError(
        "`start` can only be a share of `max_epochs` or `max_steps`, and this Trainer has neither. "
        f"Got {start}: set one of them, or give `start` as an epoch."
    )
