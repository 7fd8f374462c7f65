"""Intervals over images, directions and trainings: closed forms, scipy's bootstrap, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from torch import nn

import landscape as ls
from landscape.errors import LandscapeError
from landscape.randomness import numpy_stream
from landscape.surface import (
    average_directions,
    cube_lanes,
    difference,
    examples_of,
    image_interval,
    measure_surface,
    over_directions,
    over_seeds,
    paired_bootstrap,
    regroup,
)
from landscape.surface.cube import points_of
from landscape.surface.resampling import TILE_POINTS, image_intervals, resampler_of

COUNTS = (9, 6, 4)
ALPHAS, BETAS = np.array([-0.5, 0.0, 0.25, 1.0]), np.array([0.0, 0.5, 2.0])
GROUPS = {"head": [0], "tail": [1, 2]}


def cube_of(losses, counts=COUNTS, *, groups=GROUPS, **attrs):
    """Return a cube of losses (pair, beta, alpha, example) or, for a line, (alpha, example)."""
    losses = np.asarray(losses)
    dims = ("pair", "beta", "alpha", "example")[-losses.ndim :]
    grid = {"pair": np.arange(losses.shape[0]), "beta": BETAS, "alpha": ALPHAS}
    classes = np.repeat(np.arange(len(counts)), counts)
    return xr.Dataset(
        {"loss": (dims, losses)},
        coords={
            **{dim: grid[dim] for dim in dims[:-1]},
            "example_class": ("example", classes),
            "example_row": ("example", np.arange(len(classes))),
            "example_split": ("example", ["train"] * len(classes)),
        },
        attrs={"class_names": [f"c{c}" for c in range(len(counts))], "groups": groups, "split": "train", **attrs},
    )


def random_cube(seed=0, counts=COUNTS, num_pairs=2, **options):
    draws = numpy_stream(seed, "test/cube").exponential(size=(num_pairs, len(BETAS), len(ALPHAS), sum(counts)))
    return cube_of(draws.astype(np.float32), counts, **options)


def line_of(losses, counts):
    return cube_of(np.stack([0 * losses, 0 * losses, losses, 2 * losses]), counts, groups={})


# ---- closed forms -------------------------------------------------------------------------------------------------


def test_standard_errors_are_those_of_stratified_means():
    cube = random_cube()
    found = paired_bootstrap(cube, num_resamples=100)
    losses, classes = cube.loss.values.astype(np.float64), cube.example_class.values
    rises = losses - losses[:, :1, 1:2]
    per_class = np.stack([rises[..., classes == c].var(-1, ddof=1) / n for c, n in enumerate(COUNTS)], -1)
    weights = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(found.increase_stderr.sel(lane="c1"), np.sqrt(per_class[..., 1]), rtol=1e-12)
    np.testing.assert_allclose(found.increase_stderr.sel(lane="all"), np.sqrt(per_class @ weights**2), rtol=1e-12)
    np.testing.assert_allclose(found.increase.sel(lane="all"), rises.mean(-1), rtol=1e-10, atol=1e-15)
    assert found.increase.dims == ("pair", "beta", "alpha", "lane")
    assert found.num_examples.sel(lane="tail").item() == 10


def test_the_weights_have_no_increase_and_no_error():
    found = paired_bootstrap(random_cube(), num_resamples=100).sel(alpha=0.0, beta=0.0)
    for name in ("increase", "increase_low", "increase_high", "increase_stderr"):
        assert (found[name].values == 0).all()


@pytest.mark.parametrize("method", ["studentised", "percentile", "basic", "bca"])
def test_a_constant_shift_of_every_image_has_an_interval_of_no_width(method):
    start = np.round(numpy_stream(0, "test/shift").exponential(size=sum(COUNTS)) * 64) / 64
    cube = cube_of(start + np.array([0.25, 0.0, 0.5, 4.0])[:, None])
    found = paired_bootstrap(cube, method=method, num_resamples=100)
    np.testing.assert_allclose(found.increase_low, found.increase, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.increase_high, found.increase, rtol=0, atol=1e-12)
    assert found.increase.sel(lane="all").values.tolist() == [0.25, 0.0, 0.5, 4.0]


def test_two_thousand_images_have_the_normal_interval():
    losses = numpy_stream(0, "test/many").normal(size=2000)
    found = paired_bootstrap(line_of(losses, (2000,)), lanes="all", num_resamples=4000).sel(alpha=1.0, lane="all")
    half = 1.96 * found.increase_stderr.item()
    assert found.increase_high.item() == pytest.approx(found.increase.item() + half, abs=0.1 * half)
    assert found.increase_low.item() == pytest.approx(found.increase.item() - half, abs=0.1 * half)


@pytest.mark.parametrize("seed", range(3))
def test_resampled_means_spread_as_their_standard_error_says(seed):
    """Their variance is (n - 1) / n of s^2 / n, to sqrt(2 / R) of itself."""
    losses = numpy_stream(seed, "test/spread").normal(size=30)
    resampler = resampler_of(line_of(losses, (30,)), num_resamples=20_000, seed=seed)
    means = resampler.counts[0].astype(float) @ losses / 30
    expected = losses.var(ddof=1) / 30 * 29 / 30
    assert means.var() == pytest.approx(expected, abs=5 * np.sqrt(2 / 20_000) * expected)
    assert (resampler.counts[0].sum(1) == 30).all()


def test_skewed_images_have_an_interval_that_leans_to_their_tail():
    losses = numpy_stream(0, "test/skew").exponential(size=20)
    found = paired_bootstrap(line_of(losses, (20,)), lanes="all").sel(alpha=0.25, lane="all")
    assert found.increase_high - found.increase > 1.2 * (found.increase - found.increase_low)


def test_it_is_never_narrower_than_students():
    cube = random_cube()
    wide = paired_bootstrap(cube)
    student = image_interval(regroup(cube))
    assert (wide.increase_low <= student.increase_low + 1e-12).all()
    assert (wide.increase_high >= student.increase_high - 1e-12).all()


# ---- a second library ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_the_interval_of_a_class_is_scipys(method):
    cube = random_cube()
    found = paired_bootstrap(cube, method=method, num_resamples=400, seed=5).sel(
        lane="c0", pair=1, beta=2.0, alpha=-0.5
    )
    losses = cube.loss.isel(example=slice(0, 9)).astype(np.float64).sel(pair=1)
    rises = (losses.sel(beta=2.0, alpha=-0.5) - losses.sel(beta=0.0, alpha=0.0)).values
    theirs = scipy.stats.bootstrap(
        (rises,),
        np.mean,
        n_resamples=400,
        method="BCa" if method == "bca" else method,
        rng=numpy_stream(5, "surface/bootstrap/train/class=0"),
    ).confidence_interval
    np.testing.assert_allclose([found.increase_low, found.increase_high], theirs, rtol=1e-10)


def test_the_interval_of_a_whole_is_scipys_with_one_sample_per_class():
    counts, num = (30, 20, 10), 4000
    losses = numpy_stream(3, "test/scipy").exponential(size=60)
    found = paired_bootstrap(line_of(losses, counts), lanes="all", method="percentile", num_resamples=num)
    samples = tuple(np.split(losses, np.cumsum(counts)[:-1]))
    theirs = scipy.stats.bootstrap(
        samples,
        lambda *parts, axis: sum(n * p.mean(axis=axis) for n, p in zip(counts, parts)) / 60,
        n_resamples=num,
        method="percentile",
        rng=numpy_stream(4, "test/scipy"),
    ).confidence_interval
    at = found.sel(alpha=0.25, lane="all")
    np.testing.assert_allclose([at.increase_low, at.increase_high], theirs, atol=0.15 * at.increase_stderr.item())


# ---- randomness and memory ----------------------------------------------------------------------------------------


def test_one_seed_one_result_and_another_seed_another():
    cube = random_cube()
    first, again, other = (paired_bootstrap(cube, num_resamples=100, seed=s) for s in (0, 0, 1))
    xr.testing.assert_identical(first, again)
    assert (first.increase_low.sel(lane="c0", alpha=1.0) != other.increase_low.sel(lane="c0", alpha=1.0)).any()


def test_blocks_of_points_give_the_same_bits(monkeypatch):
    counts, num_points = (70, 5), 3 * TILE_POINTS + 5
    losses = numpy_stream(0, "test/blocks").exponential(size=(num_points, 75)).astype(np.float32)
    cube = cube_of(losses[:4], counts, groups={})
    lanes, resampler = cube_lanes(cube), resampler_of(cube, num_resamples=100)
    asked = []

    def read(points):
        asked.append(points.stop - points.start)
        return losses[points].astype(np.float64)

    whole = image_intervals(read, num_points, lanes, resampler)
    assert asked == [TILE_POINTS] * 3 + [5]
    for start in range(0, num_points, TILE_POINTS):  # each block's first point as if it were all there is
        part = image_intervals(lambda p, s=start: read(slice(p.start + s, p.stop + s)), 1, lanes, resampler)
        np.testing.assert_array_equal(part.low, whole.low[start : start + 1])
        np.testing.assert_array_equal(part.high, whole.high[start : start + 1])
    monkeypatch.setattr("landscape.surface.resampling.TILE_BYTES", 7 * 32 * len(lanes) * 100)
    asked.clear()
    small = image_intervals(read, num_points, lanes, resampler)
    assert max(asked) == 7
    np.testing.assert_allclose(small.low, whole.low, rtol=1e-12)


def test_arguments_stay_as_they_are():
    cube = random_cube()
    before = cube.copy(deep=True)
    paired_bootstrap(cube, num_resamples=50)
    regroup(cube)
    difference(cube, cube, num_resamples=50)
    average_directions(cube)
    xr.testing.assert_identical(cube, before)


# ---- what has no interval -----------------------------------------------------------------------------------------


def test_one_image_has_no_interval_nor_have_the_lanes_it_is_in():
    cube = random_cube(counts=(9, 6, 1))
    found = paired_bootstrap(cube, num_resamples=100).sel(alpha=1.0, beta=0.5, pair=0)
    for lane in ("c2", "tail", "all"):
        assert np.isfinite(found.increase.sel(lane=lane))
        for name in ("increase_low", "increase_high", "increase_stderr"):
            assert np.isnan(found[name].sel(lane=lane))
        assert "one image of class c2" in found.interval_note.sel(lane=lane).item()
    assert found.increase_high.sel(lane="c1") > found.increase.sel(lane="c1")
    assert found.interval_note.sel(lane="head").item() == ""


def test_a_point_with_a_loss_that_is_no_number_leaves_the_others_alone():
    cube = random_cube()
    broken = cube.copy(deep=True)
    broken.loss[0, 1, 2, 3], broken.loss[1, 0, 0, 3] = np.nan, np.inf  # of class c0
    whole, found = (paired_bootstrap(c, num_resamples=100) for c in (cube, broken))
    for lane in ("c0", "head", "all"):
        assert np.isnan(found.increase_low.sel(lane=lane).values[0, 1, 2])
        assert np.isnan(found.increase_low.sel(lane=lane).values[1, 0, 0])
        assert np.isnan(found.increase_low.sel(lane=lane)).sum() == 2
    assert np.isposinf(found.increase.sel(lane="c0").values[1, 0, 0])
    xr.testing.assert_identical(whole.increase_low.sel(lane="c1"), found.increase_low.sel(lane="c1"))


def test_a_single_class_of_one_image_alone():
    found = paired_bootstrap(line_of(np.array([1.0]), (1,)), lanes="all")
    assert found.increase.sel(alpha=1.0).item() == 2.0
    assert np.isnan(found.increase_low).all()


# ---- reference ----------------------------------------------------------------------------------------------------


def test_an_increase_counts_from_any_point_of_the_grid_or_from_given_losses():
    cube = random_cube()
    corner = paired_bootstrap(cube, reference={"alpha": 1.0, "beta": 0.5}, num_resamples=50)
    assert (corner.increase_stderr.sel(alpha=1.0, beta=0.5) == 0).all()
    assert (corner.increase_stderr.sel(alpha=0.0, beta=0.0) > 0).all()
    off = cube.isel(alpha=[0, 2, 3])
    with pytest.raises(LandscapeError, match="does not hold the weights"):
        paired_bootstrap(off)
    centre = cube.loss.sel(alpha=0.0, beta=0.0)
    given = paired_bootstrap(off, reference=centre, num_resamples=50)
    on = paired_bootstrap(cube, num_resamples=50).isel(alpha=[0, 2, 3])
    np.testing.assert_allclose(given.increase_low, on.increase_low, rtol=1e-12)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"alpha": 0.3}, "does not hold the point"),
        ({"gamma": 0.0}, "gamma"),
        ("center", "did you mean 'centre'"),
        (xr.DataArray(np.zeros(3), dims="example"), "expected values of size"),
    ],
)
def test_a_reference_that_is_none_is_refused(reference, message):
    with pytest.raises(LandscapeError, match=message):
        paired_bootstrap(random_cube(), reference=reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, "level: expected a probability"),
        ({"num_resamples": 39}, "at least 40"),
        ({"method": "bcaa"}, "did you mean 'bca'"),
        ({"lanes": "tale"}, "did you mean 'tail'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(LandscapeError, match=message):
        paired_bootstrap(random_cube(), **options)


# ---- regrouping ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.first) @ self.second


def network_risk(groups=GROUPS):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sum(COUNTS), 4, generator=generator, dtype=torch.float64)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    return ls.ModelRisk(Net(), (images, labels), groups=groups)


@pytest.fixture(scope="module")
def walked():
    """Return a risk, its direction and the cube along it, in float64."""
    risk = network_risk()
    generator = torch.Generator().manual_seed(2)
    axes = [torch.randn(risk.theta.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    losses = np.empty((1, len(BETAS), len(ALPHAS), sum(COUNTS)))
    for i, beta in enumerate(BETAS):
        for j, alpha in enumerate(ALPHAS):
            point = risk.theta + alpha * axes[0] + beta * axes[1]
            losses[0, i, j] = torch.cat([risk.per_example(point, rows) for rows in risk.row_chunks()]).detach()
    cube = cube_of(losses)
    return axes, cube.assign_attrs(class_names=["0", "1", "2"])


@pytest.mark.parametrize("average", ["examples", "classes"])
@pytest.mark.parametrize("groups", [GROUPS, {"odd": [1], "even": [0, 2]}])
def test_regrouping_gives_what_a_measurement_with_these_lanes_gives(walked, average, groups):
    axes, cube = walked
    measured = measure_surface(
        network_risk(groups), kind="plane", directions=axes, x=ALPHAS, y=BETAS, group_average=average
    )
    found = regroup(cube, groups=groups, group_average=average)
    assert found.loss.dims == measured.loss.dims
    np.testing.assert_allclose(found.loss, measured.loss, rtol=1e-12, atol=1e-13)
    for name in ("lane", "lane_kind", "lane_group", "alpha", "beta", "num_examples", "done"):
        assert (found[name].values == measured[name].values).all()
    xr.testing.assert_allclose(
        found.increase_stderr,
        paired_bootstrap(
            cube, lanes=cube_lanes(cube, groups=groups, group_average=average), num_resamples=50
        ).increase_stderr,
        rtol=1e-12,
    )


def test_regrouping_survives_a_file(tmp_path):
    cube = random_cube()
    ls.save_results({"surface_examples": cube}, tmp_path / "cube.nc")
    stored = ls.load_results(tmp_path / "cube.nc")["surface_examples"].to_dataset()
    xr.testing.assert_equal(regroup(stored), regroup(cube))
    xr.testing.assert_equal(paired_bootstrap(stored, num_resamples=50), paired_bootstrap(cube, num_resamples=50))


def test_right_and_wrong_images_make_up_their_class():
    cube = random_cube()
    right = np.arange(sum(COUNTS)) % 3 > 0
    parts = [regroup(examples_of(cube, mask=mask)) for mask in (right, ~right)]
    whole = regroup(cube)
    pooled = sum(p.loss.sel(lane="c0") * p.num_examples.sel(lane="c0") for p in parts) / COUNTS[0]
    np.testing.assert_allclose(pooled, whole.loss.sel(lane="c0"), rtol=1e-12)
    only = regroup(examples_of(cube, mask=cube.example_class == 1))
    assert only.lane.values.tolist() == ["c1", "tail", "all"]


def test_two_splits_become_held_out_variables():
    one = random_cube()
    both = one.assign_coords(example_split=("example", np.where(np.arange(19) % 2, "test", "train")))
    found = regroup(both.assign(recalibrated_loss=2 * both.loss))
    train, test = (regroup(examples_of(both, split=s)) for s in ("train", "test"))
    xr.testing.assert_equal(found.loss, train.loss)
    xr.testing.assert_equal(found.held_out_loss, test.loss.rename("held_out_loss"))
    np.testing.assert_allclose(found.recalibrated_held_out_loss, 2 * test.loss)
    np.testing.assert_allclose(found.recalibrated_held_out_increase_stderr, 2 * test.increase_stderr)
    assert found.held_out_num_examples.sel(lane="all").item() == 9
    with pytest.raises(LandscapeError, match="train, test"):
        paired_bootstrap(both)
    with pytest.raises(LandscapeError, match="losses of one split"):
        regroup(both, reference=both.loss.isel(alpha=0, beta=0))


def test_losses_given_as_the_reference_belong_to_loss_alone():
    cube = random_cube()
    cube = cube.assign(recalibrated_loss=2 * cube.loss)
    found = regroup(cube, reference=cube.loss.sel(alpha=0.0, beta=0.0))
    np.testing.assert_allclose(found.increase_stderr, regroup(cube).increase_stderr)
    assert "recalibrated_increase_stderr" in regroup(cube)
    assert "recalibrated_increase_stderr" not in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split of the cube 'tset'"),
        ({"mask": [True]}, "expected 19 booleans"),
        ({"mask": np.zeros(19, dtype=bool)}, "no example"),
        ({"variable": "los"}, "did you mean 'loss'"),
    ],
)
def test_a_choice_of_examples_that_is_none_is_refused(options, message):
    with pytest.raises(LandscapeError, match=message):
        examples_of(random_cube(), **options)


def test_another_value_of_the_examples_takes_the_place_of_the_loss():
    cube = random_cube()
    found = paired_bootstrap(examples_of(cube.assign(own_loss=3 * cube.loss), variable="own_loss"), num_resamples=50)
    np.testing.assert_allclose(
        found.increase, 3 * paired_bootstrap(cube, num_resamples=50).increase, rtol=1e-5, atol=1e-6
    )


def test_a_surface_is_no_cube():
    with pytest.raises(LandscapeError, match="expected a cube"):
        paired_bootstrap(regroup(random_cube()))


# ---- stored standard errors ---------------------------------------------------------------------------------------


def test_stored_errors_give_students_interval_with_welchs_degrees():
    cube = random_cube(num_pairs=1)
    found = image_interval(regroup(cube, group_average="classes")).sel(alpha=1.0, beta=2.0, pair=0)
    classes = cube.example_class.values
    rises = (cube.loss.sel(alpha=1.0, beta=2.0) - cube.loss.sel(alpha=0.0, beta=0.0)).values[0].astype(np.float64)
    a, b = rises[classes == 1], rises[classes == 2]
    # Half the sum of two means: Welch's two-sample interval of a and -b, halved.
    theirs = scipy.stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    at = found.sel(lane="tail")
    np.testing.assert_allclose([at.increase_low, at.increase_high], [theirs.low / 2, theirs.high / 2], rtol=1e-6)
    assert found.increase_degrees.sel(lane="c1").item() == COUNTS[1] - 1
    one = scipy.stats.t.interval(0.95, COUNTS[0] - 1, rises[classes == 0].mean(), scipy.stats.sem(rises[classes == 0]))
    np.testing.assert_allclose(found.increase_low.sel(lane="c0"), one[0], rtol=1e-5)


def test_a_group_without_its_classes_has_a_normal_interval_and_says_so():
    surface = regroup(random_cube(), "groups")
    found = image_interval(surface)
    assert np.isinf(found.increase_degrees.sel(lane="tail")).all()
    assert "normal" in found.interval_note.sel(lane="tail").item()
    half = 1.959964 * found.increase_stderr
    np.testing.assert_allclose(found.increase_high - found.increase, half, rtol=1e-6)
    with pytest.raises(LandscapeError, match="no 'increase_stderr'"):
        image_interval(surface.drop_vars("increase_stderr"))


# ---- directions and trainings -------------------------------------------------------------------------------------


def test_directions_are_summarised_by_their_mean_error_and_band():
    surface = regroup(random_cube(num_pairs=7))
    found = over_directions(surface, band=(0.25, 0.75))
    losses = surface.loss.values
    np.testing.assert_allclose(found.loss, losses.mean(0))
    np.testing.assert_allclose(found.loss_direction_stderr, scipy.stats.sem(losses, axis=0))
    np.testing.assert_allclose(found.loss_direction_median, np.median(losses, axis=0))
    np.testing.assert_allclose(found.loss_direction_low, np.quantile(losses, 0.25, axis=0))
    np.testing.assert_allclose(found.increase, (losses - losses[:, :1, 1:2]).mean(0))
    assert "pair" not in found.dims
    for end, quantile in (("low", 0.1), ("high", 0.9)):  # four of five directions
        np.testing.assert_allclose(
            over_directions(surface)[f"loss_direction_{end}"], np.quantile(losses, quantile, axis=0)
        )
    single = over_directions(surface.isel(pair=[0]))
    assert np.isnan(single.loss_direction_stderr).all()
    with pytest.raises(LandscapeError, match="no direction pairs"):
        over_directions(surface.isel(pair=0, drop=True))
    with pytest.raises(LandscapeError, match="two increasing quantiles"):
        over_directions(surface, band=(0.9, 0.1))


def test_the_error_of_the_mean_over_directions_is_at_most_what_the_surface_says():
    cube = random_cube(num_pairs=5)
    exact = paired_bootstrap(average_directions(cube), num_resamples=50)
    bound = over_directions(regroup(cube))
    np.testing.assert_allclose(exact.increase.isel(pair=0), bound.increase, rtol=1e-10, atol=1e-14)
    assert (exact.increase_stderr.isel(pair=0) <= bound.increase_image_stderr + 1e-12).all()
    assert (exact.increase_stderr < 0.8 * bound.increase_image_stderr).any()


def test_trainings_are_pooled_with_the_three_errors_side_by_side():
    surfaces = {f"seed {s}": regroup(random_cube(s, num_pairs=3)) for s in range(4)}
    found = over_seeds(surfaces)
    means = np.stack([s.loss.values.mean(0) for s in surfaces.values()])
    np.testing.assert_allclose(found.loss, means.mean(0))
    np.testing.assert_allclose(found.loss_seed_sd, means.std(0, ddof=1))
    low, high = scipy.stats.t.interval(0.95, 3, means.mean(0), scipy.stats.sem(means, axis=0))
    np.testing.assert_allclose(found.loss_seed_low, low)
    np.testing.assert_allclose(found.loss_seed_high, high)
    errors = np.stack([over_directions(s).increase_direction_stderr.values for s in surfaces.values()])
    np.testing.assert_allclose(found.increase_direction_stderr, np.sqrt((errors**2).mean(0)))
    images = np.stack([s.increase_stderr.values.mean(0) for s in surfaces.values()])
    np.testing.assert_allclose(found.increase_image_stderr, np.sqrt((images**2).mean(0)))


def test_trainings_that_do_not_fit_are_refused():
    one = regroup(random_cube())
    with pytest.raises(LandscapeError, match="at least two trainings, got 1"):
        over_seeds({"a": one})
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(LandscapeError, match=f"level: expected a probability between 0 and 1, got {level}"):
            over_seeds({"a": one, "b": one}, level=level)
    with pytest.raises(LandscapeError, match="a and b differ in alpha"):
        over_seeds({"a": one, "b": one.assign_coords(alpha=ALPHAS + 1)})
    with pytest.raises(LandscapeError, match="a and b differ in lane"):
        over_seeds({"a": one, "b": one.isel(lane=[0, 1])})
    with pytest.raises(LandscapeError, match="differ in what was measured"):
        over_seeds({"a": one, "b": one.assign(error=one.loss)})
    with pytest.raises(LandscapeError, match="differ in beta"):
        over_seeds({"a": one, "b": one.isel(beta=0, drop=True)})


# ---- differences --------------------------------------------------------------------------------------------------


def test_what_two_checkpoints_share_drops_out_of_their_difference():
    common = np.round(random_cube(0).loss.values * 1024) / 1024
    own = np.array([0.5, 0.0, 0.25, 2.0])[:, None] * np.ones(sum(COUNTS))
    found = difference(cube_of(common + own), cube_of(common), num_resamples=100)
    np.testing.assert_allclose(
        found.loss_difference.sel(lane="c2", beta=2.0, pair=1), [0.5, 0.0, 0.25, 2.0], atol=1e-12
    )
    for name in ("loss_difference", "increase_difference"):
        np.testing.assert_allclose(found[f"{name}_high"], found[f"{name}_low"], atol=1e-12)


def test_a_difference_is_the_bootstrap_of_the_images_differences():
    a, b = random_cube(0), random_cube(1)
    found = difference(a, b, num_resamples=200, seed=3)
    losses = a.loss.astype(np.float64) - b.loss.astype(np.float64)
    both = paired_bootstrap(a.assign(loss=losses), num_resamples=200, seed=3)
    np.testing.assert_allclose(found.increase_difference, both.increase, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.increase_difference_low, both.increase_low, rtol=1e-10, atol=1e-14)
    nothing = paired_bootstrap(
        a.assign(loss=losses), num_resamples=200, seed=3, reference=0 * losses.isel(alpha=0, beta=0)
    )
    np.testing.assert_allclose(found.loss_difference_high, nothing.increase_high, rtol=1e-10)
    back = difference(b, a, num_resamples=200, seed=3)
    np.testing.assert_allclose(back.loss_difference, -found.loss_difference, rtol=1e-12)
    np.testing.assert_allclose(back.loss_difference_high, -found.loss_difference_low, rtol=1e-10)


def test_shared_directions_are_summarised_as_differences():
    shared = 10 * numpy_stream(0, "test/pairs").normal(size=(6, 1, 1, 1))
    a, b = random_cube(0, num_pairs=6), random_cube(1, num_pairs=6)
    found = over_directions(
        difference(a.assign(loss=a.loss + shared), b.assign(loss=b.loss + shared), num_resamples=50)
    )
    plain = over_directions(regroup(a.assign(loss=a.loss + shared)))
    assert (found.loss_difference_direction_stderr < 0.5 * plain.loss_direction_stderr).all()


def test_without_examples_a_difference_has_a_bound_and_no_interval():
    a, b = random_cube(0), random_cube(1)
    found, paired = difference(regroup(a), regroup(b)), difference(a, b, num_resamples=50)
    np.testing.assert_allclose(found.loss_difference, paired.loss_difference, rtol=1e-10)
    assert np.isnan(found.loss_difference_low).all()
    assert (paired.increase_difference_stderr <= found.increase_difference_stderr_bound + 1e-12).all()
    assert "no interval" in found.interval_note.sel(lane="all").item()
    assert "unpaired" in found.attrs["interval"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.assign_coords(example_row=c.example_row + 1), "example_row differs, 19 of 19"),
        (lambda c: c.assign_coords(example_split=("example", ["test"] * 19)), "example_split differs"),
        (lambda c: c.isel(example=slice(1, None)), "19 against 18 examples"),
        (lambda c: c.drop_vars("example_row"), "only one of the two cubes has 'example_row'"),
        (lambda c: c.assign_coords(alpha=ALPHAS * 2), "differ in alpha"),
        (lambda c: c.isel(beta=0, drop=True), "differ in beta"),
        (lambda c: c.isel(pair=[0]), "same direction pairs, got 2 and 1"),
        (lambda c: c.assign_attrs(normalization="layer"), "differ in normalization: 'filter' against 'layer'"),
        (lambda c: c.assign_attrs(batchnorm="recalibrated"), "differ in batchnorm"),
        (lambda c: c.assign_attrs(seed=1), "differ in seed: '0' against '1'"),
        (regroup, "one of each"),
    ],
)
def test_a_difference_of_what_cannot_be_compared_is_refused(change, message):
    cube = random_cube(normalization="filter", batchnorm="frozen").assign_attrs(seed=0)
    with pytest.raises(LandscapeError, match=message):
        difference(cube, change(cube), num_resamples=50)


# ---- how often it holds -------------------------------------------------------------------------------------------


def test_intervals_hold_the_mean_of_a_skewed_population_nine_times_of_ten():
    """200 samples of 20 images whose losses are exponential; 0.95 - 5 sqrt(0.95 x 0.05 / 200) = 0.87."""
    hits = {"studentised": 0, "percentile": 0}
    for trial in range(200):
        cube = line_of(numpy_stream(trial, "test/coverage").exponential(size=20), (20,)).isel(alpha=[1, 2])
        lanes, resampler = cube_lanes(cube, "all"), resampler_of(cube, num_resamples=200, seed=trial)
        for method in hits:
            losses = points_of(cube.loss)
            found = image_intervals(lambda p, x=losses: x[p], 2, lanes, replace(resampler, method=method))
            hits[method] += bool(found.low[1, 0] <= 1.0 <= found.high[1, 0])
    assert hits["studentised"] >= 0.92 * 200
    assert hits["studentised"] > hits["percentile"]
