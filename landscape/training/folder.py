"""The files of a run: the state to go on from, the history, the record of how it was made."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from landscape.errors import LandscapeError
from landscape.files import first_line, kind_of, one_line, parse_json, require_file, write_bytes
from landscape.torch_files import read_torch
from landscape.training.spec import TrainSpec

CHECKPOINT, RECORD, HISTORY, STATE = "checkpoint.safetensors", "run.json", "history.csv", "state.pt"
BEST = "best.safetensors"  # the best epoch on the test images


def snapshot_name(epoch: int) -> str:
    """Return the file name of the weights after ``epoch`` epochs; names sort by epoch up to 9,999."""
    return f"epoch-{epoch:04d}.safetensors"


def prepare_folder(out: str | os.PathLike[str]) -> Path:
    """Create the output folder and prove that it can be written to."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LandscapeError(f"cannot write to the output folder {folder}: {error.strerror or error}") from None
    return folder


def find_state(folder: Path, spec: TrainSpec, *, resume: bool) -> dict[str, Any] | None:
    """Return the state to go on from, or None to start; a finished run's state has ``finished`` True.

    Raises LandscapeError if the folder holds a run and ``resume`` was not asked for, or a run of another spec.
    """
    record = _read_record(folder / RECORD)
    is_finished = bool(record and record.get("finished") and (folder / CHECKPOINT).exists())
    has_state = (folder / STATE).exists()
    if not is_finished and not has_state:
        return None
    if not resume:
        kind = "a finished" if is_finished else "an unfinished"
        raise LandscapeError(f"{folder} holds {kind} run: resume it (--resume), or choose another output folder")
    if is_finished:
        assert record is not None
        _require_same(spec, record.get("spec"), folder)
        return {"finished": True}
    state = read_state(folder / STATE)
    recorded = state.get("spec")
    theirs = parse_json(recorded, f"{folder / STATE}: its specification") if isinstance(recorded, str) else None
    _require_same(spec, theirs, folder)
    return state | {"finished": False}


def _read_record(path: Path) -> dict[str, Any] | None:
    if kind_of(path) == "nothing":
        return None
    with one_line(f"{path} is damaged, choose another output folder"):
        record = parse_json(require_file(path, "the record of a run").read_bytes(), str(path))
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, got {type(record).__name__}")
        return record


def _require_same(spec: TrainSpec, theirs: Any, folder: Path) -> None:
    if not isinstance(theirs, dict):
        raise LandscapeError(f"{folder} does not say how its run was started (no 'spec'): choose another output folder")
    ours = spec.to_dict()
    differ = [
        f"{name} {theirs.get(name)!r} (asked for {ours.get(name)!r})"
        for name in ours | dict(theirs)
        if ours.get(name) != theirs.get(name)
    ]
    if differ:
        raise LandscapeError(f"cannot resume {folder}: it was started with {', '.join(differ)}; use another folder")


def read_state(path: Path) -> dict[str, Any]:
    """Load a state file; it holds tensors, numbers and strings only."""
    try:
        state = read_torch(require_file(path, "the state of a run"), is_zip=True)
        if not isinstance(state, dict):
            raise ValueError(f"expected a dictionary, got {type(state).__name__}")
        return state
    except Exception as error:  # whatever torch's readers ran into
        raise LandscapeError(f"{path} is damaged ({first_line(error)}): delete it to start the run anew") from error


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state file in one step."""
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    write_bytes(path, stream.getvalue())


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per epoch; columns of epochs that were not evaluated stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, stream.getvalue().encode())


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the run's record as JSON."""
    write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what the timings were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
    }
