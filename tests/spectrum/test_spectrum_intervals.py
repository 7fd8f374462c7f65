"""Intervals over probes and certain bounds, against prescribed spectra."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from spectrum_cases import matrix_of, negative_energy_of

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.spectrum.cumulative import cumulative_band, cumulative_bracket
from landscape.spectrum.density import SpectralSample
from landscape.spectrum.intervals import (
    Interval,
    count_negative,
    energy_interval,
    jacobi_matrix,
    mass_interval,
    shortened,
    trace_interval,
)
from landscape.spectrum.lanczos import Lanczos, sphere

SIZE = 300
NONE = np.zeros(0)


def bulk(name, size=SIZE):
    return torch.randn(size, generator=stream(0, f"test/{name}"), dtype=torch.float64).numpy()


def outliers(spectrum, values):
    return np.concatenate([values, spectrum[len(values) :]])


SPECTRA = {
    "outliers and a bulk": outliers(0.1 * bulk("a"), [20.0, 10.0, 5.0, 2.0, -1.0]),
    "nearly semidefinite": outliers(np.abs(0.1 * bulk("b")), [20.0, 10.0, -0.05, -0.02]),
    "many small negative": outliers(np.where(np.arange(SIZE) < 60, -0.01, 1) * np.abs(bulk("c")), [20.0]),
    "symmetric": np.cos(np.linspace(0, np.pi, SIZE)),
    "power law": np.concatenate([2 / np.arange(1, 201), -1 / np.arange(1, 101)]),
}


def quadratures(spectrum, num_probes, num_steps, *, seeds=(0,), num_atoms=0):
    """Return the largest eigenvalues in modulus as atoms, and probes of the rest per seed, on a diagonal matrix."""
    order = np.argsort(-np.abs(spectrum))
    atoms, rest = spectrum[order[:num_atoms]], torch.tensor(spectrum[order[num_atoms:]])
    starts = torch.cat([sphere(num_probes, len(rest), stream(s, "test/intervals")) for s in seeds])
    run = Lanczos(lambda v: v * rest, starts)
    run.extend(min(num_steps, len(rest)))
    samples = [SpectralSample(run.ritz(b).values, run.ritz(b).weights) for b in range(len(starts))]
    return atoms, [samples[i : i + num_probes] for i in range(0, len(samples), num_probes)]


def exact_spread(function, spectrum, num_probes):
    """Return the standard error of n mean_p u'f(H)u over the sphere, in closed form."""
    values, size = function(spectrum), len(spectrum)
    return np.sqrt(2 * size**2 / (size + 2) / num_probes * values.var())


@pytest.mark.parametrize("num_probes", [1, 3, 10])
def test_standard_error_of_the_trace_is_the_sphere_s(num_probes):
    spectrum = SPECTRA["symmetric"] + 0.3
    _, (probes,) = quadratures(spectrum, num_probes, 40)
    interval = trace_interval(NONE, probes, SIZE)
    assert interval.stderr == pytest.approx(exact_spread(lambda x: x, spectrum, num_probes), rel=0.1)
    assert interval.estimate == pytest.approx(SIZE * np.mean([p.weights @ p.values for p in probes]), rel=1e-12)
    assert interval.upper - interval.estimate == pytest.approx(
        scipy.stats.t.ppf(0.975, interval.dof) * interval.stderr, rel=1e-12
    )
    assert num_probes * SIZE / 4 < interval.dof < 4 * num_probes * SIZE


@pytest.mark.parametrize("num_atoms", [0, 8])
@pytest.mark.parametrize("num_probes", [2, 3, 10])
@pytest.mark.parametrize("name", SPECTRA)
def test_coverage(name, num_probes, num_atoms):
    """Nominal 0.95, 40 trials each (the benchmark has 200 on real spectra): at least 34 hits."""
    spectrum = SPECTRA[name]
    atoms, trials = quadratures(spectrum, num_probes, 25, seeds=range(40), num_atoms=num_atoms)
    truths = {
        trace_interval: spectrum.sum(),
        energy_interval: negative_energy_of(spectrum),
        mass_interval: np.mean(spectrum < -0.02),
    }
    for function, truth in truths.items():
        options = {"threshold": 0.02} if function is mass_interval else {}
        intervals = [function(atoms, probes, SIZE, **options) for probes in trials]
        assert all(i.lower <= i.estimate <= i.upper for i in intervals)
        assert sum(i.lower <= truth <= i.upper for i in intervals) >= 34, (function.__name__, truth)


def exactly(trace, error=0.0):
    return Interval(trace, trace - error, trace + error, error, error, math.inf)


@pytest.mark.parametrize("num_atoms", [0, 8])
@pytest.mark.parametrize("name", [*SPECTRA, "negative"])
def test_coverage_where_the_trace_is_exact(name, num_atoms):
    """At least 34 of 40 again, and nowhere wider than without: the trace is what the probes need not find."""
    spectrum = SPECTRA[name] if name != "negative" else -SPECTRA["outliers and a bulk"] - 0.05
    atoms, trials = quadratures(spectrum, 3, 25, seeds=range(40), num_atoms=num_atoms)
    trace, truth = spectrum.sum(), negative_energy_of(spectrum)
    intervals = [energy_interval(atoms, probes, SIZE, trace=exactly(trace, 1e-12)) for probes in trials]
    plain = [energy_interval(atoms, probes, SIZE) for probes in trials]
    assert all(0 <= i.lower <= i.estimate <= i.upper <= 1 for i in intervals)
    assert sum(i.lower <= truth <= i.upper for i in intervals) >= 34
    assert all((1 - 2 * i.estimate) * trace >= 0 for i in intervals)  # more below zero than above where it is negative
    errors, plain_errors = (np.sqrt(np.mean([(i.estimate - truth) ** 2 for i in one])) for one in (intervals, plain))
    assert errors < 1.02 * plain_errors
    assert np.mean([i.upper - i.lower for i in intervals]) < 1.02 * np.mean([i.upper - i.lower for i in plain])


def test_a_trace_of_zero_and_the_negative_energy_imply_each_other():
    spectrum = SPECTRA["symmetric"]
    _, (probes,) = quadratures(spectrum, 2, 12)
    zero = energy_interval(NONE, probes, SIZE, trace=exactly(0.0))
    assert (zero.lower, zero.estimate, zero.upper, zero.stderr) == (0.5, 0.5, 0.5, 0.0)
    near = energy_interval(NONE, probes, SIZE, trace=exactly(0.0, error=1.0))
    total = np.abs(spectrum).sum()  # 191, so (1 -+ 1 / 191) / 2, less what the regression knows
    assert 0.5 - 0.6 / total < near.lower < 0.5 < near.upper < 0.5 + 0.6 / total
    nothing = energy_interval(NONE, [SpectralSample(np.zeros(1), np.ones(1))], SIZE, trace=exactly(0.0))
    assert (nothing.lower, nothing.estimate, nothing.upper) == (0.0, 0.0, 0.0)


def test_narrower_than_student_s_interval_of_three_probes():
    spectrum = SPECTRA["outliers and a bulk"]
    atoms, trials = quadratures(spectrum, 3, 60, seeds=range(40), num_atoms=8)
    widths, student = [], []
    for probes in trials:
        interval = energy_interval(atoms, probes, SIZE)
        widths.append(interval.upper - interval.lower)
        values = [energy_interval(atoms, [probe], SIZE).estimate for probe in probes]
        student.append(2 * scipy.stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3))
    assert np.mean(widths) < 0.7 * np.mean(student)


def test_atoms_are_exact():
    spectrum = np.array([3.0, -1.0, 0.5, -0.25])
    assert trace_interval(spectrum, [], 4).upper == 2.25
    interval = energy_interval(spectrum, [], 4)
    assert (interval.lower, interval.estimate, interval.upper) == (1.25 / 4.75,) * 3
    assert mass_interval(spectrum, [], 4, 0.5).estimate == 0.25
    band = cumulative_band(spectrum, [], 4, np.array([-1.0, 0.0, 3.0]))
    assert band.lower.tolist() == band.upper.tolist() == [0.25, 0.5, 1.0]


def test_an_atom_at_the_threshold_is_on_either_side():
    for atom in (-0.3 - 1e-14, -0.3, -0.3 + 1e-14):
        interval = mass_interval(np.array([30.0, atom, -1.0, 2.0]), [], 4, 0.3)
        assert (interval.lower, interval.upper) == (0.25, 0.5)


@pytest.mark.parametrize("scale", [0.0, 2.0, -2.0])
def test_multiples_of_the_identity(scale):
    probe = SpectralSample(np.array([scale]), np.ones(1))
    trace = trace_interval(NONE, [probe] * 3, 50)
    assert (trace.lower, trace.estimate, trace.upper) == (50 * scale,) * 3
    energy = energy_interval(NONE, [probe] * 3, 50)
    assert (energy.lower, energy.estimate, energy.upper) == (float(scale < 0),) * 3


def test_energy_does_not_depend_on_the_scale_and_stays_within_bounds():
    atoms, (probes,) = quadratures(SPECTRA["nearly semidefinite"], 2, 10, num_atoms=2)
    interval = energy_interval(atoms, probes, SIZE)
    scaled = energy_interval(1e-6 * atoms, [SpectralSample(1e-6 * p.values, p.weights) for p in probes], SIZE)
    assert scaled.lower == pytest.approx(interval.lower, rel=1e-9)
    assert scaled.upper == pytest.approx(interval.upper, rel=1e-9)
    assert 0 <= interval.lower < interval.upper <= 1


def test_wider_at_a_higher_level():
    atoms, (probes,) = quadratures(SPECTRA["power law"], 3, 20)
    for function, options in ((trace_interval, {}), (energy_interval, {}), (mass_interval, {"threshold": 0.1})):
        narrow, wide = (function(atoms, probes, SIZE, level=level, **options) for level in (0.5, 0.99))
        assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_shorter_quadratures_are_those_of_shorter_runs():
    spectrum = torch.tensor(SPECTRA["outliers and a bulk"])
    starts = sphere(1, SIZE, stream(0, "test/short"))
    runs = {}
    for steps in (7, 30):
        runs[steps] = Lanczos(lambda v: v * spectrum, starts)
        runs[steps].extend(steps)
    long, short = (SpectralSample(runs[k].ritz(0).values, runs[k].ritz(0).weights) for k in (30, 7))
    rebuilt, _ = shortened(jacobi_matrix(long.values, long.weights), 7)
    np.testing.assert_allclose(rebuilt.values, short.values, atol=1e-9)
    np.testing.assert_allclose(rebuilt.weights, short.weights, atol=1e-9)
    assert len(shortened(jacobi_matrix(short.values, short.weights), 50)[0].values) == 7


def test_unfinished_quadratures_widen_the_interval():
    """Few steps and many probes: the bias exceeds the spread, and what the last steps moved is added on both sides."""
    spectrum = SPECTRA["outliers and a bulk"]
    _, trials = quadratures(spectrum, 50, 7, seeds=range(3))
    for probes in trials:
        interval = energy_interval(NONE, probes, SIZE)
        fewer = [shortened(jacobi_matrix(p.values, p.weights), 6)[0] for p in probes]
        moved = [abs(energy_interval(NONE, fewer, SIZE).estimate - interval.estimate)]
        assert interval.truncation >= max(moved) > 0
        assert interval.upper - interval.estimate > interval.truncation
        assert interval.estimate - interval.lower > min(interval.truncation, interval.estimate * 0.999)


def test_jacobi_matrix_in_closed_form():
    """Gauss-Legendre: zero diagonal, off-diagonal k / sqrt(4 k^2 - 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    alphas, betas = jacobi_matrix(nodes, weights / 2)
    k = np.arange(1, 12)
    np.testing.assert_allclose(alphas, 0, atol=1e-14)
    np.testing.assert_allclose(betas, k / np.sqrt(4 * k**2 - 1), rtol=1e-12)
    alphas, betas = jacobi_matrix(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, 0.5]))
    np.testing.assert_allclose([*alphas, *betas], [2.0, 2.0, 1.0], rtol=1e-14)


@pytest.mark.parametrize("num_steps", [3, 10, 25])
@pytest.mark.parametrize("name", SPECTRA)
def test_bracket_holds_the_start_vector_s_measure(name, num_steps):
    spectrum = np.sort(SPECTRA[name])
    start = sphere(1, SIZE, stream(1, "test/bracket"))
    run = Lanczos(lambda v: v * torch.tensor(spectrum), start)
    run.extend(num_steps)
    ritz = run.ritz(0)
    at = np.concatenate([np.linspace(spectrum[0] - 1, spectrum[-1] + 1, 400), spectrum, ritz.values])
    measure = np.array([(start[0].numpy() ** 2)[spectrum <= x].sum() for x in at])
    lower, upper = cumulative_bracket(ritz.values, ritz.weights, at)
    assert (lower <= measure + 1e-9).all()
    assert (measure <= upper + 1e-9).all()
    assert (upper - lower).max() <= 2 * np.sort(ritz.weights)[-2:].sum() + 1e-12
    # A single weight either side is not enough between nodes: the bound is sharp up to one weight.
    nodes = np.cumsum(ritz.weights)
    inner = np.array(
        [nodes[np.searchsorted(ritz.values, x, side="right") - 1] if x >= ritz.values[0] else 0 for x in at]
    )
    assert (np.abs(inner - measure) > 1e-6).any()


def test_band_holds_the_spectrum_s_distribution():
    for name, spectrum in SPECTRA.items():
        at = np.linspace(spectrum.min(), spectrum.max(), 200)
        truth = (spectrum[:, None] <= at).mean(0)
        for num_atoms in (0, 10):
            atoms, trials = quadratures(spectrum, 3, 20, seeds=range(5), num_atoms=num_atoms)
            for probes in trials:
                band = cumulative_band(atoms, probes, SIZE, at)
                assert (band.lower <= truth).all(), name
                assert (truth <= band.upper).all(), name
                assert band.monte_carlo == pytest.approx(
                    (1 - num_atoms / SIZE)
                    * np.sqrt(4 * np.log(2 * (SIZE - num_atoms) / 0.05) / 3 / (SIZE - num_atoms + 2))
                )
                assert (band.lower <= band.estimate + 1e-12).all()
                assert (band.estimate <= band.upper + 1e-12).all()


def test_index_is_never_overcounted():
    spectrum = outliers(0.1 * np.abs(bulk("d", 60)), [5.0, -0.5, -0.3, -0.2])
    matrix = matrix_of(spectrum)
    counts = []
    for steps in (2, 4, 6, 8, 10, 12, 14, 16, 60):
        run = Lanczos(lambda v: v @ matrix, sphere(1, 60, stream(0, "test/index")))
        run.extend(steps)
        ritz = run.ritz(0)
        basis = run.space(0, len(ritz.values))
        defect = float(torch.linalg.matrix_norm(basis @ basis.T - torch.eye(len(basis), dtype=torch.float64), 2))
        options = {"noise": 1e-12, "orthogonality": defect}
        interlaced = count_negative(ritz.values, ritz.residuals, certify_pairs=False, **options)
        certified = count_negative(ritz.values, ritz.residuals, **options)
        assert certified <= interlaced <= 3
        counts.append((certified, interlaced))
    assert counts[-1] == (3, 3)
    pairs = np.array([-2.0, -1.0, 0.5]), np.array([0.1, 1.5, 0.0])
    assert (count_negative(*pairs), count_negative(*pairs, certify_pairs=False)) == (1, 2)


def test_index_gives_up_what_orthogonality_cannot_vouch_for():
    values, residuals = np.array([-1.0, -1e-3, 2.0]), np.zeros(3)
    assert count_negative(values, residuals) == 2
    assert count_negative(values, residuals, orthogonality=1e-3) == 1
    assert count_negative(values, residuals, orthogonality=1e-3, norm=1000.0) == 0
    assert count_negative(values, residuals, noise=1e-3) == 1
    assert count_negative(values, residuals, noise=2.0) == 0
    assert count_negative(NONE, NONE) == 0


def test_same_samples_same_interval():
    atoms, (probes,) = quadratures(SPECTRA["power law"], 3, 20)
    again = quadratures(SPECTRA["power law"], 3, 20)[1][0]
    other = quadratures(SPECTRA["power law"], 3, 20, seeds=(1,))[1][0]
    assert energy_interval(atoms, probes, SIZE) == energy_interval(atoms, again, SIZE)
    assert energy_interval(atoms, probes, SIZE) != energy_interval(atoms, other, SIZE)


def test_refusals():
    probe = SpectralSample(np.array([1.0]), np.ones(1))
    with pytest.raises(LandscapeError, match="got 95"):
        energy_interval(NONE, [probe], 10, level=95)
    with pytest.raises(LandscapeError, match="at most 2 eigenvalues, got 3"):
        trace_interval(np.zeros(3), [probe], 2)
    with pytest.raises(LandscapeError, match="10 dimensions left, got none"):
        trace_interval(NONE, [], 10)
    with pytest.raises(LandscapeError, match="got -1"):
        mass_interval(NONE, [probe], 10, -1)
    with pytest.raises(LandscapeError, match="sort them"):
        cumulative_bracket(np.array([1.0, 0.0]), np.ones(2) / 2, np.zeros(1))
    with pytest.raises(LandscapeError, match=r"below 1, got 1\.5"):
        count_negative(np.ones(1), np.ones(1), orthogonality=1.5)
