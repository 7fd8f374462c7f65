"""What a lane's verdict rests on beside the spectrum: bounds, walks along v_min, escapes, the split, the images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape.randomness import numpy_stream
from landscape.risk import ClassRisk
from landscape.spectrum.bootstrap import bootstrap_mean, most_negative, per_example_curvatures
from landscape.spectrum.certificate import Evidence, is_hidden, is_negative, steps_to_exclude
from landscape.spectrum.ends import Extremes
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.rounding import loss_noise
from landscape.spectrum.walk import Walk, smallest_radius, walk_both_ways

# The images whose share of the negative curvature is reported.
NUM_WORST_IMAGES = 1


@dataclass(frozen=True)
class Escape:
    """Where the walks end: the losses of all classes after the step along v_min, and along -gradient, of equal length."""

    along_v: Tensor  # (C,) change of the class losses, NaN where nothing was walked
    along_gradient: Tensor


@dataclass(frozen=True)
class LaneContext:
    """One lane at theta: its weights, loss, and gradient."""

    risk: ClassRisk
    row: Tensor  # (C,)
    gradient: Tensor  # (n,)
    gradient_norm: float

    @classmethod
    def of(cls, risk: ClassRisk, row: Tensor) -> LaneContext:
        """Measure the gradient of a lane."""
        gradient = risk.gradients(risk.theta, row[None])[0]
        return cls(risk, row, gradient, float(torch.linalg.vector_norm(gradient.double())))

    def loss(self, point: Tensor) -> float:
        """Return the lane's loss at a point."""
        return float(self.risk.lane_losses(point, self.row[None])[0])

    def share_along(self, direction: Tensor) -> float:
        """Return (g.v)^2 / |g|^2 for a unit direction; 0 for a zero gradient."""
        g, v = self.gradient.double(), direction.double()
        norm = float(g @ g)
        return float(g @ v) ** 2 / norm if norm > 0 else 0.0


def gather_evidence(
    context: LaneContext, extremes: Extremes, options: SpectrumOptions
) -> tuple[Evidence, dict[str, float], Escape]:
    """Return the evidence of a lane, the decreases of its walks, and what they cost the classes."""
    theta = context.risk.theta
    curvature = extremes.lambda_min
    span = extremes.lambda_max - curvature
    needed = (options.threshold * extremes.lambda_max + min(curvature, 0.0)) / span if span > 0 else 1.0
    fraction = min(max(needed / (1 + 2 * abs(needed)), 1e-6), 1.0)
    draft = Evidence(
        lambda_min=curvature,
        residual=extremes.residual_min,
        noise=extremes.noise,
        lambda_max=extremes.lambda_max,
        lower_bound=extremes.interval_min[0],
        gradient_norm=context.gradient_norm,
        crossover_radius=2 * context.gradient_norm / -curvature if curvature < 0 else math.inf,
        quadratic_radius=math.nan,
        steps_to_decide=min(  # n steps exhaust the space
            len(theta),
            max(extremes.num_steps + 1, steps_to_exclude(fraction, len(theta), options.missed_probability)),
        ),
        precision_gap=extremes.precision_gap,
    )
    walk = {"decrease_along_v": math.nan, "decrease_along_gradient": math.nan}
    nowhere = torch.full((len(context.risk.class_names),), torch.nan, dtype=torch.float64)
    if not options.context or not is_negative(draft, options.threshold):
        return draft, walk, Escape(nowhere, nowhere)
    found = _walk(context, extremes, draft)
    if found[0].quadratic_radius > 0 or options.certify == "own" or theta.dtype == torch.float64:
        return found
    # Float32 may not resolve the parabola at all: walk once more where it does.
    exact = LaneContext.of(context.risk.in_float64(), context.row)
    radius = 2 * exact.gradient_norm / -curvature
    return _walk(exact, extremes, replace(draft, gradient_norm=exact.gradient_norm, crossover_radius=radius))


def _walk(context: LaneContext, extremes: Extremes, draft: Evidence) -> tuple[Evidence, dict[str, float], Escape]:
    theta = context.risk.theta
    v = extremes.v_min.to(theta)
    noise = loss_noise(context.loss, theta, v)
    smallest = smallest_radius(noise, draft.lambda_min)
    draft = replace(
        draft,
        smallest_radius=smallest,
        reach=max(1.0, float(torch.linalg.vector_norm(theta.double()))),
        is_double=theta.dtype == torch.float64,
    )
    here = context.risk.losses(theta)
    result = Walk(0.0, 0.0)
    if not is_hidden(draft):
        result = walk_both_ways(
            lambda s: context.loss(theta + s * v),
            curvature=draft.lambda_min,
            noise=noise,
            limit=max(4 * draft.crossover_radius, 1.0, 4 * smallest),
        )
    along_v = context.risk.losses(theta + result.step * v) - here
    walk = {"decrease_along_v": result.decrease, "decrease_along_gradient": math.nan}
    along_gradient = torch.full_like(along_v, torch.nan)
    if context.gradient_norm > 0:
        step = context.gradient * (result.quadratic_radius / context.gradient_norm)
        along_gradient = context.risk.losses(theta - step) - here
        support = context.row != 0
        walk["decrease_along_gradient"] = -float((context.row[support] * along_gradient[support]).sum())
    return replace(draft, quadratic_radius=result.quadratic_radius), walk, Escape(along_v, along_gradient)


def curvature_context(
    context: LaneContext, extremes: Extremes, options: SpectrumOptions, *, seed: int, name: str
) -> dict[str, float]:
    """Return the split of v'Hv along v_min into Gauss-Newton and functional part, and its interval over images.

    NaN where the risk has no logits (a toy loss) or no images.
    """
    nothing = float("nan")
    out = dict.fromkeys(
        ("gauss_newton_curvature", "functional_curvature", "curvature_low", "curvature_high", "worst_image_share"),
        nothing,
    )
    if not options.context:
        return out
    risk, v = context.risk, extremes.v_min
    gauss_newton = getattr(risk, "gauss_newton", None)
    if gauss_newton is not None:
        with gauss_newton(risk.theta, context.row[None]) as product:
            curvature = float((v.double() * product(v[None, None])[0, 0].double()).sum())
        out["gauss_newton_curvature"], out["functional_curvature"] = curvature, extremes.lambda_min - curvature
    if options.num_bootstrap:
        curvatures = per_example_curvatures(risk, context.row, v)
        if curvatures is not None and len(curvatures) > 1:
            generator = numpy_stream(seed, f"spectrum/{name}/images")
            interval = bootstrap_mean(curvatures, generator, num_resamples=options.num_bootstrap)
            out["curvature_low"], out["curvature_high"] = interval.lower, interval.upper
            out["worst_image_share"] = most_negative(curvatures, NUM_WORST_IMAGES)[1]
    return {key: float(np.asarray(value)) for key, value in out.items()}
