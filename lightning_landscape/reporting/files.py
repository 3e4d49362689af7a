"""Files of a run: where they go, and how they are written, whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from glob import escape
from pathlib import Path, PurePath
from typing import Any


def folder_of_run(trainer: Any) -> str | None:
    """Return the folder for our files, where the run's checkpoints are by default.

    No other run writes there. None without a logger or a folder, and in a fast development run.
    """
    if trainer.fast_dev_run or not trainer.loggers:
        return None
    # not `trainer.log_dir`: it is broadcast, and the other ranks may not be here to hear it
    logger = trainer.loggers[0]
    folder = getattr(logger, "log_dir", None)  # TensorBoard, CSV
    if folder is None:
        folder, version = logger.save_dir, getattr(logger, "version", None)
        if isinstance(version, str):  # W&B, MLflow, Comet: `save_dir` is that of all runs, or None
            folder = os.path.join(folder or trainer.default_root_dir, str(logger.name), version)
    # not `Path`, which would make one slash of the two of a URL
    return None if folder is None else os.path.join(str(folder), "landscape")


def name_of_run(trainer: Any) -> str:
    """Return what people call the run: the last part of its folder, such as `version_0`."""
    with suppress(Exception):  # whatever a logger raises: it is warned about when it is written to
        return PurePath(str(folder_of_run(trainer))).parent.name or "run"
    return "run"


def write_into(folder: str, name: str, content: bytes) -> None:
    """Write a file whole into a folder that may have to be made, or be a URL that fsspec knows.

    Raises:
        OSError: If it could not be written.
    """
    if "://" in folder:
        _upload(folder, name, content)
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for left in Path(folder).glob(f".{escape(name)}.*.partial"):  # by a run that was killed
            left.unlink(missing_ok=True)
        write_whole(Path(folder, name), content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave nothing.

    Raises:
        OSError: If it could not be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # there may be nothing, or no way, to take it away
            partial.unlink()
        raise


def _upload(folder: str, name: str, content: bytes) -> None:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(folder)
        filesystem.makedirs(path, exist_ok=True)
        filesystem.pipe_file(f"{path}/{name}", content)
    except Exception as error:  # whatever a client raises: it is named in the one warning
        raise OSError(f"{type(error).__name__}: {error}") from error
