"""``draw`` and ``export``: files of ours and of others become figures, grids and tables; what does not fit is one line."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
import synthetic_results as synthetic
from cli_cases import landscape, refuses, succeeds

from landscape.figures.catalogue import CATALOGUE, available
from landscape.results import load_results, save_results


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a results file of several surfaces, and one of a single square plane."""
    folder = tmp_path_factory.mktemp("stored")
    tree = {name: node.to_dataset() for name, node in synthetic.tree().children.items()}
    save_results(tree, folder / "all.nc")
    save_results({"surface": synthetic.surface("sgd", num_alpha=9, num_beta=9, holes=False)}, folder / "plane.nc")
    save_results({name: tree[name] for name in ("surface_line",)}, folder / "line.nc")
    save_results({"accuracy": tree["accuracy"]}, folder / "accuracy.nc")
    with h5py.File(folder / "theirs.h5", "w") as file:
        file["xcoordinates"] = np.linspace(-1, 1, 5)
        file["ycoordinates"] = np.linspace(-1, 1, 3)
        file["train_loss"] = np.arange(15.0).reshape(5, 3)
    return folder


def test_every_figure_that_a_file_allows_is_drawn(stored, tmp_path):
    group = load_results(stored / "line.nc")
    names = [e.name for e in CATALOGUE if e.single and available({"": group}, e)]
    assert {"lines", "lines-classes", "lines-error"} <= set(names)
    expected = [str(tmp_path / "new" / f"{name}.{ending}") for name in names for ending in ("png", "pdf")]
    assert succeeds("draw", stored / "line.nc", "--out", tmp_path / "new").splitlines() == expected
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        name.split("/")[-1] for name in expected
    )


def test_a_surface_of_loss_landscape_is_drawn_and_converted(stored, tmp_path):
    files = json.loads(succeeds("draw", stored / "theirs.h5", "--out", tmp_path, "--json"))["figures"]
    assert {path.rpartition("/")[2] for path in files} >= {"contours.png", "contours.pdf", "surface-3d.png"}
    assert (tmp_path / "contours.png").read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "theirs.csv"
    succeeds("export", stored / "theirs.h5", "--out", out)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == list(range(15))  # x runs fastest
    assert [float(row["alpha"]) for row in rows[:5]] == np.linspace(-1, 1, 5).tolist()
    succeeds("export", stored / "theirs.h5", "--out", out, "--order", "shape")
    with open(out, newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)][:5] == [0, 3, 6, 9, 12]


def test_a_plane_for_landscaper(stored, tmp_path):
    out = tmp_path / "plane.npz"
    assert "lane all" in succeeds("export", stored / "plane.nc", "--out", out)
    arguments = ("--lanes", "tail", "--pair", "1")
    assert json.loads(succeeds("export", stored / "plane.nc", "--out", out, *arguments, "--json"))["lane"] == "tail"
    plane = synthetic.surface("sgd", num_alpha=9, num_beta=9, holes=False)
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loss"], plane.loss.sel(pair=1, lane="tail"))


def test_a_grid_for_paraview_names_whose_heights_it_holds(stored, tmp_path):
    out = tmp_path / "new" / "plane.vts"
    text = succeeds("export", stored / "all.nc", "--group", "surface_eigen", "--lanes", "groups", "--out", out)
    assert "heights of head, lanes 3" in text
    assert 'Name="loss/tail"' in out.read_text()


def test_a_table_of_a_part_of_the_surface(stored, tmp_path):
    out = tmp_path / "t.csv"
    arguments = ("--group", "surface_line", "--lanes", "head,tail", "--pair", "3", "--variable", "loss")
    answer = json.loads(succeeds("export", stored / "all.nc", "--out", out, *arguments, "--json"))
    assert answer == {"out": str(out), "group": "surface_line", "pair": 1, "alpha": 21, "lane": 2}
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    line = synthetic.surface_line("sgd").sel(pair=3, lane=["head", "tail"])
    assert [float(row["loss"]) for row in rows] == line.loss.values.ravel().tolist()


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("all.nc", ("--out", "s.vtk"), r"--out .*: expected a name that ends in \.npz, \.vts or \.csv"),
        (
            "all.nc",
            ("--out", "s.vts"),
            "several surfaces, surface, surface_line, .*: choose one with --group",
        ),
        ("plane.nc", ("--out", "s.vts", "--group", "surface_line"), "--group surface_line: expected one of .* surface"),
        ("plane.nc", ("--out", "s.vts", "--lanes", "tial"), "unknown lane 'tial': did you mean 'tail'"),
        ("plane.nc", ("--out", "s.vts", "--variable", "los"), "unknown variable of the surface 'los'"),
        (
            "plane.nc",
            ("--out", "s.vts", "--variable", "num_examples"),
            "unknown variable of the surface 'num_examples'",
        ),
        ("plane.nc", ("--out", "s.csv", "--variable", "los"), "unknown variable of the surface 'los'"),
        ("plane.nc", ("--out", "s.csv", "--pair", "9"), "unknown direction pair '9'"),
        ("plane.nc", ("--out", "s.vts", "--pair", "9"), "unknown direction pair '9'"),
        ("plane.nc", ("--out", "s.npz", "--lanes", "head,tail"), "holds one lane, got head, tail"),
        ("plane.nc", ("--out", "s.csv", "--order", "shape"), "--order shape: .*plane.nc records its order"),
        ("line.nc", ("--out", "s.npz"), "Landscaper reads planes, got a line"),
        ("accuracy.nc", ("--out", "s.csv"), "expected a surface, got accuracy"),
        ("none.nc", ("--out", "s.csv"), "no results file at"),
        ("none.h5", ("--out", "s.csv"), "no file at"),
    ],
)
def test_what_cannot_be_exported_is_refused(stored, tmp_path, monkeypatch, file, arguments, message):
    monkeypatch.chdir(tmp_path)
    refuses(tmp_path, "export", stored / file, *arguments, match=message)


@pytest.mark.parametrize("command", ["draw", "export"])
@pytest.mark.parametrize("ending", [".nc", ".h5"])
def test_foreign_and_truncated_files_are_refused(stored, tmp_path, command, ending):
    source = next(stored.glob(f"[pt]*{ending}"))
    out = tmp_path / "made" / "out.csv"
    for content in (b"", b"not HDF5", source.read_bytes()[: source.stat().st_size // 2]):
        file = tmp_path / f"file{ending}"
        file.write_bytes(content)
        refuses(tmp_path, command, file, "--out", out, match="damaged")
    with h5py.File(file, "w") as foreign:
        foreign["weights"] = np.ones(3)
    refuses(tmp_path, command, file, "--out", out, match="expected|not a results file")


def test_the_file_that_is_read_is_not_written_over(stored, tmp_path):
    refuses(stored, "export", stored / "plane.nc", "--out", stored / "plane.nc", match="ends in")
    refuses(stored, "draw", stored / "plane.nc", "--out", stored / "plane.nc", match="that is the file to be read")
    outcome = landscape("draw", stored / "plane.nc")
    assert outcome.code == 2
    assert "--out" in outcome.err
