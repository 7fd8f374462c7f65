"""Networks left as they were, points that depend on nothing but their coordinates, and the journal."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from surface_cases import E1, E2, Net, X, Y, risk_of, state, toy

from landscape.results import Journal
from landscape.risk import AnalyticRisk, points
from landscape.surface import measure_surface, random_directions


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrate"])
def test_repeated_evaluation_has_the_same_bits_and_touches_nothing(batchnorm):
    model = Net().train()
    model.conv.bias.requires_grad_(False)
    model.hidden.weight.grad = torch.ones_like(model.hidden.weight)
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    risk = risk_of(model)
    theta, random_state = risk.theta.clone(), torch.get_rng_state()
    first = measure_surface(risk, kind="plane", x=[-1, 0, 0.5], y=[-1, 1], batchnorm=batchnorm)
    again = measure_surface(risk, kind="plane", x=[-1, 0, 0.5], y=[-1, 1], batchnorm=batchnorm)
    assert first.identical(again)
    assert risk.theta.equal(theta)
    assert torch.get_rng_state().equal(random_state)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.hidden.weight.grad.equal(torch.ones_like(model.hidden.weight))
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrate"])
def test_a_point_does_not_depend_on_the_points_around_it(batchnorm):
    risk = risk_of()
    d = random_directions(risk, num=1, seed=0, pair=0)
    many = measure_surface(risk, directions=d, x=[-1.0, -0.5, 0.0, 0.5, 1.0], batchnorm=batchnorm)
    few = measure_surface(risk, directions=d, x=[-0.5, 1.0], batchnorm=batchnorm)
    np.testing.assert_array_equal(many.loss.sel(alpha=[-0.5, 1.0]), few.loss)


def test_a_row_of_a_plane_is_a_line():
    risk = risk_of()
    axes = random_directions(risk, num=2, seed=0, pair=0)
    plane = measure_surface(risk, kind="plane", x=[-1, 0, 1], y=[-1, 0, 2])
    line = measure_surface(risk, directions=axes[:1], x=[-1, 0, 1])
    np.testing.assert_array_equal(plane.loss.sel(beta=0), line.loss)
    assert float(plane.loss.sel(lane="all").std()) > 0


@pytest.fixture
def counted(monkeypatch):
    """A toy risk and the list that grows by one with every evaluation."""
    calls = []
    evaluate = AnalyticRisk.evaluate
    monkeypatch.setattr(AnalyticRisk, "evaluate", lambda self, *a: calls.append(1) or evaluate(self, *a))
    return toy(), calls


def test_an_interrupted_plane_goes_on_at_the_point_where_it_stopped(tmp_path, counted):
    risk, calls = counted
    given = {"kind": "plane", "directions": [E1, E2], "x": X, "y": np.linspace(-1, 1, 5)}
    whole = measure_surface(risk, **given)
    assert len(calls) == 5 * 5

    def stop(done, total, text):
        if done == 13:  # two rows and three points
            raise KeyboardInterrupt

    journal = Journal(tmp_path / "journal", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        measure_surface(risk, journal=journal, progress=stop, **given)
    calls.clear()
    resumed = measure_surface(risk, journal=journal, **given)
    assert len(calls) == 5 * 5 - 13
    assert resumed.identical(whole)
    calls.clear()
    assert measure_surface(risk, journal=journal, **given).identical(whole)
    assert calls == []


def test_a_truncated_row_is_measured_again(tmp_path, counted):
    risk, calls = counted
    given = {"kind": "plane", "directions": [E1, E2], "x": X, "y": Y, "journal": Journal(tmp_path, {"seed": 0})}
    whole = measure_surface(risk, **given)
    damaged = sorted(tmp_path.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    calls.clear()
    assert measure_surface(risk, **given).identical(whole)
    assert len(calls) == len(X)


def test_a_slow_row_is_kept_in_parts_and_survives_a_kill(tmp_path, counted, monkeypatch):
    """What was written before the kill is found; the part goes when its row is whole."""
    risk, calls = counted
    monkeypatch.setattr(points, "SECONDS_BETWEEN_PARTS", -1.0)  # every point is slow
    given = {"directions": [E1], "x": X, "journal": Journal(tmp_path, {"seed": 0})}
    whole = measure_surface(risk, **{**given, "journal": None})
    store = Journal.store

    def killed(self, name, block):
        path = store(self, name, block)
        if len(next(iter(block.values()))) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    child = os.fork()
    if child == 0:
        Journal.store = killed
        measure_surface(risk, **given)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    calls.clear()
    assert measure_surface(risk, **given).identical(whole)
    assert len(calls) == len(X) - 3
    assert len(list(tmp_path.iterdir())) == 1  # the row; its part is gone


def test_progress_counts_points_and_reaches_its_total():
    seen = []
    measure_surface(toy(), kind="plane", x=X, y=Y, num_pairs=2, progress=lambda *tick: seen.append(tick[:2]))
    assert seen == [(k, 30) for k in range(1, 31)]
