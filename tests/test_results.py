"""Results files and the journal: what is written is what is read, or nothing is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import xarray as xr

import landscape as ls
from landscape import hdf5, surface
from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.results import (
    SCHEMA,
    WHOLE_ANALYSIS,
    Journal,
    keep_block,
    load_results,
    save_results,
    validate,
    versions,
)

LANES = ["chat", "größe", "猫", "a/b c", "head", "all"]


def group(name, **sizes):
    """Every variable of a group's schema, filled with different numbers."""
    known = {"lane": len(LANES), "probe": 2, "step": 3, "radius": 2, "draw": 4, "rho": 1}
    known |= {"pair": 1, "beta": 3, "alpha": 2, "delta": 2, "direction": 3, "side": 2}
    known |= {"length": 2, "affected_lane": 7} | sizes
    dataset = xr.Dataset(coords={"lane": LANES})
    for number, (variable, dims) in enumerate(SCHEMA[name].items()):
        shape = [known[dim] for dim in dims]
        values = np.arange(np.prod(shape), dtype=float).reshape(shape) + 1000 * number
        dataset[variable] = (dims, values)
    if name == "spectrum":
        dataset["verdict"] = ("lane", ["saddle", "slope", "no negative curvature", "undecided", "saddle", "slope"])
    if "done" in dataset:
        dataset["done"] = dataset["done"] > 1000 * (len(SCHEMA[name]) - 1)
        dataset = dataset.assign_coords(alpha=np.linspace(-1, 2, known["alpha"]))
    return dataset


def every_group():
    return {
        "accuracy": group("accuracy"),
        "spectrum": group("spectrum"),
        "perturbation": group("perturbation"),
        "surface": group("surface", alpha=4, beta=3),
        "surface_line": group("surface_line", alpha=7),
        "surface_eigen": group("surface_eigen", alpha=2, beta=5),
    }


# ---- schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMA)
def test_a_complete_group_is_valid(name):
    dataset = group(name)
    assert validate(name, dataset) is dataset


@pytest.mark.parametrize(("name", "variable"), [(name, variable) for name, vs in SCHEMA.items() for variable in vs])
def test_each_missing_or_misplaced_variable_is_named(name, variable):
    dataset = group(name)
    with pytest.raises(LandscapeError, match=f"group '{name}': variable '{variable}' is missing"):
        validate(name, dataset.drop_vars(variable))
    dataset[variable] = ("wrong", np.zeros(9))
    with pytest.raises(LandscapeError, match=rf"'{name}': '{variable}' should have dimensions .* got \('wrong',\)"):
        validate(name, dataset)


def test_transposed_axes_are_refused():
    with pytest.raises(LandscapeError, match="'loss' should have dimensions"):
        validate("surface", group("surface").transpose("pair", "alpha", "beta", "lane"))


def measured_surfaces():
    """The groups that surfaces and escapes leave beside those of a whole analysis, as they are measured."""
    risk = ls.AnalyticRisk(lambda t: torch.stack([t[0] ** 2 - t[1] ** 2, t @ t]), torch.ones(2, dtype=torch.float64))
    images = torch.randn(12, 3, generator=stream(0, "results/images"))
    networks = [fill(torch.nn.Linear(3, 2), seed) for seed in (0, 1)]
    one, other = (ls.ModelRisk(network, (images, torch.arange(12) % 2)) for network in networks)
    axis = [-1.0, 0.0, 1.0]
    radii = surface.measure_radii(risk, directions=[torch.eye(2)[0]], options=surface.RadiusOptions(deltas=(0.1, 1.0)))
    found = {"escape": surface.measure_escape(risk, x=[0.5, 1.0]), "surface_radii_x": radii, "surface_radii_y": radii}
    for name, kind in (("surface_line", "line"), ("surface", "plane")):
        options = {"kind": kind, "x": axis} | ({"y": [0.0, 1.0]} if kind == "plane" else {})
        _, differences = surface.measure_surfaces({"one": one, "other": other}, **options)
        found[f"{name}_difference"] = differences["other minus one"]
    return found


def fill(network, seed):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream(seed, "results/weights")))
    return network


def test_surfaces_beside_a_whole_analysis_are_what_the_schema_says(tmp_path):
    """The groups of a whole analysis are compared where it is made; these, and flatness, complete the schema."""
    found = measured_surfaces()
    assert {*WHOLE_ANALYSIS, "flatness", *found} == set(SCHEMA)
    tree = load_results(save_results(found, tmp_path / "r.nc"))
    for name in found:
        validate(name, tree[name].to_dataset())


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_tree", [False, True])
def test_all_groups_with_different_grids_come_back_bit_for_bit(tmp_path, as_tree):
    groups = every_group()
    path = save_results(xr.DataTree.from_dict(groups) if as_tree else groups, tmp_path / "new" / "results.nc")
    tree = load_results(path)
    assert set(tree.children) == set(groups)
    for name, dataset in groups.items():
        xr.testing.assert_identical(tree[name].to_dataset(), dataset)
        validate(name, tree[name].to_dataset())
    assert tree["surface"].done.dtype == bool


def test_nan_infinities_and_unicode_lanes_survive(tmp_path):
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324]
    dataset = group("accuracy").assign(loss=("lane", values))
    back = load_results(save_results({"accuracy": dataset}, tmp_path / "r.nc"))["accuracy"]
    assert back.loss.values.tobytes() == np.array(values).tobytes()
    assert list(back.lane.values) == LANES


def test_attributes_of_every_kind_survive_and_the_callers_are_left_alone(tmp_path):
    given = {
        "text": "β = 0.1",
        "empty": "",
        "whole": 3,
        "real": 0.1,
        "numpy_whole": np.int64(2**40),
        "numpy_real": np.float32(0.25),
        "yes": True,
        "no": np.bool_(False),
        "numbers": [1.5, 2.5],
        "pair": (1, 2),
        "nothing_in_it": [],
        "nested": {"a": [1, {"b": None}]},
        "missing": None,
        "long": "x" * 100_000,
    }
    dataset = group("accuracy").assign_attrs(given)
    back = load_results(save_results({"accuracy": dataset}, tmp_path / "r.nc"))["accuracy"].attrs
    same = ("text", "empty", "whole", "real", "numpy_whole", "numpy_real", "long")
    assert {key: back[key] for key in same} == {key: given[key] for key in same}
    assert (back["yes"], back["no"]) == ("True", "False")
    for key in ("numbers", "pair", "nothing_in_it", "nested"):
        assert json.loads(back[key]) == json.loads(json.dumps(given[key]))
    assert "missing" not in back
    assert dataset.attrs == given


def test_saving_twice_gives_the_second(tmp_path):
    path = tmp_path / "r.nc"
    save_results({"accuracy": group("accuracy"), "spectrum": group("spectrum")}, path)
    save_results({"accuracy": group("accuracy") + 1}, path)
    tree = load_results(path)
    assert set(tree.children) == {"accuracy"}
    np.testing.assert_array_equal(tree["accuracy"].loss, group("accuracy").loss + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("killed"), KeyboardInterrupt()])
def test_a_crash_in_the_middle_of_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = save_results({"accuracy": group("accuracy")}, tmp_path / "r.nc")
    before = path.read_bytes()

    def crash(self, target, **options):
        with open(target, "wb") as file:
            file.write(b"half of a file")
        raise error

    monkeypatch.setattr(xr.DataTree, "to_netcdf", crash)
    with pytest.raises((LandscapeError, type(error))) as caught:
        save_results({"accuracy": group("accuracy") + 1}, path)
    if isinstance(error, OSError):
        assert re.match(r"cannot write .*r\.nc: No space left on device; choose", str(caught.value))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_a_loaded_file_can_be_overwritten(tmp_path):
    path = save_results({"accuracy": group("accuracy")}, tmp_path / "r.nc")
    tree = load_results(path)
    save_results(tree, path)
    xr.testing.assert_identical(load_results(path)["accuracy"].to_dataset(), tree["accuracy"].to_dataset())


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LandscapeError, match=r"cannot write .*r\.nc") as caught:
        save_results({"accuracy": group("accuracy")}, tmp_path / "file" / "r.nc")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    return save_results({"spectrum": group("spectrum")}, tmp_path_factory.mktemp("sealed") / "r.nc")


def unsealed(sealed, path):
    path.write_bytes(sealed.read_bytes()[: -hdf5._SEAL_BYTES])
    return path


def test_every_changed_byte_of_a_results_file_is_noticed_before_the_library_reads_it(sealed, tmp_path, monkeypatch):
    def must_not_run(*_, **__):
        raise AssertionError("the HDF5 library saw a damaged file")

    monkeypatch.setattr("landscape.results.xr.open_datatree", must_not_run)
    content = bytearray(sealed.read_bytes())
    for place in range(0, len(content) - hdf5._SEAL_BYTES, 997):
        content[place] ^= 4
        (tmp_path / "r.nc").write_bytes(content)
        with pytest.raises(LandscapeError, match=r"r\.nc is not .*: copy it again, or measure again"):
            load_results(tmp_path / "r.nc")
        content[place] ^= 4


def test_a_file_without_a_seal_is_read_after_a_process_of_its_own_has(sealed, tmp_path):
    path = unsealed(sealed, tmp_path / "r.nc")
    xr.testing.assert_identical(load_results(path), load_results(sealed))
    with xr.open_datatree(sealed, engine="h5netcdf") as tree:
        xr.testing.assert_identical(tree.load(), load_results(sealed))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("import time; time.sleep(60)", "did not finish reading within 0 s"),
        ("import os; os.abort()", "library crashed, signal 6"),
        ("raise SystemExit('no room')", "no room"),
    ],
)
def test_a_library_that_loops_or_crashes_is_one_line(sealed, tmp_path, monkeypatch, body, match):
    run = subprocess.run
    monkeypatch.setattr(hdf5, "PATIENCE", 0.3)
    monkeypatch.setattr(hdf5.subprocess, "run", lambda _, **given: run([sys.executable, "-c", body], **given))
    with pytest.raises(LandscapeError, match=rf"r\.nc is not a results file .*{match}"):
        load_results(unsealed(sealed, tmp_path / "r.nc"))


def test_the_first_reader_refuses_what_is_stored_elsewhere_and_what_is_out_of_proportion(tmp_path):
    import h5py

    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a"] = h5py.ExternalLink("/etc/hostname", "/")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("a", (4,), "u1", external=[("/etc/hostname", 0, 4)])
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("a", (1 << 20, 1 << 12), "f8", chunks=True, compression="gzip")
    matches = {"link": "link to another file", "raw": "stored in another file", "bomb": r"would become 34.4 GB"}
    for name, match in matches.items():
        with pytest.raises(ValueError, match=match):
            hdf5.require_readable(tmp_path / f"{name}.h5", "arrays")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(LandscapeError, match=re.escape(f"no results file at {tmp_path / 'none.nc'}")):
        load_results(tmp_path / "none.nc")
    with pytest.raises(LandscapeError, match="no results file at"):
        load_results(tmp_path)
    whole = save_results({"spectrum": group("spectrum")}, tmp_path / "r.nc").read_bytes()
    for content in (b"", b"not netCDF", whole[:100], whole[: len(whole) // 2], b"\0" * len(whole)):
        (tmp_path / "bad.nc").write_bytes(content)
        with pytest.raises(LandscapeError, match=r"bad\.nc is not a results file .* or is damaged") as caught:
            load_results(tmp_path / "bad.nc")
        assert "\n" not in str(caught.value)


def test_versions_name_what_computed_the_numbers():
    assert re.search(r"python \d+\.\d+.*torch \d.*numpy \d.*scipy \d.*xarray \d", versions())


# ---- journal ------------------------------------------------------------------------------------------------------


class Counter:
    """A computation that counts its calls."""

    def __init__(self, **arrays):
        self.arrays, self.calls = arrays, 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def test_a_block_is_computed_once_and_keeps_arrays_numbers_and_text(tmp_path):
    arrays = {"loss": np.array([1.5, np.nan, np.inf]), "count": 3, "verdict": "saddle", "lanes": np.array(["ü", "猫"])}
    compute = Counter(**arrays)
    first = Journal(tmp_path, {"seed": 0}).block("row=0", compute)
    again = Journal(tmp_path, {"seed": 0}).block("row=0", compute)
    assert compute.calls == 1
    for block in (first, again):
        assert set(block) == set(arrays)
        for key, value in arrays.items():
            np.testing.assert_array_equal(block[key], np.asarray(value))


def test_recipes_do_not_see_each_other(tmp_path):
    first, second = Journal(tmp_path, {"seed": 0}), Journal(tmp_path, {"seed": 1})
    assert first.digest != second.digest
    first.block("row=0", Counter(x=0))
    assert second.block("row=0", Counter(x=1))["x"] == 1
    assert first.block("row=0", Counter(x=2))["x"] == 0


def test_the_digest_is_of_the_values_not_of_their_order(tmp_path):
    assert Journal(tmp_path, {"a": 1, "b": (1, 2)}).digest == Journal(tmp_path, {"b": [1, 2], "a": 1}).digest
    assert Journal(tmp_path, {"a": 1}).digest != Journal(tmp_path, {"a": "1"}).digest


@pytest.mark.parametrize(("one", "other"), [("lane=a/b", "lane=a b"), ("lane=a_b", "lane=a/b"), ("lane=猫", "lane=犬")])
def test_names_that_differ_only_in_what_a_file_name_cannot_hold_stay_apart(tmp_path, one, other):
    journal = Journal(tmp_path, {})
    journal.block(one, Counter(x=1))
    assert journal.block(other, Counter(x=2))["x"] == 2
    assert journal.block(one, Counter(x=3))["x"] == 1


def test_long_names_fit_into_a_file_name(tmp_path):
    journal = Journal(tmp_path, {})
    for ending in "ab":
        assert journal.block("lane=" + "猫" * 300 + ending, Counter(x=ord(ending)))["x"] == ord(ending)


def test_a_renamed_view_shares_the_recipe_but_no_block(tmp_path):
    journal = Journal(tmp_path, {"seed": 0})
    view = journal.renamed("eigen").renamed("tail")
    journal.block("row=0", Counter(x=0))
    assert view.block("row=0", Counter(x=1))["x"] == 1
    assert journal.renamed("eigen.tail").path("row=0") == view.path("row=0")
    assert journal.block("row=0", Counter(x=2))["x"] == 0
    assert view.digest == journal.digest
    view.clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_block_is_computed_again(tmp_path, share):
    journal = Journal(tmp_path, {})
    journal.block("row=0", Counter(x=np.arange(1000.0)))
    path = journal.path("row=0")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    compute = Counter(x=np.arange(1000.0))
    np.testing.assert_array_equal(journal.block("row=0", compute)["x"], np.arange(1000.0))
    assert compute.calls == 1
    assert path.read_bytes() == whole


def test_a_block_with_a_flipped_bit_is_computed_again(tmp_path):
    journal = Journal(tmp_path, {})
    journal.block("row=0", Counter(x=np.arange(1000.0)))
    content = bytearray(journal.path("row=0").read_bytes())
    content[len(content) // 2] ^= 1
    journal.path("row=0").write_bytes(content)
    np.testing.assert_array_equal(journal.block("row=0", Counter(x=np.arange(1000.0)))["x"], np.arange(1000.0))


def without_an_entry(path):
    with zipfile.ZipFile(path) as archive:
        kept = [(entry.filename, archive.read(entry)) for entry in archive.infolist()][1:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept:
            archive.writestr(name, content)


def with_a_bad_version(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 99  # the version that is needed to extract the first entry
    path.write_bytes(content)


def with_other_values(path):
    np.savez(path, **{**np.load(path), "x": np.zeros(3)})


def with_another_blocks_content(path):
    other = next(entry for entry in path.parent.iterdir() if entry != path)
    path.write_bytes(other.read_bytes())


def as_pickles(path):
    np.savez(path, **{**np.load(path), "x": np.array([print, len], dtype=object)})


@pytest.mark.parametrize(
    "spoil", [without_an_entry, with_a_bad_version, with_other_values, with_another_blocks_content, as_pickles]
)
def test_a_block_that_is_not_what_was_stored_is_computed_again(tmp_path, spoil):
    journal = Journal(tmp_path, {})
    first = {"x": np.arange(3.0), "verdict": np.array(["saddle", "größer"])}
    journal.block("lane=0", lambda: first)
    journal.block("lane=1", lambda: {"x": np.ones(3), "verdict": np.array(["slope", "slope"])})
    spoil(journal.path("lane=0"))
    compute = Counter(**first)
    for _ in range(2):
        again = journal.block("lane=0", compute)
        assert again.keys() == first.keys()
        assert all(np.array_equal(again[key], first[key]) for key in first)
    assert compute.calls == 1


def test_a_failed_computation_leaves_nothing_behind(tmp_path):
    journal = Journal(tmp_path, {})

    def fail():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        journal.block("row=0", fail)
    assert list(tmp_path.iterdir()) == []
    assert journal.block("row=0", Counter(x=1))["x"] == 1


def test_clear_removes_this_recipes_blocks_only_and_the_folder_when_it_is_empty(tmp_path):
    folder = tmp_path / "journal"
    mine, other = Journal(folder, {"seed": 0}), Journal(folder, {"seed": 1})
    mine.block("row=0", Counter(x=0))
    other.block("row=0", Counter(x=1))
    mine.clear()
    assert not mine.path("row=0").exists()
    assert other.block("row=0", Counter(x=2))["x"] == 1
    other.clear()
    assert not folder.exists()


def test_a_journal_in_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LandscapeError, match=r"cannot write .*journal.*choose another output folder"):
        Journal(tmp_path / "file" / "journal", {})


def test_without_a_journal_nothing_is_kept():
    compute = Counter(x=1)
    assert keep_block(None, "row=0", compute)["x"].shape == ()
    keep_block(None, "row=0", compute)
    assert compute.calls == 2


def test_measured_datasets_are_saved_by_xarray_itself(tmp_path):
    torch = pytest.importorskip("torch")
    import landscape as ls
    from landscape.flatness import FlatnessOptions

    risk = ls.AnalyticRisk(
        lambda x: torch.stack([(x**2).sum(), (x[0] - x[1]) ** 2 + x[0]]),
        torch.ones(3).double(),
        groups={"head": [0], "tail": [1]},
    )
    found = {
        "spectrum": ls.measure_spectrum(risk),
        "perturbation": ls.measure_perturbation(risk),
        "surface": ls.measure_surface(risk, x=[-1.0, 0.0, 1.0], y=[-1.0, 0.0, 1.0]),
        "flatness": ls.measure_flatness(risk, options=FlatnessOptions()),
    }
    for name, dataset in found.items():
        dataset.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as again:
            assert set(again.attrs) == set(dataset.attrs), name
            for key, value in dataset.attrs.items():
                assert np.array_equal(again.attrs[key], value), key
