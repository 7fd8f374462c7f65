import warnings

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import synthetic_results as synthetic
import xarray as xr

from landscape import figures
from landscape.errors import LandscapeError
from landscape.figures.catalogue import available
from landscape.figures.picture import symlog

BACKENDS = {"matplotlib": matplotlib.figure.Figure, "plotly": go.Figure}


def plane_dataset(holes=()):
    """f = alpha + 10 beta + 1, linear, so that every interpolation is exact; 7 alphas, 4 betas."""
    alpha, beta = np.linspace(-1.0, 2.0, 7), np.linspace(0.0, 0.9, 4)
    loss = alpha[None, :] + 10.0 * beta[:, None] + 3.0
    done = np.ones((1, 4, 7), dtype=bool)
    values = np.repeat(loss[None, :, :, None], 2, -1) * np.array([1.0, 1.3])
    for kind, i, j in holes:
        if kind == "done":
            done[0, i, j] = False
        else:
            values[0, i, j] = np.nan if kind == "nan" else np.inf
    return xr.Dataset(
        {"loss": (("pair", "beta", "alpha", "lane"), values), "done": (("pair", "beta", "alpha"), done)},
        {"pair": [0], "alpha": alpha, "beta": beta, "lane": ["head", "tail"]},
    )


def traces(figure, kind):
    return [trace for trace in figure.data if isinstance(trace, kind)]


@pytest.fixture(scope="module")
def results():
    """What no figure may change: it is made once."""
    return synthetic.trees(("sgd", "sam"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("entry", figures.CATALOGUE, ids=lambda entry: entry.name)
def test_every_figure_on_both_backends(results, entry, several, backend):
    data = available(results if several else {"sgd": results["sgd"]}, entry)
    figure = entry.plot(data if several else data["sgd"], backend=backend, **entry.options)
    assert isinstance(figure, BACKENDS[backend])
    if backend == "matplotlib":
        if not several:  # the more crowded one shows whether the layout finds room, which takes most of the time
            figure.set_layout_engine("none")
        figure.draw_without_rendering()
        text = " ".join(t.get_text() for t in figure.texts)
    else:
        text = " ".join(a.text for a in figure.layout.annotations)
    assert "objective: cross-entropy" in text
    assert "seed: 0" in text


def test_plotly_contours_hold_the_dataset_at_its_coordinates():
    figure = figures.plot_contours(plane_dataset(), lanes=["head", "tail"], backend="plotly")
    for trace, factor in zip(traces(figure, go.Contour), (1.0, 1.3)):
        z = np.asarray(trace.customdata if trace.customdata is not None else trace.z)
        for i, b in enumerate(trace.y):
            for j, a in enumerate(trace.x):
                assert z[i, j] == pytest.approx(factor * (a + 10 * b + 3), rel=1e-6)
        assert z.shape == (4, 7)


def test_matplotlib_contour_lines_run_where_the_function_has_their_level():
    figure = figures.plot_contours(plane_dataset(), lanes=["head"])
    lines = [c for c in figure.axes[0].collections if type(c).__name__ == "QuadContourSet" and not c.filled]
    assert len(lines) == 1
    checked = 0
    for level, path in zip(lines[0].levels, lines[0].get_paths()):
        for alpha, beta in path.vertices:
            assert alpha + 10 * beta + 3 == pytest.approx(level, rel=1e-6)
            checked += 1
    assert checked > 20


def test_matplotlib_surface_stands_at_its_coordinates():
    figure = figures.plot_surface_3d(plane_dataset(), lanes=["head"])
    corners = np.concatenate(figure.axes[0].collections[0]._faces).reshape(-1, 3)
    np.testing.assert_allclose(corners[:, 2], corners[:, 0] + 10 * corners[:, 1] + 3, rtol=1e-6)
    assert len(corners) == 4 * 3 * 6


@pytest.mark.parametrize("kind", ["nan", "inf", "done"])
def test_what_was_not_measured_stays_open(kind):
    data = plane_dataset([(kind, 1, 2)])
    contours = figures.plot_contours(data, lanes=["head"], backend="plotly")
    z = np.asarray(traces(contours, go.Contour)[0].z)
    assert np.argwhere(np.isnan(z)).tolist() == [[1, 2]]
    assert traces(contours, go.Contour)[0].connectgaps is False
    cover = next(t for t in traces(contours, go.Scatter) if t.fill == "toself")
    assert (np.nanmin(cover.x), np.nanmax(cover.x)) == (pytest.approx(-0.5), pytest.approx(0.5))
    assert (np.nanmin(cover.y), np.nanmax(cover.y)) == (pytest.approx(0.0), pytest.approx(0.6))
    relief = figures.plot_surface_3d(data, lanes=["head"], backend="plotly")
    assert np.isnan(np.asarray(traces(relief, go.Surface)[0].z)[1, 2])
    space = figures.plot_surface_3d(data, lanes=["head"])
    assert len(space.axes[0].collections[0]._faces) == 3 * 6 - 4
    filled = next(c for c in figures.plot_contours(data, lanes=["head"]).axes[0].collections if getattr(c, "filled", 0))
    near, far, outside = (0.01, 0.29), (0.45, 0.57), (0.55, 0.65)  # in cells with the open corner, and beyond them
    assert not any(path.contains_point(point) for path in filled.get_paths() for point in (near, far))
    assert any(path.contains_point(outside) for path in filled.get_paths())


def test_density_and_stems_are_the_nodes_of_the_dataset():
    spectrum = synthetic.spectrum("sgd")
    figure = figures.plot_spectrum(spectrum, lanes=["tail"], backend="plotly")
    stems = next(t for t in figure.data if t.mode == "markers" and t.error_y.arrayminus is not None)
    tail = spectrum.sel(lane="tail")
    kept = np.isfinite(tail["ritz_value"].values)
    np.testing.assert_allclose(stems.x, symlog(tail["ritz_value"].values[kept]), rtol=1e-6)
    high = tail["ritz_weight"].values[kept] / 3 > 1e-5
    np.testing.assert_allclose(np.asarray(stems.y)[high], tail["ritz_weight"].values[kept][high] / 3, rtol=1e-6)
    text = " ".join(a.text for a in figure.layout.annotations)
    assert figures.spectra.prep.with_error(float(tail["lambda_min"]), float(tail["lambda_min_error"])) in text


def test_matplotlib_symlog_axis_agrees_with_ours():
    figure = figures.plot_spectrum(synthetic.spectrum("sgd"))
    transform = figure.axes[0].xaxis.get_transform()
    x = np.array([-50.0, -1.0, 0.3, 1.0, 100.0])
    np.testing.assert_allclose(transform.transform(x), symlog(x), rtol=1e-12)


def test_fluctuation_draws_every_draw_and_the_recorded_mean():
    data = synthetic.perturbation("sgd")
    figure = figures.plot_fluctuation(data, lanes=["head", "tail"])
    panel = figure.axes[0]
    drawn = np.concatenate([line.get_ydata() for line in panel.lines if line.get_marker() in "os^"])
    expected = data["loss_increase"].sel(lane=["head", "tail"]).isel(radius=0).values.ravel()
    means = data["mean_increase"].sel(lane=["head", "tail"]).isel(radius=0).values
    assert np.isin(expected, drawn).all()
    assert np.isin(means, drawn).all()
    heights = [bar.get_height() for bar in figure.axes[-1].patches]
    assert np.isin(data["worst_case_increase"].sel(lane=["head", "tail"]).isel(rho=-1).values, heights).all()


def test_error_bars_on_a_symlog_axis_end_where_the_numbers_do():
    data = synthetic.perturbation("sgd")
    figure = figures.plot_fluctuation(data, backend="plotly")
    bars = [t for t in figure.data if t.error_y.array is not None]
    at = data.isel(radius=0).sel(lane=["horse", "ship", "truck", "tail"])
    upper = symlog(at["mean_increase"] + at["mean_increase_stderr"], 1e-3)
    tail = next(t for t in bars if len(t.y) == 4 and t.marker.symbol == "triangle-up-open")
    np.testing.assert_allclose(np.asarray(tail.y) + np.asarray(tail.error_y.array), upper, rtol=1e-5)


def test_lines_show_median_and_whole_range_over_directions():
    data = synthetic.surface_line("sgd")
    figure = figures.plot_lines(data, lanes=["tail"], backend="plotly")
    values = data["loss"].sel(lane="tail")
    line = next(t for t in figure.data if t.mode == "lines")
    np.testing.assert_allclose(line.y, values.median("pair"), rtol=1e-6)
    band = next(t for t in figure.data if t.fill == "toself")
    assert np.max(band.y) == pytest.approx(float(values.max()), rel=1e-6)
    assert "median" in " ".join(a.text for a in figure.layout.annotations).lower()


def test_comparisons_share_axes_and_colour_scale():
    data = {name: synthetic.surface(name) for name in ("sgd", "sam", "gnm")}
    figure = figures.plot_contours(data)
    limits = {(axis.get_xlim(), axis.get_ylim()) for axis in figure.axes[:9]}
    filled = [c for axis in figure.axes[:9] for c in axis.collections if getattr(c, "filled", False)]
    assert len(limits) == 1
    assert len(filled) == 9
    assert len({(c.norm.vmin, c.norm.vmax, tuple(c.levels)) for c in filled}) == 1
    drawn = figures.plot_spectrum({name: synthetic.spectrum(name) for name in data}, backend="plotly")
    ranges = {tuple(drawn.layout[f"xaxis{k}"].range) for k in ("", 2, 3)}
    assert len(ranges) == 1


def test_curvature_line_recovers_a_power_law():
    spectrum = synthetic.spectrum("sgd")
    spectrum["lambda_min"] = -2.0 * spectrum["gradient_norm"] ** 0.5
    figure = figures.plot_curvature_against_gradient({"sgd": spectrum})
    assert "2 |g|^0.50" in figure.axes[0].get_title()
    with pytest.raises(LandscapeError, match="negative curvature"):
        figures.plot_curvature_against_gradient(spectrum.assign(lambda_min=spectrum["lambda_min"] * -1))


def test_accuracy_prefers_test_images_and_says_so():
    data = synthetic.accuracy("sgd").assign_attrs(split="train")
    both = data.assign(test_accuracy=data["accuracy"] / 2, test_num_examples=data["num_examples"] * 0 + 100)
    figure = figures.plot_accuracy(both)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(heights, both["test_accuracy"].sel(lane=["head", "medium", "tail", "all"]))
    assert "Accuracy on test images" in [text.get_text() for text in figure.texts]
    assert figure.axes[0].get_xticklabels()[0].get_text() == "head (n=100)"
    train = figures.plot_accuracy(both, variable="accuracy")
    assert "Accuracy on train images" in [text.get_text() for text in train.texts]


def test_without_groups_the_lanes_that_exist_are_drawn():
    data = synthetic.surface("sgd").sel(lane=["plane", "all"])
    figure = figures.plot_contours(data, backend="plotly")
    assert len(traces(figure, go.Contour)) == 2


def test_verdicts_show_word_symbol_and_value_and_leave_missing_lanes_blank():
    spectra = {"sgd": synthetic.spectrum("sgd"), "sam": synthetic.spectrum("sam").sel(lane=["head", "tail"])}
    figure = figures.plot_verdicts(spectra)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text == "" for text in texts) == 12
    assert sum("∩ saddle" in text for text in texts) == 4


def test_history_draws_columns_and_refuses_unknown_ones():
    frame = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [2.0, 1.0, 0.5], "lr": [1, 1, 1]})
    figure = figures.plot_history({"sgd": frame, "sam": frame})
    assert len(figure.axes) == 1
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), frame["train_loss"])
    with pytest.raises(LandscapeError, match="nonsense"):
        figures.plot_history({"sgd": frame}, columns=["nonsense"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_spectrum(synthetic.spectrum("sgd"), lanes=["tial"]), "'tial'.*tail"),
        (lambda: figures.plot_spectrum(synthetic.spectrum("sgd").isel(lane=[])), "at least one lane"),
        (lambda: figures.plot_spectrum(xr.Dataset()), "ritz_value"),
        (lambda: figures.plot_spectrum({}), "mapping"),
        (lambda: figures.plot_spectrum(synthetic.spectrum("sgd"), by="colour"), "'colour'"),
        (lambda: figures.plot_spectrum(synthetic.spectrum("sgd"), backend="bokeh"), "'bokeh'"),
        (lambda: figures.plot_fluctuation(synthetic.perturbation("sgd"), variable="loss"), "'loss'"),
        (lambda: figures.plot_contours(synthetic.surface("sgd"), pair=7), "'7'"),
        (lambda: figures.plot_lines(synthetic.surface_line("sgd"), band="sd"), "'sd'"),
        (lambda: figures.plot_contours(plane_dataset().assign(done=plane_dataset()["done"] & False)), "finished"),
        (lambda: figures.plot_contours(plane_dataset([("nan", 0, 2)]), relative=True), r"\(0, 0\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(LandscapeError, match=message):
        call()


def test_names_are_never_markup():
    names = ("<script>alert(1)</script>", "$\\bad$", *synthetic.CLASS_NAMES[2:])
    figure = figures.plot_verdicts(synthetic.spectrum("sgd", names), backend="plotly")
    labels = [*figure.layout.yaxis.ticktext, *(a.text for a in figure.layout.annotations)]
    assert "&lt;script&gt;" in labels[0]
    assert not any("<script" in label for label in labels)
    drawn = figures.plot_verdicts(synthetic.spectrum("sgd", names))
    drawn.draw_without_rendering()


def test_files_are_written_without_pyplot_and_repeat_bit_for_bit(tmp_path, monkeypatch):
    few = tuple(entry for entry in figures.CATALOGUE if entry.name != "lines-classes")
    monkeypatch.setattr("landscape.figures.saving.CATALOGUE", few)
    tree = synthetic.tree("sgd")
    small = xr.DataTree.from_dict(
        {"accuracy": tree["accuracy"].to_dataset(), "surface_line": synthetic.surface_line("sgd")}
    )
    first = figures.save_figures(small, tmp_path / "a")
    second = figures.save_figures(small, tmp_path / "b")
    assert {path.name for path in first} == {
        f"{stem}.{ending}"
        for stem in (
            "accuracy",
            "accuracy-classes",
            "lines",
        )
        for ending in ("png", "pdf")
    }
    for one, two in zip(first, second):
        assert one.read_bytes() == two.read_bytes()
    compared = figures.save_comparison_figures({"sgd": small, "sam": small}, tmp_path / "c")
    assert all(path.name.startswith("compare-") and path.stat().st_size > 1000 for path in compared)
    with pytest.raises(LandscapeError, match="got none"):
        figures.save_figures(xr.DataTree(), tmp_path)


def test_figures_need_no_torch_and_leave_no_global_figure():
    import subprocess
    import sys

    code = (
        "import sys, landscape.figures, landscape.report; "
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    with warnings.catch_warnings():
        subprocess.run([sys.executable, "-c", code], check=True)


PLOTS = [name for name in figures.__all__ if name.startswith("plot_")]


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("kind", ["spectrum", "surface_line", "surface", "one lane", "nothing", "array", "text"])
def test_what_a_figure_cannot_draw_is_one_line(results, name, kind):
    tree = results["sgd"]
    given = {
        "one lane": lambda: tree["spectrum"].to_dataset().isel(lane=0),
        "nothing": lambda: None,
        "array": lambda: tree["spectrum"].to_dataset()["lambda_min"],
        "text": lambda: {"sgd": "results.nc"},
    }.get(kind, lambda: tree[kind].to_dataset())()
    answer = ""
    try:
        getattr(figures, name)(given)
    except LandscapeError as error:
        answer = str(error)
    except TypeError as error:  # what needs a second argument
        if "required positional argument" not in str(error):
            raise
    assert "\n" not in answer


def test_one_lane_is_drawn_when_it_is_selected_with_a_list(results):
    spectrum = results["sgd"]["spectrum"].to_dataset()
    with pytest.raises(LandscapeError, match=r"one lane alone: select with a list, lane=\[\.\.\.\]"):
        figures.plot_spectrum(spectrum.isel(lane=0))
    figures.plot_spectrum(spectrum.isel(lane=[0]))
    with pytest.raises(LandscapeError, match=r"expected the dimension 'alpha' in the results.*, got another"):
        figures.plot_lines(spectrum)
