"""From families of directions to slices, scores and a rate: what every probe measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from torch import Tensor, nn

from lightning_landscape.checks import check_whole
from lightning_landscape.measures.asymmetry import (
    AsymmetryScore,
    cannot_count,
    score_asymmetry,
    scoring_grid,
)
from lightning_landscape.measures.directions import (
    Normalize,
    direction_generator,
    sample_direction,
    split_family,
)
from lightning_landscape.measures.notebook import survey_html
from lightning_landscape.measures.quantiles import median_interval
from lightning_landscape.measures.rates import AsymmetryRate
from lightning_landscape.measures.sequential import FIRST, check_precision, sequential_design
from lightning_landscape.measures.slices import Slice, evaluate_pairs, evaluate_slice, split_batches
from lightning_landscape.objective import Objective
from lightning_landscape.params import Params, group_names

__all__ = ["Survey", "survey"]


MEDIANS = "area", "area_corrected", "ratio", "rise_radius"


@dataclass(frozen=True, eq=False)
class Survey:
    """What was measured along the directions of one family.

    Attributes:
        family: How the directions were sampled, such as `"uniform@norm"`.
        slices: One whole slice per direction, on the batches that are scored.
        validation: The same directions on the validation batches; empty without any.
        scores: The score of each of `slices`.
        rate: The result of `AsymmetryRate`, as floats: `rate`, `low`, `high`, and `n`, the number
            of directions; `off_minimum` and `unresolved`, shares of `scores`.
        normalize: The unit of `alpha`, see `sample_direction`.
    """

    family: str
    slices: list[Slice]
    validation: list[Slice]
    scores: list[AsymmetryScore]
    rate: dict[str, float]
    normalize: str = "filter"

    @property
    def area(self) -> tuple[float, float, float]:
        """The median `area` over the directions, and its 95 % interval, nan below 6 directions."""
        return median_interval([score.area for score in self.scores])

    @property
    def area_corrected(self) -> tuple[float, float, float]:
        """The median `area_corrected` over the directions, and its 95 % interval."""
        return median_interval([score.area_corrected for score in self.scores])

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The median `ratio` over the directions, and its 95 % interval."""
        return median_interval([score.ratio for score in self.scores])

    @property
    def rise_radius(self) -> tuple[float, float, float]:
        """The median `rise_radius` over the directions, and its 95 % interval."""
        return median_interval([score.rise_radius for score in self.scores])

    def _repr_html_(self) -> str:
        return survey_html(self)

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        return {
            "family": self.family,
            "normalize": self.normalize,
            "slices": [line.to_dict() for line in self.slices],
            "validation": [line.to_dict() for line in self.validation],
            "scores": [score.to_dict() for score in self.scores],
            "rate": dict(self.rate),
            **{name: list(getattr(self, name)) for name in MEDIANS},
        }


def survey(
    objective: Objective,
    families: Sequence[str],
    *,
    module: nn.Module | None = None,
    n_directions: int | Literal["auto"] = 8,
    n_points: int = 13,
    radius: float = 0.6,
    normalize: Normalize = "filter",
    seed: int = 0,
    precision: float = 0.1,
    n_most: int | None = None,
    validation: Sequence[bool] = (),
) -> dict[str, Survey]:
    """Measure slices along random directions of each family, score them, and rate the family.

    The numbers are those that `AsymmetryMonitor` logs for the same weights, batches and settings.
    Costs `len(families) * n_directions * n_points` evaluations of the objective.

    With `n_directions="auto"` a family is sampled until the interval of its rate is ± `precision`.
    The first 8 slices are whole. Later ones only count for the rate: they are evaluated in pairs,
    from the ends inwards, and stopped as soon as `cannot_count` is true.

    Args:
        objective: The objective, see `probing` and `FunctionObjective`.
        families: How directions are sampled, see `sample_direction`. A family with a group `norm`
            or `other` that is empty here is not in the result.
        module: The module with these parameters; needed for the groups `norm` and `other`.
        n_directions: Directions per family; `"auto"` for as many as `precision` needs.
        n_points: Alphas per direction; 4 k + 1.
        radius: The largest alpha, in the unit of `normalize`.
        normalize: The length of the directions, see `sample_direction`.
        seed: Seed of the directions.
        precision: With `"auto"`, half the width of the rate's interval at which sampling stops, at
            least 0.03.
        n_most: The most directions per family, chosen before anything is measured.
        validation: A flag for each batch of this process: True for a validation batch. They are
            evaluated with the others and not scored.

    Returns:
        One `Survey` per family, in their order.

    Raises:
        ValueError: If a setting is out of range, a family is unknown or repeated, or none of them
            moves anything.

    References:
        He, Huang, Yuan (2019), Asymmetric Valleys, arXiv:1902.00744.

    Example:
        >>> import torch
        >>> from lightning_landscape import FunctionObjective
        >>> ramp = FunctionObjective(
        ...     lambda p: torch.where(p["x"] > 1, 4 * (p["x"] - 1), 1 - p["x"]).sum(),
        ...     {"x": torch.ones(3)},
        ... )
        >>> found = survey(ramp, ["uniform"], n_directions=2)["uniform"]
        >>> [round(score.ratio, 3) for score in found.scores], found.rate["rate"]
        ([4.0, 4.0], 1.0)
    """
    families = checked_families(families)
    alphas = scoring_grid(radius, n_points)
    n_first, n_all = numbers_of_directions(n_directions, n_most, precision)
    check_whole("seed", seed, least=0)

    def sample(family: str, k: int) -> Params:
        generator = direction_generator(seed, family, k)
        return sample_direction(
            objective.params, family, module=module, generator=generator, normalize=normalize
        )

    found: dict[str, Survey] = {}
    for family in families:
        if group_names(objective.params, split_family(family)[1], module):
            # ranks share their directions: a sum over ranks would count each direction many times
            narrow = precision if n_directions == "auto" else None
            rate = AsymmetryRate(precision=narrow, sync_on_compute=False)
            directions = (sample(family, k) for k in range(n_all))
            measured = _measure(objective, family, alphas, directions, rate, validation, n_first)
            found[family] = replace(measured, normalize=normalize)
    if not found:
        raise ValueError(
            f"`families` must name one that moves a parameter. Got {list(families)}, whose groups "
            "are empty here: add one of all parameters, such as 'gaussian'."
        )
    return found


def survey_along(
    objective: Objective,
    family: str,
    directions: Iterable[Params],
    *,
    n_points: int = 13,
    radius: float = 0.6,
    validation: Sequence[bool] = (),
) -> Survey:
    """Measure slices along given directions, and score them as those of one family.

    Costs `n_points` evaluations per direction.

    Args:
        objective: The objective.
        family: The name of the directions.
        directions: The directions, one or more.
        n_points: Alphas per direction; 4 k + 1.
        radius: The largest alpha, in units of the directions.
        validation: A flag for each batch of this process, see `survey`.
    """
    rate = AsymmetryRate(sync_on_compute=False)
    alphas = scoring_grid(radius, n_points)
    return _measure(objective, family, alphas, directions, rate, validation)


def survey_of(
    family: str,
    slices: Sequence[Slice],
    validation: Sequence[Slice] = (),
    *,
    normalize: str = "filter",
    rate: Mapping[str, float] | None = None,
) -> Survey:
    """Return slices that were measured earlier as a survey. Costs no evaluation.

    Args:
        family: How their directions were sampled.
        slices: The slices to score.
        validation: The same directions on validation batches.
        normalize: The unit of `alpha`.
        rate: The rate, if it is of more directions than these; of these by default.
    """
    scores = [score_asymmetry(line) for line in slices]
    if rate is None:
        metric = AsymmetryRate(sync_on_compute=False)
        for score in scores:
            metric.update(score)
        rate = _shares(metric, scores)
    return Survey(family, list(slices), list(validation), scores, dict(rate), normalize)


def _measure(
    objective: Objective,
    family: str,
    alphas: Tensor,
    directions: Iterable[Params],
    rate: AsymmetryRate,
    validation: Sequence[bool],
    n_whole: int | None = None,
) -> Survey:
    """Evaluate the first directions whole, or all, and further ones until the rate is precise."""
    ways = iter(directions)
    whole = [evaluate_slice(objective, way, alphas, label=family) for way in islice(ways, n_whole)]
    parts = [split_batches(joint, validation) for joint in whole]
    slices = [part[0] for part in parts]
    validated = [line for part in parts for line in part[1:]]
    scores = [score_asymmetry(line) for line in slices]
    for score in scores:
        rate.update(score)
    centre = whole[0].losses[len(alphas) // 2]

    def enough(part: Slice) -> bool:
        return cannot_count(split_batches(part, validation)[0], c=rate.c)

    for way in ways:
        if rate.is_precise:
            break
        line = evaluate_pairs(objective, way, alphas, centre, enough=enough)
        rate.update(line and score_asymmetry(split_batches(line, validation)[0]))
    return Survey(family, slices, validated, scores, _shares(rate, scores))


def _shares(rate: AsymmetryRate, scores: Sequence[AsymmetryScore]) -> dict[str, float]:
    verdicts = [score.verdict for score in scores]
    shares = {name: float(value) for name, value in rate.compute().items()}
    return shares | {
        "off_minimum": verdicts.count("off-minimum") / len(verdicts),
        "unresolved": verdicts.count("unresolved") / len(verdicts),
    }


def numbers_of_directions(
    n_directions: int | Literal["auto"], n_most: int | None = None, precision: float = 0.1
) -> tuple[int, int]:
    """Return how many directions are evaluated whole, and how many there are at most.

    Raises:
        ValueError: If a setting is out of range.
    """
    check_precision(precision)
    limit = math.inf if n_most is None else check_whole("n_most", n_most)
    if n_directions == "auto":
        whole, most = FIRST, sequential_design(precision).n_most
    elif isinstance(n_directions, str):
        raise ValueError(
            f"`n_directions` must be a whole number from 1 up or 'auto'. Got {n_directions!r}."
        )
    else:
        whole = most = check_whole("n_directions", n_directions)
    return int(min(whole, limit)), int(min(most, limit))


def names_of(families: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple, also if there is a single one or none.

    Raises:
        ValueError: If they are something else.
    """
    asked: Any = (families,) if isinstance(families, str) else families
    names: tuple[Any, ...] = tuple(asked) if isinstance(asked, Iterable) else (None,)
    if all(isinstance(name, str) for name in names):
        return names
    raise ValueError(
        f"`families` must be a list of names, such as ['gaussian', 'sign']. Got {families!r}."
    )


def checked_families(families: Sequence[str]) -> tuple[str, ...]:
    """Return the families, one or more and none of them twice.

    Raises:
        ValueError: If there is none, or one is repeated or unknown.
    """
    families = names_of(families)
    if not families:
        raise ValueError("`families` must name at least one, such as 'gaussian'. Got none.")
    if len(set(families)) != len(families):
        raise ValueError(f"`families` must not repeat one. Got {list(families)}.")
    for family in families:
        try:
            split_family(family)
        except ValueError as error:
            raise ValueError(f"`families`: each {error}") from error
    return families
