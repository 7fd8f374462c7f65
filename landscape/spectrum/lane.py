"""The spectrum of one lane: one extreme run, deflated density probes, bounds, radii, verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.risk import ClassRisk
from landscape.spectrum.certificate import Evidence, decide, is_negative, lower_bound, steps_to_exclude
from landscape.spectrum.density import SpectralSample, deflated_sample, mean_and_stderr, negative_energy
from landscape.spectrum.lanczos import Lanczos, RitzPairs, sphere
from landscape.spectrum.walk import smallest_radius, walk_both_ways

# Residual at which an extreme counts as converged, in units of |H|; its eigenvalue error is the square over the gap.
EXTREME_TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-7}
# Ritz pairs this accurate are deflated as exact atoms.
DEFLATION_TOLERANCE = 1e-3
# Relative error of one loss evaluation (per-example values in the model's precision, sums in float64).
LOSS_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
# Rounding of a product that no second evaluation can see, in units of eps |H|.
NOISE_EPS = 8.0
# Steps between two looks at the convergence of the extreme run.
LOOK_EVERY = 8


@dataclass(frozen=True)
class SpectrumOptions:
    """How much a spectrum may cost and what its verdict means; validated once.

    Attributes
    ----------
    num_probes
        Density probes (at least 2, so that every estimate has a standard error).
    num_steps
        Lanczos steps per density probe.
    max_steps
        Most steps of the extreme run, which stops as soon as both extremes have converged and the verdict is clear.
    threshold
        Negative curvature matters above this multiple of lambda_max.
    failure_probability
        Of the lower bound on lambda_min.
    """

    num_probes: int = 3
    num_steps: int = 30
    max_steps: int = 200
    threshold: float = 0.01
    failure_probability: float = 1e-3

    def __post_init__(self) -> None:
        if self.num_probes < 2:
            raise LandscapeError(f"num_probes: expected at least 2 (for a standard error), got {self.num_probes}")
        if self.num_steps < 2 or self.max_steps < 2:
            raise LandscapeError(
                f"num_steps and max_steps: expected at least 2, got {self.num_steps} and {self.max_steps}"
            )
        if not 0 < self.threshold < 1:
            raise LandscapeError(f"threshold: expected a fraction of lambda_max between 0 and 1, got {self.threshold}")
        if not 0 < self.failure_probability < 1:
            raise LandscapeError(f"failure_probability: expected between 0 and 1, got {self.failure_probability}")


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum with their vectors, from one Lanczos run of a random start.

    Attributes
    ----------
    lambda_min, lambda_max
        Rayleigh quotients of the Ritz vectors: the true extremes lie at or beyond them.
    residual_min, residual_max
        |H v - lambda v| of unit vectors, from an explicit product.
    v_min, v_max
        (n,) unit vectors.
    noise
        Rounding of a product, |H v - H' v| against a more exact H'.
    atoms
        (d, n) converged Ritz vectors and ``atom_values`` (d,).
    num_steps, num_hvps, is_exhausted
        Length of the run, products spent, whether the Krylov space was exhausted.
    """

    lambda_min: float
    lambda_max: float
    residual_min: float
    residual_max: float
    v_min: Tensor
    v_max: Tensor
    noise: float
    atoms: Tensor
    atom_values: np.ndarray
    num_steps: int
    num_hvps: int
    is_exhausted: bool


def _bound(ritz: RitzPairs, num_steps: int, size: int, options: SpectrumOptions, noise: float) -> float:
    return lower_bound(
        float(ritz.values[0]),
        float(ritz.values[-1]),
        num_steps=num_steps,
        num_parameters=size,
        failure_probability=options.failure_probability,
        noise=noise,
        is_exhausted=ritz.is_exhausted,
    )


def _is_done(ritz: RitzPairs, num_steps: int, size: int, options: SpectrumOptions, tolerance: float) -> bool:
    """Whether both extremes have converged and the sign of the smallest is settled."""
    if ritz.is_exhausted or num_steps >= options.max_steps:
        return True
    norm = float(np.abs(ritz.values).max())
    if ritz.residuals[-1] > tolerance * norm:
        return False
    if ritz.values[0] + ritz.residuals[0] < -options.threshold * norm:
        return bool(ritz.residuals[0] <= tolerance * norm)
    return _bound(ritz, num_steps, size, options, 0.0) >= -options.threshold * float(ritz.values[-1])


def find_extremes(risk: ClassRisk, row: Tensor, options: SpectrumOptions, generator: torch.Generator) -> Extremes:
    """Run Lanczos on one lane (weights ``row`` (C,)) until both ends have converged.

    Raises
    ------
    LandscapeError
        If a product is not finite.
    """
    theta, weights = risk.theta, row[None]
    size = len(theta)
    dtype = theta.dtype
    eps = torch.finfo(dtype).eps
    start = sphere(1, size, generator).to(device=theta.device, dtype=dtype)
    with risk.hessian(theta, weights) as product:
        run = Lanczos(lambda v: product(v[:, None])[:, 0], start)
        limit = min(options.max_steps, size)
        while True:
            run.extend(min(LOOK_EVERY, limit - run.num_steps))
            if run.num_steps == min(LOOK_EVERY, limit) and not bool(torch.isfinite(run._alphas[0]).all()):
                raise LandscapeError("a Hessian product is not finite: the loss overflows at these weights")
            ritz = run.ritz(0)
            if run.num_steps >= limit or _is_done(ritz, run.num_steps, size, options, EXTREME_TOLERANCE[dtype]):
                break
        ends = run.vectors(0, ritz.coordinates[:, [0, -1]])
        ends = ends / torch.linalg.vector_norm(ends, dim=1, keepdim=True)
        products = product(ends[None])[0]
    values = (ends.double() * products.double()).sum(1)
    residuals = torch.linalg.vector_norm(products.double() - values[:, None] * ends.double(), dim=1)
    norm = float(np.abs(ritz.values).max())
    rounding, num_checks = _rounding(risk, weights, ends, products)
    noise = max(rounding, NOISE_EPS * eps * norm)
    converged = ritz.residuals <= DEFLATION_TOLERANCE * norm
    return Extremes(
        lambda_min=float(values[0]),
        lambda_max=float(values[1]),
        residual_min=float(residuals[0]),
        residual_max=float(residuals[1]),
        v_min=ends[0],
        v_max=ends[1],
        noise=noise,
        atoms=run.vectors(0, ritz.coordinates[:, converged]),
        atom_values=ritz.values[converged],
        num_steps=run.num_steps,
        num_hvps=run.num_steps + len(ends) + num_checks,
        is_exhausted=ritz.is_exhausted,
    )


def _rounding(risk: ClassRisk, weights: Tensor, ends: Tensor, products: Tensor) -> tuple[float, int]:
    """Return the larger |H v - H' v| of both ends, H' in float64 or (in float64) cut into other chunks, and its cost."""
    exact = risk.in_float64()
    if exact is not risk:
        with exact.hessian(exact.theta, weights) as product:
            other = product(ends[None].double())[0]
    elif hasattr(risk, "chunk_size"):
        chunk = max(1, min(risk.chunk_size, int(risk.class_counts.max())) // 2)
        with risk.hessian(risk.theta, weights, chunk_size=chunk) as product:  # type: ignore[call-arg]
            other = product(ends[None])[0]
    else:
        return 0.0, 0
    return float(torch.linalg.vector_norm(other.double() - products.double(), dim=1).max()), len(ends)


def sample_density(
    risk: ClassRisk,
    row: Tensor,
    extremes: Extremes,
    options: SpectrumOptions,
    probe_generator: Callable[[int], torch.Generator],
) -> tuple[list[SpectralSample], int]:
    """Return one deflated quadrature per probe and the products spent.

    The atoms of the extreme run are exact; each probe starts in their complement. Where the atoms are the whole
    spectrum, every sample is exact and nothing is spent.
    """
    theta = risk.theta
    size = len(theta)
    num_left = size - len(extremes.atom_values)
    if num_left <= 0:
        exact = SpectralSample(extremes.atom_values, np.full(size, 1.0 / size))
        return [exact] * options.num_probes, 0
    starts = torch.cat([sphere(1, size, probe_generator(p)) for p in range(options.num_probes)])
    starts = starts.to(device=theta.device, dtype=theta.dtype)
    deflated = extremes.atoms[None].expand(options.num_probes, -1, -1)
    num_steps = min(options.num_steps, num_left)
    with risk.hessian(theta, row[None]) as product:
        run = Lanczos(lambda v: product(v[None])[0], starts, deflated=deflated)
        run.extend(num_steps)
    samples = [deflated_sample(extremes.atom_values, run.ritz(p), size) for p in range(options.num_probes)]
    return samples, num_steps * options.num_probes


def measure_lane(
    risk: ClassRisk, row: Tensor, options: SpectrumOptions, *, seed: int, name: str
) -> dict[str, np.ndarray]:
    """Return everything that the spectrum group holds for one lane, as arrays."""
    theta = risk.theta
    support = torch.nonzero(row)[:, 0].tolist()

    def lane_loss(point: Tensor) -> float:
        return float((row[support] * risk.losses(point, support)[support]).sum())

    gradient = risk.gradients(theta, row[None])[0]
    gradient_norm = float(torch.linalg.vector_norm(gradient.double()))
    extremes = find_extremes(risk, row, options, stream(seed, f"spectrum/{name}/extremes"))
    samples, num_density = sample_density(
        risk, row, extremes, options, lambda p: stream(seed, f"spectrum/{name}/probe={p}")
    )
    size = len(theta)
    traces = np.array([sample.functional(lambda x: x, size) for sample in samples])
    energies = np.array([negative_energy(sample) for sample in samples])
    trace, trace_stderr = mean_and_stderr(traces)
    energy, energy_stderr = mean_and_stderr(energies)
    evidence, walk = _gather_evidence(risk, lane_loss, gradient, gradient_norm, extremes, options)
    verdict, sentence = decide(evidence, options.threshold)
    out = {
        "lambda_min": extremes.lambda_min,
        "lambda_max": extremes.lambda_max,
        "lambda_min_residual": extremes.residual_min,
        "lambda_max_residual": extremes.residual_max,
        "lambda_min_lower_bound": evidence.lower_bound,
        "trace": trace,
        "trace_stderr": trace_stderr,
        "negative_energy": energy,
        "negative_energy_stderr": energy_stderr,
        "gradient_norm": gradient_norm,
        "gradient_share_along_v": _share(gradient, extremes.v_min),
        "loss": lane_loss(theta),
        "noise_floor": extremes.noise,
        "num_hvps": extremes.num_hvps + num_density,
        "num_steps_extremes": extremes.num_steps,
        "num_steps_to_decide": evidence.steps_to_decide if verdict == "undecided" else extremes.num_steps,
        "crossover_radius": evidence.crossover_radius,
        "quadratic_radius": evidence.quadratic_radius,
        **walk,
        "verdict": verdict,
        "evidence": sentence,
        "ritz_value": _padded([sample.values for sample in samples]),
        "ritz_weight": _padded([sample.weights for sample in samples]),
    }
    return {key: np.asarray(value) for key, value in out.items()}


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Return (P, max length), NaN after the end of each row."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out


def _share(gradient: Tensor, direction: Tensor) -> float:
    """Return the share (g.v)^2 / |g|^2 of the squared gradient along a unit direction; 0 for a zero gradient."""
    g, v = gradient.double(), direction.double()
    norm = float(g @ g)
    return float(g @ v) ** 2 / norm if norm > 0 else 0.0


def _gather_evidence(
    risk: ClassRisk,
    lane_loss: Callable[[Tensor], float],
    gradient: Tensor,
    gradient_norm: float,
    extremes: Extremes,
    options: SpectrumOptions,
) -> tuple[Evidence, dict[str, float]]:
    theta = risk.theta
    curvature = extremes.lambda_min
    bound = lower_bound(
        extremes.lambda_min,
        extremes.lambda_max,
        num_steps=extremes.num_steps,
        num_parameters=len(theta),
        failure_probability=options.failure_probability,
        noise=extremes.noise,
        is_exhausted=extremes.is_exhausted,
    )
    span = extremes.lambda_max - extremes.lambda_min
    needed = (options.threshold * extremes.lambda_max + min(curvature, 0.0)) / span if span > 0 else 1.0
    fraction = min(max(needed / (1 + 2 * abs(needed)), 1e-6), 1.0)
    draft = Evidence(
        lambda_min=curvature,
        residual=extremes.residual_min,
        noise=extremes.noise,
        lambda_max=extremes.lambda_max,
        lower_bound=bound,
        gradient_norm=gradient_norm,
        crossover_radius=2 * gradient_norm / -curvature if curvature < 0 else math.inf,
        quadratic_radius=math.nan,
        steps_to_decide=min(  # n steps exhaust the space
            len(theta),
            max(extremes.num_steps + 1, steps_to_exclude(fraction, len(theta), options.failure_probability / 2)),
        ),
    )
    walk = {"decrease_along_v": math.nan, "decrease_along_gradient": math.nan}
    if not is_negative(draft, options.threshold):
        return draft, walk
    rounding = LOSS_ROUNDING[theta.dtype]
    start = lane_loss(theta)
    limit = max(4 * draft.crossover_radius, 1.0, 4 * smallest_radius(start, curvature, rounding))
    result = walk_both_ways(
        lambda s: lane_loss(theta + s * extremes.v_min), curvature=curvature, rounding=rounding, limit=limit
    )
    walk["decrease_along_v"] = result.decrease
    if gradient_norm > 0:
        step = gradient * (result.quadratic_radius / gradient_norm)
        walk["decrease_along_gradient"] = start - lane_loss(theta - step)
    return Evidence(**{**draft.__dict__, "quadratic_radius": result.quadratic_radius}), walk
