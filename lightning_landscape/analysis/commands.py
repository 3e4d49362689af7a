"""What the verbs of the command line do."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lightning_landscape._lightning import import_cli, lightning_bases, overrides
from lightning_landscape.analysis.checkpoints import checkpoint_file, read_checkpoint
from lightning_landscape.analysis.in_trainer import Stage
from lightning_landscape.analysis.planes import Plane, measure_plane
from lightning_landscape.analysis.report import Line, Report
from lightning_landscape.analysis.settings import check_settings
from lightning_landscape.analysis.show import (
    Outputs,
    one_line,
    show_lines,
    show_plane,
    show_report,
    show_runs,
)
from lightning_landscape.checks import check_whole
from lightning_landscape.measures.plane import PlaneBasis, plane_through
from lightning_landscape.undo import undone

_FIT_ONLY = ("ckpt_path", "weights_only", "optimizer", "lr_scheduler")  # other verbs refuse these


def run_analyze(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Measure asymmetry around a checkpoint."""
    names = ("families", "n_directions", "n_points", "radius", "breakdown")
    settings = {name: getattr(options, name) for name in names}
    check_settings(**settings)
    _measure_one(options, rest, **settings)


def run_line(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Measure the line between two checkpoints, or from each of several to the last."""
    *starts, options.toward = options.ckpt
    if not starts:
        raise ValueError("`line` needs two checkpoints or more. Got one: add CKPT:swa.")
    if starts == [options.toward]:
        raise ValueError(
            f"`line` needs two different checkpoints. Got {options.toward} twice: for its average "
            "write CKPT:swa."
        )
    if len(starts) == 1:
        _measure_one(options, rest, families=())
    else:
        _measure_series(options, rest, starts)


def _measure_one(options: argparse.Namespace, rest: Sequence[str], **settings: Any) -> None:
    """Print what `analyze` finds at the first checkpoint."""

    def measure(stage: Stage) -> Report:
        at = stage.weights(options.ckpt[0])
        toward = stage.weights(options.toward) if options.toward else None
        return stage.analyze(at=at, toward=toward, **settings, **_common(options))

    report, first = _staged(options, rest, measure)
    if first:
        show_report(report, _outputs(options))


def _measure_series(
    options: argparse.Namespace, rest: Sequence[str], starts: Sequence[str]
) -> None:
    """Print the lines of a series of checkpoints to the last, side by side."""

    def measure(stage: Stage) -> dict[str, Line | None]:
        settings = {"toward": stage.weights(options.toward), "families": (), **_common(options)}
        return {
            path: stage.analyze(at=stage.weights(path), validation=False, **settings).line
            for path in starts
        }

    lines, first = _staged(options, rest, measure)
    if first:
        show_lines(lines, options.toward, as_json=options.json)


def run_plane(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Measure the plane through three checkpoints."""
    check_whole("n", options.n, least=2)

    def measure(stage: Stage) -> tuple[Plane, PlaneBasis]:
        points = [stage.weights(path) for path in options.ckpt]
        try:
            plane_through(*points)
        except ValueError as error:
            raise ValueError(f"{', '.join(options.ckpt)} span no plane: {error}") from error
        settings = {"n": options.n, "rows": options.rows, **_common(options)}
        batches = stage.batches("train")
        return measure_plane(stage.module, batches, points, trainer=stage.trainer, **settings)

    (plane, basis), first = _staged(options, rest, measure)
    if first:
        names = [Path(path).name for path in options.ckpt]
        show_plane(plane, basis, names, _outputs(options))


def run_read(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Print the last numbers of several runs side by side, or what the monitors of one said."""
    words = options.verb == "show"
    show_runs(options.run, as_json=options.json, html=options.html, words=words)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {"mode": options.mode, "seed": options.seed, "progress": not options.quiet}


def _outputs(options: argparse.Namespace) -> Outputs:
    return Outputs(options.json, options.html, options.save, options.figures)


def _staged(
    options: argparse.Namespace, rest: Sequence[str], measure: Callable[[Stage], Any]
) -> tuple[Any, bool]:
    """Return what was measured, and whether this is the first of several processes."""
    safe, n = not options.unsafe, check_whole("n_batches", options.n_batches)
    check_whole("seed", options.seed, least=0)
    with _quiet_lightning():
        cli = _build(options, rest)
        stage = Stage(cli.trainer, cli.model, cli.datamodule, n_batches=n, weights_only=safe)
        if not overrides(cli.model, "configure_model"):  # else its layers are not there yet
            for path in options.ckpt:
                stage.weights(path)
        found = stage.run(lambda: measure(stage), str(checkpoint_file(options.ckpt[0])))
    return found, cli.trainer.is_global_zero


def _settings(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return how module and data are made, and where that is said: a config, or the checkpoint."""
    config = options.config or _beside(options.ckpt[0])
    if config:
        return _read_config(config), f"--config {config}"
    if not options.model:
        raise ValueError(
            f"--config is needed: there is no config.yaml beside {options.ckpt[0]}, or one folder "
            "above. Without LightningCLI use --model my_script.MyModule --data my_script.MyData: "
            "hyperparameters that the checkpoint holds (save_hyperparameters) are taken from it."
        )
    file = checkpoint_file(options.ckpt[0])
    saved = read_checkpoint(file, weights_only=not options.unsafe)
    own: dict[str, Any] = {}
    for kind, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        held = saved.get(key) or {}  # names with an underscore are Lightning's
        own[kind] = {name: held[name] for name in held if not name.startswith("_")}
    return own, str(file)


def _read_config(config: str | Path) -> dict[str, Any]:
    if not Path(config).is_file():
        raise ValueError(f"--config must be the config.yaml of a fit. There is no file {config}.")
    try:
        settings = yaml.safe_load(Path(config).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--config must be the config.yaml of a fit. {config} is no YAML: {one_line(error)}"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config must be the config.yaml of a fit. {config} is something else.")
    return settings.get("fit", settings)


def _build(options: argparse.Namespace, rest: Sequence[str]) -> Any:
    """Return a LightningCLI that has made the module, the data and a quiet Trainer."""
    settings, source = _settings(options)
    settings = {key: value for key, value in settings.items() if key not in _FIT_ONLY}
    sys.path.insert(0, str(Path.cwd()))  # where the user's own modules are
    for key, given in (("model", options.model), ("data", options.data)):
        settings[key] = _with_class(key, settings.get(key), given, source)
    settings["trainer"] = {
        **(settings.get("trainer") or {}),
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False),
        **{"callbacks": None, "enable_model_summary": False, "devices": 1, "profiler": None},
    }
    if not settings["data"]:
        settings.pop("data")
    cli, trainer = import_cli()
    module, data_module = lightning_bases()
    try:
        with _no_arguments():
            return cli(
                module,
                data_module if "data" in settings else None,
                trainer_class=trainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                parser_kwargs={"exit_on_error": False},
                run=False,
                args=[f"--{key}={json.dumps(value)}" for key, value in settings.items()]
                + list(rest),
            )
    except Exception as error:  # jsonargparse, and whatever the user's constructors raise
        raise ValueError(f"{source} does not build: {one_line(error)}") from error


def _with_class(key: str, given: Any, class_path: str | None, source: str) -> Any:
    given = given or {}
    if class_path is None and "class_path" not in given:
        if key == "data" and not given:
            return None
        raise ValueError(
            f"--{key} is needed: {source} names no class for it, as LightningCLI saves it where "
            f"the script names the class. Use --{key} my_script.MyClass."
        )
    _find_class(key, class_path or given["class_path"])
    return given if class_path is None else {"class_path": class_path, "init_args": given}


def _find_class(key: str, path: str) -> None:
    """Raise unless a path such as `my_script.MyClass` leads to a class, which is imported."""
    module, _, name = path.rpartition(".")
    rule = f"--{key} must be a module and a class, such as my_script.MyClass"
    if not module:
        raise ValueError(f"{rule}. Got {path!r}, which names no module.")
    try:
        found = importlib.import_module(module)  # a checkpoint is only loaded by a class we know
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{rule}. {path} cannot be imported: {one_line(error)}") from error
    value, base = getattr(found, name, None), lightning_bases()[key == "data"]
    if not callable(value):
        own = [name for name, value in vars(found).items() if _is_own_class(value, module)]
        raise ValueError(f"{rule}. {module} has no class {name!r}; it has {own or 'none'}.")
    if isinstance(value, type) and not issubclass(value, base):
        raise ValueError(f"{rule}. {path} is no {base.__name__}.")


def _is_own_class(value: Any, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


def _beside(checkpoint: str) -> Path | None:
    """Return the config.yaml beside a checkpoint, or one folder above, if there is one."""
    files = (folder / "config.yaml" for folder in Path(checkpoint).resolve().parents[:2])
    return next((file for file in files if file.is_file()), None)


@contextmanager
def _no_arguments() -> Iterator[None]:
    """Let LightningCLI read what it is given, not the command line, and say nothing."""
    with undone() as undo, warnings.catch_warnings():
        undo.keep_attributes(sys, "argv")
        sys.argv = sys.argv[:1]
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning says about devices and checkpoints; each package sets its level."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    with undone() as undo, warnings.catch_warnings():
        for logger in map(logging.getLogger, names):
            undo.add(partial(logger.setLevel, logger.level))
            logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning\.")
        yield


RUN: dict[str, Callable[[argparse.Namespace, Sequence[str]], None]] = {
    "analyze": run_analyze,
    "line": run_line,
    "plane": run_plane,
    "compare": run_read,
    "show": run_read,
}
