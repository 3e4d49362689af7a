"""A TensorBoard with our plugin, and a browser to look at it."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder that announces the entry points of pyproject.toml, as an installed wheel does."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "lightning_landscape_here-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: lightning-landscape-here\nVersion: 0\n")
    table = (ROOT / "pyproject.toml").read_text().partition("tensorboard_plugins]\n")[2]
    name, value = re.match(r'(\w+) = "(.*)"', table).groups()
    (info / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{name} = {value}\n")
    return folder


@pytest.fixture(scope="session")
def tensorboard(installed):
    """Start TensorBoard on a folder inside `with`; gives its address."""

    @contextmanager
    def start(folder, *flags, path=()):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        command += ["--port", "0", "--host", "127.0.0.1", *flags]
        paths = [*map(str, path), str(installed), str(ROOT)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://[\w.]+:\d+\S*", line):
                    break
            else:
                pytest.fail(f"TensorBoard did not start:\n{''.join(said)}")
            yield found.group().rstrip("/")
        finally:
            process.terminate()
            process.communicate(timeout=20)

    return start


@pytest.fixture(scope="session")
def chromium():
    """One headless browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra `browser`")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver, Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu",
                     "window-size=1280,1000", "force-device-scale-factor=1"):  # fmt: skip
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
