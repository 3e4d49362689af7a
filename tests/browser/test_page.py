"""The page, opened from disk in a real browser."""

import pytest
from made_up_runs import records

from lightning_landscape.reporting.html import frame, page


@pytest.fixture(scope="module")
def runs():
    return {"cnn": records(6), "fromage": records(6, seed=1)}


@pytest.fixture(scope="module")
def path(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(runs), encoding="utf-8")
    return path


@pytest.fixture
def offline(chromium):
    chromium.execute_cdp_cmd("Network.enable", {})
    conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    yield
    conditions |= {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


def test_the_page_opens_offline_with_the_viewer_on_top(screen, path, offline):
    screen.open(path.as_uri())
    screen.wait(lambda: len(screen.all(".u-wrap")) >= 8)
    assert "step 300 · probe 6 of 6" in screen.text(".step")
    assert screen.one("#report").get_attribute("open") is None
    assert screen.errors() == []
    assert screen.hosts() == set()


def test_without_scripts_the_last_probe_is_there(screen, path, offline):
    screen.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        screen.open(path.as_uri())
        text = screen.text("#report")
        assert "Directions: uniform@norm, step 300" in text
        assert "95 % interval" in text
        assert len([chart for chart in screen.all("svg") if chart.is_displayed()]) == 10
    finally:
        screen.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_link_to_a_state_of_the_page_works(screen, path):
    screen.open(f"{path.as_uri()}#step=100&absolute=true")
    screen.wait(lambda: "step 100" in screen.text(".step"))
    assert screen.one("input[name=absolute]").is_selected()


def test_an_address_that_was_cut_short_does_no_harm(screen, path):
    screen.open(f"{path.as_uri()}#step=%7B&hidden=3&difference=[1,2]&log=true&what=ever")
    screen.wait(lambda: "step 300" in screen.text(".step"))
    assert screen.one("input[name=log]").is_selected()
    assert screen.errors() == []


def test_the_page_is_dark_where_the_system_is(screen, path):
    theme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    screen.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
    try:
        screen.open(path.as_uri())
        screen.one(".landscape.dark")
    finally:
        screen.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_viewer_runs_inside_a_notebooks_frame(screen, tmp_path, runs):
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><p>a notebook</p>{frame(runs)}", encoding="utf-8")
    screen.open(notebook.as_uri())
    screen.driver.switch_to.frame(screen.one("iframe"))
    screen.wait(lambda: "step 300" in screen.text(".step"))
    screen.press("\ue012")
    assert screen.errors() == []
