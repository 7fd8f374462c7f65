"""Ranges of surface coordinates, as they are typed: ``-1:1:51``."""

from __future__ import annotations

import numpy as np

from landscape.errors import LandscapeError

# More points on an axis than anybody waits for.
MOST_POINTS = 100_000


def parse_range(text: str, option: str = "--x") -> np.ndarray:
    """Return the coordinates of ``start:stop:count``, ends included.

    Raises
    ------
    LandscapeError
        Unless start < stop and count >= 2.

    Examples
    --------
    >>> parse_range("-1:1:5").tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    expected = f"{option}: expected START:STOP:COUNT with START < STOP and COUNT >= 2, such as -1:1:51"
    parts = text.split(":")
    try:
        start, stop, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        raise LandscapeError(f"{expected}; got '{text}'") from None
    if len(parts) != 3 or not np.isfinite([start, stop]).all() or not start < stop or count < 2:
        raise LandscapeError(f"{expected}; got '{text}'")
    if count > MOST_POINTS:
        raise LandscapeError(f"{option}: expected at most {MOST_POINTS:,} points on an axis, got {count:,} in '{text}'")
    return np.linspace(start, stop, count)
