"""What an average of weights does to a validation metric, apart from its batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Better: TypeAlias = Literal["lower", "higher"]
BatchMeans: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MetricSplit:
    """A validation metric of the current weights, of their average, and of the control.

    The control is the current weights with batch-norm statistics estimated in the same way as the
    average's. `average - current = (control - current) + (average - control)`: what the statistics
    do, and what averaging does.

    Attributes:
        name: Name of the metric.
        current: Its value at the current weights, over all validation data.
        average: At the average.
        control: At the control; nan if none was run.
        has_batch_norm: Whether the module has batch norms. Without, `control` is `current`.
        stderr: Standard error of `averaging` over the validation batches, paired; nan if the metric
            is no mean over batches, or for fewer than two.
        n_batches: Number of validation batches that both were run on; 0 if the metric is no mean
            over them.
        better: Which values are the better ones.
        difference_stderr: Like `stderr`, of `difference`.
    """

    name: str
    current: float
    average: float
    control: float
    has_batch_norm: bool
    stderr: float = math.nan
    n_batches: int = 0
    better: Better = "lower"
    difference_stderr: float = math.nan

    @property
    def difference(self) -> float:
        """The average's value minus the current weights'."""
        return self.average - self.current

    @property
    def statistics(self) -> float:
        """What batch-norm statistics estimated anew do; nan without a control."""
        return self.control - self.current

    @property
    def averaging(self) -> float:
        """What averaging does; nan without a control."""
        return self.average - self.control


def paired_stderr(
    a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None
) -> tuple[float, int]:
    """Return the standard error of the weighted mean of `a - b` over batches, and their number.

    With the weights `w` of the batches scaled to a sum of 1, differences `d` and their weighted
    mean `m`: `sqrt(n / (n - 1) * sum(w^2 (d - m)^2))`. That is the standard error of the mean for
    equal weights.

    Args:
        a: Mean over each batch and weight of the batch, each `[n_batches]`.
        b: The same of the same batches.

    Returns:
        nan and 0 where one is missing or the batches differ; nan and 1 of a single batch.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> paired_stderr((torch.tensor([1.0, 2.0]), weight), (torch.tensor([0.0, 3.0]), weight))
        (1.0, 2)
    """
    if a is None or b is None or a[1].shape != b[1].shape or bool((a[1] != b[1]).any()):
        return math.nan, 0
    n = len(a[1])
    if n < 2:
        return math.nan, n
    share = a[1] / a[1].sum()
    difference = a[0] - b[0]
    off = share * (difference - (share * difference).sum())
    return float((n / (n - 1) * off.square().sum()).sqrt()), n


def split_metric(
    name: str,
    metrics: tuple[float, float, float | None],
    batches: tuple[BatchMeans, BatchMeans, BatchMeans | None],
    *,
    has_batch_norm: bool,
    better: Better = "lower",
) -> MetricSplit:
    """Return the split of one metric.

    Args:
        name: Name of the metric.
        metrics: Its values at the current weights, the average and the control, if one was run.
        batches: The means over batches of each, by metric.
        has_batch_norm: Whether the module has batch norms.
        better: Which values are the better ones.
    """
    current, average, control = metrics
    if not has_batch_norm:
        control = current
    reference = batches[2] if has_batch_norm else batches[0]
    averaged = batches[1].get(name)
    stderr, n = paired_stderr(averaged, (reference or {}).get(name))
    difference_stderr, _ = paired_stderr(averaged, batches[0].get(name))
    control = math.nan if control is None else control
    return MetricSplit(
        name, current, average, control, has_batch_norm, stderr, n, better, difference_stderr
    )
