"""Quadratures with a node at zero, against closed forms and the measures they come from."""

import numpy as np
import pytest
import torch

from landscape.randomness import stream
from landscape.spectrum.density import node_at_zero, probe_quadrature
from landscape.spectrum.lanczos import Lanczos, sphere

SIZE = 2000


def run_of(spectrum: np.ndarray, num_steps: int, *, seed: int = 0):
    start = sphere(1, len(spectrum), stream(seed, "test/quadrature"))
    run = Lanczos(lambda v: v * torch.tensor(spectrum), start)
    run.extend(num_steps)
    return run.ritz(0), start[0].numpy() ** 2


def mass_at_zero(*, outliers: int = 60) -> np.ndarray:
    """An overparameterised network in small: nearly all eigenvalues tiny, others of both signs."""
    draw = np.random.default_rng(1)
    rest = 1e-3 * draw.standard_normal(SIZE - outliers)
    return np.concatenate([rest, draw.standard_normal(outliers) * 3, [20.0]])


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_exact_for_polynomials_up_to_twice_the_steps(num_steps):
    spectrum = np.linspace(-1.0, 1.0, SIZE)
    ritz, mass = run_of(spectrum, num_steps)
    rule = probe_quadrature(ritz)
    assert len(rule.values) == num_steps + 1
    assert (rule.values == 0).sum() == 1
    for degree in range(2 * num_steps + 1):
        assert rule.weights @ rule.values**degree == pytest.approx(mass @ spectrum**degree, abs=1e-12)
    beyond = 2 * num_steps + 2
    assert abs(rule.weights @ rule.values**beyond - mass @ spectrum**beyond) > 1e-10


def test_two_steps_in_closed_form():
    """T' is singular for the last entry beta^2 e'T^-1 e; its eigenvalues are the nodes."""
    alphas, betas = np.array([0.3, -0.2]), np.array([0.9, 0.5])
    inner = np.array([[alphas[0], betas[0]], [betas[0], alphas[1]]])
    values, vectors = np.linalg.eigh(inner)
    rule = node_at_zero(values, vectors[0], betas[1] * vectors[1])
    last = betas[1] ** 2 * alphas[0] / (alphas[0] * alphas[1] - betas[0] ** 2)
    whole = np.array([[alphas[0], betas[0], 0], [betas[0], alphas[1], betas[1]], [0, betas[1], last]])
    nodes, columns = np.linalg.eigh(whole)
    np.testing.assert_allclose(rule.values, nodes, atol=1e-14)
    np.testing.assert_allclose(rule.weights, columns[0] ** 2, atol=1e-14)


def test_a_mass_at_zero_is_not_split():
    """Gauss rules of even lengths put two nodes around the mass: the mean of |x| is wrong by its weight."""
    spectrum = mass_at_zero()
    split = []
    for num_steps in range(8, 28):
        ritz, mass = run_of(spectrum, num_steps)
        truth = mass @ np.abs(spectrum)
        rule = probe_quadrature(ritz)
        assert rule.weights.sum() == pytest.approx(1.0, abs=1e-12)
        if (rule.values == 0).any():
            assert rule.weights @ np.abs(rule.values) <= truth * (1 + 1e-9)
        assert rule.weights @ np.abs(rule.values) == pytest.approx(truth, rel=0.5)
        split.append(float(ritz.weights @ np.abs(ritz.values)) / truth)
    assert max(split) > 1.9  # the defect that the node removes is here


def test_gauss_where_zero_is_outside_or_a_node_already():
    ritz, _ = run_of(np.linspace(0.5, 2.0, SIZE), 6)
    assert len(probe_quadrature(ritz).values) == 6
    exhausted, _ = run_of(np.repeat([-1.0, 0.0, 2.0], 100), 5)
    assert exhausted.is_exhausted
    np.testing.assert_allclose(probe_quadrature(exhausted).values, [-1.0, 0.0, 2.0], atol=1e-12)
    symmetric, _ = run_of(np.linspace(-1.0, 1.0, SIZE), 1)
    assert len(probe_quadrature(symmetric).values) == 1
    at_zero = node_at_zero(np.array([-1.0, 0.0, 1.0]), np.sqrt([0.25, 0.5, 0.25]), np.array([0.1, -0.1, 0.1]))
    assert at_zero.values.tolist() == [-1.0, 0.0, 1.0]
    nearly = node_at_zero(np.array([-1.0, 1e-9, 1.0]), np.sqrt([0.25, 0.5, 0.25]), np.array([0.1, -0.1, 0.1]))
    assert len(nearly.values) == 3  # the new node would have to leave the spectrum
