"""Where the basis lives changes nothing but its cost: host and none against device, ghosts, rows, shared deflation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from spectrum_cases import matrix_of, network_risk, orthogonal
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.randomness import stream
from landscape.spectrum import Lanczos, SpectrumOptions, measure_spectrum
from landscape.spectrum.lanczos import sphere

SIZE = 150
# Two passes in float64 leave the couplings of 40 steps equal to 1e-12, whatever order the sums are taken in.
TOLERANCE = 1e-11
SPECTRUM = np.concatenate([np.linspace(-1, 1, SIZE - 4), [-3.0, 4.0, 5.0, 8.0]])


def run_in(place, steps=40, rows=2, **options):
    matrix = matrix_of(SPECTRUM)
    run = Lanczos(lambda v: v @ matrix, sphere(rows, SIZE, stream(0, "basis")), basis=place, **options)
    run.extend(steps)
    return run, matrix


def test_the_host_gives_the_same_decomposition():
    here, _ = run_in("device")
    there, _ = run_in("host")
    for row in range(2):
        a, b = here.ritz(row), there.ritz(row)
        np.testing.assert_allclose(b.values, a.values, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(b.weights, a.weights, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(there._alphas, here._alphas, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(there._betas, here._betas, rtol=0, atol=TOLERANCE)
        ends = here.vectors(row, a.coordinates[:, [0, -1]]), there.vectors(row, b.coordinates[:, [0, -1]])
        assert torch.allclose((ends[0] * ends[1]).sum(1).abs(), torch.ones(2, dtype=torch.float64), atol=1e-10)
        gram = there.space(row, 41)
        assert torch.allclose(gram @ gram.T, torch.eye(41, dtype=torch.float64), atol=1e-13)


def test_without_a_basis_the_first_steps_agree_and_a_replay_gives_the_vectors():
    here, matrix = run_in("device", 12)
    there, _ = run_in("none", 12)
    coordinates = np.stack([there.ritz(row).coordinates[:, [0, -1]] for row in range(2)])
    ends = there.replay(coordinates)
    for row in range(2):
        a, b = here.ritz(row), there.ritz(row)
        np.testing.assert_allclose(b.values, a.values, rtol=0, atol=1e-9)  # the recurrence loses digits as it converges
        np.testing.assert_allclose(b.weights, a.weights, rtol=0, atol=1e-9)
        assert torch.allclose(ends[row].norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-9)
        for value, residual, end in zip(b.values[[0, -1]], b.residuals[[0, -1]], ends[row]):
            assert float((end @ matrix - value * end).norm()) == pytest.approx(residual, rel=1e-6)
    only = there.replay(coordinates[1:], rows=[1], matvec=lambda v: v @ matrix)
    assert torch.allclose(only[0], ends[1], atol=1e-13)


def test_ghosts_repeat_eigenvalues_but_not_their_weight():
    """After 120 steps the three-term recurrence has found 8 several times over; the copies share its weight, so the
    quadrature of any smooth function stays what it was."""
    here, _ = run_in("device", 120, rows=1)
    there, _ = run_in("none", 120, rows=1)
    a, b = here.ritz(0), there.ritz(0)
    outer = np.abs(b.values - 8.0) < 1e-6
    assert outer.sum() >= 2
    assert (np.abs(a.values - 8.0) < 1e-6).sum() == 1
    assert b.weights[outer].sum() == pytest.approx(a.weights[-1], rel=1e-6)
    for function in (np.square, np.abs, lambda x: np.maximum(-x, 0), np.cos):
        # |x| and the negative part have a kink, which 120 nodes resolve to 1e-3 of the range.
        slack = 1e-8 if function in (np.square, np.cos) else 2e-3
        assert b.weights @ function(b.values) == pytest.approx(a.weights @ function(a.values), abs=slack * 8)


def test_orthogonality_is_lost_only_without_a_basis():
    _, matrix = run_in("device", 1)
    start = sphere(1, SIZE, stream(0, "basis"))
    vectors = torch.cat([Lanczos(lambda v: v @ matrix, start, basis="none").replay(np.eye(100)[None])[0]])
    assert float((vectors @ vectors.T - torch.eye(100, dtype=torch.float64)).abs().max()) > 0.1


@pytest.mark.parametrize("place", ["device", "host", "none"])
def test_rows_that_are_kept_go_on_as_if_alone(place):
    matrices = torch.stack([matrix_of(SPECTRUM * f, f"Q{f}") for f in (1.0, 2.0, 3.0)])
    starts = sphere(3, SIZE, stream(0, "basis"))
    rows = [0, 1, 2]
    run = Lanczos(lambda v: torch.einsum("bij,bj->bi", matrices[rows], v), starts, basis=place)
    run.extend(5)
    rows = [0, 2]
    run.keep(rows)
    run.extend(7)
    assert run.rows == [0, 2]
    for row in rows:
        alone = Lanczos(lambda v, m=matrices[row]: v @ m, starts[row : row + 1], basis=place)
        alone.extend(12)
        np.testing.assert_allclose(run.ritz(row).values, alone.ritz(0).values, rtol=0, atol=1e-9)
        if place != "none":
            end = run.vectors(row, run.ritz(row).coordinates[:, :1])[0]
            other = alone.vectors(0, alone.ritz(0).coordinates[:, :1])[0]
            assert abs(float(end @ other)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("place", ["device", "host"])
def test_rows_share_deflated_vectors_in_groups(place):
    """Two lanes with vectors of their own, three rows each; when one lane goes, the other's rows stay with theirs."""
    values = torch.as_tensor(SPECTRUM)
    bases = [orthogonal(SIZE, name) for name in ("Qa", "Qb")]
    matrices = torch.stack([q * values @ q.T for q in bases])
    deflated = torch.stack([q[:, -4:].T for q in bases])  # -3, 4, 5, 8
    starts = sphere(6, SIZE, stream(0, "basis"))
    lanes = [0, 1]

    def product(v):
        return torch.einsum("bij,bpj->bpi", matrices[lanes], v.view(len(lanes), 3, SIZE)).reshape(-1, SIZE)

    run = Lanczos(product, starts, deflated=deflated, basis=place)
    run.extend(10)
    with pytest.raises(ValueError, match="share deflated vectors go on together"):
        run.keep([0, 3, 4])
    lanes = [1]
    run.keep([3, 4, 5])
    run.extend(10)
    for row in (3, 4, 5):
        alone = Lanczos(lambda v: v @ matrices[1], starts[row : row + 1], deflated=deflated[1:])
        alone.extend(20)
        np.testing.assert_allclose(run.ritz(row).values, alone.ritz(0).values, rtol=0, atol=TOLERANCE)
        assert np.abs(run.ritz(row).values).max() <= 1 + 1e-12
        assert float((run.space(row, 20) @ deflated[1].T).abs().max()) <= 1e-14


@pytest.mark.parametrize("place", ["host", "none"])
def test_a_measurement_does_not_depend_on_the_place(place):
    options = {"num_bootstrap": 0, "num_probes": 3, "num_steps": 8}
    here = measure_spectrum(network_risk(), "classes", options=SpectrumOptions(**options))
    there = measure_spectrum(network_risk(), "classes", options=SpectrumOptions(**options, basis=place))
    for name in ("lambda_min", "lambda_max"):
        np.testing.assert_allclose(there[name], here[name], rtol=0, atol=1e-9)
    assert there.verdict.values.tolist() == here.verdict.values.tolist()
    if place == "host":
        np.testing.assert_allclose(there.trace, here.trace, rtol=1e-9)
    else:  # nothing is deflated without a basis: the same trace to within its errors
        error = 5 * np.hypot(there.trace_stderr, here.trace_stderr)
        assert (np.abs(there.trace - here.trace) <= error).all()


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_rows", [1, 10])
@pytest.mark.parametrize("deflate", [False, True])
def test_a_step_is_a_dozen_operations_and_never_asks_the_host(num_rows, deflate):
    """Counted with views, outside the products; rows and deflated vectors share the operations."""
    deflated = orthogonal(SIZE)[None, :3].expand(num_rows, -1, -1) if deflate else None
    diagonal = torch.as_tensor(SPECTRUM)
    run = Lanczos(lambda v: v * diagonal, sphere(num_rows, SIZE, stream(0, "basis")), deflated=deflated)
    with _Operations() as seen:
        run.extend(100)
    spent = sum(seen.counts.values()) - 100  # one multiplication per product
    assert spent <= (1200 if not deflate else 2000)
    assert not any("_local_scalar_dense" in name or "_to_copy" in name for name in seen.counts)
