"""The records of a run that is over, from its event files or from the arrays beside them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lightning_landscape.reporting.arrays import read_arrays, read_breakdowns, read_surveys
from lightning_landscape.reporting.records import Record, read_events
from lightning_landscape.reporting.results import breakdown_data, probe_data

_NAME = re.compile(r"(?P<monitor>.+)-step=(?P<step>\d+)\.npz")


def read_run(folder: str | Path) -> tuple[list[Record], list[str]]:
    """Return the records of a run, and what could not be read.

    Event files come first. A probe of which they hold no record, as of another logger or in a log
    of version 0.1, comes from its `.npz` file, which knows no cost.

    Args:
        folder: The folder of the run, that of its `.npz` files, or an event file.

    Raises:
        ValueError: If there is nothing of a monitor.
    """
    folder = Path(folder)
    records, problems = read_events(folder) if folder.exists() else ([], [])
    known = {(record.monitor, record.step) for record in records}
    for path in sorted([*folder.glob("*.npz"), *folder.glob("landscape/*.npz")]):
        name = _NAME.fullmatch(path.name)
        if name is None or (name["monitor"], int(name["step"])) in known:
            continue
        try:
            records += _file_records(path, name["monitor"], int(name["step"]))
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            problems.append(f"{path.name}: {type(error).__name__}: {error}")
    if not records:
        found = "holds no results" if folder.exists() else "does not exist"
        unread = f"; {len(problems)} could not be read: {problems[0]}" if problems else ""
        raise ValueError(
            f"{folder} must be the folder of a run with a monitor of lightning_landscape, with its "
            f"event files or its `.npz` files. It {found}{unread}."
        )
    return sorted(records, key=lambda record: record.step), problems


def _file_records(path: Path, monitor: str, step: int) -> Iterator[Record]:
    arrays = read_arrays(path)
    breakdowns = read_breakdowns(arrays)
    for label, (found, sizes, mode) in breakdowns.items():
        yield Record("breakdown", label, step, breakdown_data(found, sizes, mode=mode), monitor)
    if not breakdowns:
        # version 0.1 wrote a file for each family, and named it by that
        monitor = "landscape" if "losses" in arrays else monitor
        for kind, name, data in probe_data(*read_surveys(arrays, path)):
            yield Record(kind, name, step, data, monitor)
