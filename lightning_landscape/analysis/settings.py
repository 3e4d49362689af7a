"""What may be asked for after training: refused in one sentence before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from lightning_landscape._lightning import as_configuration
from lightning_landscape.checks import check_bool, check_choice, check_whole
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.measures.asymmetry import scoring_grid
from lightning_landscape.measures.directions import Normalize, split_family
from lightning_landscape.measures.survey import checked_families, names_of
from lightning_landscape.params import group_names, trainable

HESSIAN = "hessian"  # the family of the one sharpest direction


def check_settings(
    families: Sequence[str],
    *,
    n_directions: int,
    n_points: int,
    radius: float,
    normalize: Normalize = "filter",
    mode: Mode = "train",
    seed: int = 0,
    breakdown: bool = False,
) -> tuple[str, ...]:
    """Return the families that are asked for, once all settings are in range.

    Raises:
        ConfigurationError: If one is not.
    """
    with as_configuration():
        asked = names_of(families)
        if random := [family for family in asked if family != HESSIAN]:
            checked_families(random)
        check_whole("n_directions", n_directions)
        scoring_grid(radius, n_points)
        check_choice("normalize", normalize, get_args(Normalize))
        check_choice("mode", mode, get_args(Mode))
        check_whole("seed", seed, least=0)
        check_bool("breakdown", breakdown)
    return asked


def check_inputs(
    module: Any, batches: Any, validation: Any, families: Sequence[str], **weights: Any
) -> None:
    """Raise if module, batches or weights are something else, or a family's pattern fits nothing.

    Args:
        module: A module with the parameters that the families name.
        batches: Training batches.
        validation: Validation batches, or None.
        families: The families that `check_settings` returns.
        weights: `Params` or None, by argument.

    Raises:
        ConfigurationError: If so.
    """
    with as_configuration():
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"`module` must be a module. Got {_kind(module)}: for a checkpoint use "
                "MyModule.load_from_checkpoint(path), for a class make an instance."
            )
        _check_batches("batches", batches)
        if validation is not None:
            _check_batches("validation", validation)
        for name, params in weights.items():
            _check_weights(name, params)
        for group in {split_family(family)[1] for family in families if family != HESSIAN}:
            group_names(trainable(module), group, module)


def _check_batches(name: str, batches: Any) -> None:
    """Raise unless it can be a sequence of batches, which all have one form."""
    way_out = f"for a single one use {name}=[batch]."
    iterates = any(hasattr(type(batches), name) for name in ("__iter__", "__getitem__"))
    if isinstance(batches, (str, bytes, Mapping)) or not iterates:
        raise ValueError(
            f"`{name}` must be batches, as a dataloader yields them. Got {_kind(batches)}: "
            f"{way_out}"
        )
    if isinstance(batches, (list, tuple)) and all(isinstance(each, Tensor) for each in batches):
        forms = {(each.ndim, each.dtype) for each in batches}
        if len(forms) > 1:
            shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in batches[:3])
            raise ValueError(
                f"`{name}` must be a list of batches. Got the tensors of one: {shapes}; {way_out}"
            )


def _check_weights(name: str, params: Any) -> None:
    if params is None or isinstance(params, Mapping):
        return
    way_out = "use load_weights(path, module) for those of a checkpoint"
    if isinstance(params, nn.Module):
        way_out = "use dict(module.named_parameters())"
    elif hasattr(type(params), "weights"):
        way_out = "use its average, such as swa.weights"
    raise ValueError(
        f"`{name}` must be weights, a dict from parameter name to tensor. Got {_kind(params)}: "
        f"{way_out}."
    )


def _kind(value: Any) -> str:
    """Return what a person knows a value by."""
    simple = value is None or isinstance(value, (str, bytes, int, float))
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if simple else f"a {type(value).__name__}"
