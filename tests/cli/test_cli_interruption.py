"""Ctrl-C in the middle: exit code 130, what is finished is kept, the same command goes on and ends with the same bits."""

from __future__ import annotations

import pytest
import xarray as xr
from cli_cases import FEW, landscape, results_of, succeeds

from landscape.results import Journal
from landscape.training import loop

COMMANDS = {
    "spectrum": ("spectrum", *FEW),
    "perturb": ("perturb", *FEW, "--num-draws", "4"),
    "flatness": ("flatness", *FEW, "--num-pairs", "2"),
    "line": ("surface", *FEW, "--kind", "line", "--x=0:1:3", "--num-pairs", "3"),
    "plane": ("surface", *FEW, "--x=0:1:3", "--y=0:1:3"),
    "eigen-plane": ("surface", *FEW, "--x=0:1:3", "--y=0:1:3", "--directions", "eigen:tail"),
    "figures": ("figures", *FEW),
}


@pytest.fixture
def blocks(monkeypatch):
    """Watch the blocks that are computed: ``blocks(limit)`` starts a list; the block after ``limit`` is interrupted."""
    real = Journal.store

    def watch(limit=None):
        computed = []

        def store(self, name, block):
            if len(computed) == limit:
                raise KeyboardInterrupt
            computed.append(name)
            return real(self, name, block)

        monkeypatch.setattr(Journal, "store", store)
        return computed

    return watch


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_analysis_goes_on_where_it_stopped(name, checkpoint, tmp_path, blocks, undrawn):
    command, *options = COMMANDS[name]
    out = tmp_path / ("out" if command == "figures" else "out.nc")
    result = out / "results.nc" if command == "figures" else out
    journal = out / "journal" if command == "figures" else tmp_path / "out.nc.journal"

    everything = blocks()
    succeeds(command, checkpoint, *options, "--out", out)
    expected = results_of(result)
    result.unlink()
    assert not journal.exists()
    assert len(everything) > 1

    before = blocks(limit=len(everything) // 2)
    outcome = landscape(command, checkpoint, *options, "--out", out)
    assert outcome.code == 130
    assert outcome.out == ""
    assert outcome.err.strip() == "interrupted: finished blocks are kept, the same command goes on from them"
    assert not result.exists()
    assert len(list(journal.glob("*.npz"))) == len(before) == len(everything) // 2

    after = blocks()
    succeeds(command, checkpoint, *options, "--out", out)
    assert before + after == everything
    assert not journal.exists()
    found = results_of(result)
    assert set(found) == set(expected)
    for group, dataset in expected.items():
        xr.testing.assert_identical(found[group], dataset)


def test_blocks_of_other_settings_are_not_mixed_in(checkpoint, tmp_path, blocks):
    out = tmp_path / "out.nc"
    first = blocks(limit=1)
    assert landscape("spectrum", checkpoint, *FEW, "--out", out).code == 130
    second = blocks()
    succeeds("spectrum", checkpoint, *FEW, "--seed", "1", "--out", out)
    assert len(second) == 2
    assert len(first) == 1
    # The first seed's block is still there for the command that began it.
    third = blocks()
    succeeds("spectrum", checkpoint, *FEW, "--out", out)
    assert len(third) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.nc"]


def test_an_interrupted_training_is_resumed_to_the_same_bits(trained, tmp_path, monkeypatch):
    arguments = ("train", "--model", "mlp", "--epochs", "2", "--out", tmp_path)
    real, calls = loop.evaluate, []

    def interrupt_in_the_second_epoch(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(loop, "evaluate", interrupt_in_the_second_epoch)
    assert landscape(*arguments).code == 130
    assert not (tmp_path / "checkpoint.safetensors").exists()
    refused = landscape(*arguments)
    assert refused.code == 2
    assert "--resume" in refused.err
    succeeds(*arguments, "--resume")
    assert len(calls) == 3
    whole = trained / "checkpoint.safetensors"
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in trained.iterdir()}


def test_an_interruption_during_the_import_of_the_work_is_one_too(checkpoint, tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("landscape.loading.read_checkpoint", interrupted)
    assert landscape("spectrum", checkpoint, "--out", tmp_path / "out.nc").code == 130
    assert list(tmp_path.iterdir()) == []
