"""The tab in TensorBoard, in a real browser."""

from urllib.parse import unquote, urlsplit

import pytest
from made_up_runs import records, write_run
from torch.utils.tensorboard import SummaryWriter

from lightning_landscape.reporting.records import Record


class Corrupt(Record):
    def to_bytes(self):
        return b"nonsense"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_run(folder / "cnn", records(12))
    write_run(
        folder / "fromage", [*records(9, seed=1, every=60), Corrupt("words", "x", 9, {"text": ""})]
    )
    return folder


@pytest.fixture(scope="module")
def address(tensorboard, logs):
    with tensorboard(logs, "--reload_interval", "1", "--path_prefix", "/tb") as address:
        yield address


@pytest.fixture
def tab(screen, address):
    screen.open(f"{address}/#landscape")
    screen.enter_tab()
    screen.wait(lambda: len(screen.all(".runs label")) >= 2)
    return screen


def shown_step(screen):
    return screen.text("output.step").split(" · ")[0]


def test_the_tab_shows_words_numbers_and_charts_of_both_runs(tab, address):
    text = tab.wait(lambda: "Directions: sign" in tab.text() and tab.text())
    assert "Its validation loss is lower by" in text
    assert "Would averaging help now?" in text
    assert "better" in text
    assert len(tab.all(".u-wrap")) >= 8
    assert tab.errors() == []
    assert tab.hosts() == {urlsplit(address).netloc}


def test_a_record_that_cannot_be_read_is_named(tab):
    assert "1 record cannot be read; the rest is shown" in tab.text(".problems")


def test_arrow_keys_move_the_step_and_a_run_shows_its_latest_probe(tab):
    assert shown_step(tab) == "step 600"
    for _ in range(2):
        tab.press("\ue012")  # left
    # of 50, 100, ... and 60, 120, ... these are the last but two: 540 and 550
    assert shown_step(tab) == "step 540"
    assert "step 500, the latest probe before step 540" in tab.text()
    tab.press("\ue011")  # home
    assert shown_step(tab) == "step 50"


def test_the_slider_can_be_dragged_and_says_where_it_is(tab):
    tab.run("const s = arguments[0]; s.value = 0; s.dispatchEvent(new Event('input'))",
            tab.one("input[type=range]"))  # fmt: skip
    assert tab.one("input[type=range]").get_attribute("aria-valuetext").startswith("step 50 ")
    assert "At a glance: step 50" in tab.text(".glance")


def test_play_goes_through_the_training_and_stops_at_its_end(tab):
    tab.press("\ue011")
    tab.one(".play").click()
    tab.wait(lambda: shown_step(tab) == "step 600")
    tab.wait(lambda: tab.text(".play") == "▶")


def test_hovering_a_chart_shows_values_with_their_interval(tab):
    chart = tab.one(".card:nth-of-type(4) .u-over")
    tab.point(chart, right=40)
    tip = tab.one(".tip").text
    assert "alpha = 0." in tip
    assert "cnn, train, median direction: " in tip
    assert "[" in tip


def test_a_click_on_the_history_goes_to_that_step(tab):
    canvas = tab.one(".map canvas")
    tab.point(canvas, right=-20, click=True)
    step = int(shown_step(tab).split()[1])
    assert 150 < step < 450


def test_a_click_on_a_trend_goes_to_that_step(tab):
    trend = tab.all(".card:nth-of-type(4) .u-over")[1]
    tab.point(trend, click=True)
    assert 200 < int(shown_step(tab).split()[1]) < 450


def test_the_address_keeps_what_was_chosen(tab, address):
    tab.press("\ue011")
    tab.one(".runs input").click()
    tab.driver.switch_to.default_content()
    link = tab.driver.current_url
    assert 'hidden=["cnn"]' in unquote(unquote(link))
    tab.open(link)
    tab.enter_tab()
    tab.wait(lambda: len(tab.all(".runs label")) >= 2)
    assert shown_step(tab) == "step 60"  # the first of the run that is left
    assert not tab.one(".runs input").is_selected()


def test_colours_stay_when_a_run_is_hidden(tab):
    def colours():
        return [e.get_attribute("style") for e in tab.all(".runs .swatch")]

    before = colours()
    assert len(set(before)) == 2
    tab.one(".runs input").click()
    assert colours() == before


def test_two_runs_can_be_subtracted_point_by_point(tab):
    tab.one(".compare input").click()
    chart = tab.one(".card:nth-of-type(4)")
    tab.wait(lambda: "fromage minus cnn" in chart.text)
    assert tab.errors() == []


def test_a_chart_zooms_and_its_numbers_are_there_as_a_table(tab):
    from selenium.webdriver import ActionChains

    chart = tab.one(".card:nth-of-type(4) .u-over")
    tab.point(chart, -60, -40)
    ActionChains(tab.driver).click_and_hold().move_by_offset(90, 60).release().perform()
    labels = "return [...document.querySelectorAll('.card:nth-of-type(4) figure')][0]"
    assert tab.run(f"{labels}.querySelector('.u-select').style.width") in ("", "0px")
    button = tab.one(".card:nth-of-type(4) button[title='show the numbers']")
    button.click()
    assert "median direction, low" in tab.text(".card:nth-of-type(4) .values")


@pytest.mark.parametrize("kind", ["PNG", "CSV"])
def test_a_chart_can_be_saved(tab, kind):
    tab.run("""
        window.saved = [];
        const save = function () { window.saved.push([this.download, this.href]); };
        HTMLAnchorElement.prototype.click = save;
    """)
    next(b for b in tab.all(".card:nth-of-type(4) .tools button") if b.text == kind).click()
    name, url = tab.wait(lambda: tab.run("return window.saved"))[0]
    assert name == f"Directions-gaussian-Loss-along-the-directions.{kind.lower()}"
    assert url.startswith("blob:")
    assert tab.errors() == []


def test_the_tab_is_dark_when_tensorboard_is(tab):
    light = tab.run("return getComputedStyle(document.querySelector('.landscape')).backgroundColor")
    tab.run("parent.document.body.classList.add('dark-mode')")
    tab.one(".landscape.dark")
    dark = tab.run("return getComputedStyle(document.querySelector('.landscape')).backgroundColor")
    assert light == "rgb(245, 246, 248)"
    assert dark == "rgb(27, 28, 31)"


def test_every_control_has_a_name_and_can_be_reached(tab):
    nameless = tab.run("""
        return [...document.querySelectorAll('button, input, select, canvas[tabindex]')]
          .filter(e => !e.ariaLabel && !e.labels?.length && !e.textContent).map(e => e.outerHTML);
    """)
    assert nameless == []
    tab.press("\ue004")  # tab
    assert tab.run("return document.activeElement.tagName") in ("BUTTON", "INPUT")


def test_a_run_that_is_added_while_the_tab_is_open_appears(tab, logs):
    write_run(logs / "late", records(2, seed=2))

    def reloaded():
        tab.driver.switch_to.default_content()
        tab.one("app-header-reload button").click()
        tab.driver.switch_to.frame(tab.all("iframe")[0])
        return any("late" in label.text for label in tab.all(".runs label"))

    tab.wait(reloaded)
    assert tab.errors() == []


def test_the_state_returns_when_the_tab_is_shown_again(tab):
    tab.press("\ue011")
    tab.driver.switch_to.default_content()
    for name in ("SCALARS", "LANDSCAPE"):
        next(t for t in tab.all("[role=tab]") if t.text.upper() == name).click()
        tab.wait(lambda name=name: name.lower() in tab.driver.current_url)
    tab.wait(lambda: "step=50" in tab.driver.current_url)


def test_without_torch_tensorboard_starts_and_the_slow_loader_keeps_all(
    tensorboard, screen, tmp_path
):
    broken = tmp_path / "site" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no torch here')")
    write_run(tmp_path / "logs" / "cnn", records(30))
    with tensorboard(tmp_path / "logs", "--load_fast=false", path=[broken.parent]) as address:
        screen.open(f"{address}/#landscape")
        screen.enter_tab()
        screen.wait(lambda: "probe 30 of 30" in screen.text("output.step"))
        assert screen.errors() == []


def test_all_probes_of_a_long_run_are_there_after_a_selection(tensorboard, screen, tmp_path):
    write_run(tmp_path / "long", records(70, validation=False))
    with tensorboard(tmp_path) as address:
        screen.open(f"{address}/#landscape")
        screen.enter_tab()
        screen.wait(lambda: "probe 70 of 70" in screen.text("output.step"))
        script = "return performance.getEntriesByType('resource').map(e => e.name)"
        asked = [name for name in screen.run(script) if "/records?" in name]
        assert ["most=50" in name for name in asked] == [True, False]
        screen.wait(lambda: not screen.all(".card.waiting"))
        assert screen.errors() == []


def test_without_data_there_is_no_tab(tensorboard, screen, tmp_path):
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("val_loss", 1.0, 0)
    writer.close()
    with tensorboard(tmp_path) as address:
        screen.open(address)
        screen.wait(lambda: "SCALARS" in screen.text().upper())
        assert "LANDSCAPE" not in screen.text().upper()
