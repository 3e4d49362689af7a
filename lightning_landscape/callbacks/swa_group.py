"""What the SWA callbacks of one Trainer do once for all: keep batches, validate, run a control."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_landscape.callbacks.average import estimated
from lightning_landscape.callbacks.swa_validation import WAITING_BYTES, SecondPass, Validated
from lightning_landscape.engine.batch_norm import batch_norms
from lightning_landscape.engine.batches import keep_batch
from lightning_landscape.engine.lockstep import Lockstep
from lightning_landscape.measures.averaging import Better, MetricSplit, split_metric

if TYPE_CHECKING:
    from lightning_landscape.callbacks.swa_hooks import SWAHooks

_CONTROL = ""  # among names of callbacks, which are never empty
_FIRST_MOST = 4  # batches that may wait on several processes while nobody knows their size


@dataclass(frozen=True)
class Outcome:
    """What a validation of the averages found.

    Attributes:
        live: The live validation; without metrics, which are not known yet.
        averages: That of each average, by the name of its callback.
        control: That of the current weights with statistics estimated anew, if it was run.
    """

    live: Validated
    averages: dict[str, Validated]
    control: Validated | None

    def splits(self, name: str, trainer: Any) -> list[MetricSplit]:
        """Return how the metrics of an average differ from the current weights'.

        Of those that are known to be better when they are lower or higher: losses, and metrics that
        a callback of the trainer monitors.

        Args:
            name: The name of the average's callback.
            trainer: The trainer with the metrics of the current weights.
        """
        has_batch_norm = bool(batch_norms(trainer.lightning_module))
        found, control, current = self.averages[name], self.control, trainer.callback_metrics
        better: dict[str, Better] = {n: "lower" for n in found.metrics if "loss" in n}
        better |= _known_directions(trainer.callbacks, name)
        return [
            split_metric(
                n,
                (float(current[n]), found.metrics[n], control and control.metrics.get(n)),
                (self.live.batches, found.batches, control and control.batches),
                has_batch_norm=has_batch_norm,
                better=direction,
            )
            for n, direction in better.items()
            if n in found.metrics and n in current
        ]


def _known_directions(callbacks: Sequence[Any], name: str) -> dict[str, Better]:
    """Return which values of the metrics that callbacks monitor are the better ones."""
    words: dict[object, Better] = {"min": "lower", "max": "higher"}
    return {
        str(callback.monitor).removeprefix(f"{name}/"): words[callback.mode]
        for callback in callbacks
        if getattr(callback, "monitor", None) and getattr(callback, "mode", None) in words
    }


class SWAGroup:
    """The SWA callbacks of one Trainer.

    Ranks make the same calls. From `begin` to `finish` what fails on one rank is raised on all, and
    what is left of the validation is dropped; `refresh` likewise.

    Args:
        members: The callbacks.
    """

    def __init__(self, members: Sequence[SWAHooks]) -> None:
        self.members = members
        self._kept = members[0].averaging.kept
        self.lockstep = Lockstep()
        self._bn_batches = max(member.bn_batches for member in members)
        self._second_pass: SecondPass | None = None
        self._epoch, self._n_seen = -1, 0
        self._largest = 0  # bytes of a validation batch
        self._n_validations = 0
        self._began = time.monotonic()

    def keep(self, trainer: Any, module: nn.Module, batch: Any, index: int) -> None:
        """Keep the first training batches of the epoch, where batch norms will need them."""
        if trainer.current_epoch != self._epoch:
            self._epoch, self._n_seen = trainer.current_epoch, 0
        place, self._n_seen = self._n_seen, self._n_seen + 1
        # from the start of the epoch in which averaging may begin
        wanted = trainer.current_epoch >= min(member.first_epoch for member in self.members)
        if wanted and place < self._bn_batches and batch_norms(module):
            others = self._kept[:place] + self._kept[place + 1 :]
            self._kept[place : place + 1] = [keep_batch(others, batch, index)]

    def begin(self, trainer: Any, module: nn.Module) -> None:
        """Begin to validate the averages, and the control where it is due."""
        if not any(member.validate for member in self.members):
            return
        with self._together():
            n_kept, most, control = self._agreed(trainer)
            members = [m for m in self.members if m.validate and m.n_averaged]
            if not members:
                return
            self._refresh(module, members, n_kept)
            worlds = {m.name: (m.averaging.weights, m.averaging.statistics) for m in members}
            if control and batch_norms(module):
                kept, loss_fn = self._kept[:n_kept], members[0].loss_fn
                found = estimated(module, kept, at=None, loss_fn=loss_fn)
                worlds[_CONTROL] = ({}, self.lockstep.mean(found))
            self._n_validations += 1
            alone = self.lockstep.alone
            second_pass = SecondPass(module, trainer, worlds, alone=alone, most=most)
            self.lockstep.agree()
            self._second_pass = second_pass

    def in_second_pass(self, act: Callable[[SecondPass], None]) -> None:
        """Do something in the validation of the averages, if one is under way."""
        second_pass, self._second_pass = self._second_pass, None
        if second_pass is not None:
            with self.lockstep.section():
                act(second_pass)
            self._second_pass = second_pass  # unless it has failed

    def finish(self) -> Outcome | None:
        """Run what still waits and the end of the epoch; None if no average is validated."""
        second_pass, self._second_pass = self._second_pass, None
        if second_pass is None:
            return None
        with self.lockstep.section():
            live, worlds = second_pass.finish()
            ranks = self.lockstep.gather((live, worlds))
            live = _joined(live, [found for found, _ in ranks])
            worlds = {
                n: _joined(own, [found[n] for _, found in ranks]) for n, own in worlds.items()
            }
            self._largest = max(self._largest, second_pass.largest)
            control = worlds.pop(_CONTROL, None)
            return Outcome(live, worlds, control)

    def refresh(self, module: nn.Module) -> None:
        """Estimate the statistics of averages that are used at the end of fit."""
        members = [m for m in self.members if m.apply_at_end or m.save_at_end]
        if members:
            with self._together():
                n_kept, *_ = self._agreed(None)
                self._refresh(module, [m for m in members if m.n_averaged], n_kept)
                self.lockstep.agree()

    def close(self) -> None:
        """Take away what the processes agree by."""
        self._second_pass = None
        self.lockstep.close()

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._second_pass = None
        self.lockstep.begin()
        with self.lockstep.section():
            yield

    def _agreed(self, trainer: Any | None) -> tuple[int, int, bool]:
        """Return how many kept batches to use, how many may wait, and whether a control is due."""
        counts = [member.n_averaged for member in self.members]
        most = WAITING_BYTES // self._largest if self._largest else _FIRST_MOST
        control = trainer is not None and any(counts) and self._control_is_due(trainer)
        ranks = self.lockstep.gather((counts, len(self._kept), most, control))
        if any(found != counts for found, *_ in ranks):
            raise RuntimeError(
                "the processes have averaged different numbers of sets of weights: "
                f"{[found for found, *_ in ranks]}"
            )
        _, n_kept, most, due = zip(*ranks, strict=True)
        return min(n_kept), max(min(most), 1), any(due)

    def _control_is_due(self, trainer: Any) -> bool:
        n, seconds = self._n_validations + 1, time.monotonic() - self._began
        self._began = time.monotonic()
        return n & (n - 1) == 0 or may_be_last(trainer, seconds)

    def _refresh(self, module: nn.Module, members: Sequence[SWAHooks], n_kept: int) -> None:
        for member in members:
            kept = self._kept[:n_kept]
            member.averaging.refresh(module, kept, over_ranks=self.lockstep.mean)


def _joined(own: Validated, ranks: Sequence[Validated]) -> Validated:
    """Return what was found here, with the batches of all ranks."""
    if len(ranks) == 1:
        return own
    batches = {}
    for name in dict.fromkeys(name for found in ranks for name in found.batches):
        rows = [found.batches[name] for found in ranks if name in found.batches]
        values, weights = zip(*rows, strict=True)
        batches[name] = torch.cat(values), torch.cat(weights)
    return replace(own, batches=batches)


def may_be_last(trainer: Any, seconds: float) -> bool:
    """Return whether a fit may end after this validation, as far as that can be foreseen.

    True in the last epoch, when `max_steps` or `max_time` may be reached before another validation,
    when the patience of a callback may run out, and when a callback follows a control.

    Args:
        trainer: In a validation.
        seconds: Seconds since the last validation.
    """
    if trainer.should_stop:
        return True
    every = trainer.check_val_every_n_epoch
    between = trainer.val_check_batch * (every or 1)  # batches; inf if nobody knows
    if (trainer.max_epochs or -1) > 0:
        epochs = every or between // max(trainer.num_training_batches, 1) + 1
        if trainer.current_epoch + epochs >= trainer.max_epochs:
            return True
    if (trainer.max_steps or -1) > 0:
        left = trainer.max_steps - trainer.global_step
        if left <= between * max(len(trainer.optimizers), 1):
            return True
    return any(_may_end_it(callback, seconds) for callback in trainer.callbacks)


def _may_end_it(callback: Any, seconds: float) -> bool:
    waited, patience = getattr(callback, "wait_count", None), getattr(callback, "patience", None)
    if isinstance(waited, int) and isinstance(patience, int) and waited + 1 >= patience:
        return True
    if "/control/" in str(getattr(callback, "monitor", None)):
        return True
    remaining = getattr(callback, "time_remaining", None)
    left = remaining() if callable(remaining) else None
    return isinstance(left, (int, float)) and left <= 2 * seconds
