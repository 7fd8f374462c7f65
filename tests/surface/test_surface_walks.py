"""One walk for everything that is asked at a point: splits, policies, examples, precision, refinement, comparisons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from surface_cases import E1, E2, Net, X, asymmetric, images, labels, risk_of, toy

from landscape.errors import LandscapeError
from landscape.results import load_results, save_results
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.evaluator import PointEvaluator
from landscape.surface import (
    examples_of,
    kept_examples,
    measure_surface,
    measure_surfaces,
    random_axes,
    regroup,
    shared_range,
)

LINE = np.array([-0.5, 0.0, 0.25, 0.5])


def held_out_risk(model=None, num=30):
    return ModelRisk(model or Net(), (images(70)[40:][:num], labels(70)[40:][:num]))


def test_both_splits_in_one_walk_are_what_two_walks_measure():
    risk, other = risk_of(), held_out_risk()
    both = measure_surface(risk, x=LINE, held_out=other)
    alone, beside = measure_surface(risk, x=LINE), measure_surface(other, x=LINE)
    for name in ("loss", "error", "margin", "increase_stderr"):
        np.testing.assert_array_equal(both[name], alone[name])
        np.testing.assert_array_equal(both[f"held_out_{name}"], beside[name])
    np.testing.assert_array_equal(both.held_out_num_examples, beside.num_examples)


def test_both_policies_side_by_side_are_each_measured_alone():
    risk = risk_of()
    both = measure_surface(risk, x=LINE, batchnorm="both")
    frozen, again = (measure_surface(risk, x=LINE, batchnorm=policy) for policy in ("frozen", "recalibrate"))
    for name in ("loss", "error", "margin", "increase_stderr"):
        np.testing.assert_array_equal(both[name], frozen[name])
        np.testing.assert_array_equal(both[f"recalibrated_{name}"], again[name])
    assert "recalibrated on 40 examples" in both.attrs["batchnorm"]
    assert both.attrs["batchnorm"].startswith("frozen")


def test_weights_are_placed_once_for_all_that_is_asked(monkeypatch):
    calls = []
    evaluate = PointEvaluator.__call__
    monkeypatch.setattr(PointEvaluator, "__call__", lambda self, *a: calls.append(1) or evaluate(self, *a))
    measure_surface(risk_of(), x=LINE, held_out=held_out_risk(), batchnorm="both", keep_examples=True)
    assert len(calls) == 2 * 2 * (1 + len(LINE))  # splits, policies, the centre and the points: no class by itself


def test_examples_regroup_to_the_same_lanes_after_saving(tmp_path):
    risk = risk_of(dtype=torch.float64, groups={"head": [0], "tail": [1, 2]})
    other = ModelRisk(
        Net(), (images(70)[40:], labels(70)[40:]), dtype=torch.float64, groups={"head": [0], "tail": [1, 2]}
    )
    surface = measure_surface(risk, x=LINE, held_out=other, keep_examples=True)
    loaded = load_results(save_results({"surface_line": surface}, tmp_path / "r.nc"))["surface_line"].to_dataset()
    for found in (surface, loaded):
        cube = kept_examples(found)
        assert cube.sizes["example"] == 70
        own = examples_of(cube, split=str(cube.example_split.values[0]))
        np.testing.assert_allclose(regroup(own).loss.sel(lane="tail"), surface.loss.sel(lane="tail"), rtol=1e-6)
        rows = own.example_row.values
        assert labels()[rows].tolist() == own.example_class.values.tolist()


def test_examples_know_their_loss_at_the_weights_where_the_grid_does_not_hold_it():
    surface = measure_surface(risk_of(), x=[0.25, 0.5], keep_examples=True)
    whole = measure_surface(risk_of(), x=LINE)
    found = regroup(kept_examples(surface))
    np.testing.assert_allclose(
        found.increase_stderr.sel(lane="all"), whole.increase_stderr.sel(lane="all")[:, 2:], rtol=1e-5
    )
    with pytest.raises(LandscapeError, match=r"no 'example_loss'.*keep_examples"):
        kept_examples(whole)


def test_a_preview_states_the_error_that_it_made():
    exact, rough = (measure_surface(risk_of(), x=LINE, precision=p) for p in ("exact", "preview"))
    error = float(abs(exact.loss - rough.loss).max())
    assert 0 < error < 0.1
    assert rough.attrs["preview_error"] > 0
    assert float(abs(exact.loss - rough.loss).isel(alpha=[0, 1, 3]).max()) <= rough.attrs["preview_error"]
    assert "preview (bfloat16): largest error" in rough.attrs["precision"]
    assert exact.attrs["precision"] == "float32"
    assert "preview_error" not in exact.attrs


def test_a_refined_plane_keeps_its_evaluations_and_bounds_the_rest():
    axis_x, axis_y = np.linspace(-1, 1, 41), np.linspace(-0.5, 1, 31)
    given = {"kind": "plane", "directions": [E1, E2], "x": axis_x, "y": axis_y}
    full, refined = measure_surface(toy(), **given), measure_surface(toy(), refine=0.01, **given)
    known = ~refined.interpolated.values[0]
    assert 0 < known.mean() < 0.25
    np.testing.assert_array_equal(refined.loss.values[0][known], full.loss.values[0][known])
    error = abs(refined.loss - full.loss).max(("beta", "alpha"))
    ranges = full.loss.max(("beta", "alpha")) - full.loss.min(("beta", "alpha"))
    assert (error < 0.01 * ranges).all()
    assert (error <= refined.interpolation_error).all()
    assert f"{known.sum()} of {41 * 31} cells are full evaluations" in refined.attrs["exactness"]
    assert "interpolated" not in full


def test_what_is_no_loss_stays_open_where_a_refinement_did_not_look():
    axis = np.linspace(-0.1, 0.1, 33)
    refined = measure_surface(risk_of(dtype=torch.float64), "all", kind="plane", x=axis, y=axis, refine=0.01)
    if not refined.interpolated.any():
        pytest.fail("expected a smooth network on a small plane to be refined")
    for name in ("error", "margin", "increase_stderr"):
        assert (np.isnan(refined[name].values[..., 0]) == refined.interpolated.values).all()
    assert not refined.loss.isnull().any()


def test_a_refinement_resumes_round_by_round(tmp_path):
    from landscape.results import Journal

    calls = []

    def losses(t):
        calls.append(1)
        return torch.stack([asymmetric(t[0], t[1])])

    risk = AnalyticRisk(losses, torch.zeros(2, dtype=torch.float64))
    axis = np.linspace(-1, 1, 31)
    given = {"kind": "plane", "directions": [E1, E2], "x": axis, "y": axis, "refine": 0.01}
    whole = measure_surface(risk, **given)
    journal = Journal(tmp_path, {"seed": 0})

    def stop(done, total, text):
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_surface(risk, journal=journal, progress=stop, **given)
    calls.clear()
    assert measure_surface(risk, journal=journal, **given).identical(whole)
    assert len(calls) == int((~whole.interpolated).sum()) - 100


def test_lines_are_not_refined():
    with pytest.raises(LandscapeError, match="refine: expected a plane, got a line"):
        measure_surface(toy(), directions=[E1], refine=0.01)


def test_axes_bring_their_labels_marks_and_recipe():
    risk = risk_of()
    axes = random_axes(risk, num=1, seed=3, normalization="layer")
    named = measure_surface(risk, x=LINE, directions=axes)
    drawn = measure_surface(risk, x=LINE, seed=3, normalization="layer")
    np.testing.assert_array_equal(named.loss, drawn.loss)
    assert named.attrs["normalization"] == axes.normalization
    assert '"normalization": "layer"' in named.attrs["recipes"]
    assert "random direction 1 (layer)" in named.attrs["alpha_label"]


def test_quadratic_models_come_with_the_surface_that_they_are_of():
    step = 1e-3
    line = measure_surface(risk_of(dtype=torch.float64), x=np.arange(-4, 5) * step, quadratic=True)
    at = line.sel(pair=0, lane="all")
    low, centre, high = at.loss.values[3:6]
    assert (high - 2 * centre + low) / step**2 == pytest.approx(float(at.curvature[0, 0]), rel=1e-3)
    assert (high - low) / (2 * step) == pytest.approx(float(at.slope[0]), rel=1e-3)


# Several checkpoints.


def pair_of_risks():
    models = {"one": Net(seed=0), "other": Net(seed=1)}
    return {name: ModelRisk(model, (images(), labels()), dtype=torch.float64) for name, model in models.items()}


def test_differences_are_paired_image_by_image():
    risks = pair_of_risks()
    surfaces, differences = measure_surfaces(risks, x=LINE)
    assert list(surfaces) == ["one", "other"]
    assert list(differences) == ["other minus one"]
    found = differences["other minus one"]
    expected = surfaces["other"].loss - surfaces["one"].loss
    np.testing.assert_allclose(found.loss_difference.sel(lane="all"), expected.sel(lane="all"), rtol=1e-5, atol=1e-6)
    assert (found.loss_difference_low < found.loss_difference_high).all()
    again, none = measure_surfaces({"one": risks["one"], "copy": risks["one"]}, x=LINE)
    same = none["copy minus one"]
    assert float(abs(same.loss_difference).max()) == 0  # the same network: no image differs, no width
    assert float((same.loss_difference_high - same.loss_difference_low).max()) == 0
    assert list(again) == ["one", "copy"]


def test_one_range_shows_every_checkpoint():
    risks = pair_of_risks()
    grid, radii = shared_range(risks, vectors=lambda risk: [random_axes(risk, num=1, seed=0).vectors[0]], num_points=11)
    assert len(grid) == 11
    assert grid[0] == -grid[-1]
    for found in radii.values():
        finite = found.radius.sel(delta=1.0).where(found.lane_kind != "class", drop=True).values
        finite = finite[np.isfinite(finite)]
        assert grid[-1] >= 0.99 * finite.max() if finite.size else True


def test_checkpoints_on_other_images_are_not_compared():
    risks = pair_of_risks()
    fewer = ModelRisk(Net(), (images()[:30], labels()[:30]), dtype=torch.float64)
    with pytest.raises(LandscapeError, match="'fewer' and 'one' are seen on different numbers of images"):
        measure_surfaces({"one": risks["one"], "fewer": fewer}, x=LINE)


def test_a_held_out_risk_of_another_network_is_refused():
    with pytest.raises(LandscapeError, match="held_out: expected a risk of the same weights"):
        measure_surface(risk_of(), x=LINE, held_out=held_out_risk(Net(seed=1)))


def test_x_and_y_stay_apart_through_a_refinement():
    """K_x != K_y and asymmetric ranges: every evaluated cell at its own coordinates."""
    axis_y = np.linspace(-0.5, 3.0, 23)
    refined = measure_surface(
        toy(), kind="plane", directions=[E1, E2], x=np.linspace(X[0], X[-1], 41), y=axis_y, refine=0.02
    )
    b, a = np.meshgrid(refined.beta, refined.alpha, indexing="ij")
    known = ~refined.interpolated.values[0]
    np.testing.assert_allclose(refined.loss.values[0, ..., 0][known], asymmetric(a, b)[known], rtol=1e-12)


def test_the_card_knows_the_logits_and_what_stays():
    risk = risk_of(dtype=torch.float64)
    surface = measure_surface(risk, "classes,all", x=LINE)
    logits = risk.logits(risk.theta, slice(0, 40)).detach()
    norms = (logits - logits.mean(1, keepdim=True)).norm(dim=1)
    expected = [float(norms[risk.labels == c].mean()) for c in range(3)]
    np.testing.assert_allclose(surface.logit_norm, [*expected, float(norms.mean())], rtol=1e-12)
    assert surface.attrs["excluded"] == "4 of 7 tensors, 4 of them biases and norm parameters"
    assert measure_surface(risk, x=LINE, one_dimensional="scale").attrs["excluded"] == "none"
