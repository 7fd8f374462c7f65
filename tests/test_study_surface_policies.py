"""A small version of the study of BatchNorm policies and slices, and that the committed conclusions follow from its rows."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # analyses is not installed

from analyses.surface_policies import study
from analyses.surface_policies.__main__ import read_table, write_table
from analyses.surface_policies.conclusions import conclude, mean_interval, ratio_interval, share_interval
from analyses.surface_policies.picture import draw_policies, draw_slices
from analyses.surface_policies.tables import conclusions_table, policies_table, short, slices_table
from landscape import AnalyticRisk, measure_perturbation
from landscape.perturbation import PerturbationOptions
from landscape.randomness import numpy_stream

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "analyses" / "surface_policies"
PAGE = (ROOT / "docs" / "surfaces.md").read_text()


@pytest.fixture(scope="module")
def table():
    return read_table(FOLDER / "results.csv")


@pytest.fixture(scope="module")
def conclusions():
    return read_table(FOLDER / "conclusions.csv")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return study.train_subject("short", 0, tmp_path_factory.mktemp("study"), epochs=1)


def frame(rows):
    return pd.DataFrame([asdict(row) for row in rows]).assign(training="short")


# ---- the parts, on one network ------------------------------------------------------------------------------------


def test_the_three_policies_differ_only_in_the_statistics(subject):
    rows = frame(study.batchnorm_rows(subject, num_directions=2))
    at = rows[rows.measure == "loss"].set_index(["setting", "lane", "at"]).value
    for lane in ("head", "tail"):
        exact = float(subject.held_out.losses(subject.held_out.theta)[list(subject.held_out.groups[lane])].mean())
        assert at["frozen", lane, 0.0] == pytest.approx(exact, rel=1e-5)
        assert len({round(at[policy, lane, 0.0], 9) for policy in study.POLICIES}) == 3
    again = frame(study.batchnorm_rows(subject, num_directions=2))
    pd.testing.assert_frame_equal(rows, again)


def test_the_balanced_images_are_as_many_as_the_long_tailed_and_none_is_a_test_image(subject):
    images = study.balanced_images()
    assert abs(len(images) - int(subject.train.class_counts.sum())) <= 5
    test = subject.held_out.labels
    stored = {row.numpy().tobytes() for row in study.ls.load_dataset("digits-lt").test.images}
    assert len(stored) == len(test)
    assert not stored & {row.numpy().tobytes() for row in images}


def test_the_error_over_images_is_that_of_a_stratified_mean(subject):
    """Against a bootstrap within classes, for one direction."""
    (row,) = [r for r in study._image_error_rows(subject, 1) if r.lane == "tail"]
    risk = subject.held_out
    (direction,) = study.random_directions(risk, num=1, seed=0, pair=0)
    moved, centre = (study._losses_of_images(risk, risk.theta + a * direction) for a in (0.5, 0.0))
    increase, labels, rng = (moved - centre).numpy(), risk.labels.numpy(), numpy_stream(0, "test/images")
    means = np.zeros(4000)
    for c in risk.groups["tail"]:
        part = increase[labels == c]
        means += part[rng.integers(len(part), size=(len(means), len(part)))].mean(1) / 3
    # sd of a bootstrap: 1 / sqrt(2 * 4000) = 1.1 % of itself, and (n - 1) / n = 39 / 40 of the variance
    assert row.value == pytest.approx(means.std() * np.sqrt(40 / 39), rel=0.06)


def test_slices_lie_between_the_ends_of_the_spectrum_and_begin_at_the_loss(subject):
    rows = frame(study.slice_rows(subject, num_slices=3))
    for lane in (study.HEAD, study.TAIL, "all"):
        of_lane = rows[rows.lane == lane]
        value = of_lane[of_lane.setting == ""].set_index("measure").value
        curvature = of_lane[(of_lane.measure == "curvature along random directions") & (of_lane.setting == "autograd")]
        assert value["lambda_min"] < float(curvature.low.iloc[0]) <= float(curvature.high.iloc[0]) < value["lambda_max"]
        assert value["lambda_min"] < value["trace / P"] < value["lambda_max"]
        at_weights = of_lane[(of_lane.measure == "loss along") & (of_lane["at"] == 0.0)]
        assert float(at_weights.value.iloc[0]) == pytest.approx(value["loss"], rel=1e-5)
        assert float(at_weights.high.iloc[0]) == pytest.approx(float(at_weights.low.iloc[0]), rel=1e-6)


def test_escapes_begin_downhill(subject):
    rows = frame(study.escape_rows(subject)).pivot_table(index="lane", columns="at", values="value")
    assert rows.loc[study.TAIL, 0.1] < rows.loc[study.TAIL, -0.1]


def test_the_gradient_of_the_whole_is_the_weighted_sum_of_the_classes(subject):
    rows = frame(study.gradient_rows(subject))
    risk = subject.train
    shares = (risk.class_counts / risk.class_counts.sum()).double()
    classes = risk.gradients(risk.theta, torch.eye(10, dtype=torch.float64)).double()
    whole = float(torch.linalg.vector_norm(shares @ classes))
    assert float(rows[(rows.lane == "all") & (rows.setting == "")].value.iloc[0]) == pytest.approx(whole, rel=1e-5)
    assert rows.value.iloc[9] == pytest.approx(float(classes[9].norm()), rel=1e-6)


def test_curvatures_of_a_quadratic():
    matrix = torch.diag(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    risk = AnalyticRisk(lambda t: (0.5 * t @ matrix @ t)[None], torch.zeros(3, dtype=torch.float64))
    directions = torch.tensor([[2.0, 0, 0], [0, 5.0, 0], [1.0, 1.0, 0]], dtype=torch.float64)
    weights = torch.ones(1, 1, dtype=torch.float64)
    assert study.curvatures(risk, weights, directions) == pytest.approx([3.0, -1.0, 1.0], rel=1e-12)


# ---- antithetic draws ---------------------------------------------------------------------------------------------


def test_the_gain_is_one_over_one_plus_the_correlation_of_a_pair():
    rng = numpy_stream(0, "test/gain")
    odd, even = rng.normal(size=(2, 400))
    draws = np.stack([even + 2 * odd, even - 2 * odd], -1).ravel()
    plus, minus = draws[0::2], draws[1::2]
    variance = (plus.var(ddof=1) + minus.var(ddof=1)) / 2
    assert study.gain(draws) == pytest.approx(1 / (1 + np.cov(plus, minus)[0, 1] / variance), rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_the_gain_of_a_parabola_with_a_slope(slope):
    """Var of the odd part: sigma^2 |b|^2; of the even: sigma^4 c^2 n / 2; the ratio (odd + even) / (2 even)."""
    n, sigma, curvature, num_pairs = 8, 0.5, 2.0, 300 if slope else 4
    b = torch.zeros(n, dtype=torch.float64)
    b[0] = slope
    risk = AnalyticRisk(lambda t: (b @ t + curvature / 2 * t @ t)[None], torch.zeros(n, dtype=torch.float64))
    options = PerturbationOptions(radii=(1.0,), sigmas=(sigma,), num_draws=2 * num_pairs, rhos=())
    draws = measure_perturbation(risk, "all", options=options).gaussian_loss_increase.values[0, 0]
    odd, even = sigma**2 * slope**2, sigma**4 * curvature**2 * n / 2
    # A variance of 300 draws of kurtosis k has a relative error of sqrt((k - 1) / 300): 11 % for the even part (4.5).
    assert study.gain(draws) == pytest.approx((odd + even) / (2 * even), rel=0.35 if slope else 1e-9)


def test_a_class_has_an_interval_around_its_gain(subject):
    rows = frame(study.antithetic_rows(subject, num_pairs=10))
    assert len(rows) == 2 * 14
    assert ((rows.low <= rows.value) & (rows.value <= rows.high)).mean() > 0.9  # percentiles of a skewed statistic
    assert (rows.low > 0.5 - 1e-9).all()


# ---- what follows -------------------------------------------------------------------------------------------------


def test_intervals_in_closed_form():
    assert share_interval(0, 240)[2] == pytest.approx(1 - 0.025 ** (1 / 240), rel=1e-9)
    assert ratio_interval(np.full(3, 6.0), np.full(3, 2.0)) == pytest.approx((3.0, 3.0, 3.0))
    mean, low, high = mean_interval(np.array([-1.0, 0.0, 1.0]))
    assert (mean, -low) == pytest.approx((0.0, high))
    assert high == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)  # Student's t, two degrees of freedom


def test_the_committed_conclusions_follow_from_the_committed_rows(table, conclusions):
    assert table.groupby("training").seed.nunique().to_dict() == {"short": 8, "long": 8}
    found = conclude(table)
    kept = [name for name in found if name not in ("value", "low", "high")]
    pd.testing.assert_frame_equal(found[kept], conclusions[kept])
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(found[name], conclusions[name], rtol=1e-5)
    assert (FOLDER / "results.csv").read_text().startswith("# python 3")


def test_another_outcome_gives_another_conclusion(table):
    def verdict(changed, quantity):
        found = conclude(changed)
        return found[(found.training == "short") & found.quantity.str.startswith(quantity)].verdict.iloc[0]

    policies = table[(table.part == "batchnorm") & (table.setting != "recalibrated, balanced")]
    same = policies.assign(
        value=policies.groupby(["training", "seed", "lane", "measure", "at"]).value.transform("first")
    )
    unequal = pd.concat([same, table.drop(policies.index)])
    head = "head loss at distance 0.5"
    assert (verdict(table, head), verdict(unequal, head)) == ("weaker", "not confirmed")
    steeper = table.assign(value=table.value.where(table.setting != "frozen", 20 * table.value))
    assert verdict(steeper, head) == "confirmed"

    share = "share of random directions with negative curvature of class 9, autograd"
    is_count = table.measure == "random directions of negative curvature"
    assert verdict(table, share) == "weaker"
    assert verdict(table.assign(value=table.value.where(~is_count, 0)), share) == "confirmed"
    assert verdict(table.assign(value=table.value.where(~is_count, 15)), share) == "not confirmed"

    gradient = "gradient norm of class 9"
    is_norm = table.measure == "gradient norm"
    assert verdict(table.assign(value=table.value.where(~is_norm, 1.0)), gradient) == "not confirmed"


def test_the_page_shows_the_committed_numbers(table, conclusions):
    for text in (policies_table(table), slices_table(table), conclusions_table(conclusions)):
        assert text in PAGE
    for _, row in conclusions[conclusions.claim.str.startswith("directions are")].iterrows():
        assert short(row.value) in PAGE, row.quantity


def test_the_figures_draw_what_is_in_the_table(table, tmp_path):
    draw_policies(table, tmp_path / "a.png")
    draw_slices(table, tmp_path / "b.png")
    for name in "ab":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_survives_its_file(tmp_path):
    row = study.Row("short", 0, "part", "9", "", "loss", float("nan"), 0.5)
    write_table(pd.DataFrame([asdict(row), asdict(replace(row, lane="all"))]), tmp_path / "t.csv")
    again = read_table(tmp_path / "t.csv")
    assert list(again.lane) == ["9", "all"]
    assert list(again.setting) == ["", ""]
    assert np.isnan(again["at"]).all()
