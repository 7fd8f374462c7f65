"""Small versions of the committed benchmarks of Lanczos, the operators and the verdicts, and what would make them fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from spectrum_cases import network_risk

sys.path.insert(0, str(Path(__file__).parents[2]))  # analyses is not installed

from analyses.benchmarks import lanczos as benchmark
from analyses.benchmarks import verdicts
from analyses.benchmarks.lanczos import (
    CERTIFIED,
    MOST_OPERATIONS,
    certified_rows,
    count_operations,
    low_rank_problems,
    low_rank_rows,
)
from analyses.benchmarks.operators import COVERAGE, additivity_rows, coverage_error
from analyses.benchmarks.verdicts import predicted_steps
from landscape.randomness import stream
from landscape.spectrum.basis import DeviceBasis
from landscape.spectrum.lanczos import sphere


@pytest.mark.parametrize("num_rows", [1, 10])
def test_operations_and_synchronisations(num_rows):
    starts = sphere(num_rows, 120, stream(0, "count"))
    operations, views, host = count_operations(lambda v: 2 * v.cumsum(1), starts)  # products may do what they like
    assert operations <= MOST_OPERATIONS
    assert 0 < views < operations
    assert host == 0


@pytest.mark.parametrize("wait", [float, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.nonzero], ids=str)
def test_a_synchronisation_is_seen(wait, monkeypatch):
    settle = DeviceBasis.settle

    def looking(self, index):
        vectors = settle(self, index)
        wait(vectors[0, 0, 0])
        return vectors

    monkeypatch.setattr(DeviceBasis, "settle", looking)
    starts = sphere(1, 120, stream(0, "count"))
    assert count_operations(lambda v: 2 * v, starts, num_steps=5)[2] >= 5


def test_low_rank_rows(monkeypatch):
    some = [p for k, p in enumerate(low_rank_problems(1)) if k % 9 == 0]
    assert {p.rank for p in some} >= {1, 10, 19}
    monkeypatch.setattr(benchmark, "low_rank_problems", lambda draws: iter(some))
    lowest, atoms, theirs = low_rank_rows(1)
    assert (lowest.met, atoms.met) == ("yes", "yes")
    assert float(theirs.measured) < -0.1  # the recurrence that these rows are there to tell apart


def test_certified_rows():
    risk = network_risk()
    row = torch.eye(4, dtype=torch.float64)[:1]
    with risk.hessian(risk.theta, row) as product:
        matrix = product(torch.eye(len(risk.theta), dtype=torch.float64)[None])[0]
    truth = float(torch.linalg.eigvalsh(matrix)[0])
    certified, true, _ = certified_rows("tanh", risk, {0: truth}, seeds=2, is_target=True)
    assert (certified.met, true.met) == ("yes", "yes")
    _, wrong, _ = certified_rows("tanh", risk, {0: truth * (1 + 3 * CERTIFIED)}, seeds=1, is_target=True)
    assert wrong.met == "NO"


def test_class_sums():
    rows = [r for r in additivity_rows("tanh", network_risk(torch.float32)) if r.target]
    assert [r.met for r in rows] == ["yes"] * 4


@pytest.mark.parametrize("name", list(COVERAGE))
def test_coverage(name):
    assert coverage_error(name) <= 1e-12


@pytest.mark.parametrize(("index", "mode"), [(0, "verdict"), (3, "converged")])
def test_convex_problems_are_no_saddles(index, mode, monkeypatch):
    """Of 50: two digits per class, untrained, and an interpolated problem."""
    monkeypatch.setattr(verdicts, "MODES", (mode,))
    results = list(verdicts.convex_results(index, 50))
    assert [r.dtype for r in results] == ["float32", "float64"]
    assert all(r.is_right and r.verdict == r.verdict_whole == "no negative curvature" for r in results)
    assert all(r.lambda_min > -1e-5 for r in results)


@pytest.mark.parametrize("index", [15, 42, 20])
def test_planted_saddles_are_what_they_are_said_to_be(index, monkeypatch):
    """Planted direction, zero branch, zero weights: gradient, ratio as measured; called within the prediction."""
    monkeypatch.setattr(verdicts, "MODES", ("converged",))
    monkeypatch.setattr(verdicts, "DTYPES", (torch.float64,))
    _, ratio, risk = verdicts.saddle_problem(index, 50)
    monkeypatch.setattr(verdicts, "saddle_problem", lambda index, total: ("", ratio, risk))
    lane = (risk.class_counts / risk.class_counts.sum())[None].double()
    assert float(risk.gradients(risk.theta, lane).norm()) <= 1e-6
    (result,) = verdicts.saddle_results(index, 50)
    assert result.lambda_min == pytest.approx(-ratio, rel=1e-6)
    assert result.is_right
    assert 0 < result.steps <= result.prediction


def test_the_prediction_excludes_a_ritz_value_above_the_threshold():
    assert predicted_steps(1.0, 0.01, 1000) < predicted_steps(0.01, 0.005, 1000) < predicted_steps(1e-3, 5e-4, 1000)
    assert predicted_steps(1e-3, 5e-4, 100) == 100  # all dimensions
