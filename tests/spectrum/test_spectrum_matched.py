"""Head against tail at one sample size: dense derivatives, which examples are drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from spectrum_cases import COUNTS, GROUPS, Counting, dense_hessian, digits, network_risk, quadratic, tanh_network

from landscape.errors import LandscapeError
from landscape.results import Journal
from landscape.risk import ModelRisk
from landscape.spectrum import SpectrumOptions
from landscape.spectrum.matched import QUANTITIES, draw_rows, measure_matched

OPTIONS = SpectrumOptions(max_steps=120, tolerance=1e-8)


@pytest.fixture(scope="module")
def risk():
    return network_risk()


@pytest.fixture(scope="module")
def result(risk):
    return measure_matched(risk, options=OPTIONS)


def sorted_digits():
    images, labels = digits()
    order = torch.argsort(labels, stable=True)
    return images[order], labels[order]


def exact_ends(rows, lane):
    images, labels = sorted_digits()
    values = np.linalg.eigvalsh(dense_hessian(tanh_network(), images[rows], labels[rows], lane))
    return values[0], values[-1]


def test_draws_agree_with_dense_hessians_of_the_drawn_images(risk, result):
    assert result.lane.values.tolist() == ["0", "1", "2", "3"]
    assert result.attrs["size"] == 2
    for draw in range(3):
        rows = draw_rows(risk, 2, draw, seed=0)
        for c in range(4):
            low, high = exact_ends(rows, [float(k == c) for k in range(4)])
            found = result.isel(lane=c, draw=draw)
            assert float(found.lambda_max) == pytest.approx(high, rel=1e-9)
            assert float(found.lambda_min) == pytest.approx(low, rel=1e-6)
            assert float(found.ratio) == pytest.approx(-low / high, rel=1e-6)


def test_full_size_is_that_of_all_images_and_the_smallest_class_is_in_every_draw_whole(result):
    for c in range(4):
        low, high = exact_ends(slice(None), [float(k == c) for k in range(4)])
        assert float(result.lambda_min_full[c]) == pytest.approx(low, rel=1e-6)
        assert float(result.lambda_max_full[c]) == pytest.approx(high, rel=1e-9)
    last = result.sel(lane="3")
    np.testing.assert_allclose(last.lambda_max, last.lambda_max_full, rtol=1e-9)
    assert float(last.gradient_norm_stderr) < 1e-12
    assert (result.lambda_max_stderr[:3] > 1e-3 * result.lambda_max_mean[:3]).all()
    assert result.num_examples.values.tolist() == [2] * 4
    assert result.num_examples_full.values.tolist() == list(COUNTS)


def test_means_and_standard_errors_are_those_over_draws(result):
    for name in QUANTITIES:
        np.testing.assert_allclose(result[f"{name}_mean"], result[name].mean("draw"), rtol=1e-12)
        np.testing.assert_allclose(result[f"{name}_stderr"], result[name].std("draw", ddof=1) / np.sqrt(3), rtol=1e-9)


def test_groups_weigh_their_classes_equally_at_matched_size(risk):
    found = measure_matched(risk, "tail,all", num_draws=1, size=2, options=OPTIONS)
    rows = draw_rows(risk, 2, 0, seed=0)
    for lane, weights in {"tail": [0, 0, 0.5, 0.5], "all": [0.25] * 4}.items():
        low, high = exact_ends(rows, weights)
        assert float(found.lambda_max.sel(lane=lane)[0]) == pytest.approx(high, rel=1e-9)
        assert float(found.lambda_min.sel(lane=lane)[0]) == pytest.approx(low, rel=1e-6)
    low, high = exact_ends(slice(None), [0, 0, 5 / 7, 2 / 7])
    assert float(found.lambda_max_full.sel(lane="tail")) == pytest.approx(high, rel=1e-9)
    assert found.num_examples.values.tolist() == [4, 8]
    assert found.lambda_max_stderr.isnull().all()


def test_rows_are_drawn_without_replacement_by_name(risk):
    rows = draw_rows(risk, 2, 0, seed=0)
    assert len(rows) == 8
    assert (rows.diff() > 0).all()
    labels = sorted_digits()[1]
    assert torch.bincount(labels[rows]).tolist() == [2] * 4
    assert torch.equal(rows, draw_rows(risk, 2, 0, seed=0))
    assert not torch.equal(rows, draw_rows(risk, 2, 1, seed=0))
    assert not torch.equal(rows, draw_rows(risk, 2, 0, seed=1))
    # A larger draw holds the smaller one: sizes are compared on nested sets.
    assert set(rows.tolist()) <= set(draw_rows(risk, 4, 0, seed=0).tolist())


def test_an_image_comes_with_all_its_frozen_augmentations():
    images, labels = digits()
    shifted = torch.stack([images, images.roll(1, 3)], 1).flatten(0, 1)
    risk = ModelRisk(tanh_network(), (shifted, labels.repeat_interleave(2)), groups=GROUPS, draws_per_example=2)
    rows = draw_rows(risk, 2, 0, seed=0)
    assert torch.equal(rows[::2] + 1, rows[1::2])
    assert (rows[::2] % 2 == 0).all()
    found = measure_matched(risk, "0,3", num_draws=1, options=OPTIONS)
    assert found.attrs["size"] == 2
    assert found.num_examples.values.tolist() == [2, 2]
    np.testing.assert_allclose(found.lambda_max.sel(lane="3")[0], found.lambda_max_full.sel(lane="3"), rtol=1e-9)


def test_a_resumed_run_measures_nothing_again(tmp_path, risk, result):
    journal = Journal(tmp_path, {})
    texts = []
    first = measure_matched(risk, options=OPTIONS, journal=journal, progress=lambda *a: texts.append(a))
    counting = Counting(risk)
    again = measure_matched(counting, options=OPTIONS, journal=journal)
    xr.testing.assert_identical(first, result)
    xr.testing.assert_identical(again, result)
    assert counting.num_products == 0
    assert texts[-1] == (4, 4, "2 examples per class: draw 3 of 3")


def test_bad_requests_are_refused(risk):
    with pytest.raises(LandscapeError, match="got a loss without examples"):
        measure_matched(quadratic([torch.eye(2, dtype=torch.float64)]))
    with pytest.raises(LandscapeError, match=r"expected 1 to 2, the examples of the smallest class \('3'\), got 3"):
        measure_matched(risk, size=3)
    with pytest.raises(LandscapeError, match="num_draws: expected a whole number, at least 1, got 0"):
        measure_matched(risk, num_draws=0)
