"""The command ``reconstruct``: files, JSON, the list, and one line for what cannot be."""

from __future__ import annotations

import json

import pytest
from cli_cases import landscape, refuses, succeeds

from landscape.reconstruction import RECONSTRUCTIONS, writing

FEW = ("--max-per-class", "2", "--points", "3")


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(writing, "save_figure", lambda figure, stem: [])


def test_the_list_says_what_is_ours():
    text = succeeds("reconstruct", "--list")
    for name, entry in RECONSTRUCTIONS.items():
        assert name in text.splitlines()
        assert f"  public:   {entry.public}" in text
        assert f"  ours:     {entry.ours}" in text


def test_files_and_json(two, tmp_path, undrawn):
    out = tmp_path / "out"
    answer = json.loads(succeeds("reconstruct", "imbsam-head-tail", *two, *FEW, "--json", "--out", out))
    assert answer["checkpoints"] == ["sgd", "sam"]
    assert {path.name for path in out.iterdir()} == {
        "imbsam-head-tail-sgd.nc",
        "imbsam-head-tail-sam.nc",
        "imbsam-head-tail.md",
    }
    assert succeeds("reconstruct", "ccsam-line", two[0], *FEW, "--out", out).startswith("Reconstruction of CC-SAM")


def test_a_dry_run_estimates_and_writes_nothing(two, tmp_path):
    out = tmp_path / "out"
    text = succeeds("reconstruct", "gnm-surface", *two, "--max-per-class", "2", "--dry-run", "--out", out)
    assert "2 times" in text
    assert not out.exists()


def test_help_without_arguments():
    assert landscape("reconstruct", "gnm-surface").code == 2
    assert "NAME" in succeeds("reconstruct", "--help")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("gnm-surfaces", "A"), "unknown reconstruction 'gnm-surfaces'"),
        (("gnm-surface", "missing.pt"), "missing.pt"),
        (("gnm-surface", "A", "A"), "each checkpoint once, got .*sgd/checkpoint.safetensors again"),
        (("gnm-surface", "A", "--points", "2"), "--points: expected at least 3 per axis, got 2"),
        (("gnm-surface", "A", "--batchnorm", "frosted"), "frosted"),
        (("ccsam-fluctuation", "A", "--points", "9"), "leave it out"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, match, two, tmp_path):
    typed = [two[0] if argument == "A" else argument for argument in arguments]
    refuses(tmp_path, "reconstruct", *typed, "--max-per-class", "2", "--out", tmp_path / "out", match=match)
