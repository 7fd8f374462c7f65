"""Lanczos on matrices with prescribed spectra: its own identities, low rank, breakdown, restart, deflation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from spectrum_cases import matrix_of, orthogonal

from landscape.randomness import stream
from landscape.spectrum import Lanczos
from landscape.spectrum.lanczos import sphere

EPS = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}
SPECTRA = {
    "uniform": np.linspace(-1, 2, 200),
    "outliers": np.concatenate([np.linspace(-0.01, 0.01, 195), [-1.0, 1.0, 3.0, 5.0, 10.0]]),
    "clustered": np.repeat([-2.0, 0.0, 1.0, 5.0], 50),
    "positive, condition 1e6": np.geomspace(1e-6, 1, 200),
}


def run_on(matrix, starts, steps, **options):
    run = Lanczos(lambda v: v @ matrix, starts, **options)
    run.extend(steps)
    return run


def basis_of(run, row, size):
    return run.vectors(row, np.eye(size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_decomposition_and_orthogonality(name, dtype):
    """A Q' = Q' T + beta q e' to rounding of A, and Q Q' = I to rounding, after 60 steps."""
    matrix = matrix_of(SPECTRA[name]).to(dtype)
    run = run_on(matrix, sphere(1, 200, stream(0, "start")).to(dtype), 60)
    ritz = run.ritz(0)
    size = len(ritz.values)
    basis = basis_of(run, 0, size).double()
    tridiagonal = basis @ matrix.double() @ basis.T
    gram = basis @ basis.T - torch.eye(size, dtype=torch.float64)
    # Two passes keep the basis orthogonal to a few units of rounding, whatever the length; 20 covers the norm of the sums.
    assert gram.norm(2) <= 20 * EPS[dtype]
    norm = np.abs(SPECTRA[name]).max()
    coordinates = torch.as_tensor(ritz.coordinates)
    rebuilt = coordinates * torch.as_tensor(ritz.values) @ coordinates.T
    assert (tridiagonal - rebuilt).norm(2) <= 50 * EPS[dtype] * norm
    # Every column but the last satisfies the recurrence; the last one leaves beta q.
    defect = basis @ matrix.double() - rebuilt @ basis
    assert defect[:-1].norm(2) <= 50 * EPS[dtype] * norm
    beta = float(defect[-1].norm())
    assert np.allclose(ritz.residuals, beta * np.abs(ritz.coordinates[-1]), atol=50 * EPS[dtype] * norm)
    assert ritz.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (ritz.weights >= 0).all()


@pytest.mark.parametrize("name", list(SPECTRA))
def test_ritz_values_lie_inside_and_interlace(name):
    values = np.sort(SPECTRA[name])
    run = run_on(matrix_of(SPECTRA[name]), sphere(1, 200, stream(0, "start")), 25)
    ritz = run.ritz(0).values
    slack = 1e-13 * np.abs(values).max()
    k = len(ritz)
    assert (ritz >= values[:k] - slack).all()
    assert (ritz <= values[-k:] + slack).all()


def test_all_steps_give_all_eigenvalues_and_the_moments_of_the_start():
    spectrum = np.linspace(-1, 2, 30)
    matrix, start = matrix_of(spectrum), sphere(1, 30, stream(0, "start"))
    ritz = run_on(matrix, start, 30).ritz(0)
    assert np.allclose(ritz.values, spectrum, atol=1e-12)
    # Gauss quadrature: sum_j w_j theta_j^k = q' A^k q for k up to 2 m - 1.
    for steps in (1, 3, 8):
        ritz = run_on(matrix, start, steps).ritz(0)
        for power in range(2 * steps):
            moment = float(start[0] @ torch.linalg.matrix_power(matrix, power) @ start[0])
            assert float(ritz.weights @ ritz.values**power) == pytest.approx(moment, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 3, 5, 9, 16, 25])
def test_low_rank_positive_matrices_stay_positive(rank, dtype):
    """PyHessian reports -7.6 on such a matrix of largest eigenvalue 3.7. As many atoms as ranks, and one at zero."""
    for draw in range(3):
        spectrum = np.zeros(400)
        spectrum[:rank] = stream_uniform(rank, f"rank={rank}/{draw}") * 3 + 0.5
        factor = orthogonal(400)[:, :rank] * torch.as_tensor(spectrum[:rank] ** 0.5)
        factor = factor.to(dtype)
        run = Lanczos(lambda v, f=factor: v @ f @ f.T, sphere(1, 400, stream(draw, "start")).to(dtype))
        run.extend(40)
        ritz = run.ritz(0)
        largest = spectrum.max()
        assert ritz.is_exhausted
        assert ritz.values[0] >= -1e-5 * largest
        assert np.isclose(ritz.values[-1], largest, rtol=20 * EPS[dtype])
        above = ritz.values > 1e-3 * largest  # the smallest true atom is 0.5 / 3.5
        assert above.sum() == rank
        assert np.allclose(ritz.values[above], np.sort(spectrum[:rank]), rtol=100 * EPS[dtype])
        # The rest is the null space: once, or a few times where rounding restarts the run in it.
        assert np.abs(ritz.values[~above]).max() <= 20 * EPS[dtype] * largest
        assert 1 <= (~above).sum() <= 4
        assert ritz.weights[~above].sum() == pytest.approx(1 - ritz.weights[above].sum(), abs=1e-12)


def stream_uniform(size, name):
    return torch.rand(size, generator=stream(0, name), dtype=torch.float64).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_can_be_continued(dtype):
    matrix = matrix_of(SPECTRA["uniform"]).to(dtype)
    start = sphere(2, 200, stream(0, "start")).to(dtype)
    whole = run_on(matrix, start, 10)
    parts = run_on(matrix, start, 5)
    parts.extend(5)
    assert parts.num_steps == whole.num_steps == 10
    for row in range(2):
        assert np.allclose(parts.ritz(row).values, whole.ritz(row).values, rtol=0, atol=20 * EPS[dtype])
        assert np.allclose(parts.ritz(row).weights, whole.ritz(row).weights, rtol=0, atol=100 * EPS[dtype])


def test_rows_in_lock_step_equal_single_runs():
    """Different operators per row, too: row b is multiplied by its own matrix."""
    matrices = torch.stack(
        [matrix_of(SPECTRA[name], name) for name in ("uniform", "outliers", "positive, condition 1e6")]
    )
    starts = sphere(3, 200, stream(0, "start"))
    together = Lanczos(lambda v: torch.einsum("bij,bj->bi", matrices, v), starts)
    together.extend(20)
    for row in range(3):
        alone = run_on(matrices[row], starts[row : row + 1], 20).ritz(0)
        shared = together.ritz(row)
        assert len(shared.values) == len(alone.values)
        assert np.allclose(shared.values, alone.values, rtol=0, atol=1e-12)
        assert np.allclose(shared.weights, alone.weights, rtol=0, atol=1e-12)


def test_breakdown_of_a_row_does_not_touch_the_others():
    """Row 0 starts in an eigenvector, row 1 in the span of two, row 2 is zero, row 3 is generic."""
    spectrum = np.linspace(1, 3, 50)
    matrix, unit = torch.diag(torch.as_tensor(spectrum)), torch.eye(50, dtype=torch.float64)
    generic = sphere(1, 50, stream(0, "start"))
    starts = torch.stack([unit[7], unit[1] + unit[2], 0 * unit[0], generic[0]])
    run = run_on(matrix, starts, 12)
    one, two, none, many = (run.ritz(row) for row in range(4))
    assert one.values == pytest.approx([spectrum[7]])
    assert one.weights == pytest.approx([1])
    assert two.values == pytest.approx(spectrum[[1, 2]])
    assert two.weights == pytest.approx([0.5, 0.5])
    assert one.is_exhausted
    assert two.is_exhausted
    assert len(none.values) == 0
    alone = run_on(matrix, generic, 12).ritz(0)
    assert not many.is_exhausted
    assert np.allclose(many.values, alone.values, atol=1e-13)
    assert run.vectors(0, np.eye(1)).isfinite().all()


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1.0, 1e12])
def test_breakdown_is_relative_to_the_operator(factor):
    """A small operator is not a broken-down one: c I exhausts at once, a spread spectrum does not, at any scale."""
    start = sphere(1, 60, stream(0, "start"))
    flat = Lanczos(lambda v: factor * v, start)
    flat.extend(4)
    assert flat.ritz(0).values == pytest.approx([factor], rel=1e-14)
    assert flat.ritz(0).is_exhausted
    spread = run_on(factor * matrix_of(np.linspace(-1, 1, 60)), start, 20).ritz(0)
    assert not spread.is_exhausted
    assert len(spread.values) == 20


@pytest.mark.parametrize("units", [12, 40])
def test_a_small_coupling_is_not_breakdown(units):
    """An eigenvector of which the start holds 12 units of rounding is found; one of which it holds one is rounding."""
    matrix, unit = torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.eye(3)
    eps = torch.finfo(torch.float32).eps
    found = run_on(matrix, (unit[0] + units * eps * unit[1])[None], 2).ritz(0)
    assert np.allclose(found.values, [1, 2], rtol=0, atol=1e-5)
    lost = run_on(matrix, (unit[0] + eps * unit[1])[None], 2).ritz(0)
    assert lost.values == pytest.approx([1.0])
    assert lost.is_exhausted


def test_the_zero_operator():
    run = Lanczos(torch.zeros_like, sphere(2, 5, stream(0, "start")))
    run.extend(3)
    assert run.ritz(1).values.tolist() == [0.0]
    assert run.ritz(1).weights.tolist() == [1.0]
    assert run.ritz(1).is_exhausted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deflation_keeps_the_basis_orthogonal_and_the_values_out(dtype):
    matrix, q = matrix_of(SPECTRA["outliers"]).to(dtype), orthogonal(200)
    deflated = q[:, -5:].T.to(dtype)  # the five outliers
    starts = sphere(3, 200, stream(0, "start")).to(dtype)
    run = run_on(matrix, starts, 30, deflated=deflated[None].expand(3, -1, -1))
    for row in range(3):
        ritz = run.ritz(row)
        basis = basis_of(run, row, len(ritz.values))
        assert (basis @ deflated.T).norm(2) <= 20 * EPS[dtype]
        assert (basis @ basis.T - torch.eye(len(basis), dtype=dtype)).norm(2) <= 20 * EPS[dtype]
        assert np.abs(ritz.values).max() <= 0.01 + 100 * EPS[dtype]


def test_nothing_is_left_when_everything_is_deflated():
    run = run_on(torch.eye(4), torch.ones(1, 4), 2, deflated=torch.eye(4)[None])
    ritz = run.ritz(0)
    assert len(ritz.values) == 0
    assert ritz.is_exhausted


def test_start_vectors_are_uniform_on_the_sphere():
    draws = sphere(4000, 3, stream(0, "sphere"))
    assert torch.allclose(draws.norm(dim=1), torch.ones(4000, dtype=torch.float64), atol=1e-15)
    # Mean 0 with variance 1/3 per coordinate; second moments 1/3 with variance 1/5 - 1/9 = 4/45 (diagonal): 5 sigma.
    assert (draws.mean(0).abs() <= 5 * (1 / 3 / 4000) ** 0.5).all()
    assert ((draws**2).mean(0) - 1 / 3).abs().max() <= 5 * (4 / 45 / 4000) ** 0.5
    assert torch.equal(draws, sphere(4000, 3, stream(0, "sphere")))
    assert not torch.equal(draws, sphere(4000, 3, stream(1, "sphere")))


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-16, 1e-24])
@pytest.mark.parametrize("deflate", [False, True])
def test_curvatures_whose_squares_underflow(scale, deflate):
    """The Hessian of a fitted class has eigenvalues of 1e-12 and 1e-20; in float32 their squares are zero. Same spectrum at
    every scale, also after breakdown and beside deflated vectors, where only the smallest are left."""
    spectrum = torch.zeros(60)
    spectrum[:5] = torch.tensor([1.0, 0.7, 0.5, 0.1, 0.02])
    options = {"deflated": torch.eye(60)[None, :3]} if deflate else {}
    run = Lanczos(lambda v: v * (scale * spectrum), sphere(2, 60, stream(0, "start")).float(), **options)
    run.extend(20)
    expected = np.sort(spectrum.numpy()[3 if deflate else 0 : 5])
    for row in range(2):
        ritz = run.ritz(row)
        assert ritz.is_exhausted
        assert np.allclose(ritz.values[-len(expected) :] / scale, expected, rtol=0, atol=1e-6)
        assert np.abs(ritz.values[: -len(expected)] / scale).max() <= 1e-6
        assert run.vectors(row, np.eye(len(ritz.values))).isfinite().all()


# ---- thick restart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "outliers"])
def test_a_restarted_run_finds_the_ends_that_scipy_finds(name):
    """30 vectors at most, where the ends of the uniform spectrum take more than 100 plain steps."""
    matrix = matrix_of(SPECTRA[name])
    run = Lanczos(lambda v: v @ matrix, sphere(2, 200, stream(0, "start")), most_vectors=30)
    run.extend(29)
    for _ in range(30):
        run.restart(8, 8)
        run.extend(13)
    assert run._basis._store.shape[1] <= 30
    low = np.sort(scipy.sparse.linalg.eigsh(matrix.numpy(), k=1, which="SA", return_eigenvectors=False))
    high = np.sort(scipy.sparse.linalg.eigsh(matrix.numpy(), k=2, which="LA", return_eigenvectors=False))
    for row in range(2):
        ritz = run.ritz(row)
        assert np.allclose(ritz.values[-2:], high, rtol=0, atol=1e-10)
        assert np.allclose(ritz.values[0], low[0], rtol=0, atol=1e-10)
        assert np.isnan(ritz.weights).all()
        vectors = run.vectors(row, ritz.coordinates)
        assert torch.allclose(vectors @ vectors.T, torch.eye(len(vectors), dtype=torch.float64), atol=1e-12)
        # The residual estimates belong to the vectors, those that were kept included.
        defects = vectors @ matrix - torch.as_tensor(ritz.values)[:, None] * vectors
        assert np.allclose(defects.norm(dim=1).numpy(), ritz.residuals, rtol=0, atol=1e-12)


def test_a_restart_needs_a_basis_and_something_left_to_find():
    matrix = matrix_of(SPECTRA["uniform"])
    for place in ("host", "none"):
        run = run_on(matrix, sphere(1, 200, stream(0, "start")), 10, basis=place)
        with pytest.raises(ValueError, match="needs the basis on the device"):
            run.restart(2, 2)
    exhausted = run_on(torch.eye(5, dtype=torch.float64), sphere(1, 5, stream(0, "start")), 3)
    with pytest.raises(ValueError, match="an exhausted row cannot be restarted"):
        exhausted.restart(1, 1)
