"""How far a plot goes: as far as the flattest group needs to rise."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError


def automatic_range(
    radii: xr.Dataset | Sequence[xr.Dataset],
    *,
    delta: float | None = None,
    kinds: Collection[str] = ("group", "all"),
    is_symmetric: bool = True,
    cap: float | None = None,
) -> tuple[float, float]:
    """Return the ends of a plot's axis: where the flattest group has risen by delta, rounded up to two digits.

    Each side's end is the largest finite radius of the lanes of ``kinds`` over the directions given (of all lanes
    where there is none of these kinds), at most ``cap``; where no radius is finite, the largest radius scanned.

    Parameters
    ----------
    radii
        From :func:`landscape.surface.measure_radii` along the axis; several checkpoints share the range that shows all of them.
    delta
        Which rise; by default the largest measured.
    kinds
        Lanes that decide. Single classes of few examples would let one flat class decide for all.
    is_symmetric
        Whether both ends take the larger of the two.
    cap
        Largest end, in units of the direction; by default as far as was scanned.

    Raises
    ------
    LandscapeError
        If delta was not measured, or no dataset is given.

    Examples
    --------
    >>> import torch
    >>> from landscape import AnalyticRisk
    >>> from landscape.surface import RadiusOptions, measure_radii
    >>> slope = AnalyticRisk(lambda x: torch.exp(x[:1]), torch.zeros(1, dtype=torch.float64))
    >>> found = measure_radii(slope, "all", directions=[torch.ones(1)], options=RadiusOptions(deltas=(1.0,), limit=4.0))
    >>> automatic_range(found), automatic_range(found, is_symmetric=False)  # log 2 = 0.693; never on the other side
    ((-4.0, 4.0), (-4.0, 0.7))
    """
    datasets = [radii] if isinstance(radii, xr.Dataset) else list(radii)
    if not datasets:
        raise LandscapeError("automatic range: expected the radii of at least one checkpoint, got none")
    ends = [_ends(d, delta, kinds, cap) for d in datasets]
    left, right = (_rounded_up(max(side)) for side in zip(*ends))
    if is_symmetric:
        left = right = max(left, right)
    return -left, right


def _ends(radii: xr.Dataset, delta: float | None, kinds: Collection[str], cap: float | None) -> tuple[float, float]:
    """Return the ends (left, right) that one checkpoint needs, not rounded."""
    measured = radii["delta"].values
    wanted = float(measured.max()) if delta is None else delta
    if wanted not in measured:
        raise LandscapeError(f"automatic range: the rise {wanted} was not measured, only {measured.tolist()}")
    chosen = radii["radius"].sel(delta=wanted)
    deciding = np.isin(radii["lane_kind"].values, list(kinds))
    if deciding.any():
        chosen = chosen.isel(lane=deciding)
    limit = float(radii.attrs["option_limit"])
    ends = []
    for side in (-1, 1):
        values = chosen.sel(side=side).values
        finite = values[np.isfinite(values)]
        ends.append(min(finite.max() if finite.size else limit, math.inf if cap is None else cap))
    return ends[0], ends[1]


def _rounded_up(value: float) -> float:
    """Return the value rounded up to two significant digits; 0.3 stays 0.3, rounding errors and all."""
    digits = 1 - math.floor(math.log10(value))
    return float(round(math.ceil(value * 10.0**digits * (1 - 1e-12)) / 10.0**digits, max(digits, 0)))
