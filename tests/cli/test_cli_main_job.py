"""The main job and what is made from its folder: found again, killed and finished, compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
from cli_cases import FEW, contents, refuses, results_of, succeeds
from conftest import MAIN_JOB

from landscape.checkpoint import read_checkpoint
from landscape.results import save_results


def test_figures_finds_finished_results_again(main_job, tmp_path, undrawn):
    shutil.copytree(main_job / "sgd", tmp_path / "sgd")
    out = tmp_path / "sgd"
    before = (out / "results.nc").stat().st_mtime_ns
    # The same analysis under another command; everything that decides a number is equal.
    text = succeeds("figures", out / "checkpoint.safetensors", "--out", out, *FEW)
    assert (out / "results.nc").stat().st_mtime_ns == before
    assert undrawn == [out / "figures"]
    assert f"report: {out / 'report.html'}" in text


def test_the_main_job_has_a_folder_for_every_optimizer_and_one_report(main_job):
    assert {path.name for path in main_job.iterdir()} == {"sgd", "sam", "summary.csv", "report.html"}
    for name in ("sgd", "sam"):
        files = {path.name for path in (main_job / name).iterdir()}
        assert files == {"checkpoint.safetensors", "run.json", "history.csv", "results.nc", "summary.csv"}
        assert read_checkpoint(main_job / name / "checkpoint.safetensors").spec["optimizer"] == name
    table = pd.read_csv(main_job / "summary.csv")
    assert list(zip(table.model, table.lane)) == [(m, lane) for m in ("sgd", "sam") for lane in ("0", "tail")]
    assert not table.test_accuracy.isna().any()


def test_the_main_job_repeated_computes_nothing_anew(main_job, undrawn, unchanged):
    for name in ("sgd", "sam"):
        unchanged(main_job / name)
    answer = json.loads(succeeds(*MAIN_JOB, "--out", main_job, "--json"))
    assert list(answer) == ["sgd", "sam"]
    assert [row["lane"] for row in answer["sam"]] == ["0", "tail"]
    assert undrawn == [main_job / "sgd" / "figures", main_job / "sam" / "figures", main_job / "figures"]


def test_compare_draws_two_folders_on_shared_axes(main_job, tmp_path, unchanged):
    for name in ("sgd", "sam"):  # a part of the results: drawing takes long, and the main job draws all of them
        groups = results_of(main_job / name / "results.nc")
        drawn = {group: groups[group] for group in ("accuracy", "spectrum")}
        unchanged(save_results(drawn, tmp_path / name / "results.nc").parent)
    out = tmp_path / "both"
    rows = json.loads(succeeds("compare", tmp_path / "sgd", tmp_path / "sam", "--out", out, "--json"))
    assert [(row["model"], row["lane"]) for row in rows] == [
        (m, lane) for m in ("sgd", "sam") for lane in ("0", "tail")
    ]
    assert {path.name for path in out.iterdir()} == {"figures", "summary.csv", "report.html"}
    pictures = {path.name for path in (out / "figures").iterdir()}
    assert {"compare-spectrum.png", "compare-spectrum.pdf", "compare-verdicts.png"} <= pictures


def test_compare_takes_the_folder_of_a_main_job(main_job, tmp_path, undrawn):
    text = succeeds("compare", main_job, "--out", tmp_path)
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["sam", "sgd"]


# ---- killed -------------------------------------------------------------------------------------------------------


def kill_when(condition, command: list[str]) -> None:
    """Start a command in a process group of its own and kill -9 all of it as soon as the condition holds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as job:
        try:
            while not condition():
                assert job.poll() is None, "it ended before it could be killed"
                time.sleep(0.002)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL


def test_a_killed_main_job_is_finished_by_the_same_command(main_job, tmp_path, undrawn):
    out = tmp_path / "out"
    entry = "from landscape.cli import main; main()"
    command = [sys.executable, "-c", entry, *MAIN_JOB, "--out", str(out)]
    kill_when(lambda: any((out / "sam" / "journal").glob("*.npz")), command)
    assert not (out / "sam" / "results.nc").exists()
    assert not (out / "report.html").exists()
    finished = {name: (out / "sgd" / name).stat().st_mtime_ns for name in ("results.nc", "checkpoint.safetensors")}

    succeeds(*MAIN_JOB, "--out", out)
    assert {name: (out / "sgd" / name).stat().st_mtime_ns for name in finished} == finished
    assert not list(out.glob("*/journal"))
    assert not list(out.rglob("*.partial"))
    assert undrawn == [out / "sgd" / "figures", out / "sam" / "figures", out / "figures"]
    for name in ("sgd", "sam"):
        theirs, ours = (folder / name / "checkpoint.safetensors" for folder in (main_job, out))
        assert ours.read_bytes() == theirs.read_bytes()
        expected = results_of(main_job / name / "results.nc")
        for group, dataset in results_of(out / name / "results.nc").items():
            xr.testing.assert_identical(dataset, expected[group])
    pd.testing.assert_frame_equal(pd.read_csv(out / "summary.csv"), pd.read_csv(main_job / "summary.csv"))


# ---- what cannot be compared --------------------------------------------------------------------------------------


def test_one_folder_is_not_enough(main_job, tmp_path):
    refuses(tmp_path, "compare", main_job / "sgd", "--out", tmp_path / "out", match="at least two .*got 1")
    twice = [main_job / "sgd", main_job / "sgd"]
    refuses(tmp_path, "compare", *twice, "--out", tmp_path / "out", match="each folder once")


@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_a_folder_without_results(kind, main_job, tmp_path):
    if kind == "empty":
        (tmp_path / "other").mkdir()
    arguments = ("compare", main_job / "sgd", tmp_path / "other", "--out", tmp_path / "out")
    refuses(tmp_path, *arguments, match=r"no results\.nc in .*other.*landscape figures")


def damaged(kind: str, whole: Path, folder: Path) -> Path:
    """Write a results.nc that is none, into a new folder."""
    folder.mkdir()
    path, content = folder / "results.nc", whole.read_bytes()
    if kind == "one analysis only":
        save_results({"spectrum": results_of(whole)["spectrum"]}, path)
    elif kind == "of another program":
        xr.Dataset({"temperature": ("x", [1.0, 2.0])}).to_netcdf(path, engine="h5netcdf")
    else:
        cut = {"empty": b"", "text": b"not netCDF", "truncated": content[: len(content) // 2]}
        path.write_bytes(cut[kind])
    return folder


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "one analysis only", "of another program"])
def test_damaged_results_are_named(kind, main_job, tmp_path):
    other = damaged(kind, main_job / "sam" / "results.nc", tmp_path / "other")
    for folders in ([main_job / "sgd", other], [other, main_job / "sgd"]):
        refuses(tmp_path, "compare", *folders, "--out", tmp_path / "out", match=r"other/results\.nc (is not|holds no)")


def test_damaged_results_of_a_stage_are_computed_anew(main_job, tmp_path, undrawn):
    out = damaged("truncated", main_job / "sgd" / "results.nc", tmp_path / "sgd")
    path = shutil.copy(main_job / "sgd" / "checkpoint.safetensors", out)
    succeeds("figures", path, *FEW, "--out", out)
    expected = results_of(main_job / "sgd" / "results.nc")
    for group, dataset in results_of(out / "results.nc").items():
        xr.testing.assert_identical(dataset, expected[group])


def test_analyses_of_different_lanes(main_job, tmp_path):
    groups = {name: dataset.isel(lane=[1]) for name, dataset in results_of(main_job / "sam" / "results.nc").items()}
    save_results(groups, tmp_path / "other" / "results.nc")
    arguments = ("compare", main_job / "sgd", tmp_path / "other", "--out", tmp_path / "out")
    refuses(tmp_path, *arguments, match="cannot compare sgd with other: their lanes differ")


def test_a_folder_to_be_read_is_not_written_over(main_job, tmp_path, unchanged):
    unchanged(main_job)
    for folders in ([main_job], [main_job / "sgd", main_job / "sam"]):
        refuses(tmp_path, "compare", *folders, "--out", folders[-1], match="--out .*to be read; choose another")


def test_an_output_that_cannot_be_written(main_job, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    arguments = ("compare", main_job, "--out", tmp_path / "file.txt" / "out")
    refuses(tmp_path, *arguments, match=r"file\.txt.*another folder")
    assert list(contents(tmp_path)) == ["file.txt"]
