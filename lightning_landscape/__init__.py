"""See, while you train, whether you sit in an asymmetric valley and whether averaging would help.

Callbacks for PyTorch Lightning that change nothing about your training, and the measurements behind
them as functions over tensors::

    LightningModule + batches -> objective -> direction -> slice -> score -> logger

The map: `params`, `directions`, `slices`, `asymmetry`, `line`, `sequential`, `rates` and
`breakdown` are the mathematics and know no Lightning; `fromage` is the optimizer. `contents`,
`snapshot` and `isolation` put everything back, bit for bit; `probing` makes an objective of a
module and batches. `schedule` says when, `plots` and `reporting` say where; `monitor` is what the
callbacks share, `asymmetry_monitor`, `breakdown_monitor` and `swa` are the callbacks.
"""

from lightning_landscape.asymmetry import (
    AsymmetryScore,
    asymmetry_ratio,
    is_asymmetric,
    score_asymmetry,
)
from lightning_landscape.asymmetry_monitor import AsymmetryMonitor
from lightning_landscape.batch_norm import recalibrate_batch_norm
from lightning_landscape.breakdown import GradientBreakdown, gradient_direction, measure_breakdown
from lightning_landscape.breakdown_monitor import GradientBreakdownMonitor
from lightning_landscape.directions import sample_direction
from lightning_landscape.fromage import Fromage, fromage, trust_lr
from lightning_landscape.line import LineScore, compare_ends
from lightning_landscape.params import Params, difference
from lightning_landscape.probing import probing
from lightning_landscape.rates import AsymmetryRate
from lightning_landscape.slices import (
    FunctionObjective,
    Objective,
    Slice,
    evaluate_slice,
    line_grid,
    symmetric_grid,
)
from lightning_landscape.swa import SWA, load_swa_weights

__all__ = [
    "SWA",
    "AsymmetryMonitor",
    "AsymmetryRate",
    "AsymmetryScore",
    "Fromage",
    "FunctionObjective",
    "GradientBreakdown",
    "GradientBreakdownMonitor",
    "LineScore",
    "Objective",
    "Params",
    "Slice",
    "asymmetry_ratio",
    "compare_ends",
    "difference",
    "evaluate_slice",
    "fromage",
    "gradient_direction",
    "is_asymmetric",
    "line_grid",
    "load_swa_weights",
    "measure_breakdown",
    "probing",
    "recalibrate_batch_norm",
    "sample_direction",
    "score_asymmetry",
    "symmetric_grid",
    "trust_lr",
]
