"""The quadrature of an extreme run's own start: its intervals over many starts, and what it must not take for an atom."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from spectrum_cases import dense_hessian, digits, network_risk, tanh_network

from landscape.randomness import stream
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.intervals import energy_interval, mass_interval, trace_interval
from landscape.spectrum.lanczos import Lanczos, RitzPairs, sphere
from landscape.spectrum.sampling import own_quadrature


def own_run(spectrum, seed, num_steps):
    """Return what an extreme run of ``num_steps`` on a diagonal matrix leaves for its own quadrature."""
    values = torch.as_tensor(spectrum)
    run = Lanczos(lambda v: v * values, sphere(1, len(values), stream(seed, "test/own")))
    run.extend(num_steps)
    return SimpleNamespace(ritz=run.ritz(0), is_random_start=True, space=torch.zeros(0, len(values)))


@pytest.mark.parametrize("num_steps", [12, 30])
def test_the_own_quadrature_covers_trace_energy_and_mass(num_steps):
    """An outlying spectrum as networks have it, 200 starts: nominal 0.95 covers at least 0.9."""
    rng = np.random.default_rng(0)
    spectrum = np.concatenate([[-30.0, -8.0, 40.0, 90.0, 300.0], rng.normal(0, 0.3, 395), np.zeros(600)])
    size, threshold = len(spectrum), 3.0
    truth = {
        "trace": spectrum.sum(),
        "energy": np.maximum(-spectrum, 0).sum() / np.abs(spectrum).sum(),
        "mass": (spectrum < -threshold).mean(),
    }
    hits, atoms_found = dict.fromkeys(truth, 0), []
    for seed in range(200):
        atoms, sample = own_quadrature(own_run(spectrum, seed, num_steps), size)
        atoms_found.append(len(atoms.values))
        found = {
            "trace": trace_interval(atoms.values, [sample], size),
            "energy": energy_interval(atoms.values, [sample], size),
            "mass": mass_interval(atoms.values, [sample], size, threshold),
        }
        for name, interval in found.items():
            hits[name] += interval.lower <= truth[name] + 1e-12 and truth[name] <= interval.upper + 1e-12
    assert min(hits.values()) >= 180, hits
    assert np.median(atoms_found) >= 3


def test_the_own_quadrature_keeps_what_stands_for_many():
    """A null space is one Ritz value with nearly all the weight, and forty equal eigenvalues are one: neither is an atom."""
    spectrum = np.concatenate([np.zeros(900), np.full(40, 5.0), [50.0]])
    atoms, sample = own_quadrature(own_run(spectrum, 0, 8), len(spectrum))
    assert set(np.round(atoms.values, 6)) <= {50.0}
    trace = trace_interval(atoms.values, [sample], len(spectrum))
    assert trace.lower <= spectrum.sum() <= trace.upper
    assert trace.stderr > 0


def test_a_run_that_was_restarted_or_warm_has_no_quadrature_of_its_own():
    run = own_run(np.arange(50.0), 0, 8)
    run.is_random_start = False
    assert own_quadrature(run, 50) is None
    unknown = RitzPairs(np.arange(3.0), np.full(3, np.nan), np.eye(3), np.zeros(3), False)
    assert own_quadrature(SimpleNamespace(ritz=unknown, is_random_start=True), 50) is None


def test_a_run_through_the_whole_space_is_exact():
    spectrum = np.array([-1.0, 0.5, 2.0, 7.0])
    atoms, sample = own_quadrature(own_run(spectrum, 0, 4), 4)
    np.testing.assert_allclose(atoms.values, spectrum, atol=1e-12)
    assert len(sample.values) == 0


def test_without_probes_a_spectrum_costs_the_extremes_only():
    risk = network_risk(torch.float64)
    exact = np.linalg.eigvalsh(dense_hessian(tanh_network(), *digits(), [1.0, 0, 0, 0]))
    probed = measure_spectrum(risk, "0", options=SpectrumOptions(num_probes=3, num_steps=8)).isel(lane=0)
    result = measure_spectrum(risk, "0", options=SpectrumOptions(num_probes=0)).isel(lane=0)
    assert int(probed.num_hvps) - int(result.num_hvps) == 24
    assert result.sizes["probe"] == 1
    weights = result.ritz_weight.values[0]
    assert np.nansum(weights) == pytest.approx(1)
    assert float(result.trace_low) <= exact.sum() <= float(result.trace_high)
    assert float(result.trace_stderr) > 0
    assert float(result.lambda_min) == pytest.approx(exact[0], rel=1e-9)


def test_warm_runs_have_a_probe_of_their_own():
    risk, vectors = network_risk(torch.float64), {}
    options = SpectrumOptions(num_probes=0, num_steps=6)
    cold = measure_spectrum(risk, "0", options=options, directions=vectors).isel(lane=0)
    warm = measure_spectrum(risk, "0", options=options, warm=vectors).isel(lane=0)
    assert str(warm.verdict.item()) == str(cold.verdict.item())
    assert float(warm.trace_low) <= float(cold.trace_high)
    assert float(cold.trace_low) <= float(warm.trace_high)


def test_the_lowest_end_alone_is_certified_in_float64():
    risk = network_risk(torch.float32)
    both, lowest, own = (
        measure_spectrum(risk, "0", options=SpectrumOptions(num_probes=0, certify=certify)).isel(lane=0)
        for certify in ("float64", "lowest", "own")
    )
    assert int(both.num_hvps) == int(lowest.num_hvps) + 1 == int(own.num_hvps) + 2
    assert float(lowest.lambda_min) == float(both.lambda_min)
    assert float(lowest.lambda_min) != float(own.lambda_min)
    assert float(lowest.lambda_max) == float(own.lambda_max)
    assert float(lowest.lambda_max_error) >= 1e-7 * float(lowest.lambda_max)
