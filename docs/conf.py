"""Sphinx: pages in Markdown, the reference from docstrings, the examples executed.

    sphinx-build -W -n -b html docs docs/_build

Nothing is fetched, neither by the build nor by a reader's browser.
"""

import os
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LightningCLI

import lightning_landscape

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # gallery_arguments

project = "lightning_landscape"
author = copyright = "The lightning_landscape contributors"
release = version = lightning_landscape.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.py", "gallery/*.ipynb"]
templates_path = ["_templates"]
default_role = "code"  # docstrings write `name`

# what stands in signatures and has no page here: other libraries, and names that are not public
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|torchmetrics|lightning|pytorch_lightning|numpy|matplotlib|jsonargparse)\..*",
    ),
    ("py:.*", r"(collections|contextlib|os|pathlib|typing)\..*"),
    ("py:.*", r"lightning_landscape\.\w+\..*"),
    ("py:class", r"Normalize|Mode|LossFn|MaxOverhead|OnError|Figures?"),
    ("py:exc", r"ConfigurationError|MisconfigurationException"),
]

html_theme = "furo"
html_title = f"lightning_landscape {version}"
html_static_path = ["_static"]
html_css_files = ["own.css"]
html_copy_source = html_show_sphinx = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# file systems that ignore case would keep only one of `Fromage` and `fromage`
autosummary_filename_map = {
    f"lightning_landscape.{name}": f"lightning_landscape.{name}-function"
    for name in lightning_landscape.__all__
    if name[0].islower() and name.capitalize() in lightning_landscape.__all__
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"from_yaml|/studies/",
    "reset_argv": "gallery_arguments.shorter",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,  # that page loads scripts from the web
}
# examples print neither progress bars nor Lightning's advice on short runs
os.environ["PL_TRAINER_ENABLE_PROGRESS_BAR"] = "False"
os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

_HOOKS = {name for base in (Callback, LightningModule, LightningCLI) for name in vars(base)}


def _skip_hooks(app, what, name, thing, skip, options):
    """Leave out what Lightning calls: its hooks are documented there."""
    return True if name in _HOOKS else None


def setup(app):
    """Connect what has no setting."""
    app.connect("autodoc-skip-member", _skip_hooks)
