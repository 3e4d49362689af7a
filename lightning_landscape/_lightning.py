"""Every private name of Lightning, and everything that differs between its two import names.

`lightning` and `pytorch_lightning` are two copies of the same code: a callback of one fails the
`isinstance` checks of the other. Our callbacks and errors inherit from both where both are
installed.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_landscape.undo import Undo, undone

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer


def _namespaces() -> list[str]:
    names = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
        else:
            names.append(name)
    return names


_NAMESPACES = _namespaces()
_LIGHTNING = _NAMESPACES[0]
_FABRIC_OF = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
_FABRICS = [_FABRIC_OF[name] for name in _NAMESPACES]
_FABRIC = _FABRICS[0]


def _import(path: str, name: str) -> Any:
    return getattr(importlib.import_module(path), name)


_MODULES: tuple[type, ...] = tuple(_import(path, "LightningModule") for path in _NAMESPACES)
_DATA_MODULES = tuple(_import(path, "LightningDataModule") for path in _NAMESPACES)
_MISCONFIGURATIONS: tuple[Any, ...] = tuple(
    _import(f"{path}.utilities.exceptions", "MisconfigurationException") for path in _FABRICS
)

rank_zero_warn: Callable[..., None] = _import(f"{_FABRIC}.utilities.rank_zero", "rank_zero_warn")
rank_zero_info: Callable[..., None] = _import(f"{_FABRIC}.utilities.rank_zero", "rank_zero_info")


if not TYPE_CHECKING:
    Callback = type(
        "Callback",
        tuple(_import(path, "Callback") for path in _NAMESPACES),
        {"__doc__": "The Callback of every Lightning that is installed.", "__module__": __name__},
    )


class ConfigurationError(*_MISCONFIGURATIONS, ValueError):
    """A setting that cannot work, found at construction or at the start of fit.

    Lightning's `MisconfigurationException` and Python's `ValueError` at once.
    """


@contextmanager
def as_configuration() -> Iterator[None]:
    """Turn a `ValueError` into a `ConfigurationError`."""
    try:
        yield
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


# attributes that Lightning itself sets on a module
LIGHTNING_ATTRIBUTES = frozenset({"_trainer", "_fabric", "_current_fx_name", "_compiler_ctx"})


def import_cli() -> tuple[Any, Any]:
    """Return LightningCLI, which needs jsonargparse, and Trainer."""
    return _import(f"{_LIGHTNING}.cli", "LightningCLI"), _import(_LIGHTNING, "Trainer")


def seed_quietly(seed: int | None) -> None:
    """Seed the random numbers as LightningCLI does, without a message; None is its default seed."""
    _import(_LIGHTNING, "seed_everything")(seed, workers=True, verbose=False)


def lightning_bases() -> tuple[type, type]:
    """Return LightningModule and LightningDataModule."""
    return _MODULES[0], _DATA_MODULES[0]


def overrides(owner: Any, name: str) -> bool:
    """Return whether a module or data module overrides a method of Lightning's."""
    if name in vars(owner):
        return True
    bases = *_MODULES, *_DATA_MODULES
    inherited = [getattr(base, name) for base in bases if hasattr(base, name)]
    return getattr(type(owner), name) not in inherited


def all_batches(loader: Any, *, train: bool) -> Iterator[Any]:
    """Yield the batches of a loader, or of several loaders combined as in a fit."""
    if isinstance(loader, (Mapping, list, tuple)):
        mode = "max_size_cycle" if train else "sequential"
        combined = _import(f"{_LIGHTNING}.utilities.combined_loader", "CombinedLoader")
        yield from (batch for batch, *_ in combined(loader, mode))
    else:
        yield from loader


def lightning_modules(module: nn.Module) -> list[Any]:
    """Return every LightningModule at or below a module."""
    return [child for child in module.modules() if isinstance(child, _MODULES)]


def attached_trainer(module: nn.Module) -> Any | None:
    """Return the trainer a module was last used with, if any."""
    return getattr(module, "_trainer", None)


def mute(module: nn.Module, trainer: Any | None, undo: Undo) -> None:
    """Discard what a probe logs, and restore what a step sets on the trainer.

    `log` and `log_dict` of every LightningModule inside do nothing. The trainer's loggers log
    nothing. A bound `log` that the user has stored writes into results that are discarded.

    Args:
        module: The module.
        trainer: Its trainer, if any.
        undo: Gets the actions that undo all this.
    """
    modules = lightning_modules(module)
    if trainer is not None:
        for child in modules:
            undo.keep_items(child.__dict__, "_trainer")
            child.__dict__["_trainer"] = trainer
        _replace_results(modules, trainer, undo)
        keep_trainer(trainer, undo)
    for child in modules:
        undo.keep_items(child.__dict__, "log", "log_dict")
        child.__dict__.update(log=_ignore, log_dict=_ignore)


def _ignore(*args: object, **kwargs: object) -> None:
    return None


def keep_trainer(trainer: Any, undo: Undo) -> None:
    """Replace the trainer's loggers by silent ones, and restore the trainer's attributes."""
    if trainer.loggers:
        undo.keep_attributes(trainer, "loggers")
        trainer.loggers = [_silent(logger) for logger in trainer.loggers]
    connector = trainer._logger_connector
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop)
    for owner in (trainer, *loops, trainer.strategy, trainer.precision_plugin, connector):
        undo.keep_all(owner.__dict__)
        for key, value in owner.__dict__.items():
            if key.endswith("_metrics") and type(value) is dict:
                undo.keep_all(value)


def _silent(logger: Any) -> Any:
    """Return a logger that logs nothing, with the name and the folders of another."""
    dummy = _import(f"{_LIGHTNING}.loggers.logger", "DummyLogger")
    names = ("name", "version", "save_dir", "root_dir", "log_dir")
    same = {
        name: property(lambda self, name=name: getattr(logger, name))
        for name in names
        if hasattr(type(logger), name)
    }
    return type("DummyLogger", (dummy,), same)()


@contextmanager
def collected(
    modules: list[Any], trainer: Any, results: Any, function: str, *, first: bool | None
) -> Iterator[None]:
    """Collect in `results` what modules log, as if logged in `function`.

    Args:
        modules: The LightningModules that log.
        trainer: Their trainer, in a validation.
        results: From `new_results`.
        function: The hook or step that runs inside.
        first: Whether this is the first batch; None at the end of the epoch.
    """
    with undone() as undo:
        _replace_results(modules, trainer, undo, results, function)
        trainer._logger_connector._first_loop_iter = first
        trainer._logger_connector._current_fx = function if first is False else None
        yield


def new_results(trainer: Any) -> Any:
    """Return an empty collection for the values that a validation logs."""
    return type(_results_loop(trainer)._results)(training=False)


def epoch_metrics(results: Any, loaders: list[int | None]) -> dict[str, float]:
    """Return the values that were logged over an epoch, of each dataloader, by name."""
    metrics: dict[str, float] = {}
    for index in loaders:
        results.dataloader_idx = index
        metrics |= results.metrics(on_step=False)["callback"]
    return {name: float(value) for name, value in metrics.items()}


def live_results(trainer: Any) -> Any:
    """Return the values logged so far in the present validation."""
    return _results_loop(trainer)._results


def validation_loader(trainer: Any, index: int) -> int | None:
    """Return the index of the dataloader of a validation batch; None if there is only one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    return index if loop._is_sequential and loop.num_dataloaders > 1 else None


def training_flags(trainer: Any | None) -> Mapping[str, bool]:
    """Return the train/eval flags by layer from before a validation within a fit."""
    if trainer is None or trainer.state.fn != "fit" or trainer.training:
        return {}
    kept = getattr(trainer.fit_loop.epoch_loop.val_loop, "_module_mode", None)
    return getattr(kept, "mode", {})


def takes_batch_index(step: Callable[..., Any]) -> bool:
    """Return whether a validation step takes the index of its batch."""
    return takes_argument(step, "batch_idx", min_args=2)


def _replace_results(
    modules: list[Any],
    trainer: Any,
    undo: Undo,
    instead: Any | None = None,
    function: str = "training_step",
) -> None:
    """Make modules log into other results, `instead` or empty ones."""
    undo.keep_attributes(trainer, "should_stop")
    undo.keep_attributes(trainer.state, "stage")
    if trainer._active_loop is None:
        trainer.training = True  # after a fit, as during it
    loop, connector = _results_loop(trainer), trainer._logger_connector
    undo.keep_attributes(connector, "_current_fx", "_first_loop_iter")
    results = loop._results
    if results is not None:
        undo.keep_attributes(loop, "_results")
        loop._results = type(results)(training=results.training) if instead is None else instead
    for child in modules:
        undo.keep_items(child.__dict__, "_current_fx_name")
        child.__dict__["_current_fx_name"] = function


def _results_loop(trainer: Any) -> Any:
    loop = trainer._active_loop
    if not hasattr(loop, "epoch_loop"):
        return loop
    return loop.epoch_loop if trainer.training else loop.epoch_loop.val_loop


def takes_argument(step: Callable[..., Any], name: str, **options: Any) -> bool:
    """Return whether a hook or step takes an argument of a name, by Lightning's own check."""
    if isinstance(step, MethodType):
        return _takes_argument(step.__func__, name, **options)
    return _takes_argument.__wrapped__(step, name, **options)


@lru_cache(64)  # reading a signature takes as long as running a small network
def _takes_argument(step: Callable[..., Any], name: str, **options: Any) -> bool:
    path = f"{_LIGHTNING}.utilities.signature_utils"
    return _import(path, "is_param_in_hook_signature")(step, name, **options)


_NO_CONTEXT = nullcontext()  # the same as a plain Precision returns, but faster
_PLAIN_PRECISION = tuple(_import(f"{path}.plugins.precision", "Precision") for path in _NAMESPACES)


def precision_context(trainer: Any | None) -> AbstractContextManager[Any]:
    """Return the autocast context the trainer runs a training step in."""
    if trainer is None:
        return _NO_CONTEXT
    plugin = trainer.precision_plugin
    if type(plugin) in _PLAIN_PRECISION and not vars(plugin):  # its context is not replaced
        return _NO_CONTEXT
    return plugin.train_step_context()


def has_transfer_hooks(module: nn.Module) -> bool:
    """Return whether the user overrides a hook that moves batches to the device."""
    hooks = "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"
    return any(has_hook(module, name) for name in hooks)


def has_hook(module: nn.Module, name: str) -> bool:
    """Return whether a module is a LightningModule that overrides a hook."""
    return isinstance(module, _MODULES) and overrides(module, name)


def prepare_batch(module: nn.Module, batch: Any, trainer: Any | None) -> Any:
    """Convert and move a batch of a dataloader as training does before its step."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if trainer is not None:
        batch = trainer.precision_plugin.convert_input(batch)
    if isinstance(module, _MODULES):
        hooked: Any = module
        batch = hooked.on_before_batch_transfer(batch, 0)
        batch = hooked.transfer_batch_to_device(batch, device, 0)
        return hooked.on_after_batch_transfer(batch, 0)
    return _import(f"{_FABRIC}.utilities.apply_func", "move_data_to_device")(batch, device)


def batch_size(batch: Any) -> int | None:
    """Return the number of samples in a batch, as Lightning guesses; None if it cannot.

    Pass a copy: an iterator in the batch is read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _import(f"{_LIGHTNING}.utilities.data", "extract_batch_size")(batch)
        except Exception:  # Lightning's own, or what the batch raises when it is iterated
            return None


def batch_place(trainer: Any, step: str) -> tuple[int, int]:
    """Return the number of the present batch in the loop, and its index in the epoch.

    The number is unique in training; each validation counts anew.

    Args:
        trainer: The trainer.
        step: `"training_step"`, or that of a validation.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = (loop if step == "training_step" else loop.val_loop).batch_progress
    return progress.total.ready, progress.current.ready - 1


def is_batch_iterator(argument: object) -> bool:
    """Return whether a step gets an iterator (`dataloader_iter`) instead of a batch."""
    return type(argument).__name__ == "_DataFetcherWrapper"


def logger_step(trainer: Trainer) -> int:
    """Return the step that Lightning writes beside the user's own scalars: batches that stepped.

    Within a batch it does not count this batch yet; at the end of an epoch it counts all.
    """
    stepped = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return max(trainer.global_step - 1, 0) if stepped is None else stepped
