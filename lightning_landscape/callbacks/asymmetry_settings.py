"""What the settings of AsymmetryMonitor may be, and what they mean for the module at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lightning_landscape._lightning import ConfigurationError, batch_size, rank_zero_info
from lightning_landscape.callbacks.swa import SWA
from lightning_landscape.engine.batch_norm import batch_norms
from lightning_landscape.engine.batches import KeptBatch, clone_batch
from lightning_landscape.engine.isolation import Mode
from lightning_landscape.measures.directions import split_family
from lightning_landscape.objective import Objective
from lightning_landscape.params import group_names, trainable
from lightning_landscape.ranks import n_ranks


def check_swa(swa: str | SWA | None) -> str | SWA | None:
    """Return the callback that keeps an average, its name, or None.

    Raises:
        ValueError: If it is something else.
    """
    if swa is not None and not isinstance(swa, (str, SWA)):
        raise ValueError(
            "`swa` must be a lightning_landscape.SWA callback, or None. Got "
            f"{getattr(swa, '__name__', type(swa).__name__)}."
        )
    return swa


def find_swa(swa: str | SWA | None, callbacks: Sequence[Any]) -> SWA | None:
    """Return the callback itself, or the one of that name.

    Raises:
        ConfigurationError: If it is not among the callbacks.
    """
    if swa is None:
        return None
    averages = [callback for callback in callbacks if isinstance(callback, SWA)]
    for average in averages:
        if swa in (average, average.name):
            return average
    if isinstance(swa, str):
        raise ConfigurationError(
            f"`swa` must be the name of an SWA callback of the same Trainer. Got {swa!r}, and it "
            f"has {[one.name for one in averages] or 'none'}: add SWA(name={swa!r})."
        )
    raise ConfigurationError(
        "`swa` must be a callback of the same Trainer, or it averages nothing. Use "
        "Trainer(callbacks=[swa, AsymmetryMonitor(swa=swa)]); in a YAML file its name, `swa: swa`."
    )


def moves(family: str, module: Any) -> bool:
    """Return whether a family moves anything.

    Raises:
        ValueError: If its pattern matches no parameter.
    """
    return bool(group_names(trainable(module), split_family(family)[1], module))


def moves_now(family: str, module: Any) -> bool:
    """Return whether a family moves anything at present: layers freeze and thaw."""
    try:
        return moves(family, module)
    except ValueError:  # a pattern, all of whose parameters are frozen by now
        return False


def families_that_move(families: Sequence[str], module: Any) -> tuple[str, ...]:
    """Return the families that move anything, and say which are left out.

    Raises:
        ValueError: If the pattern of one matches no parameter.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return tuple(families)  # all may thaw later
    moving = tuple(family for family in families if moves(family, module))
    for family in families:
        if family not in moving:
            rank_zero_info(
                f"AsymmetryMonitor: {family!r} is left out, {type(module).__name__} has no "
                "trainable parameters in that group."
            )
    return moving


def n_weights(objective: Objective, family: str, module: Any) -> int:
    """Return how many weights a family moves."""
    params = objective.params
    names = group_names(params, split_family(family)[1], module)
    return sum(params[name].numel() for name in names)


def refuse_lone_samples(
    opened: Callable[[], AbstractContextManager[Objective]],
    module: Any,
    batch: KeptBatch,
    mode: Mode,
) -> None:
    """Say at the start that a batch norm cannot take its statistics from one sample.

    Args:
        opened: Opens the module on the batch.
        module: The module.
        batch: The first batch of the fit.
        mode: How the module is run.

    Raises:
        ConfigurationError: If the step fails for that reason. Other failures are those of a probe.
    """
    if mode == "eval" or not batch_norms(module) or n_ranks() > 1:  # a step may exchange something
        return
    if batch_size(clone_batch(batch.data)) != 1:  # it reads an iterator to its end
        return
    try:
        with opened() as objective:
            objective.losses()
    except Exception as error:
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise ConfigurationError(
                f"`mode` must be 'eval' where a batch norm sees batches of one sample: {mode!r} "
                f"needs the statistics of a batch. Got: {error}. Use mode='eval', or a larger "
                "batch_size."
            ) from error
