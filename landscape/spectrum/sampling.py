"""Density, trace and negative part of many lanes: deflated quadratures of random probes, in lock-step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk, ModelRisk
from landscape.risk.protocol import HessianProduct
from landscape.risk.traces import MOST_CLASSES, hessian_traces
from landscape.spectrum.density import SpectralSample, deflated_sample, node_at_zero, probe_quadrature
from landscape.spectrum.end_bounds import joint_distance, shifted_by_couplings
from landscape.spectrum.ends import NOISE_EPS, Extremes
from landscape.spectrum.extremes import place_basis
from landscape.spectrum.intervals import Interval, energy_interval, mass_interval, trace_interval
from landscape.spectrum.lanczos import Lanczos, RitzPairs, sphere
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.trace import xtrace

# A Ritz pair of the extreme run is deflated when its residual is below this share of its value: it carries nearly all
# of its eigenvalue's energy, and the shift that its coupling leaves behind, residual^2 / value, is a hundredth of it.
DEFLATION_SHARE = 0.1
# The level of all intervals.
LEVEL = 0.95
# For the run's own quadrature, an atom must be an eigenvector: its residual below this share of the distance to the next
# Ritz value; and one eigenvalue, not many: n times its weight is chi-squared with one degree of freedom, and rarely above
# the second number. All of them together must not be improbable either.
SEPARATED_SHARE = 0.01
MOST_WEIGHT = 30.0
IMPROBABLE = 1e-3

ProbeGenerator = Callable[[str], torch.Generator]


@dataclass(frozen=True)
class Density:
    """What the probes of one lane say.

    Attributes
    ----------
    samples
        One quadrature per probe, deflated atoms included.
    trace, energy, mass
        tr(H), tr(H-)/tr|H| and the share of eigenvalues below -threshold lambda_max, with their intervals.
    num_hvps
        Products spent.
    ends
        What the probes say about the ends that the extreme run found; None without probes.
    """

    samples: list[SpectralSample]
    trace: Interval
    energy: Interval
    mass: Interval
    num_hvps: int
    ends: ProbedEnds | None = None


@dataclass(frozen=True)
class ProbedEnds:
    """What probes, independent of the extreme run, say about both ends of H.

    Attributes
    ----------
    lowest, highest
        The outermost Ritz values of all probes.
    low, high
        Points that no eigenvalue lies beyond unless all probes' starts hold too little of it.
    outside
        (n,) a unit vector with the Ritz vectors of the probes that lie outside the extreme run's ends; None where none does.
    """

    lowest: float
    highest: float
    low: float
    high: float
    outside: Tensor | None


@dataclass(frozen=True)
class _Atoms:
    """Deflated Ritz pairs of one lane: values (d,), unit vectors (d, n), residuals (d,), and what these may shift."""

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    shift: float


def choose_atoms(extremes: Extremes) -> _Atoms:
    """Return the Ritz pairs of an extreme run that stand for eigenvalues of their own."""
    ritz = extremes.ritz
    if not len(extremes.space):  # no basis was kept
        return _Atoms(np.zeros(0), extremes.space, np.zeros(0), 0.0)
    chosen = ritz.residuals <= DEFLATION_SHARE * np.abs(ritz.values)
    if len(ritz.values) == extremes.space.shape[1]:  # the whole space: everything is exact
        chosen[:] = True
    values, residuals = ritz.values[chosen], ritz.residuals[chosen]
    shift = float((residuals**2 / np.maximum(np.abs(values), np.finfo(float).tiny)).sum())
    coordinates = torch.as_tensor(ritz.coordinates[:, chosen]).to(extremes.space)
    return _Atoms(values, coordinates.T @ extremes.space, residuals, shift)


def own_quadrature(extremes: Extremes, size: int) -> tuple[_Atoms, SpectralSample] | None:
    r"""Return the converged eigenvalues of an extreme run and its start vector's quadrature of all others.

    The start vector u is uniform on the sphere of n dimensions, so its part in the complement of eigenvectors is uniform
    there, and the Ritz values that are left are the nodes of its Gauss quadrature, of higher degree than any probe's and
    without a product. Where eigenvalues that were taken for one may be several (their weights are improbably large),
    none is taken out.

    Returns
    -------
    tuple or None
        None where the run did not begin at random or was restarted, so that its weights say nothing.
    """
    ritz = extremes.ritz
    if not extremes.is_random_start or len(ritz.values) < 2 or not np.isfinite(ritz.weights).all():
        return None
    steps = np.diff(ritz.values)
    gaps = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    weights = size * ritz.weights
    chosen = (ritz.residuals <= SEPARATED_SHARE * gaps) & (weights <= MOST_WEIGHT)
    if len(ritz.values) == size:
        chosen[:] = True
    elif chosen.all() or scipy.stats.chi2.sf(weights[chosen].sum(), max(chosen.sum(), 1)) < IMPROBABLE:
        chosen[:] = False
    values, residuals = ritz.values[chosen], ritz.residuals[chosen]
    shift = float((residuals**2 / np.maximum(np.abs(values), np.finfo(float).tiny)).sum())
    couplings = ritz.coupling * ritz.coordinates[-1]
    rest = node_at_zero(ritz.values[~chosen], ritz.coordinates[0, ~chosen], couplings[~chosen])
    share = max(rest.weights.sum(), 1e-300)
    return _Atoms(values, extremes.space[:0], residuals, shift), SpectralSample(rest.values, rest.weights / share)


def exact_traces(risk: ClassRisk, weights: Tensor, options: SpectrumOptions) -> list[Interval] | None:
    """Return the exact traces of lanes (weights (B, C)), sums of their classes'; None where probes have to do.

    Raises
    ------
    LandscapeError
        Where an exact trace was asked for and the network does not allow it.
    """
    wanted = options.trace == "exact" or (
        options.trace == "auto" and options.until == "converged" and options.budget is None and not options.num_traces
    )
    if not wanted:
        return None
    classes = torch.nonzero((weights != 0).any(0))[:, 0].tolist()
    found = hessian_traces(risk, classes) if isinstance(risk, ModelRisk) else None
    if found is None:
        if options.trace == "exact":
            raise LandscapeError(
                f"trace: 'exact' needs a network of at most {MOST_CLASSES} classes whose logits are piecewise linear in each "
                "weight tensor (ReLU networks with frozen BatchNorm): take 'auto' or 'probes'"
            )
        return None
    rows = weights.double().cpu()
    values, errors = (torch.where(rows != 0, rows.abs() * part, 0.0) for part in found)
    signed = torch.where(rows < 0, -values, values).sum(1).tolist()
    return [
        Interval(value, value - error, value + error, error, error, math.inf)
        for value, error in zip(signed, errors.sum(1).tolist())
    ]


def sample_densities(
    theta: Tensor,
    product: HessianProduct,
    extremes: Sequence[Extremes],
    options: SpectrumOptions,
    generators: Sequence[ProbeGenerator],
    known: Sequence[Interval] | None = None,
) -> list[Density]:
    """Return the densities of B lanes at theta (n,), their probes in the complement of the extreme runs' atoms.

    Lanes share products for as many steps as each of them has left; then the others go on. Without probes
    (``num_probes=0``) a lane's own run is its probe, or one probe stands in for it. Traces that are ``known`` exactly take the
    place of the probes' own, and the negative energies follow them.
    """
    size = len(theta)
    if 2 * options.num_traces > size:
        raise LandscapeError(f"num_traces: expected at most half of the {size} parameters, got {options.num_traces}")
    own = [own_quadrature(e, size) if not options.num_probes else None for e in extremes]
    atoms = [choose_atoms(e) if o is None else o[0] for e, o in zip(extremes, own)]
    num_left = [size - len(a.values) if o is None else 0 for a, o in zip(atoms, own)]
    steps = {b: min(options.probe_steps(extremes[b].num_hvps), left) for b, left in enumerate(num_left) if left > 0}
    probes: dict[int, list[SpectralSample]] = {b: [o[1]] for b, o in enumerate(own) if o and len(o[1].values)}
    traces: dict[int, Interval] = {}
    ends: dict[int, ProbedEnds] = {}
    if steps:
        lanes = list(steps)
        stack = _stack([atoms[b].vectors for b in lanes])
        starts = _starts(theta, [generators[b] for b in lanes], "probe", max(options.num_probes, 1))
        sampled = _probe(product, starts, stack, steps, options, {b: extremes[b] for b in lanes})
        for b, (runs, outside) in sampled.items():
            within = (extremes[b].lambda_min, extremes[b].lambda_max)
            probes[b] = [probe_quadrature(run, within=within) for run in runs]
            if runs:
                ends[b] = _probed_ends(runs, atoms[b], extremes[b], size, outside, options)
        if options.num_traces:
            traces = _xtraces(theta, product, lanes, atoms, stack, generators, options)
    return [
        replace(
            _summarise(
                atoms[b],
                probes.get(b, []),
                traces.get(b),
                extremes[b],
                size,
                steps.get(b, 0),
                options,
                known=None if known is None else known[b],
            ),
            ends=ends.get(b),
        )
        for b in range(len(extremes))
    ]


def _probe(
    product: HessianProduct,
    starts: Tensor,
    stack: Tensor,
    steps: dict[int, int],
    options: SpectrumOptions,
    extremes: dict[int, Extremes],
) -> dict[int, tuple[list[RitzPairs], Tensor | None]]:
    """Return the runs of the lanes in ``steps`` from starts (B, p, n), deflated vectors (B, d, n), and what they found outside
    the lanes' ends."""
    lanes, per_lane, size = list(steps), starts.shape[1], starts.shape[2]
    place, _ = place_basis(starts.view(-1, size)[0], len(lanes) * per_lane, options, longest=max(steps.values()))
    going = list(lanes)
    run = Lanczos(
        lambda v: product(v.view(len(going), -1, size), lanes=going).reshape(-1, size),
        starts.reshape(-1, size),
        deflated=stack,
        basis=place,
    )
    probes: dict[int, tuple[list[RitzPairs], Tensor | None]] = {}
    for target in sorted(set(steps.values())):
        run.extend(target - run.num_steps)
        for b in [b for b in going if steps[b] == target]:
            first = lanes.index(b) * per_lane
            pairs = {row: run.ritz(row) for row in range(first, first + per_lane)}
            outside = _outside(run, pairs, extremes[b])
            probes[b] = [r for r in pairs.values() if len(r.values)], outside
        going = [b for b in going if steps[b] > target]
        if going:
            run.keep([lanes.index(b) * per_lane + p for b in going for p in range(per_lane)])
    return probes


def _outside(run: Lanczos, pairs: dict[int, RitzPairs], extremes: Extremes) -> Tensor | None:
    """Return a unit vector (n,) with the probes' outermost Ritz vectors that lie outside a lane's ends."""
    known = {row: r for row, r in pairs.items() if len(r.values) and np.isfinite(r.values).all()}
    if not known:
        return None
    lowest, highest = min(known, key=lambda x: known[x].values[0]), max(known, key=lambda x: known[x].values[-1])
    found = []
    own = extremes.ritz.values
    rounding = NOISE_EPS * torch.finfo(extremes.v_min.dtype).eps * float(np.abs(own).max(initial=0.0))
    if known[lowest].values[0] < own[0] - rounding:
        found.append((lowest, 0))
    if known[highest].values[-1] > own[-1] + rounding:
        found.append((highest, -1))
    if not found:
        return None
    if run.place == "none":  # no vectors at hand: the start of such a probe holds what it found
        return run.starts_of([row for row, _ in found]).sum(0)
    return torch.stack([run.vectors(row, known[row].coordinates[:, [end]])[0] for row, end in found]).sum(0)


def _probed_ends(
    runs: list[RitzPairs],
    atoms: _Atoms,
    extremes: Extremes,
    size: int,
    outside: Tensor | None,
    options: SpectrumOptions,
) -> ProbedEnds:
    lowest, highest = min(float(r.values[0]) for r in runs), max(float(r.values[-1]) for r in runs)
    chance, room = options.failure_probability - options.missed_probability, size - len(atoms.values)
    below = lowest - joint_distance(runs, lowest, room, chance, is_low=True)
    above = highest + joint_distance(runs, highest, room, chance, is_low=False)
    return ProbedEnds(
        lowest=lowest,
        highest=highest,
        low=shifted_by_couplings(below, atoms.values, atoms.residuals) - extremes.precision_gap,
        high=-shifted_by_couplings(-above, -atoms.values, atoms.residuals) + extremes.precision_gap,
        outside=outside,
    )


def _xtraces(
    theta: Tensor,
    product: HessianProduct,
    lanes: Sequence[int],
    atoms: Sequence[_Atoms],
    stack: Tensor,
    generators: Sequence[ProbeGenerator],
    options: SpectrumOptions,
) -> dict[int, Interval]:
    offsets = torch.tensor([float(atoms[b].values.sum()) for b in lanes], dtype=torch.float64)
    tests = _starts(theta, [generators[b] for b in lanes], "trace", options.num_traces)
    estimate = xtrace(lambda v: product(v, lanes=lanes), tests, deflated=stack, deflated_traces=offsets)
    return {
        b: _normal(float(estimate.values[index]), float(estimate.stderrs[index]), options)
        for index, b in enumerate(lanes)
    }


def _starts(theta: Tensor, generators: Sequence[ProbeGenerator], what: str, count: int) -> Tensor:
    """Return (B, count, n) vectors on the sphere, one named stream each."""
    rows = [torch.cat([sphere(1, len(theta), g(f"{what}={p}")) for p in range(count)]).to(theta) for g in generators]
    return torch.stack(rows)


def _stack(blocks: Sequence[Tensor]) -> Tensor:
    """Return (B, d, n), shorter blocks filled up with zero rows, which deflate nothing."""
    deepest = max(len(block) for block in blocks)
    out = blocks[0].new_zeros(len(blocks), deepest, blocks[0].shape[1])
    for target, block in zip(out, blocks):
        target[: len(block)] = block
    return out


def _normal(value: float, stderr: float, options: SpectrumOptions) -> Interval:
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, options.num_traces - 1)) * stderr
    return Interval(value, value - half, value + half, stderr, 0.0, options.num_traces - 1)


def _summarise(
    atoms: _Atoms,
    probes: list[SpectralSample],
    trace: Interval | None,
    extremes: Extremes,
    size: int,
    num_steps: int,
    options: SpectrumOptions,
    *,
    known: Interval | None,
) -> Density:
    threshold = options.threshold * max(extremes.lambda_max, 0.0)
    samples = [deflated_sample(atoms.values, probe, size) for probe in probes]
    if not samples:
        samples = [SpectralSample(atoms.values, np.full(size, 1.0 / size))] * max(options.num_probes, 1)
    total = float(np.mean([np.sum(s.weights * np.abs(s.values)) for s in samples])) * size
    energy = energy_interval(atoms.values, probes, size, level=LEVEL, trace=known)
    shift = atoms.shift / total if total > 0 else 0.0
    if known is not None:  # what moves tr(H_-) alone
        shift *= abs(1 - 2 * energy.estimate)
    energy = replace(
        energy,
        lower=max(energy.lower - shift, 0.0),
        upper=min(energy.upper + shift, 1.0),
        truncation=energy.truncation + shift,
    )
    num_hvps = num_steps * max(options.num_probes, 1) + 2 * options.num_traces if num_steps else 0
    return Density(
        samples=samples,
        trace=known or trace or trace_interval(atoms.values, probes, size, level=LEVEL),
        energy=energy,
        mass=mass_interval(atoms.values, probes, size, threshold, level=LEVEL),
        num_hvps=num_hvps,
    )
