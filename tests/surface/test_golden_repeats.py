"""Golden tests of what a value depends on: its point and the stated examples, nothing else (3.12, walking in place)."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from golden_cases import (
    E1,
    POLICIES,
    check_fails,
    evaluating,
    images,
    network,
    network_risk,
    plane,
    slanted,
    toy,
)
from torch import nn

from landscape.risk import ModelRisk
from landscape.surface import measure_surface, random_directions

# ---- 3.12 ---------------------------------------------------------------------------------------------------------


def check_repeats(evaluate):
    assert evaluate() == evaluate()


def loader_of(inputs, labels):
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    return torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))


def test_3_12_shuffling_loader():
    """A loader is read once: every grid point sees the same examples."""
    loader = loader_of(*images(30))
    risk = ModelRisk(network(), loader)
    d = random_directions(risk, num=1, seed=0, pair=0)
    for policy in POLICIES:
        check_repeats(
            lambda p=policy: measure_surface(risk, directions=d, x=[-1, 0.3], batchnorm=p).loss.values.tolist()
        )

    def two_batches():
        batches = [batch for batch, _ in zip(loader, range(2))]
        return [nn.functional.cross_entropy(network()(x), y).item() for x, y in batches]

    check_fails(check_repeats, two_batches)


def check_same_point(risk, d, e):
    """A point has the same value alone, on a line, and in a plane, and again after the model was elsewhere."""
    line = measure_surface(risk, directions=[d], x=[-1, 0.3, 2])
    again = measure_surface(risk, directions=[d], x=[0.3, 1])
    crossing = measure_surface(risk, kind="plane", directions=[d, e], x=[0.1, 0.3], y=[-1, 0])
    values = [s.loss.sel(alpha=0.3, pair=0).values.tolist() for s in (line, again, crossing.sel(beta=0))]
    assert values[0] == values[1] == values[2]


def test_3_12_the_same_grid_point_evaluated_twice(monkeypatch):
    risk = network_risk()
    check_same_point(risk, *random_directions(risk, num=2, seed=0, pair=0))
    e1, e2 = torch.eye(2, dtype=torch.float64)
    check_same_point(toy(slanted), e1, e2)
    calls = itertools.count()
    evaluating(monkeypatch, lambda evaluate, theta: evaluate(theta) + 1e-9 * (next(calls) % 7))  # other examples
    check_fails(check_same_point, toy(slanted), e1, e2)
    check_fails(check_repeats, lambda: plane().loss.values.tolist())


# ---- the second trap ----------------------------------------------------------------------------------------------


def check_from_the_centre(evaluate, x):
    """The last of many points is, to the bit, the one that is measured alone."""
    assert evaluate(x)[-1] == evaluate(x[[0, -1]])[-1]


def test_trap_walking_in_place_drifts():
    risk = network_risk()
    d = random_directions(risk, num=1, seed=0, pair=0)
    x = np.linspace(-1, 1, 101)
    check_from_the_centre(lambda at: measure_surface(risk, "all", directions=d, x=at).loss.values[0, :, 0], x)

    def walked(at):
        theta, found = risk.theta + float(at[0]) * d[0], []
        for step in [0.0, *np.diff(at)]:
            theta = theta + float(step) * d[0]
            found.append(float(theta.double().sum()))
        return found

    check_fails(check_from_the_centre, walked, x)


def test_trap_walking_in_place_is_noticed_in_our_own_walk(monkeypatch):
    """Planted where toys are evaluated: each point is reached from the one before, in float32."""
    x = np.linspace(-1, 1, 101)

    def surface(at):
        return measure_surface(toy(slanted), "all", directions=[E1], x=at).loss.values[0, :, 0].tolist()

    check_from_the_centre(surface, x)
    place, previous = torch.zeros(2), torch.zeros(2, dtype=torch.float64)

    def in_place(evaluate, theta):
        place.add_((theta - previous).float())  # rounded at every step
        previous.copy_(theta)
        return evaluate(place.double())

    evaluating(monkeypatch, in_place)
    check_fails(check_from_the_centre, surface, x)
