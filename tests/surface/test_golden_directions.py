"""Golden tests of random directions: orthogonality, norms, distribution (3.2, 3.6, 3.7, 3.8)."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from golden_cases import check_fails, network_risk
from torch import nn

import landscape.directions
import landscape.perturbation
from landscape.directions import filter_normalised
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.surface import axes, cosine, measure_surface, random_directions


def plant(monkeypatch, name, defective):
    """Plant a defect in a formula of ours, wherever it is called from."""
    for module in (landscape.directions, landscape.perturbation, axes):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, defective)


def linear_risk(num_inputs=100):
    x = torch.randn(6, num_inputs, generator=stream(0, "defects/directions"))
    return ModelRisk(nn.Linear(num_inputs, 3, bias=False), (x, torch.arange(6) % 3))


# ---- 3.2 ----------------------------------------------------------------------------------------------------------


def check_orthogonal(risk):
    """Orthogonal after all scaling; every norm that of the weights."""
    for pair in range(2):
        directions = random_directions(risk, num=2, seed=0, pair=pair)
        assert abs(cosine(*directions)) < 1e-5
        for d in directions:
            assert float(d.double().norm()) == pytest.approx(float(risk.theta.double().norm()), rel=1e-5)


def without_the_squared_norm(draws, others, **_):
    return [d - (d * o).sum() * o for d, o in zip(draws, others)]


def test_3_2_gram_schmidt_without_the_squared_norm(monkeypatch):
    check_orthogonal(linear_risk())
    plant(monkeypatch, "orthogonal_by_filter", without_the_squared_norm)
    plant(monkeypatch, "orthogonal_to", lambda d, other: d)
    check_fails(check_orthogonal, linear_risk())


def test_3_2_the_last_resort_alone_finds_the_slip(monkeypatch):
    """Directions that come out parallel are made orthogonal as a whole, at the price of their filters' norms."""
    plant(monkeypatch, "orthogonal_by_filter", lambda draws, others, **_: list(draws))
    check_orthogonal(linear_risk())


def test_3_2_the_record_of_a_plane_says_how_orthogonal_it_is(monkeypatch):
    def check():
        attributes = measure_surface(network_risk(), "all", kind="plane", x=[0, 1], y=[0, 1], num_pairs=2).attrs
        assert all(abs(value) < 1e-5 for value in np.ravel(attributes["direction_cosines"]))
        assert np.shape(json.loads(attributes["direction_norms"])) == (2, 2)

    check()
    plant(monkeypatch, "orthogonal_by_filter", without_the_squared_norm)
    plant(monkeypatch, "orthogonal_to", lambda d, other: d)
    check_fails(check)


# ---- 3.6 ----------------------------------------------------------------------------------------------------------


def check_ratios(risk):
    """Each output filter of a convolution or linear layer has the norm of the same filter of the weights."""
    weights = risk.layout.named(risk.theta)
    for direction in random_directions(risk, num=2, seed=0, pair=0):
        d = risk.layout.named(direction)
        for name in ("0.weight", "4.weight"):
            norms = weights[name].flatten(1).norm(dim=1)
            assert norms.max() / norms.min() > 30  # so that a mixture of filters shows
            np.testing.assert_allclose(d[name].flatten(1).norm(dim=1) / norms, 1, rtol=0, atol=1e-5)


def test_3_6_filter_norms_over_the_wrong_axis(monkeypatch):
    check_ratios(network_risk())
    plant(monkeypatch, "filter_norms", lambda tensor, *_: torch.norm(tensor, dim=0))
    check_fails(check_ratios, network_risk())


# ---- 3.7 ----------------------------------------------------------------------------------------------------------


def check_unmoved(risk):
    """Biases and normalisation layers stay; above all they do not move along themselves."""
    for direction in random_directions(risk, num=2, seed=0, pair=0):
        for name, part in risk.layout.named(direction).items():
            assert part.dim() > 1 or not part.any(), name


def test_3_7_the_one_dimensional_part_of_a_random_direction_is_not_the_weights(monkeypatch):
    check_unmoved(network_risk())

    def copied(draws, weights, **options):
        return [w if w.dim() <= 1 else d for d, w in zip(filter_normalised(draws, weights, **options), weights)]

    plant(monkeypatch, "filter_normalised", copied)
    check_fails(check_unmoved, network_risk())


# ---- 3.8 ----------------------------------------------------------------------------------------------------------


def check_independent(risk):
    """Cosines of two seeds, and of one with the vector of ones, of the order n^-1/2."""
    drawn = [random_directions(risk, num=1, seed=seed, pair=0)[0] for seed in range(3)]
    for one, other in itertools.combinations([*drawn, torch.ones_like(drawn[0])], 2):
        assert abs(cosine(one, other)) < 5 / math.sqrt(len(one))


def test_3_8_uniform_directions(monkeypatch):
    risk = linear_risk(1000)
    check_independent(risk)

    def uniform(shapes_like, generator, **_):
        return [torch.rand(t.shape, generator=generator).to(t.dtype) for t in shapes_like]

    plant(monkeypatch, "gaussian", uniform)
    check_fails(check_independent, risk)
    one, other = (random_directions(risk, num=1, seed=seed, pair=0)[0] for seed in (0, 1))
    assert cosine(one, other) == pytest.approx(0.75, abs=0.02)  # as measured on the tool


def test_3_8_every_run_draws_the_same_and_the_global_generator_is_not_asked(monkeypatch):
    risk = network_risk()

    def check():
        state = torch.get_rng_state()
        first = random_directions(risk, num=2, seed=0, pair=0)
        assert torch.get_rng_state().equal(state)
        assert all(a.equal(b) for a, b in zip(first, random_directions(risk, num=2, seed=0, pair=0)))

    check()
    plant(monkeypatch, "stream", lambda seed, name: torch.default_generator)
    with torch.random.fork_rng(devices=[]):
        check_fails(check)
