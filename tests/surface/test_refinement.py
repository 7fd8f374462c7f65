"""Refined planes against the full grid: exact, within the tolerance, or evaluated in full; never quietly wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.errors import LandscapeError
from landscape.surface import refine_plane, refinement

# Neither equal, nor symmetric, nor equidistant: 41 columns, 31 rows.
X = np.linspace(-1.0, 1.6, 41) + 0.02 * np.sin(np.arange(41))
Y = np.linspace(-0.3, 0.5, 31)
BUDGET = math.floor(0.25 * len(X) * len(Y))
LEAST = (  # what a surface takes that is right at once
    refinement.NUM_START**2
    + 1
    + refinement.NUM_ROUNDS * (refinement.NUM_SUSPECTS + refinement.NUM_RANDOM)
    + refinement.NUM_ACCEPTANCE
)


class Plane:
    """Lanes of a and b over points (P, 2) that remembers every point and batch, and knows the full grid."""

    def __init__(self, *lanes, x=X, y=Y):
        self.lanes, self.x, self.y, self.batches = lanes, x, y, []

    def at(self, a, b):
        return np.stack([np.broadcast_to(lane(a, b), a.shape) for lane in self.lanes], -1).astype(np.float64)

    def __call__(self, points):
        assert np.isin(points[:, 0], self.x).all()  # the very numbers, not others close to them
        assert np.isin(points[:, 1], self.y).all()
        self.batches.append(points)
        return self.at(points[:, 0], points[:, 1])

    @property
    def full(self):
        return self.at(*np.meshgrid(self.x, self.y))  # (K_y, K_x, L)

    def refine(self, **options):
        found = refine_plane(self, self.x, self.y, **options)
        points = np.concatenate(self.batches)
        assert len(points) == len(np.unique(points, axis=0)) == found.num_evaluations == found.evaluated.sum()
        np.testing.assert_array_equal(found.values[found.evaluated], self.full[found.evaluated])  # bit for bit
        assert found.is_complete == bool(found.evaluated.all())
        return found

    def error(self, found):
        """(L,) the true error as a share of the range."""
        return np.abs(found.values - self.full).max((0, 1)) / np.ptp(self.full, axis=(0, 1))


def smooth(a, b):
    return np.exp(2 * a - 3 * b) + np.sin(3 * a * b) + 1


def steep(a, b):
    """Spans five decades, as the loss of a network does."""
    return 1e-2 + 600 * (a**2 + 4 * b**2) ** 3


def kinked(a, b):
    return np.abs(a + 2 * b - 0.123)


# ---- what it attains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_quadratics_are_exact_with_the_fewest_evaluations(seed):
    plane = Plane(lambda a, b: a**2 + 10 * b + a * b - 3 * b**2, lambda a, b: 4 - a, lambda a, b: 0 * a + 0.7)
    found = plane.refine(seed=seed)
    np.testing.assert_allclose(found.values, plane.full, atol=1e-9)
    assert found.num_evaluations == LEAST
    assert found.checked_error.max() < 1e-9
    assert not found.is_complete


@pytest.mark.parametrize("lanes", [(smooth,), (steep,), (smooth, steep)])
@pytest.mark.parametrize("tolerance", [0.01, 0.004])
def test_smooth_surfaces_keep_the_tolerance_within_a_quarter_of_the_cells(lanes, tolerance):
    plane = Plane(*lanes)
    found = plane.refine(tolerance=tolerance)
    assert not found.is_complete
    assert found.num_evaluations <= BUDGET
    assert (plane.error(found) <= tolerance).all()
    assert (found.checked_error <= tolerance).all()
    assert (found.error_estimate >= found.checked_error).all()


def test_a_transposed_plane_has_the_transposed_values():
    """Rows are not columns: the same function, its axes exchanged."""
    plane, turned = Plane(smooth), Plane(lambda a, b: smooth(b, a), x=Y, y=X)
    values = [p.refine(tolerance=1e-3).values for p in (plane, turned)]
    np.testing.assert_allclose(values[0], values[1].transpose(1, 0, 2), atol=2e-3 * np.ptp(plane.full))


def test_the_weights_are_evaluated():
    found = Plane(steep).refine()
    assert found.evaluated[np.abs(Y).argmin(), np.abs(X).argmin()]


@pytest.mark.parametrize(("seed", "slope"), [(0, 0.3), (1, 3.0), (2, 3.0)])
def test_a_kink_is_followed_or_all_is_evaluated(seed, slope):
    plane = Plane(lambda a, b: kinked(a, slope * b), steep)
    found = plane.refine(seed=seed, tolerance=0.02, max_share=0.35)
    assert (plane.error(found) <= 0.02).all()
    assert found.num_evaluations > LEAST


def test_a_step_or_noise_is_evaluated_in_full():
    noise = np.random.default_rng(0).standard_normal((len(Y), len(X)))
    for lane in (
        lambda a, b: a + 2 * b > 0.1,
        lambda a, b: noise[np.searchsorted(Y, b), np.searchsorted(X, a)],
    ):
        plane = Plane(lane)
        found = plane.refine()
        assert found.is_complete
        np.testing.assert_array_equal(found.values, plane.full)
        assert found.checked_error.tolist() == found.error_estimate.tolist() == [0.0]
        assert (found.outside_share, found.num_checks) == (0.0, 0)


def test_grids_too_small_are_evaluated_in_one_call():
    for x, y in ((X[:11], Y[:11]), (X, Y[:2]), (np.linspace(0, 1, 400), Y[:4]), (X[:2], Y[:2])):
        plane = Plane(kinked, x=x, y=y)
        found = plane.refine()
        assert found.is_complete
        assert len(plane.batches) == 1
        np.testing.assert_array_equal(found.values, plane.full)


def test_a_search_is_begun_only_where_its_rounds_are_affordable():
    plane, short = Plane(smooth), Plane(smooth)
    assert plane.refine(max_share=(LEAST + 0.5) / (len(X) * len(Y))).num_evaluations == LEAST
    assert short.refine(max_share=(LEAST - 0.5) / (len(X) * len(Y))).is_complete
    assert len(short.batches) == 1


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_budget_is_kept_or_all_is_evaluated(share):
    plane = Plane(kinked, steep)
    found = plane.refine(max_share=share, tolerance=0.02)
    before = sum(len(batch) for batch in plane.batches[:-1])
    assert found.num_evaluations <= share * len(X) * len(Y) or (found.is_complete and before <= share * len(X) * len(Y))
    assert (plane.error(found) <= 0.02).all()


# ---- what the checks catch ----------------------------------------------------------------------------------------


def spiked(cell, height=20.0):
    return lambda a, b: smooth(a, b) + height * ((a == cell[0]) & (b == cell[1]))


@pytest.mark.parametrize("kind", ["suspects", "acceptance"])
def test_a_spike_at_a_checked_cell_is_caught(kind):
    """The spike is one cell wide. Where a check meets it, the surface is not passed off as smooth."""
    plain = Plane(smooth)
    passed = plain.refine()
    cells = plain.batches[-1] if kind == "acceptance" else plain.batches[1]
    plane = Plane(spiked(cells[len(cells) // 2]))
    found = plane.refine()
    assert found.num_evaluations > passed.num_evaluations
    assert (plane.error(found) <= 0.01).all()
    # Looked around as well: the cells beside the spike were evaluated, or everything was.
    row, column = (
        int(np.flatnonzero(axis == v)[0])
        for axis, v in ((Y, cells[len(cells) // 2][1]), (X, cells[len(cells) // 2][0]))
    )
    assert found.evaluated[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].sum() > 3


def test_without_the_acceptance_check_the_spike_would_pass(monkeypatch):
    """The check above can fail: with checks that accept everything, the error is far beyond the tolerance."""
    plain = Plane(smooth)
    plain.refine()
    plane = Plane(spiked(plain.batches[-1][7]))
    monkeypatch.setattr(refinement._Check, "passes", lambda self, tolerance, among: True)
    found = plane.refine()
    assert plane.error(found).max() > 0.01
    assert found.checked_error.max() > 0.01  # and the report says so


def test_a_spike_that_nobody_meets_is_within_the_stated_share():
    plain = Plane(smooth)
    missed = np.argwhere(~plain.refine().evaluated)[400]
    found = (plane := Plane(spiked((X[missed[1]], Y[missed[0]])))).refine()
    outside = (np.abs(found.values - plane.full) > 0.01 * np.ptp(plane.full)).mean()
    assert 0 < outside < found.outside_share == pytest.approx(1 - 0.05 ** (1 / 59))


def test_lanes_that_do_not_decide_are_predicted_and_their_error_is_stated():
    plane = Plane(smooth, lambda a, b: a + 2 * b > 0.1)
    found = plane.refine(deciding=[True, False])
    assert not found.is_complete
    assert plane.error(found)[0] <= 0.01 < plane.error(found)[1]
    assert found.checked_error[1] > 0.01
    assert Plane(*plane.lanes).refine().is_complete


def test_two_lanes_of_different_size_are_judged_alike():
    """A lane of 1e-6 is as important as one of 1e3: errors are shares of each one's range."""
    plane = Plane(lambda a, b: 1e3 * smooth(a, b), lambda a, b: 1e-6 * np.tanh(3 * a - b))
    found = plane.refine()
    assert not found.is_complete
    assert (plane.error(found) <= 0.01).all()


def test_rounding_on_a_flat_lane_is_no_structure():
    noise = np.random.default_rng(1).standard_normal((len(Y), len(X)))
    plane = Plane(smooth, lambda a, b: 2.3 + 1e-7 * noise[np.searchsorted(Y, b), np.searchsorted(X, a)])
    found = plane.refine()
    assert not found.is_complete
    np.testing.assert_allclose(found.values[..., 1], 2.3, atol=1e-5)


# ---- values that are no numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hole_is_evaluated_and_never_smeared(value):
    """A corner without numbers: each of its cells was evaluated, and what is interpolated beside it is right."""

    def lane(a, b):
        return np.where((a > 1.2) & (b > 0.4), value, smooth(a, b))

    plane = Plane(lane, steep)
    found = plane.refine()
    full = plane.full
    assert not found.is_complete
    assert found.num_evaluations <= BUDGET
    holes = ~np.isfinite(full[..., 0])
    np.testing.assert_array_equal(found.values[holes], full[holes])
    assert np.isfinite(found.values[~holes]).all()
    assert found.evaluated[holes].all()
    error = np.abs(found.values[~holes] - full[~holes]).max(0) / np.ptp(full[~holes], axis=0)
    assert (error <= 0.01).all()
    assert np.isfinite([*found.checked_error, *found.error_estimate]).all()


@pytest.mark.parametrize("where", [0.2, 5.0])
def test_a_plane_mostly_without_numbers_is_evaluated_in_full(where):
    plane = Plane(lambda a, b: np.where(a + b > where - 1, np.nan, a))
    found = plane.refine()
    if where == 0.2:
        assert found.is_complete
        np.testing.assert_array_equal(found.values, plane.full)
    else:
        assert not found.is_complete
    nothing = Plane(lambda a, b: a + np.nan).refine()
    assert nothing.is_complete
    assert np.isnan(nothing.values).all()


def test_a_hole_of_a_single_checked_cell():
    plain = Plane(smooth)
    plain.refine()
    a0, b0 = plain.batches[-1][3]
    plane = Plane(lambda a, b: np.where((a == a0) & (b == b0), np.nan, smooth(a, b)))
    found = plane.refine()
    assert np.isnan(found.values).sum() == 1
    assert np.nanmax(np.abs(found.values - plane.full)) <= 0.01 * np.ptp(plain.full)


# ---- the logarithmic scale ----------------------------------------------------------------------------------------


def test_the_logarithmic_scale_keeps_low_values_right():
    """One per cent of 600 hides everything below 6; of log(1 + 600) it is six per cent of each value."""
    plane = Plane(steep)
    found = plane.refine(scale="log")
    error = np.abs(np.log1p(found.values) - np.log1p(plane.full)).max() / np.ptp(np.log1p(plane.full))
    assert not found.is_complete
    assert error <= 0.01
    linear = plane.__class__(steep).refine().values
    low = plane.full < 6
    assert np.abs(found.values - plane.full)[low].max() < np.abs(linear - plane.full)[low].max()


def test_the_logarithmic_scale_refuses_what_has_no_logarithm():
    with pytest.raises(LandscapeError, match=r"above -1, got -1\.5; use 'linear'"):
        Plane(lambda a, b: 0 * a - 1.5).refine(scale="log")


# ---- repeated, resumed, refused -----------------------------------------------------------------------------------


def test_the_same_seed_asks_for_the_same_cells_in_the_same_batches():
    """So that a journal of the calls resumes a run: the first three answers from a record, the rest computed."""
    first, second, other = Plane(smooth), Plane(smooth), Plane(smooth)
    found = first.refine()
    again = second.refine()
    np.testing.assert_array_equal(again.values, found.values)
    assert all(np.array_equal(a, b) for a, b in zip(first.batches, second.batches, strict=True))
    other.refine(seed=1)
    assert not np.array_equal(first.batches[1], other.batches[1])

    record = [first.at(*batch.T) for batch in first.batches[:3]]
    resumed = Plane(smooth)
    values = refine_plane(lambda points: record.pop(0) if record else resumed(points), X, Y)
    np.testing.assert_array_equal(values.values, found.values)
    assert len(resumed.batches) == len(first.batches) - 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerance": 0.0}, "between 0 and 1, got 0.0"),
        ({"max_share": 1.5}, "at most 1, got 1.5"),
        ({"scale": "root"}, "expected 'linear' or 'log', got 'root'"),
        ({"deciding": [True]}, r"expected 2 booleans.*got \[ True\]"),
        ({"deciding": [False, False]}, "at least one of them true"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(LandscapeError, match=text):
        Plane(smooth, steep).refine(**options)


@pytest.mark.parametrize("x", [[0.0], [0.0, 0.0, 1.0], [0.0, math.nan], [[0.0, 1.0]]])
def test_coordinates_that_are_no_grid(x):
    with pytest.raises(LandscapeError, match="x: expected at least two finite, increasing coordinates"):
        refine_plane(lambda points: points, x, Y)


def test_values_of_the_wrong_shape():
    with pytest.raises(LandscapeError, match=r"expected values of shape \(82, L\), got \(82,\)"):
        refine_plane(lambda points: points[:, 0], X, Y)
    with pytest.raises(LandscapeError, match=r"expected values of shape \(25, 2\), got \(25, 3\)"):
        refine_plane(lambda points: np.zeros((len(points), 2 + (len(points) == 25))), X, Y)
