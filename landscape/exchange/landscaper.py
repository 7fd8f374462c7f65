"""Planes for Landscaper, written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.exchange.selection import measured, named, replacing, selected

_LOG = logging.getLogger(__name__)


def write_landscaper(
    dataset: xr.Dataset, path: str | Path, *, lane: str = "all", pair: int | None = None, variable: str = "loss"
) -> Path:
    """Write one lane of a plane as a ``.npz`` file that Landscaper's ``LossLandscape.load_from_npz`` reads.

    ``loss`` (K, K) float64 with rows beta and columns alpha, ``coordinates`` (2, K): alpha, then beta. In this order
    every value is at its own coordinates in Landscaper's pictures, trees and Morse-Smale complexes, all of which
    enumerate the points with ``numpy.meshgrid(*coordinates)``.

    Parameters
    ----------
    dataset
        A ``surface`` or ``surface_eigen`` Dataset.
    path
        The file, ending in ``.npz``.
    lane, pair, variable
        What is written: by default the loss of ``all`` in the first pair.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    LandscapeError
        For a line, a grid that is not square (Landscaper's file holds both axes as one array), or an unknown name.

    Notes
    -----
    Layout: Landscaper 1.3.1, ``landscaper/utils.py`` and ``landscaper/landscape.py``; that version was seen to load such
    a file with every value at its coordinates, to draw it and to compute its trees. Points that are not finite stay
    so, with a warning: Landscaper's own surfaces have none, and its trees do not expect any.
    """
    path = named(path, ".npz")
    if "beta" not in dataset.dims:
        raise LandscapeError("Landscaper reads planes, got a line: write .csv or .vts, or measure with --kind plane")
    chosen = selected(dataset, [lane], pair, [variable])
    values = measured(chosen, variable).isel(lane=0).transpose("beta", "alpha").values
    alpha, beta = chosen["alpha"].values, chosen["beta"].values
    if len(alpha) != len(beta):
        raise LandscapeError(
            f"Landscaper's file holds both axes as one array, so it takes square grids; got {len(alpha)} alphas and "
            f"{len(beta)} betas: write .vts or .csv, or measure as many points on --x as on --y"
        )
    holes = int((~np.isfinite(values)).sum())
    if holes:
        _LOG.warning(
            "%s: %d of %d points are not finite; Landscaper's trees do not expect any", path, holes, values.size
        )
    with replacing(path) as temporary, open(temporary, "wb") as target:
        np.savez(target, loss=values.astype(np.float64), coordinates=np.stack([alpha, beta]).astype(np.float64))
    return path
