"""The intervals that hold the ends of a spectrum: closed forms, their coverage, and starts that hold too little of an end."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch
from spectrum_cases import Counting

from landscape import AnalyticRisk, measure_spectrum
from landscape.randomness import stream
from landscape.spectrum.end_bounds import (
    chance_of_share,
    joint_distance,
    log_missed_share,
    missed_distance,
    shifted_by_couplings,
    smallest_share,
)
from landscape.spectrum.lanczos import Lanczos, sphere
from landscape.spectrum.options import SpectrumOptions

SPECTRA = {
    "lonely minimum": np.concatenate([[-1.0], np.linspace(0, 1, 119)]),
    "two near": np.concatenate([[-1.0, -0.97], np.linspace(-0.2, 1, 118)]),
    "uniform": np.linspace(-1, 1, 120),
}


def runs_of(spectrum: np.ndarray, num_rows: int, num_steps: int, name: str) -> tuple[Lanczos, torch.Tensor]:
    diagonal = torch.as_tensor(spectrum)
    starts = sphere(num_rows, len(spectrum), stream(0, name))
    run = Lanczos(lambda v: v * diagonal, starts)
    run.extend(num_steps)
    return run, starts


@pytest.mark.parametrize("size", [2, 3, 10, 500])
@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.3])
def test_a_share_is_a_quantile_of_its_distribution(size, probability):
    exact = scipy.stats.beta(0.5, (size - 1) / 2)
    share = smallest_share(size, probability)
    assert exact.cdf(share) <= probability * (1 + 1e-9)
    assert exact.cdf(share) >= 0.85 * probability  # and no smaller than it need be
    assert chance_of_share(math.log(share), size) == pytest.approx(probability, rel=1e-9)
    assert smallest_share(size, probability, 0.25) == pytest.approx(share / 4)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("num_steps", [3, 8, 15])
def test_no_start_holds_more_of_an_end_than_the_couplings_allow(kind, num_steps):
    """The characteristic polynomial is the smallest monic one: w p(lambda)^2 <= |p(H) u|^2 = prod beta^2, for any start."""
    spectrum = SPECTRA[kind]
    run, starts = runs_of(spectrum, 40, num_steps, f"share/{kind}")
    for row in range(40):
        ritz = run.ritz(row)
        norm = np.prod([np.float64(x) for x in run._betas[row, :num_steps]])
        assert ritz.log_couplings == pytest.approx(np.log(norm))
        for index in (0, -1):
            allowed = log_missed_share(ritz, spectrum[index])
            assert 2 * math.log(abs(float(starts[row, index]))) <= allowed + 1e-9


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("is_low", [True, False])
def test_the_bound_covers_as_often_as_stated_even_where_it_chose_when_to_stop(kind, is_low):
    """200 starts; each run stops at the first look where its bound is within 30 % of the range, as those of lanes do."""
    spectrum = SPECTRA[kind]
    end = spectrum[0] if is_low else spectrum[-1]
    diagonal, size = torch.as_tensor(spectrum), len(spectrum)
    for probability in (0.5, 0.1, 0.02):
        share = smallest_share(size, probability)
        run = Lanczos(lambda v: v * diagonal, sphere(200, size, stream(0, f"cover/{kind}")))
        open_rows, misses = set(range(200)), 0
        for _ in range(15):
            run.extend(2)
            for row in sorted(open_rows):
                ritz = run.ritz(row)
                distance = missed_distance(ritz, share, is_low=is_low)
                bound = ritz.values[0] - distance if is_low else ritz.values[-1] + distance
                misses += (bound > end) if is_low else (bound < end)
                if distance <= 0.3 * 2:
                    open_rows.discard(row)
        assert misses / 200 <= probability + 5 * math.sqrt(probability * (1 - probability) / 200)


def test_the_bound_closes_in_and_is_nothing_for_an_exhausted_space():
    run, _ = runs_of(SPECTRA["lonely minimum"], 1, 4, "closing")
    share, distances = smallest_share(120, 1e-4), []
    for _ in range(6):
        distances.append(missed_distance(run.ritz(0), share, is_low=True))
        run.extend(4)
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 1e-8 < distances[0]
    few, _ = runs_of(np.array([1.0, 1.0, 1.0, 2.0]), 1, 3, "exhausted")
    assert few.ritz(0).is_exhausted
    assert missed_distance(few.ritz(0), share, is_low=True) == 0


@pytest.mark.parametrize("probability", [0.3, 0.05])
def test_independent_starts_are_joined_at_the_stated_probability(probability):
    spectrum = SPECTRA["two near"]
    run, _ = runs_of(spectrum, 4 * 150, 7, "joint")
    misses = 0
    for trial in range(150):
        pairs = [run.ritz(row) for row in range(4 * trial, 4 * trial + 4)]
        lowest = min(p.values[0] for p in pairs)
        misses += lowest - joint_distance(pairs, lowest, 120, probability, is_low=True) > spectrum[0]
    assert misses / 150 <= probability + 5 * math.sqrt(probability * (1 - probability) / 150)


def test_couplings_to_deflated_pairs_move_the_end_as_the_schur_complement_says():
    draws = np.random.default_rng(0)
    atoms, complement = np.array([-0.4, 2.0, 9.0]), np.diag(draws.uniform(-0.7, 1, 20))
    couplings = np.array([0.05, 0.3, 0.9])
    whole = np.block(
        [[np.diag(atoms), np.outer(couplings, np.eye(20)[0])], [np.outer(np.eye(20)[0], couplings), complement]]
    )
    end = complement.diagonal().min()
    bound = shifted_by_couplings(end, atoms, couplings)
    assert bound <= np.linalg.eigvalsh(whole)[0]
    assert end - bound < 1.0
    assert shifted_by_couplings(end, atoms[:0], couplings[:0]) == end


def mirrored(values: torch.Tensor, part: float, lane: str = "all") -> AnalyticRisk:
    """A diagonal operator behind a reflection after which the lane's own start holds ``part`` of its first axis."""
    size = len(values)
    start = sphere(1, size, stream(0, f"spectrum/{lane}/extremes"))[0]
    image = start.clone()
    image[0] *= part
    image *= start.norm() / image.norm()
    axis = start - image

    def loss(x: torch.Tensor) -> torch.Tensor:
        turned = x - axis.to(x) * (2 * (axis.to(x) @ x) / (axis @ axis).to(x)) if axis.any() else x
        return (values.to(x) * turned * turned).sum()[None] / 2

    return AnalyticRisk(loss, torch.zeros(size, dtype=torch.float64))


VALUES = torch.cat(
    [
        torch.tensor([-4.5353, -4.3401, 60.0, 90.0], dtype=torch.float64),
        torch.as_tensor(np.clip(np.random.default_rng(0).standard_cauchy(600) * 1e-2, -2, 20)),
    ]
)
BARE = {"context": False, "num_bootstrap": 0}


@pytest.mark.parametrize("part", [1.0, 1e-3, 0.0])
def test_the_end_is_found_whatever_the_start_holds_of_it(part):
    """Misconvergence: a run whose start holds little of the lowest eigenvector converges to the second one first. With
    nothing of it the run never sees it: then the density's probes do, and the interval rests on them."""
    lane = measure_spectrum(mirrored(VALUES, part), "all", options=SpectrumOptions(**BARE)).isel(lane=0)
    assert float(lane.lambda_min) == pytest.approx(-4.5353, rel=1e-6)
    assert float(lane.lambda_min_low) <= -4.5353 <= float(lane.lambda_min_high) + 1e-12
    assert float(lane.lambda_max_low) - 1e-12 <= 90 <= float(lane.lambda_max_high)
    assert float(lane.lambda_min_error) >= float(lane.lambda_min) - float(lane.lambda_min_low)
    assert float(lane.ritz_value.min()) >= float(lane.lambda_min)
    assert float(lane.ritz_value.max()) <= float(lane.lambda_max)
    if part:
        assert float(lane.lambda_min_error) <= 1e-3 * 4.5353
    assert np.isfinite(lane.lambda_min_low)


@pytest.mark.parametrize("part", [1.0, 1e-3, 0.0])
def test_every_product_made_is_counted(part):
    """Those of a second run, that the probes made necessary, too: with nothing of the end in the first start there is one."""
    counting = Counting(mirrored(VALUES, part))
    lane = measure_spectrum(counting, "all", options=SpectrumOptions(**BARE)).isel(lane=0)
    assert int(lane.num_hvps) == counting.num_products


def test_the_interval_holds_the_value_that_is_printed_whatever_the_bound_says(monkeypatch):
    """A bound that fell inside the spectrum would be of the run's rounding; what was certified lies further out."""
    monkeypatch.setattr("landscape.spectrum.ends.Missed.bounds", lambda self, plain: (1.0, 2.0))
    lane = measure_spectrum(mirrored(VALUES, 1.0), "all", options=SpectrumOptions(**BARE, num_probes=0)).isel(lane=0)
    assert lane.lambda_min_low < lane.lambda_min < lane.lambda_min_high
    assert lane.lambda_max_low < lane.lambda_max < lane.lambda_max_high


def test_the_interval_holds_the_eigenvalue_that_the_residual_holds(monkeypatch):
    """A quotient lies inside the end by up to residual^2 / gap, even where the run's own bound says that nothing is missed."""
    monkeypatch.setattr("landscape.spectrum.ends.Missed.distances", lambda self, plain: (0.0, 0.0))
    lonely = torch.cat([VALUES[:1], VALUES[2:]])
    for probes in (0, 2):
        options = SpectrumOptions(**BARE, num_probes=probes, num_steps=4, max_steps=8)
        lane = measure_spectrum(mirrored(lonely, 1.0), "all", options=options).isel(lane=0)
        assert float(lane.lambda_min) + 4.5353 > 1e-9  # it has not converged
        assert float(lane.lambda_min_low) <= -4.5353
        assert float(lane.lambda_max_high) >= 90


def test_the_nodes_of_a_run_end_at_the_certified_ends():
    """In float32 the Ritz values of the run and the quotients in float64 differ; one eigenvalue has one number."""
    generator = stream(0, "ends/nodes")
    matrix = torch.randn(40, 40, generator=generator)
    risk = AnalyticRisk(lambda x: (x @ (matrix + matrix.T).to(x) @ x)[None] / 2, torch.zeros(40))
    lane = measure_spectrum(risk, "all", options=SpectrumOptions(**BARE, num_probes=0)).isel(lane=0)
    nodes = lane.ritz_value.values[np.isfinite(lane.ritz_value.values)]
    assert nodes.min() == lane.lambda_min
    assert nodes.max() == lane.lambda_max


def test_a_run_for_the_verdict_says_one_side_only(capsys):
    from landscape.cli.spectrum_tables import show_spectrum

    options = SpectrumOptions(**BARE, until="verdict")
    result = measure_spectrum(mirrored(VALUES, 1.0), "all", options=options)
    lane = result.isel(lane=0)
    assert float(lane.lambda_min_low) <= -4.5353
    show_spectrum(result)
    text = capsys.readouterr().out
    assert f"at most {float(lane.lambda_min):.4g}" in text
    assert f"at least {float(lane.lambda_max):.4g}" in text
    assert "bounds from one side" in text


def test_a_warm_start_finds_what_its_old_vectors_do_not_hold():
    """The old ends span an invariant space without the new lowest eigenvector: only the random part leads out of it."""
    size = 40
    values = torch.linspace(0.1, 1, size, dtype=torch.float64)
    values[0], values[1], values[-1] = -5.0, -2.0, 9.0
    risk = AnalyticRisk(lambda x: (values.to(x) * x * x).sum()[None] / 2, torch.zeros(size, dtype=torch.float64))
    old = tuple(torch.eye(size, dtype=torch.float64)[[1, -1]])
    options = SpectrumOptions(**BARE, num_probes=0)
    lane = measure_spectrum(risk, "all", options=options, warm={"all": old}).isel(lane=0)
    assert float(lane.lambda_min) == pytest.approx(-5.0, rel=1e-9)
    assert float(lane.lambda_min_low) <= -5.0
    assert np.isfinite(lane.lambda_min_low)


def test_what_atoms_are_off_by_widens_the_interval_of_the_negative_energy():
    """Deflated pairs that have not converged shift their eigenvalues by residual^2 / value: the interval says so."""
    from landscape.spectrum import sampling
    from landscape.spectrum.lane import find_extremes

    risk = mirrored(VALUES, 1.0)
    options = SpectrumOptions(**BARE, max_steps=14)
    extremes = find_extremes(risk, torch.ones(1), options, stream(0, "spectrum/all/extremes"))
    atoms = sampling.choose_atoms(extremes)
    chosen = extremes.ritz.residuals <= sampling.DEFLATION_SHARE * np.abs(extremes.ritz.values)
    expected = (extremes.ritz.residuals[chosen] ** 2 / np.abs(extremes.ritz.values[chosen])).sum()
    assert atoms.shift == pytest.approx(expected)
    assert expected > 1e-6
    without = sampling.choose_atoms(dataclasses.replace(extremes, space=extremes.space[:0]))
    assert (without.shift, len(without.values), len(without.residuals)) == (0.0, 0, 0)  # where no basis was kept
    with risk.hessian(risk.theta, torch.ones(1, 1)) as product:
        [density] = sampling.sample_densities(
            risk.theta, product, [extremes], options, [lambda what: stream(0, f"widening/{what}")]
        )
    total = float(np.mean([np.sum(s.weights * np.abs(s.values)) for s in density.samples])) * len(VALUES)
    assert density.energy.truncation >= atoms.shift / total
