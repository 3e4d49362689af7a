from .analysis.analyze import analyze
from .analysis.checkpoints import load_weights
from .analysis.planes import Plane, evaluate_plane
from .analysis.report import Report
from .analysis.trajectory import Trajectory, layer_sign_agreement, project_trajectory
from .analysis.verb import LandscapeCLI
from .callbacks.asymmetry import AsymmetryMonitor
from .callbacks.breakdown import GradientBreakdownMonitor
from .callbacks.swa import SWA
from .callbacks.swa_files import load_swa_weights
from .engine.batch_norm import recalibrate_batch_norm
from .engine.probing import probing
from .fromage import Fromage, fromage
from .measures.asymmetry import (
    AsymmetryScore,
    asymmetry_ratio,
    is_asymmetric,
    score_asymmetry,
)
from .measures.breakdown import (
    GradientBreakdown,
    critical_rate,
    measure_breakdown,
    trust_lr,
)
from .measures.directions import sample_direction
from .measures.gradients import gradient_direction
from .measures.line import LineScore, compare_ends
from .measures.plane import PlaneBasis, plane_through
from .measures.rates import AsymmetryRate
from .measures.slices import Slice, evaluate_slice, line_grid, symmetric_grid
from .measures.survey import Survey, survey
from .objective import FunctionObjective, Objective
from .params import Params, difference
from .reporting.arrays import load_slices

__version__: str

__all__ = [
    "SWA",
    "AsymmetryMonitor",
    "AsymmetryRate",
    "AsymmetryScore",
    "Fromage",
    "FunctionObjective",
    "GradientBreakdown",
    "GradientBreakdownMonitor",
    "LandscapeCLI",
    "LineScore",
    "Objective",
    "Params",
    "Plane",
    "PlaneBasis",
    "Report",
    "Slice",
    "Survey",
    "Trajectory",
    "analyze",
    "asymmetry_ratio",
    "compare_ends",
    "critical_rate",
    "difference",
    "evaluate_plane",
    "evaluate_slice",
    "fromage",
    "gradient_direction",
    "is_asymmetric",
    "layer_sign_agreement",
    "line_grid",
    "load_slices",
    "load_swa_weights",
    "load_weights",
    "measure_breakdown",
    "plane_through",
    "probing",
    "project_trajectory",
    "recalibrate_batch_norm",
    "sample_direction",
    "score_asymmetry",
    "survey",
    "symmetric_grid",
    "trust_lr",
]
