"""Every command on tiny inputs: exit code 0, files that are there and hold what was asked for, JSON that parses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cli_cases import FEW, contents, landscape, succeeds
from conftest import MAIN_JOB

from landscape.checkpoint import read_checkpoint
from landscape.cli.options import parse_settings
from landscape.cli.train import EVERY_OPTIMIZER
from landscape.loading import load_risk
from landscape.optimizers import OPTIMIZERS
from landscape.results import WHOLE_ANALYSIS, load_results, validate


def group_of(path, name) -> xr.Dataset:
    """Return the one group of a results file, validated."""
    tree = load_results(path)
    assert list(tree.children) == [name]
    return validate(name, tree[name].to_dataset())


def lanes_of(dataset) -> list[str]:
    return [str(name) for name in dataset.lane.values]


def test_the_help_of_train_lists_every_optimizer():
    assert EVERY_OPTIMIZER.split(",") == list(OPTIMIZERS)


def test_settings_may_be_words_and_lists():
    settings = parse_settings(["head=false", "start=None", "rho-steps=0.1,0.2"], "--optimizer-option")
    assert settings == {"head": False, "start": None, "rho_steps": [0.1, 0.2]}


# ---- train --------------------------------------------------------------------------------------------------------


def test_train_writes_checkpoint_record_and_history(trained):
    assert {path.name for path in trained.iterdir()} == {"checkpoint.safetensors", "run.json", "history.csv"}
    assert read_checkpoint(trained / "checkpoint.safetensors").spec["model"] == "mlp"
    assert json.loads((trained / "run.json").read_text())["finished"] is True
    assert list(pd.read_csv(trained / "history.csv").epoch) == [1, 2]


def test_resuming_a_finished_run_changes_nothing_and_reports_the_same(trained, unchanged):
    unchanged(trained)
    arguments = ("train", "--model", "mlp", "--epochs", "2", "--out", trained, "--resume")
    answer = json.loads(succeeds(*arguments, "--json"))
    assert answer["checkpoint"] == str(trained / "checkpoint.safetensors")
    assert set(answer["test_accuracy"]) == {"head", "medium", "tail", "all"}
    assert 0.3 < answer["test_accuracy"]["all"] < 1
    assert f"{answer['test_accuracy']['all']:.3f}" in succeeds(*arguments)


def test_options_of_loss_and_optimizer_reach_the_record(tmp_path):
    arguments = ["--loss", "focal", "--loss-option", "gamma=0.5", "--loss-option", "weights_inside=true"]
    arguments += ["--optimizer", "sam", "--optimizer-option", "rho=0.1"]
    succeeds("train", "--model", "mlp", "--epochs", "1", *arguments, "--save-every", "1", "--out", tmp_path)
    spec = read_checkpoint(tmp_path / "checkpoint.safetensors").spec
    assert (spec["loss"], spec["loss_options"]) == ("focal", {"gamma": 0.5, "weights_inside": True})
    assert spec["optimizer"] == "sam"
    assert spec["optimizer_options"]["rho"] == 0.1
    assert (tmp_path / "epoch-0001.safetensors").is_file()


# ---- inspect ------------------------------------------------------------------------------------------------------


def test_inspect_tells_how_one_of_ours_was_trained_and_how_good_it_is(trained, checkpoint):
    text = succeeds("inspect", checkpoint)
    assert "digits-lt" in text
    assert "model:               mlp" in text
    answer = json.loads(succeeds("inspect", checkpoint, "--json"))
    assert answer["checkpoint"]["optimizer"] == "sgd"
    rows = {row["lane"]: row for row in answer["lanes"]}
    assert set(rows) == {*"0123456789", "head", "medium", "tail", "all"}
    assert sum(rows[str(c)]["num_examples"] for c in range(10)) == rows["all"]["num_examples"] == 400
    # The history holds what the training loop measured on the same split.
    last = pd.read_csv(trained / "history.csv").iloc[-1]
    for lane, row in rows.items():
        assert row["accuracy"] == pytest.approx(last[f"test_accuracy/{lane}"], abs=1e-12)
        assert row["loss"] == pytest.approx(last[f"test_loss/{lane}"], rel=1e-5)


def test_inspect_recognises_a_foreign_checkpoint_without_data(foreign):
    text = succeeds("inspect", foreign)
    assert "resnet20, 10 classes, linear head" in text
    assert "--dataset" in text
    answer = json.loads(succeeds("inspect", foreign, "--json"))
    assert answer["lanes"] == []
    assert answer["checkpoint"]["container"] == "torch:state_dict"


def test_inspect_evaluates_a_foreign_checkpoint_alike_on_both_layouts(foreign, cifar):
    answers = [
        json.loads(
            succeeds("inspect", foreign, "--dataset", "cifar10", "--data-dir", folder, "--json", "--split", part)
        )
        for folder, part in [(cifar / "cifar-10-batches-bin", "test"), (cifar / "cifar-10-batches-py", "test")]
    ]
    assert answers[0] == answers[1]
    rows = {row["lane"]: row for row in answers[0]["lanes"]}
    assert rows["truck"]["num_examples"] == 2
    assert rows["all"]["num_examples"] == 20


# ---- one analysis -------------------------------------------------------------------------------------------------


def test_spectrum_writes_the_lanes_that_were_asked_for(checkpoint, tmp_path):
    out = tmp_path / "new" / "spectrum.nc"
    rows = json.loads(succeeds("spectrum", checkpoint, "--out", out, *FEW, "--num-probes", "3", "--json"))
    dataset = group_of(out, "spectrum")
    assert lanes_of(dataset) == [row["lane"] for row in rows] == ["0", "tail"]
    assert dataset.sizes["probe"] == 3
    assert list(dataset.num_examples.values) == [2, 6]
    assert [row["verdict"] for row in rows] == [str(v) for v in dataset.verdict.values]
    assert [path.name for path in out.parent.iterdir()] == ["spectrum.nc"]


def test_spectrum_prints_a_table_with_errors(checkpoint, tmp_path):
    lines = succeeds("spectrum", checkpoint, "--out", tmp_path / "s.nc", *FEW).splitlines()
    assert lines[0].split()[:2] == ["lane", "n"]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "tail"]
    assert all(line.count("±") == 3 for line in lines[1:3])


def test_the_subset_the_dtype_and_the_seed_are_recorded(checkpoint, tmp_path):
    out = tmp_path / "s.nc"
    succeeds("spectrum", checkpoint, "--out", out, *FEW, "--params", "head", "--dtype", "float64", "--seed", "3")
    attributes = group_of(out, "spectrum").attrs
    assert attributes["parameters"] == "head"
    assert attributes["dtype"] == "float64"
    assert attributes["seed"] == 3
    assert attributes["split"] == "train"
    assert attributes["checkpoint_sha256"] == read_checkpoint(checkpoint).sha256


def test_spectrum_of_a_foreign_network(foreign, cifar, tmp_path):
    out = tmp_path / "s.nc"
    arguments = ("--dataset", "cifar10", "--data-dir", cifar, "--params", "head", "--lanes", "truck", "--split", "test")
    succeeds(
        "spectrum", foreign, "--out", out, "--model", "resnet20", *arguments, "--num-steps", "4", "--max-steps", "8"
    )
    assert lanes_of(group_of(out, "spectrum")) == ["truck"]


def test_perturb_takes_radii_and_names_what_it_prints(checkpoint, tmp_path):
    out = tmp_path / "p.nc"
    arguments = ("--radii", "0.05,0.1", "--rhos", "0.02", "--sigmas", "0.01", "--num-draws", "4")
    answer = json.loads(succeeds("perturb", checkpoint, "--out", out, *FEW, *arguments, "--json"))
    dataset = group_of(out, "perturbation")
    assert list(dataset.radius.values) == [0.05, 0.1]
    assert list(dataset.rho.values) == [0.02]
    assert dataset.sizes["draw"] == 4
    assert answer["lane"] == lanes_of(dataset) == ["0", "tail"]
    assert answer["radius"] == [0.05, 0.1]
    np.testing.assert_array_equal(answer["mean_increase"]["data"], dataset.mean_increase.values)
    text = succeeds("perturb", checkpoint, "--out", out, *FEW, *arguments)
    assert "radius 0.05" in text
    assert "worst rho 0.02" in text


@pytest.mark.parametrize("directions", ["random", "eigen:tail"])
def test_a_plane_has_the_coordinates_that_were_asked_for(checkpoint, tmp_path, directions):
    out = tmp_path / "plane.nc"
    arguments = ("--directions", directions, "--x=-0.5:1:4", "--y=0:1:3")
    answer = json.loads(succeeds("surface", checkpoint, "--out", out, *FEW, *arguments, "--json"))
    dataset = group_of(out, "surface")
    assert dataset.alpha.values.tolist() == [-0.5, 0.0, 0.5, 1.0]
    assert dataset.beta.values.tolist() == [0.0, 0.5, 1.0]
    assert bool(dataset.done.all())
    assert answer["shape"] == {"pair": 1, "beta": 3, "alpha": 4, "lane": 2}
    np.testing.assert_array_equal(answer["lowest"], dataset.loss.min(("pair", "beta", "alpha")).values)


def test_a_line_of_several_random_directions(checkpoint, tmp_path):
    out = tmp_path / "line.nc"
    succeeds("surface", checkpoint, "--out", out, *FEW, "--kind", "line", "--x=-0.25:0.5:4", "--num-pairs", "2")
    dataset = group_of(out, "surface_line")
    assert dict(dataset.sizes) == {"pair": 2, "alpha": 4, "lane": 2}
    assert dataset.alpha.values.tolist() == [-0.25, 0.0, 0.25, 0.5]


def test_a_line_to_another_checkpoint_ends_in_it(checkpoint, tmp_path):
    arguments = ("--model", "mlp", "--epochs", "1", "--optimizer", "sam", "--seed", "1")
    succeeds("train", *arguments, "--out", tmp_path)
    other, out = tmp_path / "checkpoint.safetensors", tmp_path / "between.nc"
    arguments = ("--kind", "line", "--directions", other, "--x=0:1:3", "--dtype", "float64")
    succeeds("surface", checkpoint, "--out", out, "--lanes", "0,9", *arguments)
    loss = group_of(out, "surface_line").loss.isel(pair=0)
    for alpha, path in ((0, checkpoint), (1, other)):
        risk = load_risk(path, dtype="float64")
        np.testing.assert_allclose(loss.sel(alpha=alpha).values, risk.losses(risk.theta)[[0, 9]].numpy(), rtol=1e-12)


def test_a_file_that_is_there_is_replaced(checkpoint, tmp_path):
    out = tmp_path / "line.nc"
    out.write_text("old")
    succeeds("surface", checkpoint, "--out", out, *FEW, "--kind", "line", "--x=0:1:2")
    group_of(out, "surface_line")
    assert [path.name for path in tmp_path.iterdir()] == ["line.nc"]


# ---- whole analyses -----------------------------------------------------------------------------------------------


def test_figures_writes_results_summary_pictures_and_report(checkpoint, tmp_path):
    arguments = ("--preset", "quick", "--lanes", "0,tail,all", "--max-per-class", "2")
    rows = json.loads(succeeds("figures", checkpoint, "--out", tmp_path, *arguments, "--json"))
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "results.nc", "summary.csv", "report.html"}
    tree = load_results(tmp_path / "results.nc")
    assert set(tree.children) == set(WHOLE_ANALYSIS)
    for name in WHOLE_ANALYSIS:
        assert lanes_of(validate(name, tree[name].to_dataset())) == ["0", "tail", "all"]
    assert list(pd.read_csv(tmp_path / "summary.csv").lane) == ["0", "tail", "all"] == [row["lane"] for row in rows]
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {name for name in pictures if name.endswith(".png")} == {
        name.replace(".pdf", ".png") for name in pictures if name.endswith(".pdf")
    }
    assert {"accuracy.png", "spectrum.png", "fluctuation.png", "contours.png", "lines.png", "verdicts.png"} <= pictures
    assert "eigen-plane.png" in pictures
    assert all((tmp_path / "figures" / name).stat().st_size > 1000 for name in pictures)
    page = (tmp_path / "report.html").read_text()
    assert "--max-per-class 2" in page
    assert page.rstrip().endswith("</html>")


# ---- dry runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "train", "spectrum", "perturb", "surface", "figures"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_dry_run_prints_an_estimate_and_writes_nothing(command, as_json, checkpoint, tmp_path):
    chosen = {"run": MAIN_JOB[1:], "train": ("--model", "mlp", "--epochs", "2")}
    arguments = chosen.get(command, (checkpoint, *FEW))
    state = torch.get_rng_state()
    outcome = landscape(command, *arguments, "--out", tmp_path / "out", "--dry-run", *(["--json"] if as_json else []))
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert contents(tmp_path) == {}
    assert torch.equal(torch.get_rng_state(), state)
    if as_json:
        stages = json.loads(outcome.out)
        assert stages
        assert all(set(stage) == {"seconds", "bytes"} and stage["seconds"] > 0 for stage in stages.values())
    else:
        assert "about" in outcome.out
        assert "GiB" in outcome.out
