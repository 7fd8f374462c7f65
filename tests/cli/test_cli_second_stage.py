"""Trainings in two stages from the command line: options of either stage, what is printed, inspected and estimated."""

from __future__ import annotations

import json

import pytest
from cli_cases import landscape, succeeds

from landscape.checkpoint import read_checkpoint
from landscape.cli.options import parse_settings
from landscape.training import TrainSpec

SECOND = ("--second-stage", "crt", "--second-option", "epochs=1", "--second-option", "optimizer=sam")
FIRST = ("--model", "mlp", "--epochs", "2", "--schedule", "steps", "--schedule-option", "milestones=100,150")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    rho = ("--second-option", "optimizer_options.rho=0.3", "--second-option", "reinitialise_head=false")
    text = succeeds("train", *FIRST, *SECOND, *rho, "--test-time-flip", "--keep-best", "--out", folder)
    assert "best epoch on the test images" in text
    assert "with mirror images" in text
    return folder


def test_options_reach_both_stages(out):
    spec = TrainSpec.from_dict(json.loads((out / "run.json").read_text())["spec"])
    assert (spec.optimizer, spec.optimizer_options, spec.reinitialise_head) == ("sam", {"rho": 0.3}, False)
    assert (spec.epochs, spec.schedule, spec.test_time_flip) == (1, "cosine", True)
    first = TrainSpec.from_dict(json.loads((out / "stage-1" / "run.json").read_text())["spec"])
    assert (first.optimizer, first.schedule_options) == ("sgd", {"milestones": [100, 150]})
    assert all((folder / "best.safetensors").exists() for folder in (out, out / "stage-1"))


def test_inspect_shows_both_stages(out):
    text = succeeds("inspect", out / "checkpoint.safetensors")
    assert "stage:               crt" in text
    assert "first stage, epochs: 2" in text
    earlier = read_checkpoint(out / "stage-1" / "checkpoint.safetensors").spec["accuracy"]["all"]
    assert f"first stage, test accuracy: {earlier}" in text


def test_a_killed_command_goes_on(out):
    arguments = ("train", *FIRST, *SECOND, "--test-time-flip", "--keep-best", "--out", out)
    assert "holds a finished run" in landscape(*arguments).err
    assert "cannot resume" in landscape(*arguments, "--resume").err  # other options of the second stage


def test_the_estimate_of_a_main_job_counts_both_stages(tmp_path):
    answer = json.loads(
        succeeds(
            "run", *FIRST, *SECOND, "--optimizers", "sgd", "--lanes", "0,tail", "--max-per-class", "2",
            "--dry-run", "--json", "--out", tmp_path / "run",
        )
    )  # fmt: skip
    assert answer["training with sgd"]["seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_settings_may_be_lists_and_truth_values():
    pairs = ["milestones=100,150", "none=,", "one=3,", "a.b=true", "c=False", "d=none", "e-f=x"]
    assert parse_settings(pairs, "--schedule-option") == {
        "milestones": [100, 150], "none": [], "one": [3], "a.b": True, "c": False, "d": None, "e_f": "x",
    }  # fmt: skip
