"""Surfaces as drawn: the dataset's numbers at their coordinates, and every band, map and stroke when its data are there."""

from __future__ import annotations

import itertools
import json

import numpy as np
import plotly.graph_objects as go
import pytest
import synthetic_results as synthetic
import xarray as xr

from landscape import figures
from landscape.errors import LandscapeError
from landscape.figures import quantities
from landscape.figures.picture import symlog
from landscape.results import load_results, save_results

ALPHA, BETA = np.array([-1.0, -0.25, 0.0, 0.5, 2.0, 2.5]), np.array([-0.5, 0.0, 3.0])  # K_x != K_y, asymmetric


def f(a, b):
    """Told apart from itself under every exchange or reflection of the axes."""
    return a**2 + 10 * b + a * b + b**3


def plane(**more):
    """Two lanes, two pairs; errors, error, margin and views that can all be told apart."""
    loss = np.stack([f(ALPHA[None, :], BETA[:, None]) + 20.0 + pair for pair in (0.0, 2.0)])[..., None] * [1.0, 1.5]
    dims = ("pair", "beta", "alpha", "lane")
    names = {"increase_stderr": 0.01, "error": 0.005, "margin": -1.0, "recalibrated_loss": 0.5, "held_out_loss": 2.0}
    variables = {"loss": (dims, loss), **{name: (dims, loss * factor) for name, factor in names.items()}}
    variables |= {"recalibrated_increase_stderr": (dims, loss * 0.02), "recalibrated_held_out_loss": (dims, loss * 3.0)}
    variables["done"] = (dims[:3], np.ones(loss.shape[:3], dtype=bool))
    coordinates = {"pair": [0, 1], "beta": BETA, "alpha": ALPHA, "lane": ["head", "tail"]}
    return xr.Dataset(variables, coordinates, {"objective": "ce", "split": "train", **more})


def line(**more):
    return plane(**more).sel(beta=0.0, drop=True)


def contours(figure):
    return [trace for trace in figure.data if isinstance(trace, go.Contour)]


def numbers(trace):
    return np.asarray(trace.customdata if trace.customdata is not None else trace.z, dtype=float)


def note_of(figure):
    if isinstance(figure, go.Figure):
        return " ".join(a.text for a in figure.layout.annotations).replace("<br>", " ")
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def bands(figure):
    """Return {fill, outline, hatch: number of bands with data} of a plotly figure."""
    found = dict.fromkeys(("fill", "outline", "hatch"), 0)
    for trace in figure.data:
        if trace.x is None or not len(trace.x) or not np.isfinite(np.asarray(trace.x, dtype=float)).any():
            continue
        if trace.fillpattern.shape:
            found["hatch"] += 1
        elif trace.fill == "toself":
            found["fill"] += 1
        elif trace.line.dash == "3px,1px":
            found["outline"] += 1
    return found


def drawn_collections(figure):
    """The same of a matplotlib figure."""
    found = dict.fromkeys(("fill", "outline", "hatch"), 0)
    for axis in figure.axes:
        for area in axis.collections:
            paths = area.get_paths() if "PolyCollection" in type(area).__name__ else []
            if not len(paths):  # another kind, or an entry of the legend
                continue
            style = "hatch" if area.get_hatch() else "outline" if not len(area.get_facecolor()) else "fill"
            found[style] += 1
    return found


# ---- orientation --------------------------------------------------------------------------------------------------


def test_an_asymmetric_surface_keeps_its_axes_through_computing_saving_loading_and_drawing(tmp_path):
    import torch

    from landscape import AnalyticRisk, measure_surface

    risk = AnalyticRisk(lambda t: f(t[0], t[1])[None] + 20.0, torch.zeros(2, dtype=torch.float64))
    axes = list(torch.eye(2, dtype=torch.float64))
    result = measure_surface(risk, "all", kind="plane", directions=axes, x=ALPHA, y=BETA)
    loaded = load_results(save_results({"surface": result}, tmp_path / "r.nc"))["surface"].to_dataset()
    expected = {(a, b): f(a, b) + 20.0 for a, b in itertools.product(ALPHA, BETA)}
    (trace,) = contours(figures.plot_contours(loaded, backend="plotly"))
    seen = {(a, b): numbers(trace)[i, j] for i, b in enumerate(trace.y) for j, a in enumerate(trace.x)}
    for (a, b), value in expected.items():
        assert seen[np.float32(a), np.float32(b)] == pytest.approx(value, rel=1e-6)
    corners = np.concatenate(figures.plot_surface_3d(loaded).axes[0].collections[0]._faces).reshape(-1, 3)
    np.testing.assert_allclose(corners[:, 2], f(corners[:, 0], corners[:, 1]) + 20.0, rtol=1e-6)
    assert len(corners) == 4 * 2 * 5


# ---- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (line(), {"fill": 2, "outline": 2, "hatch": 0}),
        (line().isel(pair=[0]), {"fill": 0, "outline": 2, "hatch": 0}),
        (line().drop_vars("increase_stderr"), {"fill": 2, "outline": 0, "hatch": 0}),
        ([line(), line() + 1.0], {"fill": 2, "outline": 2, "hatch": 2}),
        (line().isel(pair=[0]).drop_vars("increase_stderr"), {"fill": 0, "outline": 0, "hatch": 0}),
    ],
)
def test_a_band_is_there_when_and_only_when_its_numbers_are(data, expected, backend):
    figure = figures.plot_lines(data, lanes=["head", "tail"], backend=backend)
    assert (bands(figure) if backend == "plotly" else drawn_collections(figure)) == expected
    note = note_of(figure)
    assert ("light band" in note) == bool(expected["fill"])
    assert ("standard error over images" in note) == bool(expected["outline"])
    assert ("training seeds" in note) == bool(expected["hatch"])


def test_bands_hold_the_spread_over_directions_images_and_seeds():
    seeds = [line(), line() * 1.0]
    seeds[1]["loss"] = seeds[1]["loss"] + 4.0
    figure = figures.plot_lines(seeds, lanes=["tail"], backend="plotly")
    values = np.stack([d["loss"].sel(lane="tail").values for d in seeds])  # (seed, pair, alpha)
    middle = np.median(values, 1).mean(0)
    (curve,) = (t for t in figure.data if t.mode == "lines" and t.line.dash != "3px,1px")
    np.testing.assert_allclose(curve.y, middle, rtol=1e-6)
    areas = [t for t in figure.data if t.x is not None and len(t.x) == 2 * len(ALPHA)]
    directions, over_seeds, images = areas
    half = len(ALPHA)
    over = values.mean(0)
    np.testing.assert_allclose(directions.y[:half], over.max(0), rtol=1e-6)
    np.testing.assert_allclose(directions.y[half:][::-1], over.min(0), rtol=1e-6)
    np.testing.assert_allclose(over_seeds.y[:half], np.median(values, 1).max(0), rtol=1e-6)
    stderr = np.mean([d["increase_stderr"].sel(lane="tail").values for d in seeds], axis=(0, 1))
    np.testing.assert_allclose(images.y[:half], middle + stderr, rtol=1e-6)
    np.testing.assert_allclose(images.x[:half], ALPHA)


def test_relative_lines_start_from_zero_and_need_the_weights():
    figure = figures.plot_lines(line(), lanes=["head"], relative=True)
    curve = next(c for c in figure.axes[0].lines if len(c.get_xdata()) == len(ALPHA))
    at = dict(zip(curve.get_xdata(), curve.get_ydata()))
    assert at[0.0] == 0.0
    assert at[2.5] == pytest.approx(6.25)
    with pytest.raises(LandscapeError, match="expected the weights 0 among"):
        figures.plot_lines(line().isel(alpha=[0, 1, 3]), relative=True)


def test_many_lanes_have_a_panel_each_and_their_bands():
    figure = figures.plot_lines(synthetic.with_views(synthetic.surface_line("sgd")), lanes="classes", backend="plotly")
    assert bands(figure) == {"fill": 10, "outline": 10, "hatch": 0}
    titles = note_of(figure)
    assert "plane (n=500)" in titles
    assert "truck (n=5)" in titles


def test_seeds_on_different_grids_are_refused():
    with pytest.raises(LandscapeError, match=r"training seeds of 'sam' on one grid.*\[6, 5\] points"):
        figures.plot_lines({"sam": [line(), line().isel(alpha=slice(0, 5))]})


# ---- errors beside planes -----------------------------------------------------------------------------------------


def test_error_maps_stand_beside_each_lane_with_the_dataset_s_numbers_and_scales_of_their_own():
    data = plane()
    figure = figures.plot_contours(data, lanes=["head", "tail"], errors=True, backend="plotly")
    found = contours(figure)
    assert [trace.coloraxis for trace in found] == ["coloraxis", "coloraxis2", "coloraxis3"] * 2
    spread = data["loss"].std("pair", ddof=1)
    for k, lane in enumerate(["head", "tail"]):
        for trace, values in zip(found[3 * k :], (data["loss"][0], data["increase_stderr"][0], spread)):
            np.testing.assert_allclose(numbers(trace), values.sel(lane=lane), rtol=1e-6)
            np.testing.assert_allclose(trace.y, BETA, rtol=1e-6)
    drawn = figures.plot_contours(data, lanes=["head"], errors=True)
    maps = [next(c for c in axis.collections if getattr(c, "filled", False)).cmap.name for axis in drawn.axes[:3]]
    assert maps == ["viridis", "magma", "cividis"]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (plane().isel(pair=[0]), 2),
        (plane().drop_vars("increase_stderr"), 2),
        (plane().isel(pair=[0]).drop_vars("increase_stderr"), 1),
    ],
)
def test_error_maps_are_left_out_where_nothing_was_measured(data, count):
    figure = figures.plot_contours(data, lanes=["head"], errors=True, backend="plotly")
    assert len(contours(figure)) == count
    assert ("No errors were recorded" in note_of(figure)) == (count == 1)


def test_a_plane_without_maps_still_says_its_largest_error():
    figure = figures.plot_contours(plane(), lanes=["tail"])
    assert f"at most {figures.spectra.prep.short(float(plane()['increase_stderr'].sel(lane='tail').max()))}" in note_of(
        figure
    )


# ---- views --------------------------------------------------------------------------------------------------------


def test_views_have_plain_names_and_their_own_errors_and_counts():
    data = plane().assign(num_examples=("lane", [30, 3]), held_out_num_examples=("lane", [50, 50]))
    found = figures.views(data)
    assert list(found) == ["frozen, train", "frozen, held-out", "recalibrated, train", "recalibrated, held-out"]
    for (name, view), factor in zip(found.items(), (1.0, 2.0, 0.5, 3.0)):
        np.testing.assert_array_equal(view["loss"], data["loss"] * factor, err_msg=name)
        assert view["num_examples"].values.tolist() == ([50, 50] if "held-out" in name else [30, 3])
    np.testing.assert_array_equal(found["recalibrated, train"]["increase_stderr"], data["loss"] * 0.02)
    assert "increase_stderr" not in found["frozen, held-out"]
    assert found["recalibrated, train"].attrs["batchnorm"].startswith("recalibrated")
    uncounted = figures.views(data.drop_vars("held_out_num_examples"))["frozen, held-out"]
    assert "num_examples" not in uncounted
    assert list(figures.views(data[["loss", "done"]])) == [""]


@pytest.mark.parametrize(("plot", "factor"), [(figures.plot_batchnorm, 0.5), (figures.plot_splits, 2.0)])
def test_both_views_stand_side_by_side_on_one_scale(plot, factor):
    data = plane()
    left, right, *_ = contours(plot(data, lanes=["tail"], backend="plotly"))
    np.testing.assert_allclose(numbers(left), data["loss"][0].sel(lane="tail"), rtol=1e-6)
    np.testing.assert_allclose(numbers(right), data["loss"][0].sel(lane="tail") * factor, rtol=1e-6)
    assert left.coloraxis == right.coloraxis == "coloraxis"
    drawn = plot(line(), lanes=["head", "tail"])
    one, two = drawn.axes[:2]
    assert one.get_ylim() == two.get_ylim()
    curves = [next(c for c in axis.lines if len(c.get_xdata()) == len(ALPHA)).get_ydata() for axis in (one, two)]
    np.testing.assert_allclose(curves[1], curves[0] * factor)


def test_a_surface_with_one_policy_is_refused():
    with pytest.raises(LandscapeError, match=r"'recalibrated_loss'.*batchnorm 'both'"):
        figures.plot_batchnorm(synthetic.surface("sgd"))
    with pytest.raises(LandscapeError, match=r"'held_out_loss'.*held-out split"):
        figures.plot_splits(synthetic.surface_line("sgd"))


# ---- error and margin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "label"),
    [
        ("loss", "cross-entropy, nats per example"),
        ("error", "error, share of examples"),
        ("margin", "margin of the logits, true class minus best other"),
        ("held_out_loss", "cross-entropy (held-out), nats per example"),
    ],
)
def test_every_figure_of_a_surface_draws_and_names_each_variable(variable, label):
    figure = figures.plot_contours(plane(), variable=variable, lanes=["head"], backend="plotly")
    np.testing.assert_allclose(numbers(contours(figure)[0]), plane()[variable][0, :, :, 0], rtol=1e-6)
    assert figure.layout.coloraxis.colorbar.title.text.replace("<br>", " ") == label
    drawn = figures.plot_lines(line(), variable=variable, lanes=["head"])
    assert drawn.axes[0].get_ylabel().replace("\n", " ").removesuffix(" (log scale)") == label
    figures.plot_surface_3d(plane(), variable=variable, lanes=["head"])


def test_what_the_loss_is_called_follows_the_objective():
    toy = line(objective="analytic")
    assert quantities.meaning(toy, "loss") == "loss, nats per example"
    trained = line(objective="ldam").assign(own_loss=line()["loss"])
    assert quantities.meaning(trained, "own_loss") == "training loss (ldam), per example"
    assert quantities.meaning(trained, "loss") == "cross-entropy, nats per example"


# ---- differences --------------------------------------------------------------------------------------------------


def difference(half=5.0):
    value = plane()["loss"] - 25.0
    data = plane()[["done"]].assign(loss_difference=value)
    if half is not None:
        data = data.assign(loss_difference_low=value - half, loss_difference_high=value + half)
    return data.assign_attrs(first="SGD", second="SAM", level=0.9, objective="ce")


def strokes(figure):
    traces = [t for t in figure.data if isinstance(t, go.Scatter) and t.marker.symbol == "line-ne"]
    return {(round(float(x), 6), round(float(y), 6)) for t in traces for x, y in zip(t.x, t.y)}


def test_a_difference_is_drawn_around_zero_with_strokes_where_its_interval_contains_zero():
    data = difference()
    figure = figures.plot_difference(data, lanes=["head"], backend="plotly")
    heat = next(t for t in figure.data if isinstance(t, go.Heatmap))
    expected = data["loss_difference"].sel(pair=0, lane="head").values
    within = float(10.0 ** np.floor(np.log10(np.quantile(np.abs(expected), 0.25))))
    np.testing.assert_allclose(heat.z, symlog(expected, within), rtol=1e-6)
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    open_cells = {(a, b) for a in ALPHA for b in BETA if abs(f(a, b) - 5.0) <= 5.0}
    assert strokes(figure) == open_cells
    assert 0 < len(open_cells) < len(ALPHA) * len(BETA)
    assert "SGD minus SAM" in figure.layout.title.text
    assert f"{len(open_cells)} of 18 cells: the 90 % interval contains 0" in note_of(figure)
    drawn = figures.plot_difference(data, lanes=["head"])
    mesh = next(c for c in drawn.axes[0].collections if type(c).__name__ == "QuadMesh")
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 6), expected)


@pytest.mark.parametrize("pair", [None, 1])
def test_a_difference_says_which_pair_of_directions_is_drawn(pair):
    """Two pairs that differ: the drawn one is named, and its values are those of that pair."""
    one = difference().isel(beta=0, drop=True).isel(pair=[0])
    other = one.assign(loss_difference=one["loss_difference"] + 3.0)
    both = xr.concat([one, other.assign_coords(pair=[1])], "pair")
    figure = figures.plot_difference(both, lanes=["head"], pair=pair, backend="plotly")
    assert f"Direction pair {pair or 0} of 2" in note_of(figure)
    drawn = [t for t in figure.data if t.mode == "lines" and len(t.x) == len(ALPHA)]
    expected = both["loss_difference"].sel(pair=pair or 0, lane="head").values
    assert any(np.allclose(t.y, expected) for t in drawn)
    assert "Direction pair" not in note_of(figures.plot_difference(one, lanes=["head"], backend="plotly"))


def test_without_intervals_there_are_no_strokes_and_the_note_says_so():
    figure = figures.plot_difference(difference(None), lanes=["head"], backend="plotly")
    assert strokes(figure) == set()
    assert "No intervals were recorded" in note_of(figure)
    lines = figures.plot_difference(difference(None).sel(beta=0.0, drop=True), backend="plotly")
    assert bands(lines)["fill"] == 0


def test_a_difference_on_a_line_has_its_interval_as_a_band():
    data = difference().sel(beta=0.0, drop=True)
    figure = figures.plot_difference(data, lanes=["tail"], backend="plotly")
    (area,) = (t for t in figure.data if t.fill == "toself")
    np.testing.assert_allclose(area.y[: len(ALPHA)], data["loss_difference_high"].sel(pair=0, lane="tail"), rtol=1e-6)
    assert bands(figure)["fill"] == 1


# ---- interpolated cells, marked points ----------------------------------------------------------------------------


def dots(figure):
    traces = [
        t for t in figure.data if isinstance(t, go.Scatter) and t.mode == "markers" and t.marker.symbol == "circle"
    ]
    return max((len(t.x) for t in traces), default=0)


def test_an_interpolated_surface_dots_what_was_evaluated_and_says_how_much():
    guessed = np.zeros((2, 3, 6), dtype=bool)
    guessed[:, 1, [1, 3, 4]] = True
    data = plane().assign(
        interpolated=(("pair", "beta", "alpha"), guessed),
        interpolation_error=(("pair", "lane"), [[0.02, 0.5], [9.0, 9.0]]),
    )
    figure = figures.plot_contours(data, lanes=["head"], backend="plotly")
    assert dots(figure) == 15
    assert "15 of 18 points evaluated (dots), the rest interpolated, checked error ≤ 0.02" in note_of(figure)
    assert np.isfinite(numbers(contours(figure)[0])).all()
    assert dots(figures.plot_contours(plane(), lanes=["head"], backend="plotly")) == 0
    assert "interpolated" not in note_of(figures.plot_contours(plane()))
    silent = figures.plot_contours(data.drop_vars("interpolation_error"), lanes=["head"])
    assert "error not recorded" in note_of(silent)
    assert "15 of 18 points" in note_of(figures.plot_surface_3d(data, lanes=["head"]))
    one_line = figures.plot_lines(data.sel(beta=0.0, drop=True), lanes=["head"])
    assert "3 of 6 points evaluated" in note_of(one_line)


def test_marked_points_are_a_line_with_their_names_where_they_lie():
    marks = [[-0.5, 0.5, "epoch 1"], [1.0, 2.0, "epoch 9"], [0.0, 0.0, "last"], [99.0, 0.0, "outside"]]
    for given in (json.dumps(marks), marks):
        figure = figures.plot_contours(plane(marks=given), lanes=["head"])
        path = next(drawn for drawn in figure.axes[0].lines if len(drawn.get_xdata()) == 4)
        np.testing.assert_array_equal(path.get_xdata(), [-0.5, 1.0, 0.0, 99.0])
        np.testing.assert_array_equal(path.get_ydata(), [0.5, 2.0, 0.0, 0.0])
        named = {text.get_text() for text in figure.axes[0].texts}
        assert {"epoch 1", "epoch 9", "last"} <= named
        assert "outside" not in named
    assert not any(len(drawn.get_xdata()) == 4 for drawn in figures.plot_contours(plane()).axes[0].lines)
    with pytest.raises(LandscapeError, match=r"list of \[alpha, beta, label\]"):
        figures.plot_contours(plane(marks="[[1, 2]]"))


# ---- ways out -----------------------------------------------------------------------------------------------------


def test_the_escape_matrix_shows_own_groups_and_gains_from_head_to_tail():
    data = synthetic.escape("sgd").isel(lane=slice(None, None, -1))
    figure = figures.plot_escape_matrix(data, backend="plotly")
    heat = next(t for t in figure.data if isinstance(t, go.Heatmap))
    assert list(figure.layout.xaxis.ticktext) == ["own", "head", "medium", "tail", "all"]
    assert figure.layout.yaxis.ticktext[0] == "plane (n=500)"
    expected = [
        [float(data["increase_at_best"].sel(lane=n, affected_lane=m)) for m in (n, "head", "medium", "tail", "all")]
        for n in synthetic.CLASS_NAMES
    ]
    sizes = np.abs(expected)
    within = 10.0 ** np.floor(np.log10(np.quantile(sizes[sizes > 0], 0.25)))
    np.testing.assert_allclose(heat.z, symlog(expected, within), rtol=1e-5, atol=1e-7)
    drawn = figures.plot_escape_matrix(data)
    widths = [bar.get_width() for bar in drawn.axes[1].patches]
    np.testing.assert_allclose(widths[:10], data["best_decrease"].sel(lane=list(synthetic.CLASS_NAMES)))
    distances = [bar.get_width() for bar in drawn.axes[2].patches]
    np.testing.assert_allclose(distances, data["best_distance"].sel(lane=list(synthetic.CLASS_NAMES)))


def test_changes_within_two_standard_errors_stand_in_parentheses():
    data = synthetic.escape("sgd")
    figure = figures.plot_escape_matrix(data, lanes=["truck"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    errors = data["increase_at_best_stderr"].sel(lane="truck") / np.abs(data["increase_at_best"].sel(lane="truck"))
    for text, lane in zip(texts, ("truck", "head", "medium", "tail", "all")):
        assert text.startswith("(") == (float(errors.sel(affected_lane=lane)) >= 0.5)
    with pytest.raises(LandscapeError, match="'worst'"):
        figures.plot_escape_matrix(data, at="worst")


# ---- the card, and the paper --------------------------------------------------------------------------------------


def test_the_card_says_what_a_comparison_of_scales_needs():
    data = synthetic.with_views(synthetic.surface("sgd")).assign_attrs(precision="preview: bf16, measured error 0.02")
    for figure in (
        figures.plot_contours(data),
        figures.plot_surface_3d(data),
        figures.plot_lines(data.isel(beta=3, drop=True)),
    ):
        note = note_of(figure)
        for part in ("‖w‖: 21.4", "logit norm: 7.5", "n: head 980, medium 235, tail 27", "precision: preview: bf16",
                     "loss at the weights: head ", "normalisation: filter", "BatchNorm: frozen", "seed: 0"):  # fmt: skip
            assert part in note
    several = {
        name: synthetic.with_views(synthetic.surface(name)).assign_attrs(theta_norm=k)
        for k, name in enumerate(("a", "b"))
    }
    assert "‖w‖: a 0; b 1" in note_of(figures.plot_contours(several))


def fonts(figure):
    from matplotlib.text import Text

    return [t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.plot_lines(synthetic.with_views(synthetic.surface_line("sgd"))),
        lambda: figures.plot_contours(plane(), errors=True),
        lambda: figures.plot_batchnorm(plane()),
        lambda: figures.plot_difference(difference()),
        lambda: figures.plot_escape_matrix(synthetic.escape("sgd")),
        lambda: figures.plot_surface_3d(plane()),
    ],
)
def test_a_figure_of_a_column_s_width_is_legible_without_scaling(draw):
    with figures.drawn_at(3.3):
        figure = draw()
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == pytest.approx(3.3)
    assert min(fonts(figure)) >= 6.0
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.width, figure.bbox.height
    for axis in figure.axes:
        box = axis.get_tightbbox(renderer)
        assert box.x0 > -2
        assert box.x1 < width + 2
        assert box.y0 > -2
        assert box.y1 < height + 2
    assert draw().get_size_inches()[0] > 3.3
    with pytest.raises(LandscapeError, match=r"between 2\.5 and 40"), figures.drawn_at(1.0):
        pass
