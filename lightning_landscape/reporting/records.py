"""Records: the one form in which the TensorBoard tab, the page and notebooks get a result.

A record is plain JSON with a version. This file and the TensorBoard plugin that reads records need
neither torch nor Lightning nor numpy; `results.py` makes records from results.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

VERSION = 1
PLUGIN = "landscape"  # the plugin's name in events and in the tab's address

# the fields that a record of each kind cannot be shown without
REQUIRED = {
    "family": ("alphas", "slices", "median", "rate", "area"),
    "line": ("alphas", "train"),
    "breakdown": ("names", "etas", "breakdown", "model"),
    "cost": ("seconds",),
    "words": ("text",),
    "plane": ("alphas1", "alphas2", "mean"),
}


@dataclass(frozen=True)
class Record:
    """One result of one probe.

    Numbers keep seven digits, as in float32; `nan` and infinities become the words `"NaN"`,
    `"Infinity"` and `"-Infinity"`, which `float` reads.

    Attributes:
        kind: What it is, a key of `REQUIRED`.
        name: Which of its kind: a family, a direction, an average.
        step: The training step of the probe.
        data: The fields of its kind.
        monitor: The name of the callback that measured it.

    Example:
        >>> record = Record("cost", "probe", 7, {"seconds": 1.5, "overhead": float("nan")})
        >>> record.data
        {'seconds': 1.5, 'overhead': 'NaN'}
        >>> Record.from_bytes(record.to_bytes()) == record
        True
    """

    kind: str
    name: str
    step: int
    data: dict[str, Any]
    monitor: str = "landscape"

    def __post_init__(self) -> None:
        if not isinstance(self.data, _Plain):
            object.__setattr__(self, "data", _Plain(_plain(self.data)))
        if self.kind not in REQUIRED:
            raise ValueError(
                f"A record's `kind` must be one of {sorted(REQUIRED)}. Got {self.kind!r}."
            )
        missing = [name for name in REQUIRED[self.kind] if name not in self.data]
        if missing:
            raise ValueError(f"A record of kind {self.kind!r} must have the fields {missing}.")

    @property
    def tag(self) -> str:
        """The tag of its events; records of one tag differ only in their step."""
        return f"{self.monitor}/record/{self.kind}/{self.name}".replace("@", "-")

    @property
    def words(self) -> str:
        """What it says in words; `""` if it says nothing."""
        return str(self.data.get("text" if self.kind == "words" else "words", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        head = {"version": VERSION, "kind": self.kind, "name": self.name}
        return {**head, "step": self.step, "monitor": self.monitor, "data": self.data}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Record:
        """Return the record that `to_dict` was called on.

        Raises:
            ValueError: If it is no record, or one of a later version.
        """
        version = content.get("version") if isinstance(content, Mapping) else None
        if not isinstance(version, int):
            raise ValueError("A record must be a JSON object with a `version`.")
        if version > VERSION:
            raise ValueError(
                f"This record has version {version}; versions up to {VERSION} can be read here. "
                "Update lightning-landscape."
            )
        try:
            head = (str(content["kind"]), str(content["name"]), int(content["step"]))
            return cls(*head, _Plain(content["data"]), str(content["monitor"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"A record lacks a field or has a wrong one: {error!r}.") from error

    def to_bytes(self) -> bytes:
        """Return it as compressed JSON."""
        return zlib.compress(json.dumps(self.to_dict(), separators=(",", ":")).encode(), 9)

    @classmethod
    def from_bytes(cls, content: bytes) -> Record:
        """Return the record that `to_bytes` was called on.

        Raises:
            ValueError: If the bytes are no record, or one of a later version.
        """
        return _decode(content)[0]


def read_events(folder: str | Path) -> tuple[list[Record], list[str]]:
    """Return the records in the event files of a run, and what could not be read.

    Args:
        folder: The folder of one run, or an event file.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*tfevents*")) if folder.is_dir() else [folder]
    return collect(content for path in paths for content in _contents(path))


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each tag."""
    last = {record.tag: record for record in sorted(records, key=lambda record: record.step)}
    return list(last.values())


def floats(values: Iterable[Any]) -> list[float]:
    """Return numbers of a record, in which nan and infinity are words."""
    return [float(value) for value in values]


def evenly(n: int, n_most: int) -> set[int]:
    """Return at most `n_most` of `n` places, evenly spaced, with the first and the last.

    Example:
        >>> sorted(evenly(9, 3))
        [0, 4, 8]
    """
    if n <= n_most:
        return set(range(n))
    return {round(k * (n - 1) / max(n_most - 1, 1)) for k in range(n_most)} | {n - 1}


def collect(contents: Iterable[tuple[str, bytes]]) -> tuple[list[Record], list[str]]:
    """Decode records, the last of each tag and step, and name those that cannot be read.

    Args:
        contents: Pairs of what to call a record and its bytes.
    """
    problems: list[str] = []
    found = {(record.tag, record.step): record for record, _ in _readable(contents, problems)}
    return list(found.values()), problems


def collect_json(contents: Iterable[tuple[str, bytes]]) -> tuple[str, list[str]]:
    """Return what `collect` does with the records as the text of a JSON list, which is quicker."""
    problems: list[str] = []
    texts = {(record.tag, record.step): text for record, text in _readable(contents, problems)}
    return f"[{','.join(texts.values())}]", problems


def _readable(
    contents: Iterable[tuple[str, bytes]], problems: list[str]
) -> Iterator[tuple[Record, str]]:
    for name, content in contents:
        try:
            yield _decode(content)
        except ValueError as error:
            problems.append(f"{name}: {error}")


def _decode(content: bytes) -> tuple[Record, str]:
    try:
        text = zlib.decompress(content).decode()
        return Record.from_dict(json.loads(text, parse_constant=_refuse)), text
    except (zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"This record cannot be read: {error}.") from error


def _refuse(word: str) -> float:
    raise ValueError(f"This record cannot be read: {word} is no JSON.")


class _Plain(dict[str, Any]):
    """What is known to be plain JSON with short numbers."""


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    loaders = import_module("tensorboard.backend.event_processing.event_file_loader")
    protos = import_module("tensorboard.compat.proto.event_pb2")
    for raw in loaders.RawEventFileLoader(str(path)).Load():
        event = protos.Event.FromString(raw)
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == PLUGIN and value.tensor.string_val:
                yield f"{value.tag} at step {event.step}", value.tensor.string_val[0]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # tensors and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _seven_digits(value)
    return value


def _seven_digits(value: float) -> float | str:
    if math.isfinite(value):
        short = float(f"{value:.7g}")
        return int(short) if short.is_integer() and abs(short) < 1e7 else short
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
