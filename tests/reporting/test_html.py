"""The page: complete without scripts, asking nobody for anything, small."""

import base64
import hashlib
import html as text
import re

import pytest
from made_up_runs import records, write_run

from lightning_landscape.reporting.html import bundle, frame, page, thinned
from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.runs import read_run

RUN = records(3)


@pytest.fixture(scope="module")
def made():
    return page({"cnn": RUN, "<other>": RUN}, title="Two & runs")


def without_scripts(made):
    return re.sub(r"<(script|style)\b.*?</\1>", "", made, flags=re.DOTALL)


def test_words_tables_and_pictures_stand_there_without_scripts(made):
    shown = without_scripts(made)
    assert shown.count("<svg") == 2 * 5  # a line, a breakdown and three families a run
    assert shown.count("<table>") == 2 * 5
    assert "Its validation loss is lower by" in shown
    assert "step 150" in shown
    assert "step 50<" not in shown  # only the last probe


def test_names_are_escaped(made):
    assert "<other>" not in without_scripts(made)
    assert "Two &amp; runs" in made


def test_the_page_asks_nobody_for_anything(made):
    shown = without_scripts(made).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|src=|url\(|@import|<link", shown)


def test_only_the_scripts_of_the_page_may_run(made):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made).group(1)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", made, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    assert (len(scripts), len(styles)) == (2, 1)
    for content in scripts + styles:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_nothing_in_the_page_ends_a_script_early(made):
    assert made.count("</script") == made.count("<script") == 3


def test_a_page_of_fifty_probes_is_below_a_megabyte():
    probe = records(1)
    probes = [
        Record(record.kind, record.name, step, {**record.data, "words": str(step)})
        for step in range(50)
        for record in probe
    ]
    assert len(page({"cnn": probes})) < 1_000_000


@pytest.mark.parametrize(("n", "most", "kept"), [(5, 3, [0, 2, 4]), (3, 5, [0, 1, 2]),
                                                 (4, 1, [0, 3])])  # fmt: skip
def test_a_long_run_is_thinned_and_keeps_its_first_and_last_probe(n, most, kept):
    run = [Record("cost", "probe", step, {"seconds": 1}) for step in range(n)]
    assert [record.step for record in thinned(run, most)] == kept


def test_without_any_record_there_is_no_page():
    with pytest.raises(ValueError, match="must hold at least one record"):
        page({"cnn": []})


def test_a_logged_run_becomes_a_page(tmp_path):
    read, _ = read_run(write_run(tmp_path / "cnn", RUN))
    assert page({"cnn": read}).count("step 150") == page({"cnn": RUN}).count("step 150") > 0


def test_a_frame_holds_the_whole_page_for_a_notebook():
    made = frame({"cnn": RUN})
    content = re.search(r'srcdoc="([^"]*)"', made).group(1)
    assert text.unescape(content) == page({"cnn": RUN})


def test_a_page_of_words_alone_is_a_page():
    words = Record("words", "summary", 0, {"text": "The first line.\nThe second."})
    assert "<p>The second.</p>" in page({"plane": [words]})


def test_the_bundle_has_no_import_and_no_export_left():
    assert not re.search(r"^(import|export) ", bundle(), re.MULTILINE)


def test_a_result_that_is_not_finite_can_be_shown():
    data = {**RUN[0].data, "area": ["NaN"] * 3, "median": ["Infinity", *RUN[0].data["median"][1:]]}
    made = page({"cnn": [Record("family", "gaussian", 1, data)]})
    assert "not known" in without_scripts(made)
