"""The main job: every stage leaves its files, is found again by a rerun, and fails without taking the others down."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace

import pandas as pd
import pytest
from pipeline_cases import ANALYSIS, RUN, TINY, TRAIN, groups_in, make_tiny, names

from landscape import pipeline
from landscape.errors import LandscapeError
from landscape.loading import CheckpointSource
from landscape.pipeline import AnalysisSpec, analyse, estimate_run, figures, prepare, run_everything
from landscape.results import WHOLE_ANALYSIS, save_results, validate
from landscape.training import train

ONE_RUN = ["checkpoint.safetensors", "history.csv", "results.nc", "run.json", "summary.csv"]


@pytest.fixture
def tiny(monkeypatch):
    """The preset at a tenth of its size, a report in plain text, and no drawing but a list of what would be drawn."""
    return make_tiny(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(TRAIN, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def analysis(checkpoint, tmp_path_factory):
    """A folder with the tiny analysis of the checkpoint."""
    out = tmp_path_factory.mktemp("analysis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "choose_plan", lambda preset: TINY)
        analyse(prepare(CheckpointSource(checkpoint), ANALYSIS), out, ANALYSIS)
    return out


class ComputedAgainError(Exception):
    """What was found finished was computed again."""


def never(*args, **kwargs):
    raise ComputedAgainError


def require_identical(folder, other, besides):
    """Require equal results, bit for bit, but for the attributes named."""
    found, expected = (groups_in(one / "results.nc") for one in (folder, other))
    assert set(found) == set(expected) == set(WHOLE_ANALYSIS)
    for name in expected:
        for one in (found[name], expected[name]):
            for volatile in besides:
                one.attrs.pop(volatile, None)
        assert found[name].identical(expected[name]), name


# ---- the whole, drawn for real ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two optimizers at a tenth of preset quick, with all figures; what was announced and the progress that was shown."""
    out = tmp_path_factory.mktemp("run") / "first try & co"
    said, ticks = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "choose_plan", lambda preset: TINY)
        start = pipeline.Drawing.start
        # Only figures that compare both: drawing takes longer than all the rest, and the command line's tests draw all of
        # one checkpoint.
        patch.setattr(
            pipeline.Drawing, "start", lambda self, to, files: start(self, to, files) if len(files) > 1 else None
        )
        tables = run_everything(
            RUN, out, command="landscape run --epochs 1", announce=said.append, progress=lambda *t: ticks.append(t)
        )
    return out, tables, said, ticks


def test_the_main_job_leaves_every_file(finished):
    out, tables, _, _ = finished
    assert names(out) == ["figures", "report.html", "sam", "sgd", "summary.csv"]
    assert names(out / "sgd") == names(out / "sam") == ONE_RUN
    stems = {path.stem for path in (out / "figures").iterdir()}
    kinds = ("accuracy", "verdicts", "spectrum", "fluctuation", "lines", "contours")
    assert {f"compare-{kind}" for kind in kinds} <= stems
    for stem in stems:
        for ending in ("png", "pdf"):
            assert (out / "figures" / f"{stem}.{ending}").stat().st_size > 1000
    for name in RUN.optimizers:
        assert set(groups_in(out / name / "results.nc")) == set(WHOLE_ANALYSIS)
    assert {path.name.split("-")[0] for path in (out / "figures").iterdir()} == {"compare"}
    assert list(tables) == ["sgd", "sam"]


def test_results_are_valid_and_say_where_they_come_from(finished):
    out, _, _, _ = finished
    for name in RUN.optimizers:
        groups = groups_in(out / name / "results.nc")
        for group, dataset in groups.items():
            validate(group, dataset)
            assert list(dataset.lane.values) == ["tail", "all"]
            assert dataset.attrs["optimizer"] == name
            assert dataset.attrs["preset"] == "quick"
            assert len(dataset.attrs["checkpoint_sha256"]) == 64
        history = pd.read_csv(out / name / "history.csv")
        for lane in ("tail", "all"):
            stored = float(groups["accuracy"].test_accuracy.sel(lane=lane))
            assert stored == pytest.approx(history[f"test_accuracy/{lane}"].iloc[-1], abs=1e-12)


def test_summaries_hold_a_row_per_lane_and_model(finished):
    out, tables, _, _ = finished
    joint = pd.read_csv(out / "summary.csv", index_col=["model", "lane"])
    assert joint.index.tolist() == [(m, lane) for m in RUN.optimizers for lane in ("tail", "all")]
    for name, table in tables.items():
        single = pd.read_csv(out / name / "summary.csv", index_col="lane")
        pd.testing.assert_frame_equal(single, table, check_dtype=False)
        pd.testing.assert_frame_equal(joint.loc[name], single, check_dtype=False)


def test_the_report_stands_alone_and_names_the_command(finished):
    page = (finished[0] / "report.html").read_text()
    assert "landscape run --epochs 1" in page
    for word in ("sgd", "sam", "digits-lt", "tail"):
        assert word in page
    assert "2 optimizers compared" in page


def test_stages_are_announced_in_their_order_and_progress_reaches_its_total(finished):
    _, _, said, ticks = finished
    assert said[:4] == ["[1/2] sgd: training", "[1/2] sgd: analysing", "[2/2] sam: training", "[2/2] sam: analysing"]
    assert all(0 < done <= total for done, total, _ in ticks)


def test_a_rerun_of_the_main_job_computes_nothing(finished, monkeypatch, tmp_path):
    out, tables, _, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*.nc")}
    monkeypatch.setattr(pipeline, "choose_plan", lambda preset: TINY)
    monkeypatch.setattr(pipeline, "measure_everything", never)
    monkeypatch.setattr("landscape.training.loop._run_epoch", never)
    monkeypatch.setattr(pipeline.Drawing, "start", lambda self, out, files: None)
    again = run_everything(RUN, out, command="again")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table, check_dtype=False)
    assert {path: path.read_bytes() for path in out.rglob("*.nc")} == before


def test_a_main_job_that_was_killed_while_measuring_goes_on_and_ends_the_same(finished, tiny, monkeypatch, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_everything(RUN, whole, command="whole")

    def stop(done, total, text):
        if "pair 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_everything(RUN, killed, command="killed", progress=stop)
    assert names(killed) == ["sgd"]
    assert len(names(killed / "sgd" / "journal")) == 4  # two lanes of the spectrum, two pairs of draws
    monkeypatch.setattr("landscape.spectrum.measure.measure_wave", never)
    with pytest.raises(ComputedAgainError):  # sam's spectrum is not yet there; sgd's was
        run_everything(RUN, killed, command="resumed")
    assert names(killed / "sgd") == ONE_RUN
    require_identical(killed / "sgd", whole / "sgd", besides=("analysis_seconds", "checkpoint_sha256"))


# ---- one checkpoint -----------------------------------------------------------------------------------------------


def test_figures_of_one_checkpoint(checkpoint, tmp_path, tiny):
    table = figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="landscape figures checkpoint")
    assert names(tmp_path) == ["report.html", "results.nc", "summary.csv"]
    assert tiny == [(tmp_path / "figures", {"sgd": tmp_path / "results.nc"})]
    assert list(table.index) == ["tail", "all"]
    assert table.test_accuracy.between(0, 1).all()
    assert "landscape figures checkpoint" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*"))


def test_a_rerun_finds_the_results_and_writes_what_is_missing(checkpoint, analysis, tmp_path, tiny, monkeypatch):
    shutil.copy(analysis / "results.nc", tmp_path)
    monkeypatch.setattr(pipeline, "measure_everything", never)
    first = figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="first")
    assert names(tmp_path) == ["report.html", "results.nc", "summary.csv"]
    (tmp_path / "report.html").unlink()
    pd.testing.assert_frame_equal(figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="second"), first)
    assert "second" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ({}, {"seed": 1}),
        ({}, {"lanes": "head"}),
        ({}, {"group_average": "classes"}),
        ({}, {"max_per_class": 3}),
        ({"max_per_class": 3}, {}),
        ({"split": "test"}, {}),
        ({"loss": "balanced-softmax"}, {}),
        ({"params": "head"}, {}),
        ({"dtype": "float64"}, {}),
        ({"group_rule": "oltr"}, {}),
        ({"imbalance_ratio": 5.0}, {}),
        ({"mean": (0.1,)}, {}),
        ({"std": (0.7,)}, {}),
    ],
    ids=str,
)
def test_a_changed_setting_is_measured_anew(checkpoint, analysis, tmp_path, tiny, monkeypatch, source, spec):
    shutil.copy(analysis / "results.nc", tmp_path)
    monkeypatch.setattr(pipeline, "measure_everything", never)
    with pytest.raises(ComputedAgainError):
        figures(CheckpointSource(checkpoint, **source), tmp_path, replace(ANALYSIS, **spec), command="second")


def test_a_changed_plan_or_version_is_measured_anew(checkpoint, analysis, tmp_path, tiny, monkeypatch):
    shutil.copy(analysis / "results.nc", tmp_path)
    monkeypatch.setattr(pipeline, "measure_everything", never)
    changes = {"choose_plan": lambda preset: replace(TINY, line_points=7), "versions": lambda: "torch 9"}
    for name, change in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, change)
            with pytest.raises(ComputedAgainError):
                figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="changed")
    figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="neither")


def test_other_weights_are_measured_anew(analysis, tmp_path, tiny, monkeypatch):
    shutil.copy(analysis / "results.nc", tmp_path)
    monkeypatch.setattr(pipeline, "measure_everything", never)
    with pytest.raises(ComputedAgainError):
        figures(CheckpointSource(train(replace(TRAIN, seed=1), tmp_path / "x")), tmp_path, ANALYSIS, command="second")


def test_a_damaged_results_file_is_measured_anew(checkpoint, analysis, tmp_path, tiny):
    content = (analysis / "results.nc").read_bytes()
    (tmp_path / "results.nc").write_bytes(content[: len(content) // 2])
    figures(CheckpointSource(checkpoint), tmp_path, ANALYSIS, command="second")
    require_identical(tmp_path, analysis, besides=("analysis_seconds",))


def test_the_test_accuracy_is_of_all_test_images_whatever_the_cap(checkpoint, tmp_path, tiny):
    spec = replace(ANALYSIS, max_per_class=3)
    table = figures(CheckpointSource(checkpoint), tmp_path, spec, command="capped")
    accuracy = groups_in(tmp_path / "results.nc")["accuracy"]
    assert int(accuracy.num_examples.sel(lane="all")) == 30
    assert int(accuracy.test_num_examples.sel(lane="all")) > 300
    history = pd.read_csv(checkpoint.parent / "history.csv")
    assert table.test_accuracy["all"] == pytest.approx(history["test_accuracy/all"].iloc[-1], abs=1e-12)


# ---- failures -----------------------------------------------------------------------------------------------------


def fail_for(optimizer):
    def training(spec, out, **options):
        if spec.optimizer == optimizer:
            raise LandscapeError("training diverged in epoch 1 of 1: lower the learning rate")
        return train(spec, out, **options)

    return training


@pytest.mark.parametrize("failing", RUN.optimizers)
def test_one_failing_optimizer_leaves_the_other_and_appears_as_a_warning(tmp_path, tiny, monkeypatch, caplog, failing):
    monkeypatch.setattr(pipeline, "train", fail_for(failing))
    with caplog.at_level(logging.WARNING, "landscape.pipeline"):
        tables = run_everything(RUN, tmp_path, command="run")
    (left,) = tables
    assert {left, failing} == set(RUN.optimizers)
    assert f"{failing} failed: training diverged" in caplog.text
    assert f"{failing}: training diverged in epoch 1 of 1" in (tmp_path / "report.html").read_text()
    assert names(tmp_path) == sorted(["report.html", "summary.csv", left])
    assert tiny == [(tmp_path / left / "figures", {left: tmp_path / left / "results.nc"})]


def test_a_learning_rate_that_diverges_is_such_a_failure(tmp_path, tiny, monkeypatch):
    spec = replace(RUN, train=replace(TRAIN, lr=1e30))
    with pytest.raises(LandscapeError, match="no optimizer succeeded; sgd: training diverged"):
        run_everything(spec, tmp_path, command="run")


def test_the_only_optimizer_fails_with_its_own_error(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "train", fail_for("sgd"))
    with pytest.raises(LandscapeError, match=r"^training diverged in epoch 1 of 1"):
        run_everything(replace(RUN, optimizers=("sgd",)), tmp_path, command="run")


def test_a_programming_error_is_not_swallowed(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "train", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_everything(RUN, tmp_path, command="run")


def test_a_drawing_that_fails_is_an_error_that_says_where(tmp_path):
    with (
        pytest.raises(LandscapeError, match=r"drawing the figures in .*out failed: .*no results file at"),
        pipeline.Drawing() as drawing,
    ):
        drawing.start(tmp_path / "out", {"sgd": tmp_path / "none.nc"})


def test_a_folder_may_have_an_equals_sign_in_its_name(finished, tmp_path):
    path = save_results(
        {"accuracy": groups_in(finished[0] / "sgd" / "results.nc")["accuracy"]}, tmp_path / "lr=1" / "r.nc"
    )
    with pipeline.Drawing() as drawing:
        drawing.start(tmp_path / "out", {"sgd": path})
    assert (tmp_path / "out" / "accuracy.png").exists()


def test_a_drawing_that_fails_stops_the_others(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        drawing = pipeline.Drawing()
        drawing.start(tmp_path / "out", {"sgd": tmp_path / "none.nc"})
        drawing._jobs.append(("other", other, tempfile.TemporaryFile()))  # noqa: SIM115
        with pytest.raises(LandscapeError, match="failed"):
            drawing.__exit__(None, None, None)
        assert other.poll() is not None
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizers": ()}, "--optimizers: expected at least one name"),
        ({"optimizers": ("sgd", "sgd")}, "--optimizers: each name once, got sgd,sgd"),
        ({"optimizers": ("sgd", "smm")}, "unknown optimizer 'smm': did you mean 'sam'"),
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"objective": "cee"}, "unknown loss 'cee': did you mean 'ce'"),
    ],
)
def test_bad_runs_are_refused_before_anything_starts(given, message):
    with pytest.raises(LandscapeError, match=message):
        replace(RUN, **given)


def test_an_unknown_preset_is_refused():
    with pytest.raises(LandscapeError, match="unknown preset 'fast'"):
        AnalysisSpec(preset="fast")


def test_the_estimate_of_a_run_names_its_stages():
    stages = estimate_run(RUN)
    assert list(stages) == ["training with sgd", "training with sam", "analysis, 2 times"]
    assert all(seconds > 0 for seconds, _ in stages.values())


def test_the_journal_of_a_finished_analysis_is_gone(finished):
    assert not list(finished[0].rglob("journal"))
    assert not list(finished[0].rglob("*.partial"))
