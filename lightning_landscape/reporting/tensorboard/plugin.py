"""The TensorBoard plugin: serves records and the viewer's files.

TensorBoard imports this file at its start, also where torch cannot be imported: it needs
TensorBoard and `records.py` only.
"""

from __future__ import annotations

import json
import logging
import mimetypes
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response

from lightning_landscape.reporting.records import PLUGIN, collect_json, evenly

STATIC = Path(__file__).parent / "static"
_ALL = 1_000_000_000  # steps of a tag: `read_tensors` must be told a number

logger = logging.getLogger(__name__)
WsgiApp = Callable[..., Iterable[bytes]]


class LandscapeLoader(base_plugin.TBLoader):
    """What the entry point names: makes the plugin, and lets TensorBoard keep every probe."""

    def fix_flags(self, flags: Any) -> None:
        """Keep all steps of our tags; TensorBoard keeps 10 or 100. A user's own flag goes first."""
        samples = dict(getattr(flags, "samples_per_plugin", None) or {})
        samples.setdefault(PLUGIN, 0)
        flags.samples_per_plugin = samples

    def load(self, context: Any) -> Any:
        """Return the plugin."""
        return LandscapePlugin(context)


class LandscapePlugin(base_plugin.TBPlugin):
    """Serves the records that monitors wrote, run by run, and the viewer's files.

    Args:
        context: The `TBContext` that TensorBoard hands to every plugin.
    """

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        self._data: Any = context.data_provider  # its stubs say that methods return None

    def get_plugin_apps(self) -> dict[str, WsgiApp]:
        """Return the routes."""
        return {
            "/runs": Request.application(partial(_answer, self._runs)),
            "/records": Request.application(partial(_answer, self._records)),
            "/static/*": Request.application(_serve_file),
        }

    def is_active(self) -> bool:
        """Return False: TensorBoard shows the tab where there is data of our name."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return how the tab is called and which script shows it."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Landscape")

    def _runs(self, request: Request) -> str:
        """Return the runs that have records, each with the time of its latest one."""
        tags = self._tags(request)
        latest = {run: max(t.max_wall_time for t in own.values()) for run, own in tags.items()}
        return json.dumps({"runs": [{"run": run, "latest": latest[run]} for run in sorted(latest)]})

    def _records(self, request: Request) -> str:
        """Return the records of `run` that are later than `after`, and what cannot be read.

        At most `most` of each tag, chosen evenly, so that a long run is shown soon.
        """
        run, after = request.args.get("run", ""), float(request.args.get("after", 0))
        if run not in self._tags(request, [run]):
            raise errors.NotFoundError(f"The run {run!r} has no records.")
        read = self._data.read_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=PLUGIN,
            downsample=_ALL,
            run_tag_filter=provider.RunTagFilter(runs=[run]),
        )
        most = int(request.args.get("most", 0))
        new = {
            tag: [d for d in own if d.wall_time > after] for tag, own in read.get(run, {}).items()
        }
        chosen = [
            (own[k].wall_time, f"{tag} at step {own[k].step}", own[k])
            for tag, own in new.items()
            for k in evenly(len(own), most or len(own))
        ]
        chosen.sort(key=lambda row: row[0])
        records, problems = collect_json((name, _bytes(datum)) for _, name, datum in chosen)
        rest = {
            "problems": problems,
            "latest": chosen[-1][0] if chosen else after,
            "left_out": sum(map(len, new.values())) - len(chosen),
        }
        return f'{{"records": {records}, {json.dumps(rest)[1:]}'

    def _tags(self, request: Request, runs: list[str] | None = None) -> dict[str, Any]:
        if self._data is None:
            return {}
        found = self._data.list_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=PLUGIN,
            run_tag_filter=provider.RunTagFilter(runs=runs),
        )
        return {run: tags for run, tags in found.items() if tags}


def _answer(make: Callable[[Request], str], request: Request) -> Response:
    """Serve the JSON that `make` returns; an error is told to the viewer, and to the log."""
    try:
        return http_util.Respond(request, make(request), "application/json")
    except errors.NotFoundError as error:
        return _text(request, str(error), 404)
    except Exception as error:  # TensorBoard goes on, whatever happens here
        logger.exception("The Landscape tab could not answer %s", request.path)
        return _text(request, f"{type(error).__name__}: {error}", 500)


def _serve_file(request: Request) -> Response:
    """Serve a file of the viewer."""
    path = static_file(request.path.partition("/static/")[2])
    if path is None:
        return _text(request, "There is no such file.", 404)
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    kind = "application/javascript" if path.suffix == ".js" else kind
    return http_util.Respond(request, path.read_bytes(), kind)


def static_file(name: str) -> Path | None:
    """Return a file of the viewer; None if there is none of that name inside its folder."""
    try:
        path = (STATIC / name).resolve()
        return path if path.is_relative_to(STATIC.resolve()) and path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _bytes(datum: provider.TensorDatum) -> bytes:
    content = datum.numpy.item() if datum.numpy.size == 1 else b""
    return content if isinstance(content, bytes) else str(content).encode()


def _text(request: Request, text: str, code: int) -> Response:
    return http_util.Respond(request, text, "text/plain", code)
