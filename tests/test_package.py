"""The package loads nothing until a name is used, and its stub tells the truth."""

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_landscape

WITHOUT = """
import sys
for name in ("torch", "lightning", "pytorch_lightning", "matplotlib", "numpy"):
    sys.modules[name] = None  # importing it raises ImportError
import lightning_landscape
assert "SWA" in dir(lightning_landscape)
assert lightning_landscape.__version__
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_package_imports_where_torch_and_lightning_cannot():
    result = run(WITHOUT)
    assert result.returncode == 0, result.stderr


def test_every_name_of_the_stub_can_be_imported():
    for name in lightning_landscape.__all__:
        assert getattr(lightning_landscape, name) is not None


def test_fromage_stays_the_function_whose_file_is_loaded_first():
    code = "from lightning_landscape import Fromage, fromage; assert callable(fromage)"
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_the_stub_lists_what_it_imports():
    stub = Path(lightning_landscape.__file__).with_suffix(".pyi").read_text()
    listed = stub.partition("__all__ = ")[2]
    assert sorted(lightning_landscape.__all__) == sorted(
        line.strip(' ",') for line in listed.splitlines()[1:-1]
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = lightning_landscape.NoSuchName
