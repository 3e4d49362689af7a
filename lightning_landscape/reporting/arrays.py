"""The `.npz` file of a probe: results as named arrays, and slices read back from them."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.survey import Survey, survey_of

__all__ = ["load_slices"]

_RATE = ("rate", "low", "high", "n", "off_minimum", "unresolved")


def load_slices(path: str | Path) -> list[Slice]:
    """Read the slices of a probe from the `.npz` file that AsymmetryMonitor wrote.

    They are ordered by family. In a family the slices on training batches come first, then those on
    validation batches, with labels that end in `", validation"`. The line to the average, labelled
    `"swa"`, comes last. Files of version 0.1, one for each family, are read too. Needs no
    Lightning, and no pickle.

    Args:
        path: The file, such as `<log_dir>/landscape/landscape-step=99.npz`.

    Returns:
        The slices, bit for bit.

    Raises:
        ValueError: If the file holds no slices.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile, torch
        >>> line = Slice(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3), 2.0, label="sign")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "landscape-step=9.npz")
        ...     _ = path.write_bytes(npz_content(slice_arrays("sign", [line])))
        ...     [again] = load_slices(path)
        >>> again.label, again.distance, again.mean.tolist()
        ('sign', 2.0, [1.0, 1.0, 1.0])
    """
    return _slices(read_arrays(path), path)


def survey_arrays(surveys: Mapping[str, Survey], line: Sequence[Slice] = ()) -> dict[str, Any]:
    """Return the slices of a probe as arrays, see `slice_arrays`.

    Each family has `<family>/normalize` and `<family>/rate [6]` too: its rate, low, high, number of
    directions, and the shares off their minimum and unresolved.

    Args:
        surveys: By family.
        line: The line to the average, on training and perhaps on validation batches.
    """
    kinds = {family: [found.slices, found.validation] for family, found in surveys.items()}
    kinds["swa"] = [[part] for part in line]
    arrays: dict[str, Any] = {}
    for kind, parts in kinds.items():
        for name, slices in zip((kind, f"{kind}, validation"), parts, strict=False):
            arrays |= slice_arrays(name, slices) if slices else {}
    for family, found in surveys.items():
        arrays[f"{family}/normalize"] = np.array(found.normalize)
        arrays[f"{family}/rate"] = np.array([found.rate[name] for name in _RATE])
    return arrays


def read_surveys(
    arrays: Mapping[str, np.ndarray], path: str | Path
) -> tuple[dict[str, Survey], list[Slice]]:
    """Return what `survey_arrays` was called on, from the arrays in the file of a probe.

    A file of version 0.1 does not hold the rate and the unit: the rate is that of its slices, and
    the unit filter norm, the default.

    Raises:
        ValueError: If the file holds no slices.
    """
    by_label: dict[str, list[Slice]] = {}
    for line in _slices(arrays, path):
        by_label.setdefault(line.label, []).append(line)
    lines = [line for label in ("swa", "swa, validation") for line in by_label.pop(label, [])]
    surveys: dict[str, Survey] = {}
    for family, slices in by_label.items():
        if not family.endswith(", validation"):
            values = arrays.get(f"{family}/rate")
            surveys[family] = survey_of(
                family,
                slices,
                by_label.get(f"{family}, validation", []),
                normalize=str(arrays.get(f"{family}/normalize", "filter")),
                rate=None if values is None else dict(zip(_RATE, values.tolist(), strict=True)),
            )
    return surveys, lines


def read_breakdowns(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, tuple[GradientBreakdown, StepSizes, str]]:
    """Return what `breakdown_arrays` was called on, by label; empty if there is none.

    The mode is `""` in files of version 0.1.
    """
    labels = [name.removesuffix("/breakdown") for name in arrays if name.endswith("/breakdown")]
    results = {}
    for label in labels:
        own = {name: arrays[f"{label}/{name}"].tolist() for name in _names(GradientBreakdown)}
        step = {name: arrays[f"{label}/step_{name}"].tolist() for name in _names(StepSizes)}
        mode = str(arrays.get(f"{label}/mode", ""))
        results[label] = GradientBreakdown.from_dict(own), StepSizes.from_dict(step), mode
    return results


def slice_arrays(kind: str, slices: Sequence[Slice]) -> dict[str, np.ndarray]:
    """Return slices on one grid as arrays: `<kind>/alphas [n_points]`, `<kind>/distance`,
    `<kind>/label` and `<kind>/sign_agreement [n_slices]`, `<kind>/mode`, and
    `<kind>/losses [n_slices, n_points, n_batches]`.

    Args:
        kind: What they are: a family, `"<family>, validation"`, `"swa"`.
        slices: At least one.
    """  # noqa: D205
    return {
        f"{kind}/alphas": slices[0].alphas.numpy(),
        f"{kind}/losses": np.stack([line.losses.numpy() for line in slices]),
        f"{kind}/distance": np.array([line.distance for line in slices]),
        f"{kind}/mode": np.array(slices[0].mode),
        f"{kind}/label": np.array([kind] * len(slices)),
        f"{kind}/sign_agreement": np.array([line.sign_agreement for line in slices]),
    }


def breakdown_arrays(
    label: str, found: GradientBreakdown, sizes: StepSizes, mode: str
) -> dict[str, np.ndarray]:
    """Return a breakdown as arrays: `<label>/<field>` of it, `<label>/step_<field>` of the step,
    and `<label>/mode`.
    """  # noqa: D205
    named = found.to_dict() | {f"step_{name}": value for name, value in sizes.to_dict().items()}
    return {f"{label}/{name}": np.array(value) for name, value in {**named, "mode": mode}.items()}


def npz_content(arrays: Mapping[str, Any], *, compressed: bool = False) -> bytes:
    """Return the content of an `.npz` file; without pickle, so that it is safe to read."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    save = np.savez_compressed if compressed else np.savez
    save(buffer, **named)
    return buffer.getvalue()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file, by name; a file with pickled objects is refused."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
        return dict(found)


@contextmanager
def written_by(writer: str, path: str | Path) -> Iterator[None]:
    """Turn what is wrong with a file into a ValueError that says who should have written it."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a file that {writer} wrote. It is missing, truncated or something "
            f"else ({type(error).__name__}: {error})."
        ) from error


def _slices(arrays: Mapping[str, np.ndarray], path: str | Path) -> list[Slice]:
    groups = [name.removesuffix("losses") for name in arrays if name.endswith("losses")]
    if not groups:
        raise ValueError(
            "`path` must lead to a file with slices, as AsymmetryMonitor writes. Got "
            f"{str(path)!r}, which holds {list(arrays)}."
        )
    return [line for group in groups for line in unpack_slices(arrays, group)]


def unpack_slices(arrays: Mapping[str, np.ndarray], prefix: str) -> list[Slice]:
    """Return the slices whose arrays have names of a prefix and `alphas`, `losses`, ..."""
    losses, distances, mode = (arrays[prefix + name] for name in ("losses", "distance", "mode"))
    alphas = torch.from_numpy(arrays[f"{prefix}alphas"])
    labels = np.broadcast_to(arrays[f"{prefix}label"], len(losses))  # one may be that of all
    unknown = [math.nan] * len(losses)  # in files of version 0.1
    signs = arrays.get(f"{prefix}sign_agreement", unknown)
    return [
        Slice(alphas, torch.from_numpy(loss), float(distance), str(mode), str(label), float(sign))
        for loss, distance, label, sign in zip(losses, distances, labels, signs, strict=True)
    ]


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
