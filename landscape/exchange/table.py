"""Surfaces as long tables, written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.exchange.selection import GRID, named, replacing
from landscape.files import inert


def write_csv(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a surface as a table: one row for each (pair, beta, alpha, lane), a column for each variable.

    Parameters
    ----------
    dataset
        A line or plane; a selection of it writes less.
    path
        The file, ending in ``.csv``.

    Returns
    -------
    pathlib.Path
        The file. Numbers are written so that reading them as float64 gives the same bits (``pandas.read_csv`` needs
        ``float_precision="round_trip"``); NaN as ``nan``, infinity as ``inf``. Variables over other dimensions than
        these are left out.
    """
    path = named(path, ".csv")
    dims = [name for name in GRID if name in dataset.dims]
    if "alpha" not in dims or "lane" not in dims:
        raise LandscapeError(
            f"expected a line or plane over alpha and lane, got dimensions {', '.join(map(str, dataset.dims))}"
        )
    kept = dataset[[name for name, v in dataset.data_vars.items() if set(v.dims) <= set(dims)]]
    kept = kept.drop_vars([name for name, c in kept.coords.items() if not set(c.dims) <= set(dims)])
    wide = {name: v.astype(np.float64) for name, v in kept.variables.items() if v.dtype == np.float32}
    with replacing(path) as temporary:
        table = kept.assign(wide).to_dataframe(dim_order=dims)
        inert(table).to_csv(temporary, na_rep="nan", lineterminator="\n")
    return path
