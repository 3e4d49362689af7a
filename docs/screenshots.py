"""Screenshots of TensorBoard's tab and of the page, in headless Chromium (extra `browser`)."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]

# a box beside an element of the page, with a line to it
_NOTE = """
const [target, text, x, y, width, right, down] = arguments;
const box = target.getBoundingClientRect();
const note = document.createElement('div');
note.textContent = text;
note.style.cssText = `position:absolute; z-index:99; left:${x + scrollX}px; top:${y + scrollY}px;
  width:${width}px; font:15px/1.35 sans-serif; color:#222; background:#fff7d6; padding:7px 10px;
  border:1.5px solid #c99700; border-radius:6px; box-shadow:0 1px 4px #0003`;
document.body.append(note);
const own = note.getBoundingClientRect();
const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
const page = document.documentElement;
svg.style.cssText = `position:absolute; z-index:98; left:0; top:0; pointer-events:none;
  width:${page.scrollWidth}px; height:${page.scrollHeight}px`;
const [tx, ty] = [box.x + scrollX + box.width * right, box.y + scrollY + box.height * down];
const [ox, oy] = [own.x + scrollX + own.width / 2, own.y + scrollY + own.height / 2];
svg.innerHTML = `<line x1="${ox}" y1="${oy}" x2="${tx}" y2="${ty}" stroke="#c99700"
  stroke-width="2"/> <circle cx="${tx}" cy="${ty}" r="4.5" fill="#c99700"/>`;
document.body.append(svg);
"""


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Start TensorBoard on a folder; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--host", "127.0.0.1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr)
        found = next(m for m in (re.search(r"http://[\w.]+:\d+", line) for line in lines) if m)
        yield found.group()
    finally:
        process.terminate()
        process.communicate(timeout=20)


class Browser:
    """Headless Chromium: open, wait, note, save."""

    def __init__(self, width: int = 1280, height: int = 1000) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        flags = (
            "headless=new",
            "no-sandbox",
            "disable-dev-shm-usage",
            "disable-gpu",
            "hide-scrollbars",
            "force-device-scale-factor=1",
            f"window-size={width},{height}",
        )
        for flag in flags:
            options.add_argument(f"--{flag}")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *failure: object) -> None:
        self.driver.quit()

    def wait(self, selector: str, n: int = 1) -> list[Any]:
        """Return the elements of a selector as soon as there are `n`."""
        return WebDriverWait(self.driver, 60, 0.1).until(
            lambda driver: len(all := driver.find_elements("css selector", selector)) >= n and all
        )

    def open_tab(self, address: str, state: str = "") -> None:
        """Open the tab Landscape and go into its frame once its charts are there."""
        self.driver.get("about:blank")
        self.driver.get(f"{address}/#landscape{state}")
        self.driver.switch_to.frame(self.wait("iframe")[0])
        self.wait(".u-wrap", 6)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page or frame."""
        return self.driver.execute_script(script, *arguments)

    def note(self, target: Any, text: str, place: Sequence[int], at: Sequence[float]) -> None:
        """Put a note at `place` (x, y, width), with a line to a share `at` of the target's box."""
        self.run(_NOTE, target, text, *place, *at)

    def save(self, path: Path, crop: Mapping[str, float] | None = None) -> None:
        """Save what is seen as a PNG of 128 colours, cut to a box."""
        self.driver.save_screenshot(str(path))
        image = Image.open(path).convert("RGB")
        if crop:
            left, top = crop["x"], crop["y"]
            image = image.crop(
                (left, top, left + crop["width"], min(top + crop["height"], image.height))
            )
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def take(folder: Path, place: Path, report: Path) -> None:
    """Make the screenshots of a run's tab, of README, and of the page of a report."""
    with tensorboard(folder) as address, Browser(1280, 2800) as browser:
        browser.open_tab(address)
        _annotate(browser)
        browser.save(place / "readme.png", {"x": 0, "y": 0, "width": 1280, "height": 920})
        browser.open_tab(address)
        for name, title in _CARDS.items():
            card = _card(browser, title)
            browser.run("arguments[0].scrollIntoView({block: 'start'}); scrollBy(0, -76)", card)
            browser.save(place / f"{name}.png", _box(browser, card))
    with Browser() as browser:
        browser.driver.get(report.as_uri())
        browser.wait(".u-wrap", 3)
        browser.save(place / "page.png")
    for name in sorted(path.name for path in place.glob("*.png") if path.name[0] in "prt"):
        print(name)


_CARDS = {
    "tab-line": "Line to the average",
    "tab-breakdown": "Gradient breakdown: update",
    "tab-directions": "Directions: uniform@norm",
}


def _card(browser: Browser, title: str) -> Any:
    cards = browser.wait(".card")
    return next(card for card in cards if card.text.startswith(title))


def _box(browser: Browser, element: Any) -> dict[str, float]:
    """Return where an element of the frame is in the window."""
    return browser.run(
        "const b = arguments[0].getBoundingClientRect();"
        "const f = window.frameElement?.getBoundingClientRect() ?? {x: 0, y: 0};"
        "return {x: b.x + f.x, y: b.y + f.y, width: b.width, height: b.height}",
        element,
    )


def _annotate(browser: Browser) -> None:
    """Say beside what is seen what it is."""
    chips = browser.wait(".chip", 5)
    line, step = _card(browser, "Line to the average"), _card(browser, "Gradient breakdown: update")
    plots = [card.find_element("css selector", ".u-over") for card in (line, step)]
    cost = browser.wait(".glance .note")[0]
    notes = (
        (browser.wait(".time input")[0], "One slider over the whole training, for all charts",
         (880, 76, 360), (0.9, 0.6)),
        (chips[0], "Averaging would help now: validation loss lower by this much, with an interval",
         (1005, 120, 235), (0.99, 0.5)),
        (chips[3], "Where the numbers do not carry an answer it says so, and why",
         (930, 203, 310), (0.99, 0.5)),
        (chips[4], "Normalisation layers: one side of the valley is far steeper",
         (930, 263, 310), (0.99, 0.5)),
        (cost, "Asked for every third epoch here; by default probes take at most 5 %",
         (600, 386, 520), (0.39, 0.5)),
        (plots[0], "The weights you train, and their average: the least validation loss (dashed) "
         "lies beyond", (384, 610, 238), (0.63, 0.96)),
        (plots[1], "How much the gradient of each layer changed over the step just taken",
         (740, 578, 270), (0.47, 0.36)),
    )  # fmt: skip
    for target, text, place, at in notes:
        browser.note(target, text, place, at)
