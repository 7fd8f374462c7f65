"""Comparing finished analyses: what is compared, what cannot be, and what is only warned about."""

from __future__ import annotations

import pandas as pd
import pytest
from pipeline_cases import RUN, groups_in, make_tiny, names

from landscape.comparison import compare
from landscape.errors import LandscapeError
from landscape.pipeline import run_everything
from landscape.results import save_results


@pytest.fixture
def tiny(monkeypatch):
    """The preset at a tenth of its size, a report in plain text, and no drawing but a list of what would be drawn."""
    return make_tiny(monkeypatch)


def copied(folder, out, change=lambda dataset: dataset):
    """Copy what a comparison needs of an analysis, with its datasets changed."""
    out.mkdir(parents=True)
    groups = groups_in(folder / "results.nc")
    save_results({name: change(groups[name]) for name in ("accuracy", "spectrum")}, out / "results.nc")
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with two analyses, less what takes long to read."""
    whole, out = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        run_everything(RUN, whole, command="run")
    for name in RUN.optimizers:
        copied(whole / name, out / name)
    return out


def test_compare_two_folders_or_the_folder_of_a_main_job(measured, tmp_path, tiny):
    table = compare([measured / "sgd", measured / "sam"], tmp_path / "two", command="landscape compare sgd sam")
    whole = compare([measured], tmp_path / "whole", command="landscape compare run")
    assert names(tmp_path / "two") == ["report.html", "summary.csv"]
    assert [out for out, _ in tiny] == [tmp_path / "two" / "figures", tmp_path / "whole" / "figures"]
    assert table.index.get_level_values("model").unique().tolist() == ["sgd", "sam"]
    pd.testing.assert_frame_equal(whole.loc[["sgd", "sam"]], table)
    page = (tmp_path / "two" / "report.html").read_text()
    assert "2 checkpoints compared" in page
    assert "landscape compare sgd sam" in page


def test_folders_of_the_same_name_are_told_apart_by_their_parents(measured, tmp_path, tiny):
    other = copied(measured / "sgd", tmp_path / "b" / "sgd")
    first = copied(measured / "sgd", tmp_path / "a" / "sgd")
    table = compare([first, other], tmp_path / "out", command="compare")
    assert table.index.get_level_values("model").unique().tolist() == ["a/sgd", "b/sgd"]


def test_lanes_that_differ_cannot_be_compared(measured, tmp_path, tiny):
    other = copied(measured / "sam", tmp_path / "other", lambda dataset: dataset.isel(lane=[0]))
    with pytest.raises(LandscapeError, match="cannot compare sgd with other: their lanes differ"):
        compare([measured / "sgd", other], tmp_path / "out", command="compare")
    assert not (tmp_path / "out" / "summary.csv").exists()


def test_settings_that_differ_are_warned_about(measured, tmp_path, tiny):
    other = copied(measured / "sam", tmp_path / "other", lambda dataset: dataset.assign_attrs(split="test"))
    compare([measured / "sgd", other], tmp_path / "out", command="compare")
    assert "sgd and other differ in split: train against test" in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_is_not_compared_with_itself(measured, tmp_path, tiny):
    with pytest.raises(LandscapeError):
        compare([measured / "sgd", measured / "sgd"], tmp_path / "out", command="compare")


def test_compare_needs_two_analyses(measured, tmp_path, tiny):
    with pytest.raises(LandscapeError, match="at least two analysed checkpoints, got 1"):
        compare([measured / "sgd"], tmp_path / "out", command="compare")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LandscapeError, match=r"no results.nc in .*empty or the folders in it: run 'landscape figures'"):
        compare([measured / "sgd", tmp_path / "empty"], tmp_path / "out", command="compare")
    with pytest.raises(LandscapeError, match=r"no results.nc in .*none"):
        compare([measured / "sgd", tmp_path / "none"], tmp_path / "out", command="compare")
