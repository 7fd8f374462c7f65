"""The commands ``surface`` and ``escape``: what they write and print, and one line for what cannot be combined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_cases import refuses, succeeds

from landscape.results import load_results

FEW = ("--max-per-class", "2", "--lanes", "groups,all")


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("landscape.figures.saving.save_figure", lambda figure, stem: [])
    monkeypatch.setattr("landscape.figures.saving._checked", lambda paths: paths)


def group(path, name):
    return load_results(path)[name].to_dataset()


def test_everything_about_a_plane_in_one_file(checkpoint, tmp_path):
    out = tmp_path / "a.nc"
    given = ("--x=-0.5:0.25:4", "--y=-0.1:0.3:3", "--held-out", "--keep-examples", "--quadratic")
    text = succeeds("surface", checkpoint, *FEW, *given, "--out", out)
    dataset = group(out, "surface")
    assert dataset.loss.shape == (1, 3, 4, 4)
    assert dataset.alpha.values.tolist() == [-0.5, -0.25, 0.0, 0.25]
    for name in ("error", "margin", "increase_stderr", "held_out_loss", "example_loss", "slope", "curvature"):
        assert name in dataset
    assert "± standard error over images" in text
    assert "every cell is a full evaluation" in text
    assert "±" in next(line for line in text.splitlines() if line.startswith("tail"))
    assert f"landscape draw {out}" in text


@pytest.mark.parametrize(
    ("directions", "kind", "what"),
    [
        ("eigen:tail", "plane", "eigen"),
        ("eigen:tail", "line", "eigen"),
        ("gradient:tail", "line", "gradient"),
        ("gradient:head,tail", "plane", "gradient"),
    ],
)
def test_axes_by_name(directions, kind, what, checkpoint, tmp_path):
    out, axes = tmp_path / "a.nc", tmp_path / "axes.safetensors"
    y = ("--y=-1:1:3",) if kind == "plane" else ()
    given = ("--kind", kind, "--directions", directions, "--x=-1:1:3", *y, "--save-directions", axes)
    succeeds("surface", checkpoint, *FEW, *given, "--out", out)
    name = "surface_line" if kind == "line" else "surface"
    assert group(out, name).attrs["axes_kind"] == what
    assert axes.is_file()


def test_a_range_that_finds_itself(checkpoint, tmp_path):
    out = tmp_path / "a.nc"
    succeeds("surface", checkpoint, *FEW, "--kind", "line", "--x", "auto:7", "--delta", "0.5", "--out", out)
    line, radii = group(out, "surface_line"), group(out, "surface_radii_x")
    assert line.sizes["alpha"] == 7
    assert line.alpha.values[0] == -line.alpha.values[-1]
    assert radii.delta.values.tolist() == [0.5]
    rise = line.loss.sel(alpha=line.alpha[[0, -1]]) - line.loss.sel(alpha=0)
    finite = np.isfinite(radii.radius.values).any()
    assert (float(rise.max()) >= 0.5) == finite


def test_several_checkpoints_are_compared(two, tmp_path, undrawn):
    out = tmp_path / "out"
    text = succeeds("surface", *two, *FEW, "--kind", "line", "--x=-0.5:0.5:5", "--out", out)
    assert {path.name for path in out.iterdir()} >= {"sgd.nc", "sam.nc", "difference-sam-minus-sgd.nc"}
    difference = group(out / "difference-sam-minus-sgd.nc", "surface_line_difference")
    assert float(abs(difference.loss_difference).max()) == 0  # copies of one file
    assert "paired image by image" in text


def test_a_dry_run_estimates_and_writes_nothing(checkpoint, tmp_path):
    out = tmp_path / "a.nc"
    text = succeeds("surface", checkpoint, *FEW, "--x=-1:1:51", "--dry-run", "--json", "--out", out)
    (stage,) = json.loads(text).values()
    assert stage["seconds"] > 0
    assert not out.exists()
    assert not list(tmp_path.glob("*.journal"))


def test_json_holds_the_lowest_losses(checkpoint, tmp_path):
    text = succeeds("surface", checkpoint, *FEW, "--x=-1:1:3", "--y=-1:1:3", "--json", "--out", tmp_path / "a.nc")
    found = json.loads(text)
    assert found["lane"] == ["head", "medium", "tail", "all"]
    assert len(found["lowest"]) == 4


def test_escape_prints_what_a_way_out_costs(checkpoint, tmp_path):
    out = tmp_path / "e.nc"
    text = succeeds(
        "escape", checkpoint, "--max-per-class", "2", "--lanes", "9,0", "--lengths", "0.01,0.1,1", "--out", out
    )
    dataset = group(out, "escape")
    assert dataset.lane.values.tolist() == ["9", "0"]
    assert dataset.length.values.tolist() == [0.01, 0.1, 1.0]
    assert "cost to head" in text
    assert "v'Hv: the curvature along v" in text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--kind", "volume"), "unknown kind of surface 'volume'"),
        (("--kind", "line", "--y=-1:1:3"), "a line has one axis"),
        (("--refine", "0.01", "--kind", "line"), "--refine 0.01: expected a share between 0 and 1, and --kind plane"),
        (("--refine", "2"), "--refine 2.0: expected a share"),
        (("--range", "wide"), "unknown --range 'wide'"),
        (("--x", "auto:1"), "--x: expected auto or auto:COUNT with COUNT >= 2"),
        (("--delta", "0"), "--delta: expected a positive rise"),
        (("--precision", "half"), "unknown precision 'half'"),
        (("--normalization", "spectral"), "unknown normalization 'spectral'"),
        (("--one-dimensional", "half"), "half"),
        (("--batchnorm", "melted"), "unknown BatchNorm policy 'melted'"),
        (("--calibration", "tail"), "unknown calibration 'tail'"),
        (("--calibration", "train:few"), "--calibration: expected train, balanced"),
        (("--directions", "missing.pt"), "missing.pt"),
        (("--directions", "eigen:nobody"), "nobody"),
        (("--num-pairs", "2", "--directions", "eigen:tail"), "--num-pairs 2"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, match, checkpoint, tmp_path):
    refuses(tmp_path, "surface", checkpoint, *FEW, *arguments, "--out", tmp_path / "a.nc", match=match)


def test_several_checkpoints_need_a_folder_and_axes_of_their_own(two, tmp_path):
    refuses(tmp_path, "surface", *two, *FEW, "--out", tmp_path / "a.nc", match="several checkpoints write a folder")
    given = ("--directions", two[0], "--kind", "line", "--out", tmp_path / "out")
    refuses(tmp_path, "surface", *two, *FEW, *given, match="expected random, eigen:LANE or gradient:LANE")
