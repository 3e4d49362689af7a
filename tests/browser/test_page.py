"""The page, opened from disk in a real browser."""

import re

import pytest
from made_up_runs import plane, records

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


@pytest.fixture(scope="module")
def with_planes(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("planes") / "report.html"
    shown = {"cnn": [*runs["cnn"], plane("checkpoints"), plane("seeds", seed=1)]}
    path.write_text(page(shown), encoding="utf-8")
    return path


@pytest.fixture
def planes(screen, with_planes, offline):
    screen.open(with_planes.as_uri())
    screen.wait(lambda: len(screen.all(".card.wide canvas")) >= 4)
    return screen


def chosen(screen, k=0):
    return screen.all(".card.wide .map canvas")[k].get_attribute("aria-label")


def test_planes_stand_beside_the_probes_of_a_run(planes):
    titles = [title.text for title in planes.all(".card.wide h3")]
    assert titles == ["Plane: checkpoints", "Plane: seeds"]
    assert "Where is the loss least? (seeds)" in planes.text(".glance")
    assert "probe 7 of 7" in planes.text(".step")  # step 0 of the planes, and six of the probes
    assert planes.errors() == []


def test_hovering_a_plane_shows_the_place_and_the_loss(planes):
    planes.point(planes.one(".card.wide .map canvas"), 20, 20)
    tip = planes.one(".card.wide .map .tip").text
    assert "), L2 distance" in tip
    assert "loss: " in tip
    assert ", mean of 4 batches" in tip
    assert " above the least" in tip


def test_a_click_on_a_plane_takes_the_slices_there(planes):
    assert "At (0, 0) the loss is" in chosen(planes)
    planes.point(planes.one(".card.wide .map canvas"), 60, -40, click=True)
    x, y = re.search(r"At \((.+), (.+)\) the", chosen(planes)).groups()
    assert "At (0, 0) the loss is" in chosen(planes, 1)
    legend = planes.text(".card.wide .legend")
    assert f"along the first axis at {y} on the second" in legend
    assert f"along the second axis at {x} on the first" in legend
    link = planes.driver.current_url
    before = chosen(planes)
    planes.open(link)
    planes.wait(lambda: planes.all(".card.wide canvas") and chosen(planes) == before)


def test_arrow_keys_on_a_plane_move_its_point_and_not_the_step(planes):
    step = planes.text(".step")
    canvas = planes.one(".card.wide .map canvas")
    planes.run("arguments[0].focus()", canvas)
    planes.wait(lambda: planes.run("return document.activeElement === arguments[0]", canvas))
    planes.press("\ue014")  # right
    planes.wait(lambda: "At (0.167, 0) the loss is" in chosen(planes))
    planes.press("\ue013")  # up
    planes.wait(lambda: "At (0.167, 0.125) the loss is" in chosen(planes))
    assert planes.text(".step") == step


def test_a_plane_can_be_read_without_scripts(screen, with_planes, offline):
    screen.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        screen.open(with_planes.as_uri())
        text = screen.text("#report")
        assert "Plane: checkpoints" in text
        assert "at last.ckpt:swa" in text
        assert len([chart for chart in screen.all("svg rect") if chart.is_displayed()]) > 100
    finally:
        screen.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
