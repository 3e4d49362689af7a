"""One page to share: words, tables and pictures, and the viewer of the tab on top of them.

The page is a single file that asks nobody for anything. Without scripts it shows the last probe.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from lightning_landscape.reporting.records import Record, evenly
from lightning_landscape.reporting.static import describe

_MOST_PROBES = 100  # of a run on a page
_STATIC = Path(__file__).parent / "tensorboard" / "static"
# each file after those that it imports
_MODULES = (
    "dom", "format", "store", "state", "save", "chart", "heatmap", "card", "family", "line",
    "breakdown", "planemap", "plane", "glance", "controls", "app", "page",
)  # fmt: skip
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<div id="viewer"></div>
<details class="report" id="report" open>
<summary>$title: the last probe, as text and pictures</summary>
$report
</details>
<script type="application/octet-stream" id="records">$records</script>
<script>$library</script>
<script type="module">$viewer</script>
</body>
</html>
""")


def page(runs: Mapping[str, Sequence[Record]], *, title: str = "Loss landscape") -> str:
    """Return the results of one or more runs as one HTML page.

    It holds at most 100 probes of a run, evenly over its training, with the first and the last.

    Args:
        runs: The records of each run, by its name.
        title: The title of the page.

    Returns:
        The content of the file. About 150 kB and up to 6 kB a probe.

    Raises:
        ValueError: If there is no record at all.
    """
    if not any(runs.values()):
        raise ValueError("`runs` must hold at least one record. Got none: nothing was measured.")
    kept = {run: thinned(records, _MOST_PROBES) for run, records in runs.items()}
    content = [
        {"run": run, "records": [record.to_dict() for record in records], "problems": []}
        for run, records in kept.items()
    ]
    packed = zlib.compress(json.dumps({"runs": content}, separators=(",", ":")).encode(), 9)
    style = _file("vendor/uPlot.min.css") + _file("style.css")
    library, viewer = _file("vendor/uPlot.iife.min.js"), bundle()
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(viewer)}; "
        f"style-src {_hash(style)}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    report = "\n".join(describe(run, records) for run, records in kept.items())
    return _PAGE.substitute(
        policy=policy,
        title=html.escape(title),
        style=style,
        report=report,
        records=base64.b64encode(packed).decode(),
        library=library,
        viewer=viewer,
    )


def frame(runs: Mapping[str, Sequence[Record]]) -> str:
    """Return the page of some runs as an `<iframe>` that scrolls, for a notebook."""
    content = html.escape(page(runs))
    return (
        f'<iframe srcdoc="{content}" width="100%" height="640" '
        'style="border: 1px solid #8888; resize: vertical" '
        'sandbox="allow-scripts allow-downloads" title="Loss landscape"></iframe>'
    )


def thinned(records: Sequence[Record], n_most: int) -> list[Record]:
    """Return the records of at most `n_most` steps a tag, evenly spaced, with first and last."""
    steps: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda record: record.step):
        steps.setdefault(record.tag, []).append(record.step)
    kept = {tag: {own[k] for k in evenly(len(own), n_most)} for tag, own in steps.items()}
    return [record for record in records if record.step in kept[record.tag]]


def bundle() -> str:
    """Return the viewer as one script: a function for each module, which returns its exports."""
    return "\n".join([*map(_module, _MODULES), "page_module.openPage();\n"])


def _module(name: str) -> str:
    code = re.sub(
        r'^import (\{.*\}) from "\./(\w+)\.js";$',
        r"const \1 = \2_module;",
        _file(f"{name}.js"),
        flags=re.MULTILINE,
    )
    exports = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", code, re.MULTILINE)
    code = re.sub(r"^export ", "", code, flags=re.MULTILINE)
    return f"const {name}_module = (() => {{\n{code}\nreturn {{ {', '.join(exports)} }};\n}})();"


def _file(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
