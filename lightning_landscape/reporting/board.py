"""What only TensorBoard can show: records, small pictures, descriptions, a layout of charts.

All of it goes through the logger's own writer, and only if that is torch's `SummaryWriter`: its
file writer takes summaries that no public method makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_landscape.reporting.records import PLUGIN, VERSION, Record

_LAYOUT_TAG = b"custom_scalars__config__"  # TensorBoard shows the last one of a run
_OURS = b"the layout of lightning-landscape"
_MOST_BYTES = 64 * 2**20  # of event files to search


def torch_writer(logger: Any) -> Any | None:
    """Return a logger's writer if it is torch's own, else None."""
    experiment = getattr(logger, "experiment", None)  # a plain logger need not have one
    module = sys.modules.get("torch.utils.tensorboard")  # a logger imports it for its experiment
    return experiment if module and isinstance(experiment, module.SummaryWriter) else None


def write_png(writer: Any, tag: str, content: bytes, step: int) -> None:
    """Write a picture as it is; `add_image` would make it four times as large."""
    # they stand in a PNG's header
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    size = {"width": width, "height": height, "colorspace": 3}
    _write(writer, {"tag": tag, "image": {**size, "encoded_image_string": content}}, step)


def write_record(writer: Any, record: Record) -> None:
    """Write a record for the Landscape tab."""
    plugin = {"plugin_name": PLUGIN, "content": b"%d" % VERSION}
    # without `data_class` TensorBoard drops it
    metadata = {"plugin_data": plugin, "data_class": "DATA_CLASS_TENSOR"}
    tensor = {"dtype": "DT_STRING", "tensor_shape": {}, "string_val": [record.to_bytes()]}
    _write(writer, {"tag": record.tag, "tensor": tensor, "metadata": metadata}, record.step)


def _write(writer: Any, value: dict[str, Any], step: int) -> None:
    """Write a summary of one value, as all of torch's own `add_*` do."""
    protos = import_module("tensorboard.compat.proto.summary_pb2")
    writer._get_file_writer().add_summary(protos.Summary(value=[value]), step)


@contextmanager
def described(writer: Any | None, about: Mapping[str, str]) -> Iterator[None]:
    """Add a description to the scalars that are written meanwhile; nothing without a writer.

    Args:
        writer: What `torch_writer` returned.
        about: The description of each tag, or "".
    """
    if writer is None:
        yield
        return
    file_writer = writer._get_file_writer()
    write = file_writer.add_summary

    def add_summary(summary: Any, *args: Any, **kwargs: Any) -> None:
        for value in summary.value:
            text = about.get(value.tag)
            if text and value.HasField("simple_value"):
                plugin = {"plugin_name": "scalars"}
                metadata = {"summary_description": text, "data_class": "DATA_CLASS_SCALAR"}
                value.MergeFrom(type(value)(metadata={"plugin_data": plugin, **metadata}))
        write(summary, *args, **kwargs)

    file_writer.add_summary = add_summary  # of this writer alone, until the logger has written
    try:
        yield
    finally:
        del file_writer.add_summary


def write_layout(writer: Any, layout: dict[str, dict[str, list[Any]]]) -> None:
    """Arrange charts in Custom Scalars, unless the run has a layout of the user's.

    Nor is it written where there are more events than are searched.

    Args:
        writer: What `torch_writer` returned.
        layout: As `SummaryWriter.add_custom_scalars` takes it.
    """
    writer.flush()
    paths = list(Path(writer.log_dir).glob("*tfevents*"))
    if sum(path.stat().st_size for path in paths) > _MOST_BYTES:
        return
    events = b"".join(path.read_bytes() for path in paths)
    if events.count(_LAYOUT_TAG) > events.count(_OURS):
        return
    summary = import_module("torch.utils.tensorboard.summary").custom_scalars(layout)
    summary.value[0].metadata.summary_description = _OURS.decode()
    writer._get_file_writer().add_summary(summary)


def chart_layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts that some tags make: category -> title -> what `add_custom_scalars` takes.

    First margin charts of each rate and area with their intervals, then the average's metrics
    beside those of the current weights, then the limits of the step.

    Example:
        >>> chart_layout(["a/sign/rate", "a/sign/rate_low", "a/sign/rate_high", "loss"])
        {'asymmetry': {'a/sign: rate': ['Margin', ['a/sign/rate', 'a/sign/rate_low', \
'a/sign/rate_high']]}}
    """
    known = sorted(set(tags))
    layout: dict[str, dict[str, list[Any]]] = {"asymmetry": {}, "average": {}, "step": {}}
    for tag in known:
        base, _, end = tag.rpartition("/")
        middle = f"{base}/{end.removesuffix('_low')}"
        if end in ("rate_low", "area_low") and {middle, f"{middle}_high"} <= {*known}:
            margin = [middle, tag, f"{middle}_high"]
            layout["asymmetry"][f"{base}: {end.removesuffix('_low')}"] = ["Margin", margin]
        elif end == "n_averaged":
            layout["average"] |= _average_charts(base, known)
        elif end == "descent_limit":
            lines = [f"{base}/{name}" for name in ("descent_limit", "break_even", "trust_lr")]
            layout["step"][f"{base}: largest relative steps"] = _lines(lines)
        elif end == "critical_rate" and f"{base}/learning_rate" in known:
            layout["step"][f"{base}: critical rate"] = _lines([tag, f"{base}/learning_rate"])
    return {category: charts for category, charts in layout.items() if charts}


def _average_charts(name: str, tags: list[str]) -> dict[str, list[Any]]:
    """Return a chart for each metric of the average that the current weights have too."""
    metrics = [tag.removeprefix(f"{name}/") for tag in tags if tag.startswith(f"{name}/")]
    return {
        f"{name}: {metric}": _lines([metric, f"{name}/{metric}", f"{name}/control/{metric}"])
        for metric in metrics
        if metric in tags
    }


def _lines(tags: list[str]) -> list[Any]:
    """Return a chart of some tags; TensorBoard takes them for regular expressions."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
