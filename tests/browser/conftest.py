"""A TensorBoard with our plugin, and a browser to look at it."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

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
    """A folder that announces our plugin where no installed package does; else an empty one."""
    folder = tmp_path_factory.mktemp("site")
    name, value = re.search(
        r'^\[project.entry-points.tensorboard_plugins\]\n(\w+) = "(.*)"',
        (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE,
    ).groups()
    if entry_points(group="tensorboard_plugins", name=name):  # TensorBoard refuses a name twice
        return folder
    info = folder / "lightning_landscape_here-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: lightning-landscape-here\nVersion: 0\n")
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


class Screen:
    """What a person sees, and does."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        """Open an address as if for the first time, and forget what was logged before."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(address)

    def enter_tab(self):
        """Go into the frame of the Landscape tab once it shows something."""
        frame = self.wait(lambda: self.all("iframe"))[0]
        self.driver.switch_to.frame(frame)
        self.wait(lambda: self.all(".card h3"))

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.wait(lambda: [e for e in self.all(selector) if e.is_displayed()])[0]

    def text(self, selector="body"):
        return self.one(selector).text

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition, seconds=60):
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, seconds, 0.1, [WebDriverException])
        return waiting.until(lambda driver: condition())

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, element, right=0, down=0, *, click=False):
        """Move the mouse to a place relative to the middle of an element."""
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        chain = ActionChains(self.driver).move_to_element_with_offset(element, right, down)
        (chain.click() if click else chain).perform()

    def errors(self):
        """Return what the console has complained about."""
        found = (e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE")
        # under a path prefix TensorBoard itself looks for its fonts in the wrong place
        return [message for message in found if "font-roboto" not in message]

    def hosts(self):
        """Return the hosts that were asked for something."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        urls = [m["params"]["request"]["url"] for m in messages
                if m["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return {urlsplit(url).netloc for url in urls if url.startswith(("http", "ws"))}


@pytest.fixture
def screen(chromium):
    return Screen(chromium)
