"""Estimates and their error bars against exact spectra of a small long-tailed network, and of prescribed ones.

    python -m analyses.benchmarks.estimates --out CSV [--trials 200]

A convolutional network of 1,051 parameters is trained for seconds on digits with 134 to 3 images per class; the Hessians
of a head, a medium and a tail class are computed densely in float64. Deflated quadrature (100 steps, the converged pairs as
atoms, 3 x 100 steps in the complement, with a node at zero and without) meets plain quadrature of 4 x 100 steps and the
smoothed densities that peers offer; intervals are counted over the trials; trace estimators spend 30 products each. About
five minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.data import load_dataset
from landscape.randomness import stream
from landscape.spectrum.density import SpectralSample, deflated_sample, probe_quadrature
from landscape.spectrum.intervals import Interval, energy_interval, mass_interval, trace_interval
from landscape.spectrum.lanczos import Lanczos, RitzPairs, sphere
from landscape.spectrum.trace import TraceEstimate, complement_trace, hutchinson, xnystrace, xtrace

IMBALANCE = 44.0  # 134 images in the largest class, 3 in the smallest
CLASSES = {"head": 0, "medium": 4, "tail": 9}
NUM_EPOCHS = 60
TAU = 0.01  # of lambda_max: what counts as negative in the mass
CONVERGED = 1e-3  # of |H|: Ritz pairs this accurate become atoms
BLOCK = 25  # trials in lock-step
COLUMNS = ("spectrum", "quantity", "method", "products", "truth", "rmse", "bias", "coverage", "width", "calibration")

Row = dict[str, object]


def trained_network() -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network in float64, its images and labels."""
    data = load_dataset("digits-lt", imbalance_ratio=IMBALANCE)
    images, labels = data.normalise(data.train.images, torch.float64), data.train.labels
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 13, 3, padding=1)
    pool = nn.AvgPool2d(2)
    model = nn.Sequential(first, nn.GELU(), pool, second, nn.GELU(), pool, nn.Flatten(), nn.Linear(52, 10)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=stream(0, f"estimates/{name}"), dtype=torch.float64)
            p.copy_(draw / math.sqrt(p[0].numel()) if p.dim() > 1 else 0 * draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    order = stream(0, "estimates/order")
    for _ in range(NUM_EPOCHS):
        for batch in torch.randperm(len(labels), generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model, images, labels


def class_spectrum(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return the eigenvalues of the mean cross-entropy's dense Hessian."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = {name: part.view(p.shape) for (name, p), part in zip(named.items(), theta.split(sizes))}
        return nn.functional.cross_entropy(functional_call(model, parts, (images,)), labels)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    matrix = torch.func.jacrev(torch.func.grad(loss), chunk_size=64)(theta)
    return np.linalg.eigvalsh(((matrix + matrix.T) / 2).numpy())


def spectra() -> dict[str, np.ndarray]:
    """Return the exact spectra: three classes of the network and three prescribed ones of the same size."""
    model, images, labels = trained_network()
    out = {name: class_spectrum(model, images[labels == c], labels[labels == c]) for name, c in CLASSES.items()}
    size = len(out["head"])
    generator = stream(0, "estimates/prescribed")
    draws = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    top = np.geomspace(30, 1, 12)
    low_rank = np.zeros(size)
    low_rank[:40] = np.concatenate([top, 0.3 * draws[:28]])
    nearly = 0.02 * np.abs(draws)
    nearly[:12], nearly[12] = top, -0.05
    weak = np.where(np.arange(size) < 200, -0.01, 1) * nearly
    weak[200:212], weak[12] = top, -1e-4
    prescribed = {"rank 40": low_rank, "nearly semidefinite": nearly, "weak negative bulk": weak}
    return {**out, **{name: np.sort(values) for name, values in prescribed.items()}}


def energy_of(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the negative energy of a discrete density."""
    return float(weights @ np.maximum(-values, 0) / (weights @ np.abs(values)))


def distance(values: np.ndarray, weights: np.ndarray, spectrum: np.ndarray) -> float:
    """Return the Wasserstein-1 distance in units of the range."""
    return float(scipy.stats.wasserstein_distance(values, spectrum, weights)) / float(np.ptp(spectrum))


def lanczos_runs(spectrum: np.ndarray, name: str, trials: int, num_steps: int) -> Iterator[tuple[int, Lanczos]]:
    """Yield (row, run) of every trial.

    In the eigenbasis: start vectors on the sphere look alike in every basis, and so do Lanczos coefficients.
    """
    diagonal = torch.tensor(spectrum)
    for first in range(0, trials, BLOCK):
        block = range(first, min(first + BLOCK, trials))
        starts = torch.cat([sphere(1, len(spectrum), stream(t, f"estimates/{name}")) for t in block])
        run = Lanczos(lambda v: v * diagonal, starts)
        run.extend(num_steps)
        yield from ((row, run) for row in range(len(block)))


def deflated_trials(
    spectrum: np.ndarray, trials: int, *, num_extreme: int, num_steps: int, num_probes: int
) -> Iterator[tuple[np.ndarray, list[RitzPairs]]]:
    """Yield the atoms and the quadratures of the complement, trial by trial."""
    diagonal = torch.tensor(spectrum)
    for trial, (row, run) in enumerate(lanczos_runs(spectrum, "extremes", trials, num_extreme)):
        ritz = run.ritz(row)
        converged = ritz.residuals <= CONVERGED * np.abs(ritz.values).max()
        starts = sphere(num_probes, len(spectrum), stream(trial, "estimates/probes"))
        probes = Lanczos(
            lambda v: v * diagonal, starts, deflated=run.vectors(row, ritz.coordinates[:, converged])[None]
        )
        probes.extend(min(num_steps, len(spectrum) - int(converged.sum())))
        yield ritz.values[converged], [probes.ritz(p) for p in range(num_probes)]


def gauss(ritz: RitzPairs) -> SpectralSample:
    """Return the plain Gauss rule of a run."""
    return SpectralSample(ritz.values, ritz.weights)


def smoothed(sample: SpectralSample, sigma: float, num_points: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return a Gaussian-smoothed density on a grid, normalised there."""
    margin = 6 * sigma
    grid = np.linspace(sample.values.min() - margin, sample.values.max() + margin, num_points)
    kept = sample.weights > 1e-12
    density = np.exp(-0.5 * ((grid[:, None] - sample.values[kept]) / sigma) ** 2) @ sample.weights[kept]
    return grid, density / density.sum()


def peer_sigma(spectrum: np.ndarray, num_steps: int) -> dict[str, float]:
    """Return the kernel widths of the peers: variance 1e-5 max(1, range); 2 / (m - 1) / sqrt(8 log 3) on [-1, 1]."""
    width = float(np.ptp(spectrum))
    return {
        "smoothed as in PyHessian": math.sqrt(1e-5 * max(1.0, width)),
        "smoothed as in curvlinops": width / 2 * 2 / (num_steps - 1) / math.sqrt(8 * math.log(3)),
    }


def error_row(name: str, quantity: str, method: str, products: int, truth: float, values: list[float]) -> Row:
    """Return relative errors; of a distance (truth 0) the root mean square and the mean themselves."""
    scale = abs(truth) if truth else 1.0
    errors = (np.array(values) - truth) / scale
    row: Row = dict.fromkeys(COLUMNS, "")
    row |= {"spectrum": name, "quantity": quantity, "method": method, "products": products, "truth": f"{truth:.6g}"}
    return row | {"rmse": f"{np.sqrt(np.mean(errors**2)):.3g}", "bias": f"{errors.mean():.3g}"}


def interval_row(name: str, quantity: str, method: str, products: int, truth: float, intervals: list[Interval]) -> Row:
    """Return errors, coverage and mean width relative to the truth."""
    row = error_row(name, quantity, method, products, truth, [i.estimate for i in intervals])
    slack = 1e-9 * abs(truth)  # the truth itself is an eigenvalue computation
    hits = [i.lower - slack <= truth <= i.upper + slack for i in intervals]
    width = np.mean([i.upper - i.lower for i in intervals]) / (abs(truth) or 1.0)
    return row | {"coverage": f"{np.mean(hits):.3f}", "width": f"{width:.3g}"}


def student(values: list[float]) -> Interval:
    """Return Student's interval over probes, the usual way."""
    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * stderr
    return Interval(mean, mean - half, mean + half, stderr, 0.0, len(values) - 1)


def density_rows(name: str, spectrum: np.ndarray, trials: int) -> list[Row]:
    """Compare densities of 400 products each."""
    size, truth = len(spectrum), energy_of(spectrum, np.ones(len(spectrum)))
    found: dict[str, tuple[list[float], list[float]]] = {}

    def add(method: str, values: np.ndarray, weights: np.ndarray) -> None:
        distances, energies = found.setdefault(method, ([], []))
        distances.append(distance(values, weights, spectrum))
        energies.append(energy_of(values, weights))

    for atoms, probes in deflated_trials(spectrum, trials, num_extreme=100, num_steps=100, num_probes=3):
        for method, rule in (("deflated quadrature", probe_quadrature), ("deflated Gauss quadrature", gauss)):
            add(method, *pooled([deflated_sample(atoms, rule(probe), size) for probe in probes]))
    four: list[SpectralSample] = []
    for row, run in lanczos_runs(spectrum, "plain", 4 * trials, 100):
        four.append(gauss(run.ritz(row)))
        if len(four) == 4:
            sample = SpectralSample(*pooled(four))
            add("plain quadrature", sample.values, sample.weights)
            for method, sigma in peer_sigma(spectrum, 100).items():
                add(method, *smoothed(sample, sigma))
            four = []
    rows = []
    for method, (distances, energies) in found.items():
        rows.append(error_row(name, "W1 / range", method, 400, 0.0, distances))
        rows.append(error_row(name, "negative energy", method, 400, truth, energies))
    return rows


def pooled(samples: list[SpectralSample]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of several densities."""
    return (
        np.concatenate([s.values for s in samples]),
        np.concatenate([s.weights for s in samples]) / len(samples),
    )


def interval_rows(name: str, spectrum: np.ndarray, trials: int) -> list[Row]:
    """Count how often the intervals hold the truth."""
    size, tau = len(spectrum), TAU * float(spectrum.max())
    truths = {
        "negative energy": energy_of(spectrum, np.ones(size)),
        "trace": float(spectrum.sum()),
        "negative mass": float(np.mean(spectrum < -tau)),
    }
    rows = []
    for num_extreme, num_steps, num_probes in ((100, 100, 3), (30, 30, 2), (30, 30, 3), (30, 30, 10)):
        ours: dict[str, list[Interval]] = {quantity: [] for quantity in truths}
        usual: list[Interval] = []
        settings = {"num_extreme": num_extreme, "num_steps": num_steps, "num_probes": num_probes}
        for atoms, ritz in deflated_trials(spectrum, trials, **settings):
            probes = [probe_quadrature(r) for r in ritz]
            ours["negative energy"].append(energy_interval(atoms, probes, size))
            ours["trace"].append(trace_interval(atoms, probes, size))
            ours["negative mass"].append(mass_interval(atoms, probes, size, tau))
            samples = [deflated_sample(atoms, probe, size) for probe in probes]
            usual.append(student([energy_of(s.values, s.weights) for s in samples]))
        products = num_extreme + num_steps * num_probes
        label = f"{num_probes} probes of {num_steps} steps"
        for quantity, truth in truths.items():
            rows.append(interval_row(name, quantity, f"interval, {label}", products, truth, ours[quantity]))
        rows.append(
            interval_row(name, "negative energy", f"Student, {label}", products, truths["negative energy"], usual)
        )
    return rows


def trace_rows(name: str, spectrum: np.ndarray, trials: int) -> list[Row]:
    """Compare trace estimators of 30 products, and the calibration of their errors."""
    diagonal, size = torch.tensor(spectrum), len(spectrum)

    def matmat(vectors: Tensor) -> Tensor:
        return vectors * diagonal

    def krylov(starts: Tensor, num_steps: int) -> TraceEstimate:
        run = Lanczos(matmat, starts[:, -1])
        run.extend(num_steps)
        bases, traces = [], []
        for row in range(len(starts)):
            ritz = run.ritz(row)
            bases.append(run.space(row, len(ritz.values)))
            traces.append(float(ritz.values.sum()))
        return complement_trace(matmat, torch.stack(bases), torch.tensor(traces), starts[:, :-1])

    methods: dict[str, tuple[int, Callable[[Tensor], TraceEstimate]]] = {
        "Hutchinson": (30, lambda starts: hutchinson(matmat, starts)),
        "XTrace": (15, lambda starts: xtrace(matmat, starts)),
        "Lanczos 20 + Hutchinson 10": (11, lambda starts: krylov(starts, 20)),
        "Lanczos 24 + Hutchinson 6": (7, lambda starts: krylov(starts, 24)),
    }
    if spectrum.min() >= 0:
        methods["XNysTrace"] = (30, lambda starts: xnystrace(matmat, starts))
    rows = []
    for method, (num_vectors, estimate) in methods.items():
        values, stderrs = [], []
        for first in range(0, trials, BLOCK):
            block = range(first, min(first + BLOCK, trials))
            starts = torch.stack([sphere(num_vectors, size, stream(t, "estimates/trace")) for t in block])
            found = estimate(starts)
            values += found.values.tolist()
            stderrs += found.stderrs.tolist()
        truth = float(spectrum.sum())
        row = error_row(name, "trace", method, 30, truth, values)
        errors = np.array(values) - truth
        within = np.abs(errors) <= 2 * np.array(stderrs) + 1e-9 * abs(truth)
        calibration = math.sqrt(float(np.mean(np.square(stderrs))) / max(float(np.mean(errors**2)), 1e-300))
        rows.append(row | {"coverage": f"{np.mean(within):.3f}", "calibration": f"{calibration:.3f}"})
    return rows


def environment(trials: int, seconds: float) -> dict[str, object]:
    """Return what the numbers depend on."""
    return {
        "trials": trials,
        "dtype": "float64",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "scipy": metadata.version("scipy"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": round(seconds),
    }


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    start = time.perf_counter()
    rows: list[Row] = []
    exact = spectra()
    for name, spectrum in exact.items():
        if name in CLASSES:
            rows += density_rows(name, spectrum, args.trials)
        rows += interval_rows(name, spectrum, args.trials)
        rows += trace_rows(name, spectrum, args.trials)
        print(
            f"{name}: lambda {spectrum[0]:.4g} to {spectrum[-1]:.4g}, {time.perf_counter() - start:.0f} s", flush=True
        )
    psd = np.maximum(exact["head"], 0)
    rows += trace_rows("head, positive part", psd, args.trials)
    extra = environment(args.trials, time.perf_counter() - start)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *extra])
        writer.writeheader()
        writer.writerows({**row, **extra} for row in rows)


if __name__ == "__main__":
    main()
