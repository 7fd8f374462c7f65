"""The command line called in this process, and the files it is fed: whole, foreign, damaged and hostile ones."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
from pipeline_cases import groups_in

from landscape.cli.entry import main
from landscape.models import build_model

# The cheapest analysis that still has a class, a group and more than one example in each.
FEW = ("--lanes", "0,tail", "--max-per-class", "2")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def landscape(*arguments: object) -> Outcome:
    """Call the command line as the entry point does; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["landscape", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    assert isinstance(stop.value.code, int)
    return Outcome(stop.value.code, out.getvalue(), err.getvalue())


def succeeds(*arguments: object) -> str:
    """Call the command line, which must succeed; return its standard output."""
    outcome = landscape(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file's bytes, and None for every folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def require_one_line(outcome: Outcome, match: str) -> None:
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert re.search(match, lines[0]), f"{match!r} does not match {lines[0]!r}"
    assert outcome.out == ""


def refuses(folder: Path, *arguments: object, match: str) -> None:
    """Call the command line, which must refuse with one line, and leave ``folder`` with the bytes that were in it."""
    before = contents(folder)
    require_one_line(landscape(*arguments), match)
    after = contents(folder)
    assert sorted(after) == sorted(before)
    assert after == before


class Payload:
    """Pickles to a call of os.system that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def write_cifar10(folder: Path, layout: str, *, per_class: int = 3) -> Path:
    """Write the official files of CIFAR-10 with ``per_class`` training images and 2 test images of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
    content = {f"data_batch_{i + 1}": part for i, part in enumerate(np.array_split(labels, 5))}
    content["test_batch"] = np.tile(np.arange(10, dtype=np.uint8), 2)
    for name, y in content.items():
        x = rng.integers(0, 256, (len(y), 3072), dtype=np.uint8)
        if layout == "bin":
            (folder / f"{name}.bin").write_bytes(np.concatenate([y[:, None], x], axis=1).tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({b"labels": y.tolist(), b"data": x}, protocol=2))
    return folder


def write_foreign(path: Path, model: str = "resnet20", *, num_classes: int = 10) -> Path:
    """Write a CIFAR network as training scripts with DataParallel do."""
    network = build_model(model, num_classes=num_classes, in_channels=3, image_size=32)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "arch": model, "state_dict": state}, path)
    return path


def results_of(path: Path) -> dict[str, xr.Dataset]:
    """Return the groups of a results file without what depends on the clock."""
    groups = groups_in(path)
    for dataset in groups.values():
        dataset.attrs.pop("analysis_seconds", None)
    return groups
