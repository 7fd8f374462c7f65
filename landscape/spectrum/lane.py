"""Spectra of a wave of lanes that share their products: extremes, density, evidence, verdict, one record per lane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from landscape.randomness import stream
from landscape.risk import ClassRisk
from landscape.risk.protocol import HessianProduct
from landscape.spectrum.agreement import join_probes
from landscape.spectrum.certificate import decide
from landscape.spectrum.density import SpectralSample
from landscape.spectrum.ends import Extremes
from landscape.spectrum.evidence import Escape, LaneContext, curvature_context, gather_evidence
from landscape.spectrum.extremes import find_extremes_of
from landscape.spectrum.intervals import Interval, count_negative
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.preflight import rounding_explained
from landscape.spectrum.sampling import Density, sample_densities

Directions = Mapping[str, tuple[Tensor, Tensor]]

# Norm of the random part of a warm start, beside two unit vectors.
WARM_RANDOM = 0.1
NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
REDRAWN = (
    "none given: the operator changes with every product (augment 'redraw'), so its Ritz values are not those of a "
    "matrix; use augment 'frozen' or 'none'"
)


def find_extremes(
    risk: ClassRisk, row: Tensor, options: SpectrumOptions, generator: torch.Generator, *, name: str = "lane"
) -> Extremes:
    """Run Lanczos on one lane (weights ``row`` (C,)) until both ends have converged.

    Raises
    ------
    LandscapeError
        If a product is not finite, or the operator is not one fixed symmetric matrix.
    """
    start = sphere(1, len(risk.theta), generator)
    with risk.hessian(risk.theta, row[None]) as product:
        return find_extremes_of(risk, product, row[None], start, names=[name], options=options)[0]


def measure_wave(
    risk: ClassRisk,
    weights: Tensor,
    *,
    names: Sequence[str],
    options: SpectrumOptions,
    seed: int,
    warm: Directions | None = None,
    traces: Sequence[Interval] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return everything that the spectrum group holds, lane by lane, for lanes (weights (B, C)) in lock-step.

    ``traces``, where they are known exactly, take the place of the probes' own.
    ``warm`` names extreme vectors from a nearby point (another checkpoint): they start the extreme runs, together with a
    random vector, which bounds what the old ones may miss.
    """
    theta = risk.theta
    contexts = [LaneContext.of(risk, row) for row in weights]
    with risk.hessian(theta, weights) as product:
        extremes = _extremes(risk, product, weights, names=names, options=options, seed=seed, warm=warm)
        densities: list[Density | None] = [None] * len(names)
        if options.until == "converged":
            generators = [lambda what, n=name: stream(seed, f"spectrum/{n}/{what}") for name in names]
            sampled = sample_densities(theta, product, extremes, options, generators, traces)
            densities = list(sampled)
            extremes = join_probes(risk, product, weights, extremes, sampled, names=names, options=options)
    return [
        _record(context, extreme, density, options, seed=seed, name=name)
        for context, extreme, density, name in zip(contexts, extremes, densities, names)
    ]


def _extremes(
    risk: ClassRisk,
    product: HessianProduct,
    weights: Tensor,
    *,
    names: Sequence[str],
    options: SpectrumOptions,
    seed: int,
    warm: Directions | None,
) -> list[Extremes]:
    size = len(risk.theta)
    starts = torch.cat([sphere(1, size, stream(seed, f"spectrum/{name}/extremes")) for name in names])
    if not warm or any(name not in warm for name in names):
        return find_extremes_of(risk, product, weights, starts, names=names, options=options)
    # Without a random part, a symmetry of the network would lock the run into the space of the old vectors, and nothing
    # could be said about what the old vectors hold too little of.
    ends = torch.stack([v_min.double() + v_max.double() for v_min, v_max in (warm[name] for name in names)])
    mixed = ends.cpu() + WARM_RANDOM * torch.cat(
        [sphere(1, size, stream(seed, f"spectrum/{name}/warm")) for name in names]
    )
    shares = (WARM_RANDOM / torch.linalg.vector_norm(mixed, dim=1)).square().tolist()
    return find_extremes_of(
        risk, product, weights, mixed, names=names, options=options, random_shares=[min(s, 0.5) for s in shares]
    )


def _record(
    context: LaneContext,
    extremes: Extremes,
    density: Density | None,
    options: SpectrumOptions,
    *,
    seed: int,
    name: str,
) -> dict[str, np.ndarray]:
    risk = context.risk
    if getattr(risk, "is_fixed", True):
        evidence, walk, escape = gather_evidence(context, extremes, options)
        verdict, sentence = decide(evidence, options.threshold)
        extra = curvature_context(context, extremes, options, seed=seed, name=name)
        crossover, quadratic = evidence.crossover_radius, evidence.quadratic_radius
        gradient_norm = evidence.gradient_norm
        to_decide = evidence.steps_to_decide if verdict == "undecided" else extremes.num_steps
    else:
        nothing = torch.full((len(risk.class_names),), torch.nan, dtype=torch.float64)
        walk, escape, extra = {}, Escape(nothing, nothing), {}
        gradient_norm = context.gradient_norm
        verdict, sentence = "refused", REDRAWN
        crossover, quadratic, to_decide = math.nan, math.nan, extremes.num_steps
        nowhere = (math.nan, math.nan)  # the ends of no matrix
        extremes = replace(extremes, interval_min=nowhere, interval_max=nowhere)
    own = SpectralSample(extremes.ritz.values, extremes.ritz.weights)
    samples = density.samples if density is not None else [own]
    # One number for one eigenvalue: the run's own ends as they were certified.
    certified = dict(zip((float(extremes.ritz.values[0]), float(extremes.ritz.values[-1])), extremes.own_ends))
    nodes = [
        np.clip(
            [certified.get(value, value) for value in sample.values.tolist()], extremes.lambda_min, extremes.lambda_max
        )
        for sample in samples
    ]  # a node beyond both ends by rounding is at the end
    out = {
        **ends_record(extremes),
        **interval_record(density),
        "gradient_norm": gradient_norm,
        "gradient_share_along_v": context.share_along(extremes.v_min),
        "loss": context.loss(risk.theta),
        "num_hvps": extremes.num_hvps + (density.num_hvps if density is not None else 0),
        "num_steps_extremes": extremes.num_steps,
        "num_steps_to_decide": to_decide,
        "crossover_radius": crossover,
        "quadratic_radius": quadratic,
        "decrease_along_v": math.nan,
        "decrease_along_gradient": math.nan,
        **walk,
        **extra,
        "verdict": verdict,
        "evidence": sentence + rounding_explained(extremes.proof),
        "ritz_value": _padded(nodes),
        "ritz_weight": _padded([sample.weights for sample in samples]),
        "escape_along_v": escape.along_v.numpy(),
        "escape_along_gradient": escape.along_gradient.numpy(),
        "v_min": extremes.v_min.cpu().numpy(),
        "v_max": extremes.v_max.cpu().numpy(),
    }
    return {key: np.asarray(value) for key, value in out.items()}


def ends_record(extremes: Extremes) -> dict[str, object]:
    """Return both ends, what was found wrong with the operator, and the index."""
    proof = extremes.proof
    index = float("nan")
    if len(extremes.space) and extremes.orthogonality < 1:
        index = count_negative(
            extremes.ritz.values,
            extremes.ritz.residuals,
            noise=extremes.precision_gap,
            orthogonality=extremes.orthogonality,
            certify_pairs=False,
        )
    return {
        "lambda_min": extremes.lambda_min,
        "lambda_max": extremes.lambda_max,
        "lambda_min_low": extremes.interval_min[0],
        "lambda_min_high": extremes.interval_min[1],
        "lambda_max_low": extremes.interval_max[0],
        "lambda_max_high": extremes.interval_max[1],
        "lambda_min_lower_bound": extremes.interval_min[0],
        "lambda_min_residual": extremes.residual_min,
        "lambda_max_residual": extremes.residual_max,
        "lambda_min_error": extremes.error_min,
        "lambda_max_error": extremes.error_max,
        "eigenvalue_low": extremes.values_low,
        "eigenvalue_low_residual": extremes.residuals_low,
        "eigenvalue_high": extremes.values_high,
        "eigenvalue_high_residual": extremes.residuals_high,
        "index_lower_bound": index,
        "orthogonality": extremes.orthogonality,
        "noise_floor": extremes.noise,
        "precision_gap": extremes.precision_gap,
        "repeat_error": proof.repeat,
        "linearity_error": proof.linearity,
        "symmetry_error": proof.symmetry,
        "additivity_error": proof.additivity,
    }


def interval_record(density: Density | None) -> dict[str, float]:
    """Return trace, negative energy and negative mass with their errors; NaN where no density was sampled."""
    pairs = {
        "trace": density.trace if density is not None else NO_INTERVAL,
        "negative_energy": density.energy if density is not None else NO_INTERVAL,
        "negative_mass": density.mass if density is not None else NO_INTERVAL,
    }
    out: dict[str, float] = {}
    for key, interval in pairs.items():
        out |= {
            key: interval.estimate,
            f"{key}_stderr": interval.stderr,
            f"{key}_low": interval.lower,
            f"{key}_high": interval.upper,
        }
    return out


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Return (P, max length), NaN after the end of each row."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out
