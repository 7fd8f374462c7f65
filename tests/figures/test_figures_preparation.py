import math

import numpy as np
import pytest
import synthetic_results as synthetic

from landscape.errors import LandscapeError
from landscape.figures import preparation as prep
from landscape.figures.picture import symlog, symlog_inverse, symlog_ticks
from landscape.figures.style import LANE_LOOKS, SEQUENCE, optimizer_looks


@pytest.mark.parametrize("linear_within", [1.0, 0.01])
def test_symlog_is_odd_continuous_and_undone_by_its_inverse(linear_within):
    values = np.concatenate([-np.geomspace(1e3, 1e-4, 40), [0.0], np.geomspace(1e-4, 1e3, 40)])
    u = symlog(values, linear_within)
    assert np.all(np.diff(u) > 0)
    np.testing.assert_allclose(u, -u[::-1], atol=1e-15)
    np.testing.assert_allclose(symlog_inverse(u, linear_within), values, rtol=1e-12)
    assert math.isclose(float(symlog(linear_within * 1000, linear_within)), 4.0)


def test_symlog_ticks_stay_within_and_few():
    ticks = symlog_ticks(-1e7, 1e9)
    assert 0.0 in ticks
    assert 4 <= len(ticks) <= 9
    assert symlog_ticks(-0.4, 20.0) == [0.0, 1.0, 10.0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_density_integrates_to_one_on_its_own_axis_and_cuts_no_kernel(scale):
    spectrum = synthetic.spectrum("sgd").sel(lane="tail")
    values, weights = spectrum["ritz_value"].values * scale, spectrum["ritz_weight"].values
    grid, density = prep.smooth_density(values, weights, width=0.06)
    assert np.diff(grid).max() <= 0.06 / 3 + 1e-12
    assert grid[0] <= np.nanmin(symlog(values)) - 5 * 0.06
    assert grid[-1] >= np.nanmax(symlog(values)) + 5 * 0.06
    assert math.isclose(np.trapezoid(density, grid), 1.0, abs_tol=1e-6)


def test_density_peaks_where_the_nodes_are_and_weighs_probes_equally():
    values = np.array([[-100.0, 10.0], [-100.0, np.nan]])
    weights = np.array([[0.25, 0.75], [1.0, np.nan]])
    grid, density = prep.smooth_density(values, weights, width=0.05)
    left = np.trapezoid(density[grid < 0], grid[grid < 0])
    assert math.isclose(left, 0.625, abs_tol=1e-6)
    assert abs(grid[np.argmax(density)] - (-3.0)) < 0.02


def test_density_of_nothing_is_refused():
    with pytest.raises(LandscapeError, match="only missing"):
        prep.smooth_density(np.full((1, 3), np.nan), np.full((1, 3), np.nan))


def test_lanes_are_chosen_by_word_by_name_and_head_first():
    data = {"sgd": synthetic.spectrum("sgd").isel(lane=slice(None, None, -1))}
    assert prep.choose_lanes(data, "classes", ())[:2] == ["plane", "car"]
    assert set(prep.choose_lanes(data, "groups", ())) == {"head", "medium", "tail"}
    assert prep.choose_lanes(data, None, ("head", "tail")) == ["head", "tail"]
    assert prep.choose_lanes({"x": data["sgd"].sel(lane=["car", "dog"])}, None, ("head",)) == ["car", "dog"]
    with pytest.raises(LandscapeError, match=r"'trcuk'.*truck"):
        prep.choose_lanes(data, ["trcuk"], ())


def test_scale_card_leaves_out_what_is_not_recorded_and_shows_what_differs():
    first, second = synthetic.spectrum("sgd"), synthetic.spectrum("sam").assign_attrs(seed=1)
    card = prep.scale_card({"a": first, "b": second}, lanes=["head", "tail"])
    assert "seed: 0 / 1" in card
    assert "n: head 980, tail 27" in card
    assert "augmentation" not in card
    assert prep.scale_card({"a": first.assign_attrs(dict.fromkeys(first.attrs, ""))}) == ""


def test_groups_differ_without_colour():
    for attribute in ("dash", "marker", "hatch", "colour"):
        assert len({getattr(look, attribute) for look in LANE_LOOKS.values()}) == len(LANE_LOOKS)
    looks = optimizer_looks([f"o{k}" for k in range(len(SEQUENCE) + 3)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)


@pytest.mark.parametrize(
    ("value", "error", "text"), [(-38.312, 0.0021, "−38.312 ± 0.002"), (5.0, math.nan, "5"), (math.nan, 1.0, "–")]
)
def test_numbers_are_written_for_readers(value, error, text):
    assert prep.with_error(value, error) == text


def test_a_short_logarithmic_range_has_ticks_between_decades():
    assert prep.log_ticks(0.02, 0.5) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert prep.log_ticks(1e-3, 1e4) == pytest.approx([10.0**k for k in range(-3, 5)])
