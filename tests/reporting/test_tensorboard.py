"""The plugin without a browser: what TensorBoard asks for, and what it gets."""

import ast
import hashlib
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_runs import records
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.tensorboard.plugin import (
    STATIC,
    LandscapeLoader,
    static_file,
)

ROOT = Path(__file__).parents[2]
UPLOT = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
STYLE = "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"


class FakeProvider:
    """Holds `{run: {tag: [(step, wall_time, bytes)]}}`, as a data provider of TensorBoard does."""

    def __init__(self, runs):
        self.runs = runs

    def list_tensors(self, ctx, *, experiment_id, plugin_name, run_tag_filter):
        return {
            run: {tag: SimpleNamespace(max_wall_time=max(d[1] for d in data))
                  for tag, data in tags.items()}
            for run, tags in self.runs.items()
            if run_tag_filter.runs is None or run in run_tag_filter.runs
        }  # fmt: skip

    def read_tensors(self, ctx, *, experiment_id, plugin_name, downsample, run_tag_filter):
        assert downsample > 1000
        return {
            run: {tag: [_datum(*d) for d in data] for tag, data in self.runs[run].items()}
            for run in run_tag_filter.runs
        }


def _datum(step, wall_time, content):
    array = np.array(content, dtype=object)
    return SimpleNamespace(step=step, wall_time=wall_time, numpy=array)


def client(provider):
    plugin = LandscapeLoader().load(TBContext(data_provider=provider))
    routes = plugin.get_plugin_apps()

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        name = "/static/*" if path.startswith("/static/") else path
        return routes[name](environ, start_response)

    return Client(app)


PROBE = records(1)


def run_of(found, wall_time=5.0):
    return {record.tag: [(record.step, wall_time, record.to_bytes())] for record in found}


def test_runs_come_with_the_time_of_their_latest_record():
    answer = client(FakeProvider({"b": run_of(PROBE), "a": run_of(PROBE, 7.0)})).get("/runs")
    expected = {"runs": [{"run": "a", "latest": 7.0}, {"run": "b", "latest": 5.0}]}
    assert answer.json == expected


def test_the_records_of_a_run_are_served_whole():
    answer = client(FakeProvider({"a": run_of(PROBE)})).get("/records?run=a").json
    assert [Record.from_dict(found) for found in answer["records"]] == PROBE
    assert (answer["problems"], answer["latest"]) == ([], 5.0)


def test_only_what_is_new_is_served_after_a_time():
    runs = {"a": run_of(PROBE[:1], 5.0) | run_of(PROBE[1:2], 6.0)}
    answer = client(FakeProvider(runs)).get("/records?run=a&after=5.0").json
    assert [found["name"] for found in answer["records"]] == [PROBE[1].name]


def test_of_a_long_run_evenly_chosen_probes_can_be_asked_for_first():
    found = records(9, every=10)
    own = {tag: [] for tag in {record.tag for record in found}}
    for record in found:
        own[record.tag].append((record.step, record.step / 10.0, record.to_bytes()))
    served = client(FakeProvider({"a": own}))
    some = served.get("/records?run=a&most=3").json
    assert {record["step"] for record in some["records"]} == {10, 50, 90}
    assert (some["left_out"], some["latest"]) == (len(found) - 3 * len(own), 9.0)
    assert served.get("/records?run=a").json["left_out"] == 0


def test_a_corrupt_record_is_named_and_the_rest_is_served():
    runs = {"a": run_of(PROBE) | {"landscape/record/x": [(7, 6.0, b"nonsense")]}}
    answer = client(FakeProvider(runs)).get("/records?run=a").json
    assert len(answer["records"]) == len(PROBE)
    assert answer["problems"][0].startswith("landscape/record/x at step 7: This record cannot")


def test_a_run_without_records_is_not_found():
    answer = client(FakeProvider({})).get("/records?run=a")
    assert answer.status_code == 404
    assert "'a' has no records" in answer.text


def test_without_data_there_is_no_run():
    assert client(None).get("/runs").json == {"runs": []}


def test_an_error_is_told_to_the_viewer_and_raises_nothing(caplog):
    answer = client(SimpleNamespace()).get("/runs")
    assert answer.status_code == 500
    assert "AttributeError" in answer.text
    assert "could not answer" in caplog.text


def test_the_tab_is_only_shown_where_there_is_data():
    plugin = LandscapeLoader().load(TBContext(data_provider=FakeProvider({})))
    assert not plugin.is_active()
    assert plugin.frontend_metadata().tab_name == "Landscape"


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, {"landscape": 0}), ({"images": 3}, {"images": 3, "landscape": 0}),
     ({"landscape": 5}, {"landscape": 5})],
)  # fmt: skip
def test_all_steps_are_kept_unless_the_user_says_otherwise(given, kept):
    flags = SimpleNamespace(samples_per_plugin=given)
    LandscapeLoader().fix_flags(flags)
    assert flags.samples_per_plugin == kept
    assert given is None or given is not flags.samples_per_plugin  # the default is shared


def test_the_viewers_files_are_served_as_what_they_are():
    answer = client(None).get("/static/index.js")
    assert answer.status_code == 200
    assert answer.content_type.startswith("application/javascript")
    assert client(None).get("/static/style.css").content_type.startswith("text/css")


@pytest.mark.parametrize("name", ["", "..", "../plugin.py", "vendor/../../plugin.py", "none.js",
                                  "/etc/passwd", "a\0b", "vendor"])  # fmt: skip
def test_nothing_outside_the_folder_is_served(name):
    assert static_file(name) is None
    assert client(None).get(f"/static/{name}").status_code == 404


def test_the_plugin_imports_where_torch_and_lightning_cannot():
    code = """
import sys
for name in ("torch", "lightning", "pytorch_lightning", "matplotlib", "torchmetrics"):
    sys.modules[name] = None
from lightning_landscape.reporting.tensorboard.plugin import LandscapeLoader
LandscapeLoader().load(__import__("types").SimpleNamespace(data_provider=None))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_entry_point_names_the_loader():
    text = (ROOT / "pyproject.toml").read_text()
    module, name = re.search(r'tensorboard_plugins\]\n\w+ = "([\w.]+):(\w+)"', text).groups()
    assert getattr(import_module(module), name) is LandscapeLoader


def test_the_vendored_library_is_the_one_that_was_published():
    for name, digest in (("uPlot.iife.min.js", UPLOT), ("uPlot.min.css", STYLE)):
        content = (STATIC / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
    assert "MIT License" in (STATIC / "vendor" / "uPlot.LICENSE").read_text()


def test_every_script_that_is_imported_is_there_and_small():
    for path in STATIC.glob("*.js"):
        code = path.read_text()
        assert len(code.splitlines()) < 300, path.name
        for name in re.findall(r'from "\./(.*)"', code):
            assert (STATIC / name).is_file(), name


def test_the_viewer_asks_no_other_server_for_anything():
    for path in [*STATIC.glob("*.js"), *STATIC.glob("*.css")]:
        assert "http:" not in path.read_text(), path.name
        assert "https:" not in path.read_text(), path.name


def test_the_plugin_asks_tensorboard_through_its_data_provider_only():
    tree = ast.parse((STATIC.parent / "plugin.py").read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "multiplexer" not in names
    assert "data_provider" in names
