"""Comparing finished analyses on shared axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from landscape.drawing import Drawing
from landscape.errors import LandscapeError
from landscape.pipeline import RESULTS, combine, groups_of
from landscape.results import load_results


def compare(folders: Sequence[str | Path], out: str | Path, *, command: str) -> pd.DataFrame:
    """Compare finished analyses: folders with a ``results.nc`` each (or a main job's folder), on shared axes.

    Raises
    ------
    LandscapeError
        If a folder holds no results, or the analyses differ in what must be equal: lanes, split, objective.
    """
    paths: list[Path] = []
    for folder in map(Path, folders):
        if (folder / RESULTS).is_file():
            paths.append(folder)
            continue
        inner = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
        if not inner:
            raise LandscapeError(f"no {RESULTS} in {folder} or the folders in it: run 'landscape figures' there first")
        paths.extend(inner)
    if len(paths) < 2:
        raise LandscapeError(f"compare needs at least two analysed checkpoints, got {len(paths)}")
    twice = [str(path) for number, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:number]}]
    if twice:
        raise LandscapeError(f"compare: each folder once, got {twice[0]} again")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    results = {name: groups_of(load_results(path / RESULTS)) for name, path in zip(names, paths)}
    for path, groups in zip(paths, results.values()):
        if not {"accuracy", "spectrum"} <= set(groups):
            raise LandscapeError(f"{path / RESULTS} holds no whole analysis: compare what 'landscape figures' wrote")
    Path(out).mkdir(parents=True, exist_ok=True)
    warnings = _require_comparable(results)
    with Drawing() as drawing:
        return combine(
            out,
            {name: path / RESULTS for name, path in zip(names, paths)},
            results,
            drawing,
            title=f"{len(results)} checkpoints compared",
            command=command,
            config={"folders": [str(path) for path in paths]},
            warnings=warnings,
        )


def _require_comparable(results: Mapping[str, Mapping[str, xr.Dataset]]) -> list[str]:
    (first_name, first), *others = results.items()
    warnings = []
    for name, groups in others:
        a, b = first["spectrum"], groups["spectrum"]
        if list(a.lane.values) != list(b.lane.values):
            raise LandscapeError(f"cannot compare {first_name} with {name}: their lanes differ")
        for key in ("dataset", "split", "objective", "max_per_class", "seed", "dtype"):
            if a.attrs.get(key) != b.attrs.get(key):
                warnings.append(
                    f"{first_name} and {name} differ in {key}: {a.attrs.get(key)} against {b.attrs.get(key)}"
                )
    return warnings
