"""Which part of a surface is written, and the file that takes its place in one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.files import writing_atomically

# The dimensions of a plane; a line has no beta.
GRID = ("pair", "beta", "alpha", "lane")


def surface_group(dataset: xr.Dataset) -> str:
    """Return the results group of a line or plane: ``surface_line`` or ``surface``."""
    return "surface" if "beta" in dataset.dims else "surface_line"


def named(path: str | Path, ending: str) -> Path:
    """Return the path if it has the ending, else raise LandscapeError."""
    path = Path(path)
    if path.suffix != ending:
        raise LandscapeError(f"{path}: expected a file name that ends in {ending}, got '{path.suffix}'")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path``; LandscapeError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(path) as temporary:
            yield temporary
    except OSError as error:
        raise LandscapeError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to"
        ) from None


def selected(
    dataset: xr.Dataset, lanes: Sequence[str] | None, pair: int | None, variables: Sequence[str]
) -> xr.Dataset:
    """Return one pair and some lanes of a surface that has the variables."""
    drawable = [str(name) for name, values in dataset.data_vars.items() if {"alpha", "lane"} <= set(values.dims)]
    for name in variables:
        if name not in drawable:
            raise unknown_name("variable of the surface", name, drawable)
    known = [str(name) for name in np.atleast_1d(dataset["lane"].values)]
    for lane in lanes or ():
        if lane not in known:
            raise unknown_name("lane", lane, known)
    if lanes is not None:
        dataset = dataset.sel(lane=list(lanes))
    if "pair" not in dataset.dims:
        return dataset
    pairs = dataset["pair"].values.tolist()
    if pair is not None and pair not in pairs:
        raise unknown_name("direction pair", str(pair), map(str, pairs))
    return dataset.sel(pair=pairs[0] if pair is None else pair)


def measured(dataset: xr.Dataset, variable: str) -> xr.DataArray:
    """Return the values, NaN where they are not done."""
    values = dataset[variable]
    return values.where(dataset["done"]) if "done" in dataset else values
