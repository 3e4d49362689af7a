"""The records of a run that is over: from event files, from arrays, from both, of every version."""

import numpy as np
import pytest
import torch
from made_up_runs import records, write_run

from lightning_landscape import FunctionObjective, survey
from lightning_landscape.reporting.arrays import npz_content, survey_arrays
from lightning_landscape.reporting.html import page
from lightning_landscape.reporting.results import family_data
from lightning_landscape.reporting.runs import read_run

BOWL = FunctionObjective(lambda p: (p["x"] ** 2 + p["x"] ** 3).sum(), {"x": torch.ones(3)})


def surveys(**options):
    return survey(BOWL, ["gaussian", "sign"], n_directions=3, **options)


def write_arrays(folder, found, step, name="landscape"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-step={step}.npz"
    path.write_bytes(npz_content({"step": step, **survey_arrays(found)}))
    return path


def test_a_run_without_event_files_is_read_from_its_arrays(tmp_path):
    found = surveys(normalize="model")
    write_arrays(tmp_path / "landscape", found, 9, "mine")
    for folder in (tmp_path, tmp_path / "landscape"):
        read, problems = read_run(folder)
        assert problems == []
        assert [(r.monitor, r.kind, r.step) for r in read] == [("mine", "family", 9)] * 2
        assert read[0].data["unit"] == "relative to the norm of the group"
    assert "Directions: sign, step 9" in page({"run": read})


def test_the_rate_of_more_directions_than_were_kept_comes_back(tmp_path):
    found = surveys()
    found["sign"].rate.update(n=40.0, low=0.5)
    write_arrays(tmp_path, found, 9)
    read, _ = read_run(tmp_path)
    assert read[1].data["rate"] == pytest.approx(found["sign"].rate, rel=1e-6)


def test_event_files_come_first_and_arrays_add_the_probes_they_lack(tmp_path):
    write_run(tmp_path, records(2, every=50))
    write_arrays(tmp_path / "landscape", surveys(), 50)
    write_arrays(tmp_path / "landscape", surveys(), 7)
    read, _ = read_run(tmp_path)
    assert sorted({r.step for r in read}) == [7, 50, 100]
    assert len([r for r in read if r.step == 50]) == 6


def test_a_log_of_version_0_1_is_read(tmp_path):
    found = surveys()["sign"]
    np.savez(
        tmp_path / "sign-step=5.npz",
        alphas=found.slices[0].alphas.numpy(),
        losses=np.stack([line.losses.numpy() for line in found.slices]),
        distance=np.array([line.distance for line in found.slices]),
        mode=np.array(found.slices[0].mode),
        label=np.array(["sign"] * 3),
        step=np.array(5),
    )
    [record], _ = read_run(tmp_path)
    assert (record.tag, record.step) == ("landscape/record/family/sign", 5)
    assert record.data["areas"] == pytest.approx(family_data(found)["areas"], rel=1e-6)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_there(tmp_path):
    whole = write_arrays(tmp_path, surveys(), 3)
    (tmp_path / "landscape-step=4.npz").write_bytes(whole.read_bytes()[:100])
    (tmp_path / "landscape-step=5.npz").write_bytes(npz_content({"other": 1.0}))
    read, problems = read_run(tmp_path)
    assert {r.step for r in read} == {3}
    assert [problem.split(":")[0] for problem in problems] == [
        "landscape-step=4.npz",
        "landscape-step=5.npz",
    ]


def test_a_folder_without_results_is_refused_and_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"must be the folder of a run .* does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "landscape-step=4.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"holds no results; 1 could not be read: landscape-step"):
        read_run(tmp_path)
