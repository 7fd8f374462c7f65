"""Files: what is no regular file is neither read nor replaced, what is written is whole, sizes are read before memory."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import landscape
from landscape.errors import LandscapeError
from landscape.files import (
    inert,
    kind_of,
    one_line,
    parse_json,
    read_npz,
    require_file,
    require_replaceable,
    write_bytes,
    writing_atomically,
)

SPECIAL = {"pipe": "a pipe", "device": "a device", "folder": "folder"}


def special(folder, kind):
    """Return a path to something that is no regular file."""
    path = folder / "special"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    return path


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = special(tmp_path, kind)
    before = os.lstat(path)
    with pytest.raises(
        LandscapeError, match=f"cannot write .*special: expected the name of a file, got {SPECIAL[kind]}"
    ):
        write_bytes(path, b"new")
    assert os.lstat(path).st_ino == before.st_ino
    assert stat.S_IFMT(os.lstat(path).st_mode) == stat.S_IFMT(before.st_mode)
    assert os.listdir(tmp_path) == ["special"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(tmp_path, kind):
    with pytest.raises(LandscapeError, match=f"{SPECIAL[kind]}.*"):
        require_file(special(tmp_path, kind), "a checkpoint")


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.csv"
    real.write_bytes(b"old")
    link, dangling = tmp_path / "link.csv", tmp_path / "new.csv"
    link.symlink_to(real)
    dangling.symlink_to("there/made.csv")
    write_bytes(link, b"new")
    write_bytes(dangling, b"made")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert (tmp_path / "there" / "made.csv").read_bytes() == b"made"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(LandscapeError, match=r"loop.*a link that leads back to itself|cannot read .*loop"):
        write_bytes(loop, b"new")


def test_a_temporary_file_has_a_new_name_each_time_and_never_follows_a_link(tmp_path, monkeypatch):
    names = []
    for _ in range(2):
        with writing_atomically(tmp_path / "a") as temporary:
            names.append(temporary.name)
    assert len(set(names)) == 2
    monkeypatch.setattr("landscape.files.secrets.token_hex", lambda _: "known")
    (tmp_path / ".a.known.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(LandscapeError, match=r"cannot write .*: File exists"):
        write_bytes(tmp_path / "a", b"new")
    assert not (tmp_path / "victim").exists()


def fill_the_disk(path):
    with writing_atomically(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "disk full")


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        fill_the_disk(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_new_files_have_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_a_name_with_a_zero_byte_is_no_file():
    assert kind_of("a\0b") == "nothing"
    for call in (lambda: require_file("a\0b", "a list"), lambda: require_replaceable("a\0b")):
        with pytest.raises(LandscapeError, match=r"a\\x00b"):
            call()


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000, "{", b"\xff"], ids=["deep", "digits", "cut", "bytes"])
def test_json_that_cannot_be_read_is_one_line(text):
    with pytest.raises(LandscapeError, match=r"run\.json is (not JSON|JSON that is nested too deeply)"):
        parse_json(text, "run.json")


def test_what_libraries_raise_becomes_one_line_from_the_original():
    with (
        pytest.raises(LandscapeError, match=r"a\.pt is damaged \(RuntimeError: first\)$") as caught,
        one_line("a.pt is damaged"),
    ):
        raise RuntimeError("first\nsecond")
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(LandscapeError, match=r"^ours$"), one_line("theirs"):
        raise LandscapeError("ours")


# ---- archives of arrays ---------------------------------------------------------------------------------------------


def header_of(shape, dtype="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_arrays_come_back_and_only_those_asked_for(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", "yy"]), "c": np.array(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert list(read_npz(tmp_path / "a.npz", keys=("b",))) == ["b"]


@pytest.mark.parametrize("shape", [(10**12,), (5,), (3, 2), (2**40, 2**40)])
def test_a_header_that_tells_of_other_sizes_than_are_there_is_refused_before_memory_is_taken(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header_of(shape) + b"1234")
    with pytest.raises(ValueError, match=r"'images\.npy' tells of \d+ bytes, 4 are there"):
        read_npz(tmp_path / "a.npz")


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.files.ALWAYS_UNPACKED", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1 << 21), np.uint8), labels=np.zeros(3, np.int64))
    with pytest.raises(LandscapeError, match=r"MB would become 0\.0021 GB in memory, more than 100 times"):
        read_npz(tmp_path / "a.npz")
    assert len(read_npz(tmp_path / "a.npz", keys=("labels",))["labels"]) == 3


# ---- what every writer keeps to ---------------------------------------------------------------------------------------


def test_nothing_in_the_package_writes_a_file_in_place():
    """Beside the memory map of decoded images, which is filled in place by design."""
    in_place = re.compile(
        r"\.write_text\(|\.to_csv\((?!index=False\)|temporary)|open\([^)]*[\"'][wax]|\.savefig\((?!buffer)"
    )
    package = Path(landscape.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if in_place.search(line) and "temporary" not in line and "part.open" not in line
    ]
    assert found == []


def test_no_text_of_a_table_is_a_formula():
    texts = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "\t=1", "-2+3", "-2.5", "cat", "+inf"]
    index = pd.MultiIndex.from_product([["=m"], texts], names=["model", "lane"])
    table = pd.DataFrame({"loss": np.arange(8.0) - 4, "verdict": texts, "n": range(8)}, index=index)
    found = inert(table)
    expected = [*(f"'{text}" for text in texts[:5]), *texts[5:]]
    assert found.index.names == ["model", "lane"]
    assert found.index.get_level_values("lane").tolist() == found["verdict"].tolist() == expected
    assert set(found.index.get_level_values("model")) == {"'=m"}
    pd.testing.assert_frame_equal(
        found[["loss", "n"]].reset_index(drop=True), table[["loss", "n"]].reset_index(drop=True)
    )
