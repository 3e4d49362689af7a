"""The one table of the tags of scalars: what each is called, and what a person reads about it.

Tags are relative: a callback's name and a slash come before them, `landscape/gaussian/area`. In a
tag `@` is written `-`.
"""

from __future__ import annotations

import re

# fields: `family`; `set`, "" or "val/"; `direction`, after "<optimizer>/" where there are several;
# `layer` and `metric`, the user's names
TAGS = {
    # AsymmetryMonitor. Medians are over the directions of a family.
    "{family}/rate": "share of directions whose slice is asymmetric",
    "{family}/rate_low": "lower end of the 95 % interval of `rate`",
    "{family}/rate_high": "upper end of the 95 % interval of `rate`",
    "{family}/area": "median asymmetry, from -1 to 1: positive where the + side is steep",
    "{family}/area_low": "lower end of the 95 % interval of `area`, from 6 directions on",
    "{family}/area_high": "upper end of the 95 % interval of `area`, from 6 directions on",
    "{family}/area_corrected": "`area` without what the slope at 0 alone makes of it, median",
    "{family}/ratio": "least slope on the steep side / greatest slope on the flat side, median",
    "{family}/off_minimum": "share of directions along which the loss still falls",
    "{family}/n_directions": "directions it took to know `rate`, with n_directions='auto'",
    # the line from the current weights (t = 0) to the average (t = 1)
    "swa/{set}distance": "L2 norm between the current weights and the average",
    "swa/{set}gap": "loss of the average minus loss of the current weights, on the kept batches",
    "swa/{set}minimum": "t of the least loss on the line; nan beyond the grid",
    "swa/{set}barrier": "how far the loss between the two rises above their chord",
    "swa/{set}outward_ratio": "rise behind the current weights / rise beyond the average, at the "
    "ends of the grid; above 1 the average is on the flat side; nan where one does not rise",
    "swa/{set}outward_ratio_near": "the same, one distance behind and one beyond",
    "swa/shift": "`minimum` on validation batches minus `minimum` on training batches",
    # GradientBreakdownMonitor. Relative steps are the largest ||dW|| / ||W|| of a layer.
    "{direction}/max": "largest relative change of a layer's gradient over the whole step",
    "{direction}/model": "what deep relative trust says of `max`; a model, not a bound",
    "{direction}/excess": "largest `breakdown / model` of a layer",
    "{direction}/descent_limit": "relative step up to which the loss falls, on this batch",
    "{direction}/break_even": "relative step at which the loss is back at its start",
    "{direction}/trust_lr": "largest relative step that deep relative trust promises to descend",
    "{direction}/critical_rate": "learning rate above which this step would have raised the loss "
    "of its own batch; 0 where it leads uphill whatever the rate",
    "{direction}/learning_rate": "learning rate in use, beside the critical one",
    "{direction}/layer/{layer}": "relative change of this layer's gradient over the whole step",
    "step/relative_update": "largest ||dW|| / ||W|| of a layer over the step",
    "step/relative_gradient": "largest ||g|| / ||W|| of a layer",
    "step/weight_gradient_cosine": "cosine between a layer's weights and gradient, farthest from 0",
    "step/successive_cosine": "cosine between this step and the one before",
    # SWA
    "control/{metric}": "the metric of the current weights, with batch-norm statistics estimated "
    "like the average's",
    "n_averaged": "sets of weights in the average",
    # all
    "seconds": "seconds this probe took",
    "overhead": "share of the fit so far that went into probes",
}


def written(tag: str) -> str:
    """Return a tag as it is written.

    Example:
        >>> written("uniform@norm/area")
        'uniform-norm/area'
    """
    return tag.replace("@", "-")


def describe(tag: str) -> str:
    """Return what the table says about the relative tag of a scalar; "" where it says nothing.

    Example:
        >>> describe("uniform-norm/rate_low")
        'lower end of the 95 % interval of `rate`'
    """
    return next((text for pattern, text in _PATTERNS if pattern.fullmatch(tag)), "")


def _pattern(template: str) -> re.Pattern[str]:
    fields = {"{set}": "(val/)?", "{direction}": "(.+/)?[^/]+"}
    fields |= dict.fromkeys(("{layer}", "{metric}", "{family}"), ".+")
    expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for field, values in fields.items():
        expression = expression.replace(field, values)
    return re.compile(expression)


# those with the fewest fields first: `swa/gap` is no `gap` of a family `swa`
_PATTERNS = [
    (_pattern(template), TAGS[template])
    for template in sorted(TAGS, key=lambda template: (template.count("{"), -len(template)))
]
