"""Per-image curvatures against dense differentiation, and intervals over images."""

import numpy as np
import pytest
import scipy.stats
import torch
from spectrum_cases import COUNTS, dense_hessian, digits, network_risk, quadratic, tanh_network
from torch import nn

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import bootstrap
from landscape.spectrum.bootstrap import bootstrap_mean, held_to_student, most_negative, per_example_curvatures
from landscape.spectrum.lanczos import sphere


def direction(size, name="v"):
    return sphere(1, size, stream(0, f"test/{name}"))[0]


class CubeByHand(torch.autograd.Function):
    """x^3 / 3 without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x**2


class Cube(nn.Module):
    def forward(self, x):
        return CubeByHand.apply(x)


def test_against_dense_hessians_of_single_images():
    risk, v = network_risk(), direction(109)
    images, labels = digits()
    model = tanh_network()
    curvatures = per_example_curvatures(risk, torch.tensor([0.0, 1.0, 0.0, 0.0]), v)
    rows = torch.nonzero(labels == 1)[:, 0]
    for value, i in zip(curvatures, rows.tolist()):
        matrix = dense_hessian(model, images[i : i + 1], torch.zeros(1, dtype=torch.int64) + labels[i], [0.0, 1.0])
        assert value == pytest.approx(float(v.numpy() @ matrix @ v.numpy()), rel=1e-10, abs=1e-13)
    assert len(curvatures) == COUNTS[1]


@pytest.mark.parametrize("pool", ["images", "classes"])
def test_mean_is_the_curvature_of_the_lane(pool):
    risk, v = network_risk(), direction(109)
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    row = counts / counts.sum() if pool == "images" else torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    values = per_example_curvatures(risk, row, v)
    product = risk.hvps(risk.theta, row[None], v[None])[0]
    assert values.mean() == pytest.approx(float(v @ product), rel=1e-10)
    assert len(values) == (37 if pool == "images" else 12)


def test_chunks_do_not_matter():
    row, v = torch.tensor([1.0, 0.0, 0.0, 0.0]), direction(109)
    whole = per_example_curvatures(network_risk(), row, v)
    pieces = ModelRisk(tanh_network(), digits(), chunk_size=3)
    np.testing.assert_allclose(per_example_curvatures(pieces, row, v), whole, rtol=1e-12)


def test_operations_without_forward_derivative(monkeypatch):
    images, labels = digits()
    layers = list(tanh_network().children())
    by_hand = ModelRisk(nn.Sequential(*layers[:3], Cube(), layers[4]), (images, labels))

    class Plain(nn.Module):
        def forward(self, x):
            return x**3 / 3

    forward = ModelRisk(nn.Sequential(*layers[:3], Plain(), layers[4]), (images, labels))
    row, v = torch.tensor([0.3, 0.3, 0.0, 0.4]), direction(109)
    monkeypatch.setattr(bootstrap, "REVERSE_CHUNK", 7)
    np.testing.assert_allclose(
        per_example_curvatures(by_hand, row, v), per_example_curvatures(forward, row, v), rtol=1e-10, atol=1e-14
    )


def test_a_loss_linear_in_the_weights_has_no_curvature(monkeypatch):
    images, labels = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    risk = ModelRisk(model, (images, labels), loss=lambda logits, y: logits[:, 0])
    row, v = torch.ones(4) / 4, direction(260)
    assert not per_example_curvatures(risk, row, v).any()

    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(torch.func, "jvp", refuse)
    assert not per_example_curvatures(risk, row, v).any()


def test_no_examples():
    assert per_example_curvatures(quadratic([torch.eye(3).double()]), torch.ones(1), torch.ones(3)) is None


@pytest.mark.parametrize(("size", "least"), [(5, 0.9), (40, 0.9)])
def test_coverage(size, least):
    """Skewed values, nominal 0.95: 200 data sets."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_mean(-generator.exponential(size=size), np.random.default_rng(trial), num_resamples=400)
        hits += interval.lower <= -1 <= interval.upper
    assert least <= hits / 200 < 1


def test_interval_closed_form_and_scale():
    values = np.array([1.0, 2.0, 3.0, 6.0, 8.0, 4.0])
    interval = bootstrap_mean(values, np.random.default_rng(3))
    assert interval.mean == 4.0
    assert interval.stderr == pytest.approx(np.sqrt(np.sum((values - 4) ** 2) / 5 / 6))
    assert interval.upper - 4 >= 2.5705818 * interval.stderr  # Student's 0.975 quantile of 5 degrees of freedom
    other = bootstrap_mean(-1000 * values, np.random.default_rng(3))
    assert (other.lower, other.upper) == pytest.approx((-1000 * interval.upper, -1000 * interval.lower))


def test_seeded(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    first, again, other = (bootstrap_mean(values, np.random.default_rng(seed), level=0.5) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    monkeypatch.setattr(bootstrap, "BLOCK_ELEMENTS", 700)
    assert bootstrap_mean(values, np.random.default_rng(0), level=0.5) == first


def test_degenerate_data():
    lonely = bootstrap_mean(np.array([-2.0]), np.random.default_rng(0))
    assert lonely.mean == -2
    assert np.isnan([lonely.lower, lonely.upper, lonely.stderr]).all()
    same = bootstrap_mean(np.full(4, 3.0), np.random.default_rng(0))
    assert (same.lower, same.upper, same.stderr) == (3.0, 3.0, 0.0)
    pair = bootstrap_mean(np.array([0.0, 1.0]), np.random.default_rng(0))  # every resample of two is degenerate or both
    assert pair.lower < 0 < 1 < pair.upper


def test_who_carries_it():
    values = np.array([0.5, -3.0, 0.0, -1.0, -4.0])
    images, share = most_negative(values, 2)
    assert images.tolist() == [4, 1]
    assert share == 7 / 8
    images, share = most_negative(values, 10)
    assert images.tolist() == [4, 1, 3]
    assert share == 1
    assert most_negative(np.ones(3), 2)[1] == 0
    assert most_negative(values, 0)[0].size == 0


def test_refusals():
    for bad in (np.zeros(0), np.array([1.0, np.nan]), np.zeros((2, 2))):
        with pytest.raises(LandscapeError, match="finite values"):
            bootstrap_mean(bad, np.random.default_rng(0))
    with pytest.raises(LandscapeError, match="got 95"):
        bootstrap_mean(np.ones(3), np.random.default_rng(0), level=95)


def test_quantiles_are_held_between_student_s_and_five_times_as_much():
    """For every bootstrap there is: also of surfaces, which call the same function."""
    student = scipy.stats.t.ppf(0.975, 3)
    low, high = held_to_student([-1.0, -4 * student, -np.inf, np.nan], [1e9, 1.0, 3 * student, np.nan], 3, level=0.95)
    np.testing.assert_allclose(-low / student, [1, 4, 5, 1])
    np.testing.assert_allclose(high / student, [5, 1, 3, 1])
    values = np.array([0.0, 1e-3, 2e-3, 1.0])  # a third of the resamples miss the last one and spread by 1e-3
    interval = bootstrap_mean(values, np.random.default_rng(0))
    assert (interval.mean - interval.lower) / interval.stderr == pytest.approx(student, rel=1e-12)
    assert (interval.upper - interval.mean) / interval.stderr == pytest.approx(5 * student, rel=1e-12)
