"""All measurements of one risk together: the parts agree, and the summary says what they mean."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape.diagnosis import diagnose, measure_accuracy, measure_everything, summarise
from landscape.errors import LandscapeError
from landscape.estimation import estimate_cost
from landscape.flatness import FlatnessOptions
from landscape.loading import CheckpointSource, held_out_risk, load_checkpoint, load_risk, risk_of
from landscape.perturbation import PerturbationOptions
from landscape.plan import PRESETS, Plan, capped, choose_plan
from landscape.results import WHOLE_ANALYSIS, Journal, load_results, save_results, validate
from landscape.risk import AnalyticRisk, ModelRisk, lanes_of
from landscape.risk.evaluator import PointEvaluator
from landscape.spectrum import VERDICTS, SpectrumOptions
from landscape.training import TrainSpec, train

SMALL = Plan(
    spectrum=SpectrumOptions(num_probes=2, num_steps=8, max_steps=32),
    perturbation=PerturbationOptions(num_draws=4, sigmas=(0.01,), rhos=(0.05,), ascent_steps=2),
    line_points=5,
    line_pairs=1,
    plane_points=3,
    eigen_points=3,
    escape_lengths=2,
    flatness=FlatnessOptions(num_pairs=2, measures=("mean_increase",)),
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network that was trained for two epochs on long-tailed digits, as a risk."""
    path = train(TrainSpec(model="mlp", epochs=2), tmp_path_factory.mktemp("digits"))
    return load_risk(path)


@pytest.fixture(scope="module")
def table(digits):
    return diagnose(digits)


def saddle(**options):
    """A head class in a bowl, a tail class at a saddle, both stationary."""

    def losses(t):
        return torch.stack([t @ t, t[0] ** 2 - t[1] ** 2 + 3 * t[2] ** 2]) + 1

    theta = torch.zeros(3, dtype=torch.float64)
    return AnalyticRisk(
        losses, theta, class_counts=[9, 1], **{"groups": {"head": (0,), "medium": (), "tail": (1,)}} | options
    )


# ---- toys ---------------------------------------------------------------------------------------------------------


def test_a_saddle_toy_gets_its_verdicts_and_exact_eigenvalues():
    table = diagnose(saddle())
    assert list(table.index) == ["0", "1", "head", "tail", "all"]
    assert table.verdict["0"] == table.verdict["head"] == table.verdict["all"] == "no negative curvature"
    assert table.verdict["1"] == table.verdict["tail"] == "saddle"
    np.testing.assert_allclose(table.lambda_min, [2, -2, 2, -2, 0.9 * 2 - 0.1 * 2], atol=1e-9)
    np.testing.assert_allclose(table.lambda_max, [2, 6, 2, 6, 0.9 * 2 + 0.1 * 6], atol=1e-9)
    np.testing.assert_allclose(table["trace"], [6, 6, 6, 6, 6], atol=1e-9)
    np.testing.assert_allclose(table.ratio, np.maximum(-table.lambda_min, 0) / table.lambda_max)
    assert table.num_examples.tolist() == [9, 1, 9, 1, 10]


def test_a_slope_is_not_called_a_saddle():
    risk = AnalyticRisk(lambda t: (t[0] ** 2 - t[1] ** 2 + 50 * t[1] + t[1] ** 4)[None], torch.zeros(2).double())
    assert diagnose(risk, "all").verdict["all"] == "slope"


def test_every_group_is_valid_and_comes_back_from_a_file(tmp_path):
    groups = measure_everything(saddle(), plan=SMALL)
    assert set(groups) == set(WHOLE_ANALYSIS)
    tree = load_results(save_results(groups, tmp_path / "r.nc"))
    for name in groups:
        validate(name, tree[name].to_dataset())
        assert list(tree[name].lane.values) == ["0", "1", "head", "tail", "all"]
        assert tree[name].lane_kind.values.tolist() == ["class", "class", "group", "group", "all"]
        assert tree[name].lane_group.values.tolist() == ["head", "tail", "", "", ""]
        np.testing.assert_array_equal(tree[name].num_examples, [9, 1, 9, 1, 10])
    assert summarise({name: tree[name].to_dataset() for name in tree.children}).equals(summarise(groups))


def eigen_curvatures(groups):
    """Return the second differences of the measured eigen-plane along both axes, in weight units."""
    plane = groups["surface_eigen"]
    middle, unit = plane.sizes["alpha"] // 2, plane.attrs["direction_unit"]
    loss = plane.loss.sel(lane=plane.attrs["lane"])[0].values
    step = (float(plane.alpha[1] - plane.alpha[0]) * unit) ** 2
    along_min = loss[middle, middle - 1] - 2 * loss[middle, middle] + loss[middle, middle + 1]
    along_max = loss[middle - 1, middle] - 2 * loss[middle, middle] + loss[middle + 1, middle]
    return along_min / step, along_max / step


def test_the_eigen_plane_shows_the_eigenvalues_of_the_tail():
    groups = measure_everything(saddle(), plan=SMALL)
    assert groups["surface_eigen"].attrs["lane"] == "tail"
    np.testing.assert_allclose(eigen_curvatures(groups), (-2, 6), atol=1e-6)
    assert groups["surface_eigen"].attrs["lambda_min"] == pytest.approx(-2)


@pytest.mark.parametrize(
    ("options", "lane", "extremes"),
    [
        # the mean of both classes, (2, 0, 4): pooled it would be 0.9 and 0.1
        ({"lanes": "tail", "group_average": "classes"}, "tail", (0, 4)),
        ({"lanes": {"mine": [0.25, 0.75]}}, "mine", (-1, 5)),
        ({"lanes": ["1", "0"]}, "0", (2, 2)),
    ],
)
def test_the_eigen_plane_belongs_to_the_lane_that_was_measured(options, lane, extremes):
    risk = saddle(groups={"tail": (0, 1)})
    groups = measure_everything(risk, plan=SMALL, **options)
    row = groups["spectrum"].sel(lane=lane)
    plane = groups["surface_eigen"]
    assert plane.attrs["lane"] == lane
    assert (float(row.lambda_min), float(row.lambda_max)) == pytest.approx(extremes, abs=1e-9)
    assert (plane.attrs["lambda_min"], plane.attrs["lambda_max"]) == pytest.approx(extremes, abs=1e-9)
    np.testing.assert_allclose(eigen_curvatures(groups), extremes, atol=1e-6)


def test_axes_of_a_hessian_with_one_eigenvalue_are_still_two():
    risk = AnalyticRisk(lambda t: (t @ t)[None], torch.ones(5, dtype=torch.float64))
    groups = measure_everything(risk, "all", plan=SMALL)
    assert abs(groups["surface_eigen"].attrs["direction_cosines"][0]) < 1e-9
    np.testing.assert_allclose(eigen_curvatures(groups), (2, 2), atol=1e-9)


def test_one_parameter_has_lines_and_no_planes():
    risk = AnalyticRisk(lambda t: t**2, torch.ones(1, dtype=torch.float64))
    assert set(WHOLE_ANALYSIS) - set(measure_everything(risk, "all", plan=SMALL)) == {"surface", "surface_eigen"}


def test_a_plan_without_a_part_has_none():
    plan = replace(SMALL, eigen_points=0, escape_lengths=0, flatness=None, quadratic=False)
    groups = measure_everything(saddle(), "all", plan=plan)
    assert set(WHOLE_ANALYSIS) - set(groups) == {"surface_eigen", "escape", "flatness"}
    assert "fitted_curvature" not in groups["surface_line"]
    table = summarise(groups)
    assert not [name for name in table.columns if name.startswith("escape")]
    with pytest.raises(LandscapeError, match="escape_lengths: expected 0 or at least 2, got 1"):
        replace(SMALL, escape_lengths=1)


def test_escapes_follow_the_spectrum_s_own_vectors(monkeypatch):
    monkeypatch.setattr("landscape.surface.escape.find_extremes", lambda *a, **k: 1 / 0)
    groups = measure_everything(saddle(), plan=SMALL)
    escape = groups["escape"]
    np.testing.assert_allclose(escape.lambda_min, groups["spectrum"].lambda_min, atol=1e-9)
    # -t^2 along v_min of the tail, in weight units (theta is 0), at the longest step
    np.testing.assert_allclose(escape.best_decrease, [0, 1, 0, 1, 0], atol=1e-9)
    assert abs(summarise(groups).escape_best_distance).tolist() == [0, 1, 0, 1, 0]


def test_a_resumed_diagnosis_measures_nothing_again_and_ends_the_same(tmp_path, monkeypatch):
    whole = measure_everything(saddle(), plan=SMALL)
    journal = Journal(tmp_path, {})
    measure_everything(saddle(), plan=SMALL, journal=journal)
    evaluations = []
    losses = AnalyticRisk.losses
    monkeypatch.setattr(AnalyticRisk, "losses", lambda self, *a: evaluations.append(1) or losses(self, *a))
    again = measure_everything(saddle(), plan=SMALL, journal=journal)
    # accuracy, the centres of the perturbations and escapes, and the value beside the derivatives of the line
    assert len(evaluations) == 4
    for name, dataset in whole.items():
        assert again[name].identical(dataset)


# ---- accuracy -----------------------------------------------------------------------------------------------------


def test_accuracy_and_its_standard_error_against_counting_by_hand():
    """Predictions are the first input; class 0 has 3 of 4 right, class 1 one of 2; class 2 has no example."""
    model = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    inputs = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    risk = ModelRisk(model, (inputs, torch.tensor([0, 0, 0, 0, 1, 1])), groups={"tail": (0, 1)})
    pooled, averaged = (
        measure_accuracy(risk, ["0", "1", "tail"], group_average=how) for how in ("examples", "classes")
    )
    np.testing.assert_allclose(pooled.accuracy, [3 / 4, 1 / 2, 4 / 6])
    np.testing.assert_allclose(averaged.accuracy, [3 / 4, 1 / 2, 5 / 8])
    variances = (5 / 8) * (3 / 8) / 8, (3 / 6) * (3 / 6) / 6  # (3 + 2) of (4 + 4) right, (1 + 2) of (2 + 4)
    np.testing.assert_allclose(pooled.accuracy_stderr[:2], np.sqrt(variances))
    np.testing.assert_allclose(pooled.accuracy_stderr[2], np.sqrt(4 / 9 * variances[0] + 1 / 9 * variances[1]))
    np.testing.assert_allclose(averaged.accuracy_stderr[2], np.sqrt(sum(variances) / 4))
    assert pooled.num_examples.values.tolist() == [4, 2, 6]


def test_toys_have_no_accuracy():
    assert np.isnan(measure_accuracy(saddle()).accuracy).all()


# ---- a trained network --------------------------------------------------------------------------------------------


def test_digits_summary_has_a_row_per_lane_and_errors_beside_the_numbers(table, digits):
    assert list(table.index) == [*digits.class_names, "head", "medium", "tail", "all"]
    assert table.index.name == "lane"
    for column, error in {
        "lambda_min": "lambda_min_error",
        "lambda_max": "lambda_max_error",
        "trace": "trace_stderr",
        "negative_energy": "negative_energy_stderr",
        "mean_increase": "mean_increase_stderr",
    }.items():
        assert table[error].notna().all()
        assert (table[error] >= 0).all()
        assert list(table.columns).index(error) == list(table.columns).index(column) + 1
    assert set(table.verdict) <= set(VERDICTS)
    assert table.evidence.str.len().min() > 20
    assert (table.lambda_min <= table.lambda_max).all()
    assert (table.lambda_min_lower_bound <= table.lambda_min + 1e-6).all()
    assert table.accuracy.between(0, 1).all()
    assert (table.worst_case_increase >= 0).all()
    assert table.mean_increase_radius.unique().tolist() == [0.1]


def test_pooled_rows_are_means_of_the_classes(table, digits):
    classes = table.iloc[:10]
    shares = classes.num_examples / classes.num_examples.sum()
    for column in ("accuracy", "loss"):
        assert table[column]["all"] == pytest.approx(float((shares * classes[column]).sum()), rel=1e-6)
    assert table["trace"]["all"] == pytest.approx(
        float((shares * classes["trace"]).sum()), abs=6 * float(table.trace_stderr["all"] + classes.trace_stderr.max())
    )


def test_diagnosis_repeats_and_leaves_the_global_generator_alone(table, digits):
    before = torch.get_rng_state()
    again = diagnose(digits)
    assert again.equals(table)
    assert torch.get_rng_state().equal(before)
    assert not diagnose(digits, "all", seed=1).negative_energy.equals(table.negative_energy[["all"]])


def test_lanes_alone_equal_lanes_together(table, digits):
    alone = diagnose(digits, "tail")
    assert alone.equals(table.loc[["tail"]].astype(alone.dtypes))


def test_lines_have_both_splits_both_batchnorm_policies_and_their_quadratic_models(tmp_path):
    path = train(TrainSpec(model="convnet", epochs=1), tmp_path)
    source = CheckpointSource(path, max_per_class=3)
    loaded = load_checkpoint(source)
    risk, held_out = risk_of(loaded, source), held_out_risk(loaded, source, "groups")
    line = measure_everything(risk, "groups", plan=SMALL, held_out=held_out)["surface_line"]
    for prefix in ("", "recalibrated_", "held_out_", "recalibrated_held_out_"):
        assert np.isfinite(line[f"{prefix}loss"]).all(), prefix
        assert np.isfinite(line[f"{prefix}increase_stderr"]).all(), prefix
    centre = line.sel(alpha=0, pair=0)
    expected = measure_accuracy(held_out, "groups").loss
    np.testing.assert_allclose(centre.held_out_loss, expected, rtol=1e-5)
    np.testing.assert_allclose(centre.loss, risk_losses(risk), rtol=1e-5)
    assert np.isfinite(line.curvature).all()
    assert {"fitted_curvature", "held_out_fitted_curvature", "recalibrated_fitted_curvature"} <= set(line)
    plain = measure_everything(risk, "groups", plan=replace(SMALL, recalibrate=False))["surface_line"]
    assert not [name for name in plain.data_vars if name.startswith(("recalibrated", "held_out"))]


def risk_losses(risk):
    return measure_accuracy(risk, "groups").loss


def test_a_split_that_lacks_a_class_is_left_out_with_a_warning(tmp_path, caplog):
    rows = np.arange(40)
    images, labels = np.zeros((40, 1, 4, 4), np.uint8) + rows[:, None, None, None].astype(np.uint8), rows % 4
    test = labels < 3
    np.savez(
        tmp_path / "data.npz",
        images=images,
        labels=labels,
        test_images=images[test],
        test_labels=labels[test],
    )
    spec = TrainSpec(dataset="arrays", data_dir=str(tmp_path / "data.npz"), model="mlp", epochs=1)
    source = CheckpointSource(train(spec, tmp_path / "run"))
    assert held_out_risk(load_checkpoint(source), source, "3") is None
    assert "held-out test images left out" in caplog.text


def test_progress_comes_from_every_measurement(digits):
    texts = []
    measure_everything(digits, "all", plan=SMALL, progress=lambda done, total, text: texts.append(text))
    for word in ("spectrum", "perturbation", "worst case", "line", "plane", "escape", "flatness"):
        assert any(word in text for text in texts), word


# ---- presets, summaries, estimates --------------------------------------------------------------------------------


def test_presets_are_known_and_grow():
    assert list(PRESETS) == ["quick", "standard", "full"]
    for name, plan in PRESETS.items():
        assert choose_plan(name) is plan
    with pytest.raises(
        LandscapeError, match=r"unknown preset 'quik': did you mean 'quick'\? known: full, quick, standard"
    ):
        choose_plan("quik")
    with pytest.raises(LandscapeError, match="unknown preset"):
        diagnose(saddle(), preset="slow")


def test_the_centre_is_a_point_of_every_preset():
    for plan in PRESETS.values():
        assert plan.line_points % 2 == plan.plane_points % 2 == plan.eigen_points % 2 == 1


def test_the_callers_cap_wins_and_small_images_need_none():
    quick = PRESETS["quick"]
    assert capped(quick, 28 * 28, None).max_per_class == quick.max_per_class == 10
    assert capped(quick, 8 * 8, None).max_per_class is None
    assert capped(quick, 8 * 8, 3).max_per_class == 3
    assert capped(quick, 32 * 32, 99).max_per_class == 99
    assert [capped(quick, pixels, None).recalibrate for pixels in (64, 1024)] == [True, False]
    assert capped(PRESETS["standard"], 1024, None).recalibrate


def test_a_summary_needs_a_spectrum_and_does_without_the_rest():
    groups = measure_everything(saddle(), "all", plan=SMALL)
    with pytest.raises(LandscapeError, match="needs the group 'spectrum'"):
        summarise({"accuracy": groups["accuracy"]})
    table = summarise({"spectrum": groups["spectrum"]})
    assert "verdict" in table
    assert "mean_increase" not in table
    assert "accuracy" not in table


def test_a_summary_shows_the_measured_numbers_under_their_names():
    groups = measure_everything(saddle(), plan=SMALL)
    table = summarise(groups)
    for name in set(table.columns) & set(groups["spectrum"].data_vars):
        np.testing.assert_array_equal(table[name], groups["spectrum"][name])
    middle = groups["perturbation"].sel(radius=float(table.mean_increase_radius.iloc[0]))
    for name in ("mean_increase", "mean_increase_stderr"):
        np.testing.assert_array_equal(table[name], middle[name])
    np.testing.assert_array_equal(table.worst_case_increase, groups["perturbation"].worst_case_increase[:, 0])
    assert (table.worst_case_rho == 0.05).all()


def test_a_summary_without_a_worst_case():
    plan = replace(SMALL, perturbation=PerturbationOptions(num_draws=4, rhos=(), sigmas=()))
    groups = measure_everything(saddle(), "all", plan=plan)
    assert "worst_case_increase" not in summarise(groups)
    assert "mean_increase" in summarise(groups)


def test_the_estimate_is_positive_and_grows_with_the_preset(digits):
    estimates = [estimate_cost(digits, plan) for plan in PRESETS.values()]
    for one in estimates:
        assert min(one.seconds, one.bytes, one.num_evaluations, one.num_products) > 0
    for name in ("bytes", "num_evaluations", "num_products"):
        values = [getattr(one, name) for one in estimates]
        assert values == sorted(set(values)), name
    assert estimates[0].seconds < estimates[2].seconds


def test_the_estimate_counts_the_evaluations_that_are_made(digits, monkeypatch):
    """Draws, lines and planes exactly; the searches that stop by themselves to a factor of two."""
    plan = PRESETS["quick"]
    expected = estimate_cost(digits, plan, "all").num_evaluations
    calls = []
    for owner, name in ((ModelRisk, "evaluate"), (PointEvaluator, "__call__")):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *a, own=own, **k: calls.append(1) or own(self, *a, **k))
    measure_everything(digits, "all", plan=plan)
    assert expected / 2 < len(calls) < 2 * expected


def test_the_estimate_counts_every_part_of_a_plan(digits):
    """Three directions of an escape, of every lane, at every length; and no part is free."""
    plan, lanes = replace(SMALL, escape_lengths=13), len(lanes_of(digits, None))
    assert estimate_cost(digits, plan, parts=("escape",)).num_evaluations == 3 * 13 * lanes
    assert estimate_cost(digits, replace(plan, escape_lengths=0), parts=("escape",)).num_evaluations == 0
    everything = estimate_cost(digits, plan)
    parts = [estimate_cost(digits, plan, parts=(name,)) for name in ("spectrum", "perturbation", "surface", "escape")]
    assert min(part.num_evaluations for part in parts) > 0
    assert everything.num_evaluations == sum(part.num_evaluations for part in parts)


def test_attributes_say_how_everything_was_measured(digits, tmp_path):
    groups = measure_everything(digits, "all", plan=SMALL, seed=7)
    tree = load_results(save_results(groups, tmp_path / "r.nc"))
    for name in groups:
        attributes = tree[name].attrs
        assert attributes["checkpoint_sha256"] == digits.attributes["checkpoint_sha256"]
        assert attributes["dtype"] == "float32"
        assert attributes["split"] == "train"
        assert "torch" in attributes["versions"]
        assert attributes.get("seed", 7) == 7
    assert json.loads(tree["surface"].attrs["direction_norms"])[0][0] > 0
