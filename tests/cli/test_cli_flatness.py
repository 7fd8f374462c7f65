"""The command that measures flatness: its numbers are the file's, its tables name their errors, its choices are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_cases import FEW, contents, landscape, results_of, succeeds

from landscape.flatness import EFFORT, MEASURES

QUICK = ("--num-pairs", "2", "--ascent-steps", "1")


def test_every_measure_is_printed_and_written(checkpoint, tmp_path):
    out = tmp_path / "f.nc"
    text = succeeds("flatness", checkpoint, "--out", out, *FEW, *QUICK)
    dataset = results_of(out)["flatness"]
    assert set(MEASURES) <= set(dataset.data_vars)
    assert dataset.lane.values.tolist() == ["0", "tail"]
    words = text.split()
    for name in MEASURES:
        assert name.removesuffix("_increase") in words
    assert ">= " in text
    assert " ± " in text
    assert "m = 2, the same for every lane" in text
    assert sorted(contents(tmp_path)) == ["f.nc"]


def test_json_holds_the_numbers_of_the_file(checkpoint, tmp_path):
    out = tmp_path / "f.nc"
    answer = json.loads(succeeds("flatness", checkpoint, "--out", out, *FEW, *QUICK, "--json"))
    dataset = results_of(out)["flatness"]
    for name in dataset.data_vars:
        finite = dataset[name].where(np.isfinite(dataset[name]))  # JSON has no infinity: null
        np.testing.assert_array_equal(np.array(answer[name], dtype=float), finite.values)


def test_lengths_effort_and_choice_are_those_that_were_asked_for(checkpoint, tmp_path):
    out = tmp_path / "f.nc"
    chosen = ("--measures", "m_sharpness,mean_increase", "--sigma", "0.02", "--batch-size", "4", "--rho", "0.1")
    text = succeeds("flatness", checkpoint, "--out", out, *FEW, *chosen)
    dataset = results_of(out)["flatness"]
    kept = {key: dataset.attrs[f"option_{key}"] for key in ("sigma", "batch_size", "rho", "num_pairs")}
    assert kept == {"sigma": 0.02, "batch_size": 4, "rho": 0.1, "num_pairs": EFFORT["quick"].num_pairs}
    assert "worst_case_increase" not in dataset
    assert "m = 4, but fewer in 0: not comparable" in text


def test_a_preset_is_the_effort_of_its_name(checkpoint, tmp_path):
    out = tmp_path / "f.nc"
    succeeds("flatness", checkpoint, "--out", out, *FEW, "--preset", "standard", "--measures", "gradient_norm")
    assert results_of(out)["flatness"].attrs["option_num_pairs"] == EFFORT["standard"].num_pairs


def test_what_does_not_exist_for_a_checkpoint_is_said(tmp_path):
    succeeds(
        "train", "--model", "mlp", "--head", "cosine", "--loss", "ldam", "--epochs", "1", "--out", tmp_path / "run"
    )
    path = tmp_path / "run" / "checkpoint.safetensors"
    text = succeeds(
        "flatness", path, "--out", tmp_path / "f.nc", *FEW, "--measures", "relative_flatness,fisher_rao_norm"
    )
    assert "relative_flatness: needs a linear classifier z = W phi + b, got the cosine head" in text


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_dry_run_prints_an_estimate_and_writes_nothing(checkpoint, tmp_path, as_json):
    outcome = landscape(
        "flatness", checkpoint, "--out", tmp_path / "f.nc", *FEW, "--dry-run", *(["--json"] if as_json else [])
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert contents(tmp_path) == {}
    if as_json:
        (stage,) = json.loads(outcome.out).values()
        assert stage["seconds"] > 0
        assert stage["bytes"] > 0
    else:
        assert "about" in outcome.out
