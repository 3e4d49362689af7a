"""The page, opened from disk in a real browser."""

import re
from dataclasses import replace

import pytest
from made_up_runs import plane, records

from lightning_landscape.reporting.html import frame, page
from lightning_landscape.reporting.records import Record


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
    reached = (
        "scrollTo(0, 1e6); return scrollY + innerHeight - document.documentElement.scrollHeight"
    )
    assert abs(screen.run(reached)) < 1
    assert screen.run("return scrollY") > 0
    assert screen.errors() == []


@pytest.fixture
def show(screen, tmp_path):
    """Open a page of some runs in a window of some width."""

    def show(runs, width=1280):
        path = tmp_path / "page.html"
        path.write_text(page(runs), encoding="utf-8")
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        screen.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        screen.open(path.as_uri())
        screen.wait(lambda: screen.all(".card h3") and not screen.all(".card.waiting"))
        return screen

    yield show
    screen.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [1400, 800, 400])
def test_at_a_glance_every_run_is_inside_the_card(show, width):
    runs = {f"folder/of_runs/version_{k}": records(2, seed=k) for k in range(3)}
    screen = show(runs, width)
    assert len(screen.all(".glance .chip")) == 3 * 5
    outside = screen.run("""
        const { left, right } = document.querySelector(".glance").getBoundingClientRect();
        return [...document.querySelectorAll(".glance *")].map((e) => e.getBoundingClientRect())
          .filter((box) => box.left < left || box.right > right).length;
    """)
    assert outside == 0


def test_at_a_glance_the_step_of_an_earlier_probe_is_named(show):
    screen = show({"early": records(2), "late": records(3)})
    whose = {cell.text for cell in screen.all(".glance .whose")}
    assert whose == {"early (step 100)", "late"}
    assert "early (step 100): this probe of landscape took" in screen.text(".glance")


def breakdown(**changes):
    data = next(record.data for record in records(1) if record.kind == "breakdown")
    return Record("breakdown", "gradient", 9, {**data, "words": "", **changes})


def test_what_lies_beyond_the_last_eta_is_said_so(show):
    changes = {"descent_limit": "Infinity", "relative_step": 0.5, "answer": ""}
    screen = show({"cnn": [breakdown(**changes)]})
    assert "descent beyond 2" in screen.text(".glance")  # the last eta is 4


@pytest.mark.parametrize(("factor", "shown"), [(1.0, True), (0.1, False)])
def test_a_step_is_named_where_a_whole_one_was_measured(show, factor, shown):
    etas = [factor * eta for eta in (0.25, 0.5, 1.0, 2.0, 3.0)]
    screen = show({"cnn": [breakdown(etas=etas)]})
    assert ("step measured (eta = 1)" in screen.text("main")) == shown
    without_scripts = screen.one("#report").get_attribute("textContent")
    assert ("step measured (eta = 1), as a relative step" in without_scripts) == shown


@pytest.mark.parametrize(("share", "written"), [(0.125, "12 %"), (0.375, "38 %"), (0.256, "26 %")])
def test_percentages_are_rounded_as_in_the_sentences(show, share, written):
    data = records(1)[0].data
    rate = {**data["rate"], "off_minimum": share}
    screen = show({"cnn": [Record("family", "gaussian", 1, {**data, "rate": rate})]})
    assert f"off their minimum {written}" in screen.text(".numbers")
    assert written == f"{100 * share:.0f} %"


def test_a_page_of_one_probe_has_no_slider_and_no_step(show):
    screen = show({"Net": [Record(r.kind, r.name, 0, r.data) for r in records(1)]})
    assert not screen.one(".landscape .bar").find_element("css selector", ".time").is_displayed()
    assert screen.text(".glance").startswith("At a glance\n")
    assert "step 0" not in screen.one("body").get_attribute("innerText")


def test_the_titles_of_a_plane_say_what_it_is(show):
    screen = show({"plane": [plane("plane")]})
    assert [title.text for title in screen.all(".card.wide h3, .card.wide h4")] == [
        "Plane", "Loss on the plane", "Slices through the chosen point"]  # fmt: skip
    assert "Where is the loss least? ●" in screen.text(".glance")


KEPT = ("alphas", "alphas1", "alphas2", "points", "etas", "rate", "n_batches")


def not_finite(value):
    """Replace all measured numbers by nan, in lists and in scores."""
    if isinstance(value, dict):
        return {k: v if k in KEPT else not_finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [not_finite(each) for each in value]
    return "NaN" if isinstance(value, float | int) else value


def test_where_nothing_is_finite_no_chart_is_empty(show):
    every = [*records(2), replace(plane(), step=50)]
    found = [Record(r.kind, r.name, r.step, not_finite(r.data)) for r in every]
    screen = show({"cnn": found})
    charts = screen.all(".u-wrap, .stage canvas")
    assert [chart for chart in charts if chart.is_displayed()] == []
    # of the line and each of three families a chart and a trend; of the families and of the layers
    # a history; a chart of the breakdown; a map and slices of the plane
    assert screen.text("main").count("Nothing to plot: the values are not finite.") == 8 + 4 + 1 + 2
    assert screen.text(".glance").count("loss is not finite") == 6
    assert not re.search("[^0-9] ± ", screen.text("main"))
    assert screen.errors() == []


WRITTEN = """
    window.written = [];
    const write = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
      window.written.push([text, x, y, this.measureText(text).width, this.canvas.width]);
      return write.apply(this, arguments);
    };
"""


@pytest.fixture
def written(screen):
    """What is written on canvases, by its text: where it begins, its width and the canvas's."""
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = screen.driver.execute_cdp_cmd(command, {"source": WRITTEN})
    yield lambda: {text: place for text, *place in screen.run("return window.written")}
    screen.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.parametrize(("limit", "even"), [(0.25, 0.26), (1.0, 1.1), (3.9, 4.0)])
def test_the_names_of_marked_places_stand_above_and_apart(show, written, limit, even):
    show({"cnn": [breakdown(descent_limit=limit, break_even=even)]}, 800)
    places = written()
    first, y, size, room = places["descent limit"]
    second, y2, size2, _ = places["break-even"]
    assert first >= 0
    assert first + size < second
    assert second + size2 <= room
    assert y == y2 < places["eta: how far along the direction"][1]
    assert y < 18  # above the lines, which begin there


def test_the_colours_of_a_history_go_from_its_least_to_its_largest_value(show, written):
    rows = [[1.0, 2.0, 4.0, 8.0, 16.0]] * 5
    first, last = breakdown(breakdown=rows), breakdown(breakdown=[[3.0] * 5] * 5)
    screen = show({"cnn": [first, Record("breakdown", "gradient", 10, last.data)]})
    assert screen.text(".scale") == "breakdown: 34"  # of eta = 1: from 3 to 4
    assert "layer0.weight" in written()


def contrast(colour, ground):
    def luminance(text):
        parts = [int(text[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("n_runs", [1, 10])
def test_every_colour_can_be_seen_on_white_and_on_dark(show, n_runs):
    screen = show({f"run {k}": records(1) for k in range(n_runs)})
    script = "return [...document.querySelectorAll('.swatch')].map((e) => e.style.cssText)"
    found = {text.split(":")[1].strip(" ;") for text in screen.run(script)}
    assert len(found) >= 7
    for ground in ("#ffffff", "#26282c"):
        assert min(contrast(colour, ground) for colour in found) >= 3


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
