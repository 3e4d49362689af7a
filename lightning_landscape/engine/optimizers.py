"""Restore the schedulers, groups and settings of a trainer's optimizers."""

from __future__ import annotations

from typing import Any

import torch

from lightning_landscape.undo import Undo


def keep_optimizers(trainer: Any, undo: Undo) -> None:
    """Restore schedulers and optimizers at the end: a step may step or extend them itself."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    states = [_copied(scheduler.state_dict()) for scheduler in schedulers]
    settings = [{key: group[key] for key in group if key != "params"} for group in groups]
    contents = [_copied(values) for values in settings]

    def put_back() -> None:
        for scheduler, state in zip(schedulers, states, strict=True):
            if not _alike(scheduler.state_dict(), state):
                scheduler.load_state_dict(state)
        for group, values, content in zip(groups, settings, contents, strict=True):
            group.update(values)
            for key, value in values.items():
                if isinstance(value, torch.Tensor):  # the same tensor: a graph may hold it
                    value.copy_(content[key])

    undo.add(put_back)
    for optimizer in trainer.optimizers:  # a step that grows its network adds parameters
        for group in optimizer.param_groups:
            undo.keep_list(group["params"])
            undo.keep_items(group, "params")
        undo.keep_list(optimizer.param_groups)
        undo.keep_all(optimizer.state)


def _copied(value: Any) -> Any:
    """Copy the dicts, lists and tensors of a state dict; share other objects."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if type(value) is list else value


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if type(a) is dict:
        return type(b) is dict and a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if type(a) is list:
        return type(b) is list and len(a) == len(b) and all(map(_alike, a, b))
    return a is b or a == b
