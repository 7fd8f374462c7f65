"""A plane's picture from a part of its cells: evaluated where two interpolants disagree, checked, or evaluated in full."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import distance_transform_edt

from landscape.errors import LandscapeError
from landscape.randomness import numpy_stream

Scale = Literal["linear", "log"]

# Cells per axis of the first design, at Chebyshev's extreme points: denser at the edges, where surfaces are steep.
NUM_START = 9
# Of a round: cells where the two interpolants are furthest apart, and random ones, which no suspicion leads to.
NUM_SUSPECTS, NUM_RANDOM = 20, 5
# Of n random cells that all pass, at most 1 - 0.05 ** (1 / n) of the grid fails, with 95 % confidence: 5 % for 59.
NUM_ACCEPTANCE = 59
CONFIDENCE = 0.95
# An axis of fewer cells is not worth it, and leaves too few nodes for a quadratic polynomial.
LEAST_CELLS = 5
# The search ends when so many rounds in a row are right to this share of the tolerance: the worst of all cells is worse
# than the worst of those looked at, and a single round passes by luck.
NUM_ROUNDS, MARGIN = 3, 0.6
# Where the budget allows no further round, so many must be right to the tolerance itself.
NUM_LAST = 2
# Suspects of a round keep apart: the suspicion within about so many cells of a chosen one is damped.
APART = 1.5
# The worst of all cells over the worst that a check saw: on networks up to 1.7 for the worst lane of a plane.
ALLOWANCE = 2.0
# A lane's range counts as at least this share of its largest value: 1 % of it is the rounding of a float32 loss.
LEAST_RANGE = 1e-4


@dataclass(frozen=True)
class Refined:
    """The values of a grid, most of them interpolated, and what is known about their error.

    Errors are shares of a lane's range (maximum less minimum of what was evaluated), on the scale that was asked for.
    They are 0 where nothing is interpolated.

    Attributes
    ----------
    values
        (K_y, K_x, L): exactly as evaluated where ``evaluated``, interpolated elsewhere.
    evaluated
        (K_y, K_x) bool.
    checked_error
        (L,) the largest error of a prediction at the cells of the final check, which were evaluated after it: the last
        three (two) rounds, and random cells after them.
    error_estimate
        (L,) an estimate, not a bound, of the largest error at the cells that were not evaluated: twice what separates
        two interpolants there, times the ratio of error to separation at the check, or twice ``checked_error``.
    outside_share
        With 95 % confidence, at most this share of the cells is off by more than the tolerance in a deciding lane: by
        random sampling, whatever the surface is.
    num_evaluations, num_checks
        Cells evaluated in all, and in the final check.
    is_complete
        Whether every cell was evaluated: the tolerance was not reached within the budget, or the grid is too small.
    """

    values: np.ndarray
    evaluated: np.ndarray
    checked_error: np.ndarray
    error_estimate: np.ndarray
    outside_share: float
    num_evaluations: int
    num_checks: int
    is_complete: bool


def refine_plane(
    evaluate: Callable[[np.ndarray], np.ndarray],
    x: ArrayLike,
    y: ArrayLike,
    *,
    tolerance: float = 0.01,
    max_share: float = 0.25,
    scale: Scale = "linear",
    deciding: ArrayLike | None = None,
    seed: int = 0,
) -> Refined:
    """Return the values of L lanes on a grid from a part of its cells, to a checked error, or from all of them.

    A coarse grid of Chebyshev points is completed in rounds. In each, cubic radial basis functions and thin-plate
    splines predict all cells; those where they differ most, and a few at random, are evaluated and show the error of
    the prediction. Once three rounds in a row are right to 0.6 of the tolerance (at the budget's end: two rounds, to the
    tolerance itself), 59 random cells must confirm it. If that does not happen within ``max_share`` of the cells, all
    are evaluated and nothing is interpolated.

    Parameters
    ----------
    evaluate
        From points (P, 2) of (alpha, beta), each of them a point of the grid, to values (P, L). It is called once per
        round, and what it is asked depends on its earlier answers and the seed alone: a journal of its calls resumes.
    x, y
        Increasing coordinates of the K_x columns and K_y rows.
    tolerance
        Largest error, as a share of each lane's range.
    max_share
        Share of the cells that may be evaluated, checks included, before all are.
    scale
        ``"linear"``, or ``"log"``: interpolation and error are of log(1 + value). It is for pictures with logarithmic
        colours: where losses reach 600, one per cent of the range hides everything below 6.
    deciding
        (L,) bool: the lanes that must reach the tolerance, by default all. The others are predicted too, and their
        errors are stated.
    seed
        Of the random cells.

    Returns
    -------
    Refined
        Values, which of them are evaluations, and errors. A value that is not finite is never interpolated, nor used to
        interpolate: every cell nearer to it than to a finite one is evaluated. A hole between cells that were all
        finite is not found.

    Raises
    ------
    LandscapeError
        For coordinates, a tolerance or a share out of range, values of the wrong shape, or a value of -1 or less on the
        logarithmic scale.

    Examples
    --------
    >>> x, y = np.linspace(-1, 1, 41), np.linspace(0, 2, 31)
    >>> found = refine_plane(lambda points: np.exp(points[:, :1] * points[:, 1:]), x, y)
    >>> exact = np.exp(y[:, None] * x)
    >>> bool(np.abs(found.values[..., 0] - exact).max() < 0.01 * np.ptp(exact)), found.evaluated.mean() < 0.25
    (True, np.True_)

    Notes
    -----
    On 51 x 51 cells of [-1, 1]^2 of three ResNet-20 (``analyses/benchmarks/refinement.py``), classes of ten images
    included, 440 to 640 evaluations left at most 0.8 % of the range in 17 of 18 runs, 1.1 % in one lane of the other;
    groups and all alone took 290 to 574, for at most 0.7 %. The largest error was up to twice the largest checked one.
    """
    grid = _Grid(x, y, scale)
    _require_shares(tolerance, max_share)
    budget = math.floor(max_share * grid.size)
    rng = numpy_stream(seed, "refinement/checks")
    among = None if deciding is None else np.asarray(deciding, dtype=bool)
    num_round = NUM_SUSPECTS + NUM_RANDOM
    rounds: list[_Check] = []
    num_acceptances = 0

    def look(cells: np.ndarray) -> None:
        grid.tell(cells, evaluate(grid.points(cells)))
        while len(holes := grid.holes()) and grid.num_done + len(holes) <= budget:
            grid.tell(holes, evaluate(grid.points(holes)))

    def is_affordable(num: int) -> bool:
        return not len(grid.holes()) and grid.num_done + num <= budget

    start = grid.start()
    if min(grid.shape) >= LEAST_CELLS and is_affordable(len(start) + NUM_ROUNDS * num_round + NUM_ACCEPTANCE):
        look(start)
        grid.require_lanes(among)
        while is_affordable(num_round + NUM_ACCEPTANCE):
            prediction = grid.predict()
            look(cells := grid.suspects(prediction, rng))
            rounds = [*rounds, grid.compare(prediction, cells)][-NUM_ROUNDS:]
            grid.learn(prediction, cells)
            num, margin = (NUM_ROUNDS, MARGIN) if is_affordable(num_round + NUM_ACCEPTANCE) else (NUM_LAST, 1.0)
            latest = rounds[-num:]
            has_passed = len(latest) == num and all(r.passes(margin * tolerance, among) for r in latest)
            if has_passed and is_affordable(NUM_ACCEPTANCE):
                num_acceptances += 1
                prediction = grid.predict()
                look(cells := grid.drawn(NUM_ACCEPTANCE, rng))
                acceptance = grid.compare(prediction, cells)
                if acceptance.passes(tolerance, among) and not len(grid.holes()):
                    # Several attempts share the risk of passing by luck.
                    outside = 1 - ((1 - CONFIDENCE) / num_acceptances) ** (1 / acceptance.num_cells)
                    return grid.refined(reduce(or_, latest, acceptance), outside)
                rounds = []
    if len(rest := np.flatnonzero(~grid.done)):
        grid.tell(rest, evaluate(grid.points(rest)))
    grid.require_lanes(among)
    return grid.refined(None, 0.0)


@dataclass(frozen=True)
class _Prediction:
    """Of every cell: the cubic interpolant and its distance from the other one; (cells, L), on the scale of the grid."""

    values: np.ndarray
    separation: np.ndarray


@dataclass(frozen=True)
class _Check:
    """The largest error, and separation of the two interpolants, at cells that were checked; (L,), shares of the ranges."""

    error: np.ndarray
    separation: np.ndarray
    num_cells: int

    def passes(self, tolerance: float, among: np.ndarray | None) -> bool:
        return bool((self.error[slice(None) if among is None else among] <= tolerance).all())

    def __or__(self, other: _Check) -> _Check:
        return _Check(
            np.maximum(self.error, other.error),
            np.maximum(self.separation, other.separation),
            self.num_cells + other.num_cells,
        )


class _Grid:
    """The cells of a grid by number, row after row: what is known of them, and what that predicts for the others."""

    def __init__(self, x: ArrayLike, y: ArrayLike, scale: Scale) -> None:
        if scale not in ("linear", "log"):
            raise LandscapeError(f"scale: expected 'linear' or 'log', got {scale!r}")
        self.x, self.y, self.scale = _coordinates(x, "x"), _coordinates(y, "y"), scale
        self.shape = len(self.y), len(self.x)
        self.size = len(self.y) * len(self.x)
        self.done = np.zeros(self.size, dtype=bool)
        self.values = np.empty((self.size, 0))
        self.doubt: np.ndarray | float = 1.0  # (L,) error per separation of the interpolants, as rounds have shown it
        # On a square as wide as the longer axis has cells: neither axis's unit decides what is near.
        b, a = (np.interp(axis, axis[[0, -1]], [0.0, max(self.shape) - 1.0]) for axis in (self.y, self.x))
        self.at = np.stack([np.repeat(b, len(a)), np.tile(a, len(b))], 1)

    @property
    def num_done(self) -> int:
        return int(self.done.sum())

    def points(self, cells: np.ndarray) -> np.ndarray:
        """Return the points (P, 2) of cells (P,): alpha and beta."""
        rows, columns = np.divmod(cells, len(self.x))
        return np.stack([self.x[columns], self.y[rows]], 1)

    def tell(self, cells: np.ndarray, values: np.ndarray) -> None:
        """Keep the values (P, L) of cells (P,)."""
        values = np.asarray(values, dtype=np.float64)
        if (
            values.ndim != 2
            or len(values) != len(cells)
            or (self.done.any() and values.shape[1] != self.values.shape[1])
        ):
            lanes = self.values.shape[1] if self.done.any() else "L"
            raise LandscapeError(f"evaluate: expected values of shape ({len(cells)}, {lanes}), got {np.shape(values)}")
        if self.scale == "log" and (values <= -1).any():
            raise LandscapeError(f"scale 'log': expected values above -1, got {np.nanmin(values)}; use 'linear'")
        if not self.done.any():
            self.values = np.full((self.size, values.shape[1]), np.nan)
        self.values[cells] = values
        self.done[cells] = True

    def require_lanes(self, deciding: np.ndarray | None) -> None:
        """Refuse a choice of lanes that does not fit the values."""
        lanes = self.values.shape[1]
        if deciding is not None and (deciding.shape != (lanes,) or not deciding.any()):
            raise LandscapeError(f"deciding: expected {lanes} booleans, at least one of them true, got {deciding}")

    def start(self) -> np.ndarray:
        """Return the first cells: a product of Chebyshev's extreme points, and the cell nearest to the weights."""
        rows, columns = (_chebyshev(len(axis)) for axis in (self.y, self.x))
        centre = np.abs(self.y).argmin() * len(self.x) + np.abs(self.x).argmin()
        return np.union1d((rows[:, None] * len(self.x) + columns).ravel(), [centre])

    def holes(self) -> np.ndarray:
        """Return the cells that are as near to one without a finite value as to one with finite values."""
        known = self.done.reshape(self.shape)
        is_finite = np.isfinite(self.values).all(1).reshape(self.shape)
        if not (known & ~is_finite).any():
            return np.empty(0, dtype=np.intp)
        if not (known & is_finite).any():
            return np.flatnonzero(~self.done)
        to_hole, to_finite = (distance_transform_edt(~(known & which)) for which in (~is_finite, is_finite))
        return np.flatnonzero(~self.done & (to_hole <= to_finite).ravel())

    def predict(self) -> _Prediction:
        """Interpolate every cell that is not known, from the finite values of each lane."""
        scaled = self._scaled()
        missing = np.flatnonzero(~self.done)
        values, separation, ranges = scaled.copy(), np.zeros_like(scaled), self._ranges()
        usable = np.isfinite(scaled) & self.done[:, None]
        patterns, pattern_of = np.unique(usable, axis=1, return_inverse=True)
        for number in range(patterns.shape[1]):
            nodes, lanes = np.flatnonzero(patterns[:, number]), np.flatnonzero(pattern_of.ravel() == number)
            cubic, plate = (
                ranges[lanes]
                * RBFInterpolator(
                    self.at[nodes], scaled[np.ix_(nodes, lanes)] / ranges[lanes], kernel=kernel, degree=2
                )(self.at[missing])
                for kernel in ("cubic", "thin_plate_spline")
            )
            values[np.ix_(missing, lanes)] = cubic
            separation[np.ix_(missing, lanes)] = np.abs(cubic - plate)
        return _Prediction(values, separation)

    def _scaled(self) -> np.ndarray:
        return np.log1p(self.values) if self.scale == "log" else self.values

    def _ranges(self) -> np.ndarray:
        """Return (L,) maximum less minimum of the finite values known, kept from zero."""
        finite = np.where(np.isfinite(self.values) & self.done[:, None], self._scaled(), np.nan)
        highest, lowest = (np.nan_to_num(end.reduce(finite, axis=0)) for end in (np.fmax, np.fmin))
        least = LEAST_RANGE * np.maximum(np.abs(highest), np.abs(lowest))
        ranges = np.maximum(highest - lowest, least)
        return np.where(ranges > 0, ranges, 1.0)

    def suspects(self, prediction: _Prediction, rng: np.random.Generator) -> np.ndarray:
        """Return the cells of a round: the most suspect of those that are not known, kept apart, and random ones."""
        suspicion = np.where(self.done, -1.0, (self.doubt * prediction.separation / self._ranges()).max(1))
        chosen: list[int] = []
        for _ in range(NUM_SUSPECTS):
            cell = int(suspicion.argmax())
            chosen.append(cell)
            nearness = np.exp(-np.square(self.at - self.at[cell]).sum(1) / APART**2)
            suspicion = np.where(suspicion < 0, suspicion, suspicion * (1 - nearness))
            suspicion[cell] = -1.0
        return np.concatenate([chosen, self.drawn(NUM_RANDOM, rng, besides=chosen)]).astype(np.intp)

    def learn(self, prediction: _Prediction, cells: np.ndarray) -> None:
        """Doubt lanes by how far off they were: one with kinks is further off than two smooth interpolants are apart."""
        error = np.nan_to_num(np.abs(prediction.values[cells] - self._scaled()[cells]), posinf=0.0, neginf=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(np.square(error).sum(0) / np.square(prediction.separation[cells]).sum(0))
        self.doubt = np.sqrt(self.doubt * np.clip(np.nan_to_num(ratio, nan=1.0), 0.1, 100.0))

    def drawn(self, num: int, rng: np.random.Generator, besides: list[int] | None = None) -> np.ndarray:
        """Return up to ``num`` random cells that are not known."""
        free = ~self.done
        free[besides or []] = False
        cells = np.flatnonzero(free)
        return np.sort(rng.choice(cells, min(num, len(cells)), replace=False))

    def compare(self, prediction: _Prediction, cells: np.ndarray) -> _Check:
        """Return how far the prediction was off at cells that are known by now; values not finite do not count."""
        ranges = self._ranges()
        error = np.abs(prediction.values[cells] - self._scaled()[cells])
        error = np.where(np.isfinite(error), error, 0.0)
        return _Check(error.max(0) / ranges, prediction.separation[cells].max(0) / ranges, len(cells))

    def refined(self, check: _Check | None, outside_share: float) -> Refined:
        """Return the result: interpolated where a check allows it."""
        none = np.zeros(self.values.shape[1])
        values, estimate = self.values, none
        if check is not None:
            prediction = self.predict()
            guess = np.expm1(prediction.values) if self.scale == "log" else prediction.values
            values = np.where(self.done[:, None], values, guess)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.nan_to_num(check.error / check.separation)
            estimate = ALLOWANCE * np.maximum(check.error, ratio * (prediction.separation / self._ranges()).max(0))
        return Refined(
            values=values.reshape(*self.shape, -1),
            evaluated=self.done.reshape(self.shape).copy(),
            checked_error=none if check is None else check.error,
            error_estimate=estimate,
            outside_share=outside_share,
            num_evaluations=self.num_done,
            num_checks=0 if check is None else check.num_cells,
            is_complete=bool(self.done.all()),
        )


def _chebyshev(num: int) -> np.ndarray:
    """Return up to NUM_START positions among ``num``, ends included, at the nearest to Chebyshev's extreme points."""
    share = (1 - np.cos(np.pi * np.arange(NUM_START) / (NUM_START - 1))) / 2
    return np.unique(np.round(share * (num - 1)).astype(np.intp))


def _coordinates(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise LandscapeError(f"{name}: expected at least two finite, increasing coordinates, got {values!r}")
    return array


def _require_shares(tolerance: float, max_share: float) -> None:
    if not 0 < tolerance < 1:
        raise LandscapeError(f"tolerance: expected a share of the range between 0 and 1, got {tolerance}")
    if not 0 < max_share <= 1:
        raise LandscapeError(f"max_share: expected a share of the cells above 0 and at most 1, got {max_share}")
