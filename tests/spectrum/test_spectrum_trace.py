"""Trace estimators: closed forms on prescribed spectra, and errors within their own error bars."""

import numpy as np
import pytest
import torch
from spectrum_cases import matrix_of

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.spectrum.lanczos import Lanczos, sphere
from landscape.spectrum.trace import complement_trace, hutchinson, xnystrace, xtrace

SIZE = 120
ESTIMATORS = {"xtrace": xtrace, "xnystrace": xnystrace, "hutchinson": hutchinson}
DECAY = np.concatenate([np.geomspace(10, 0.1, 20), np.full(100, 0.01)])
SPECTRA = {
    "outliers and a bulk": DECAY,
    "indefinite": DECAY * np.where(np.arange(SIZE) % 3 == 1, -1, 1),
    "negative trace": -DECAY,
    "flat": np.linspace(0.5, 1.5, SIZE),
}


def starts(num_vectors, size=SIZE, seeds=(0,), dtype=torch.float64):
    return torch.stack([sphere(num_vectors, size, stream(s, "test/trace")) for s in seeds]).to(dtype)


def operator(spectrum, dtype=torch.float64):
    matrix = matrix_of(np.asarray(spectrum, dtype=float)).to(dtype)
    return matrix, lambda vectors: vectors @ matrix


class Count:
    def __init__(self, matmat):
        self.matmat, self.num = matmat, 0

    def __call__(self, vectors):
        self.num += vectors.shape[1]
        return self.matmat(vectors)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", ["xtrace", "hutchinson"])
def test_within_five_standard_errors_for_three_seeds(name, spectrum):
    _, matmat = operator(SPECTRA[spectrum])
    estimate = ESTIMATORS[name](matmat, starts(12, seeds=(0, 1, 2)))
    errors = estimate.values - SPECTRA[spectrum].sum()
    assert (estimate.stderrs > 0).all()
    assert (errors.abs() <= 5 * estimate.stderrs).all()
    assert errors.abs().max() > 0


@pytest.mark.parametrize("spectrum", ["outliers and a bulk", "flat"])
def test_nystroem_within_five_standard_errors_for_three_seeds(spectrum):
    _, matmat = operator(SPECTRA[spectrum])
    estimate = xnystrace(matmat, starts(12, seeds=(0, 1, 2)))
    assert ((estimate.values - SPECTRA[spectrum].sum()).abs() <= 5 * estimate.stderrs).all()


def test_unbiased_and_calibrated_over_many_draws():
    """400 draws: the mean within 5 standard errors of the truth, the reported errors those that are made."""
    _, matmat = operator(SPECTRA["indefinite"])
    for name in ("xtrace", "hutchinson"):
        estimate = ESTIMATORS[name](matmat, starts(10, seeds=range(400)))
        errors = estimate.values - SPECTRA["indefinite"].sum()
        rms = errors.square().mean().sqrt()
        assert errors.mean().abs() < 5 * rms / 20
        # With fewer test vectors than outliers the leave-one-out estimates are correlated: the error reads 0.7 of itself.
        assert 0.6 < float(estimate.stderrs.square().mean().sqrt() / rms) < 1.3, name
    estimate = xnystrace(operator(DECAY)[1], starts(10, seeds=range(400)))
    errors = estimate.values - DECAY.sum()
    assert errors.mean().abs() < 5 * errors.square().mean().sqrt() / 20
    assert 0.6 < float(estimate.stderrs.square().mean().sqrt() / errors.square().mean().sqrt()) < 1.3


def test_leave_one_out_formula_by_dense_arithmetic():
    """The definition, test vector by test vector, with explicit projectors."""
    matrix, matmat = operator(SPECTRA["indefinite"])
    omega = starts(6)
    samples, nystroem = [], []
    positive, positive_matmat = operator(DECAY)
    unit = omega[0] / omega[0].norm(dim=1, keepdim=True)
    for i in range(6):
        others = torch.cat([unit[:i], unit[i + 1 :]])
        q = torch.linalg.qr((others @ matrix).T)[0]
        mu = unit[i] - q @ (q.T @ unit[i])
        samples.append((q.T @ matrix @ q).trace() + (SIZE - 5) * (mu @ matrix @ mu) / (mu @ mu))
        sketch = others @ positive
        rest = positive - sketch.T @ torch.linalg.inv(others @ positive @ others.T) @ sketch
        p = torch.linalg.qr(others.T)[0]
        nu = unit[i] - p @ (p.T @ unit[i])
        nystroem.append(positive.trace() - rest.trace() + (SIZE - 5) * (unit[i] @ rest @ unit[i]) / (nu @ nu))
    for estimate, expected in ((xtrace(matmat, omega), samples), (xnystrace(positive_matmat, omega), nystroem)):
        expected = torch.stack(expected)
        torch.testing.assert_close(estimate.values[0], expected.mean(), rtol=1e-9, atol=0)
        torch.testing.assert_close(estimate.stderrs[0], expected.std() / 6**0.5, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["xtrace", "xnystrace"])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_low_rank_is_exact(name, rank, dtype):
    spectrum = np.zeros(SIZE)
    spectrum[:rank] = [5.0, 3.0, 2.0, 1.0, 0.5][:rank]
    _, matmat = operator(spectrum, dtype)
    estimate = ESTIMATORS[name](matmat, starts(8, seeds=(0, 1, 2), dtype=dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert (estimate.values - spectrum.sum()).abs().max() <= tolerance * spectrum.sum()
    assert estimate.stderrs.abs().max() <= tolerance * spectrum.sum()


def test_low_rank_indefinite_is_exact():
    spectrum = np.zeros(SIZE)
    spectrum[:4] = [2.0, -2.0, -3.0, 1e-3]
    estimate = xtrace(operator(spectrum)[1], starts(6))
    assert float(estimate.values[0]) == pytest.approx(-2.999, abs=1e-11)
    assert float(estimate.stderrs[0]) < 1e-11


@pytest.mark.parametrize("name", ESTIMATORS)
def test_identity_and_zero(name):
    for scale in (0.0, 2.0):
        estimate = ESTIMATORS[name](lambda v, scale=scale: scale * v, starts(5, seeds=(0, 1)))
        torch.testing.assert_close(estimate.values, torch.full((2,), scale * SIZE, dtype=torch.float64))
        assert estimate.stderrs.abs().max() < 1e-10


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_fewer_dimensions_than_vectors_give_the_trace(name, size):
    spectrum = np.linspace(0.5, 2, size)
    count = Count(operator(spectrum)[1])
    estimate = ESTIMATORS[name](count, starts(8, size))
    assert float(estimate.values[0]) == pytest.approx(spectrum.sum(), rel=1e-12)
    assert float(estimate.stderrs[0]) == 0
    assert count.num == estimate.num_products == size


@pytest.mark.parametrize("name", ESTIMATORS)
def test_products_are_counted(name):
    count = Count(operator(DECAY)[1])
    estimate = ESTIMATORS[name](count, starts(7))
    assert count.num == estimate.num_products == (14 if name == "xtrace" else 7)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rows_are_independent_operators(name):
    matrices = torch.stack([matrix_of(DECAY, "a"), matrix_of(DECAY * 0 + 1, "b"), matrix_of(DECAY * 0, "c")])
    omega = starts(9, seeds=(0, 1, 2))
    both = ESTIMATORS[name](lambda v: v @ matrices, omega)
    for b in range(3):
        alone = ESTIMATORS[name](lambda v, b=b: v @ matrices[b], omega[b : b + 1])
        torch.testing.assert_close(both.values[b : b + 1], alone.values)
        torch.testing.assert_close(both.stderrs[b : b + 1], alone.stderrs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_length_of_test_vectors_does_not_matter_and_seeds_decide(name):
    _, matmat = operator(DECAY)
    estimate = ESTIMATORS[name](matmat, starts(6))
    again = ESTIMATORS[name](matmat, starts(6))
    assert torch.equal(estimate.values, again.values)
    torch.testing.assert_close(ESTIMATORS[name](matmat, 30 * starts(6)).values, estimate.values)
    assert not torch.equal(ESTIMATORS[name](matmat, starts(6, seeds=(1,))).values, estimate.values)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_deflated_eigenvectors_leave_the_small_error_of_the_rest(name):
    matrix, matmat = operator(DECAY)
    values, vectors = torch.linalg.eigh(matrix)
    basis, traces = vectors[:, -20:].T[None], values[-20:].sum()[None]
    estimate = ESTIMATORS[name](matmat, starts(6), deflated=basis, deflated_traces=traces)
    # What is left is 0.01 times the identity.
    assert float(estimate.values[0]) == pytest.approx(DECAY.sum(), rel=1e-10)
    assert float(estimate.stderrs[0]) < 1e-9


@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
def test_complement_of_a_lanczos_basis(method):
    matrix, matmat = operator(SPECTRA["indefinite"])
    run = Lanczos(lambda v: v @ matrix, starts(1)[0])
    run.extend(15)
    trace = torch.tensor([run.ritz(0).values.sum()])
    omega = starts(10, seeds=(3,))
    estimate = complement_trace(matmat, run.space(0, 15)[None], trace, omega, method=method)
    error = (estimate.values - SPECTRA["indefinite"].sum()).abs()
    assert error <= 5 * estimate.stderrs
    assert estimate.stderrs < 0.2 * hutchinson(matmat, omega).stderrs
    projector = torch.eye(SIZE) - run.space(0, 15).T @ run.space(0, 15)
    inside = projector @ matrix @ projector
    assert float((matrix - inside).trace()) == pytest.approx(float(trace), abs=1e-10)


def test_complement_of_everything_and_of_nearly_everything():
    matrix, matmat = operator(DECAY)
    frame = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=stream(0, "test/frame"), dtype=torch.float64))[0].T
    for kept in (SIZE, SIZE - 3):
        count = Count(matmat)
        basis = frame[:kept]
        estimate = complement_trace(count, basis[None], (basis @ matrix @ basis.T).trace()[None], starts(4))
        assert float(estimate.values[0]) == pytest.approx(DECAY.sum(), rel=1e-12)
        assert float(estimate.stderrs[0]) == 0
        assert count.num == SIZE - kept


def test_xtrace_beats_hutchinson_at_equal_cost():
    _, matmat = operator(DECAY)
    many = range(50)
    errors = {
        "xtrace": xtrace(matmat, starts(15, seeds=many)).values - DECAY.sum(),
        "hutchinson": hutchinson(matmat, starts(30, seeds=many)).values - DECAY.sum(),
    }
    assert errors["xtrace"].square().mean() < 0.05 * errors["hutchinson"].square().mean()


def test_refusals():
    _, matmat = operator(SPECTRA["indefinite"])
    with pytest.raises(LandscapeError, match="at least 2"):
        xtrace(matmat, starts(1))
    with pytest.raises(LandscapeError, match="positive semidefinite"):
        xnystrace(matmat, starts(10))
    with pytest.raises(LandscapeError, match="deflated_traces"):
        hutchinson(matmat, starts(5), deflated=torch.eye(SIZE)[None, :3])
    for estimate in ESTIMATORS.values():
        with pytest.raises(LandscapeError, match="not finite"):
            estimate(lambda v: v * float("nan"), starts(5))
