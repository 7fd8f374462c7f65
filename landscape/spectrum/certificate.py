"""What a Lanczos run proves about the smallest eigenvalue, and the verdict per lane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from landscape.ratios import curvature_ratio
from landscape.spectrum.lanczos import RitzPairs

Verdict = Literal["saddle", "slope", "no negative curvature", "undecided", "refused"]
# The four that a fixed operator can get; "refused" is for one that is redrawn on purpose.
VERDICTS: tuple[Verdict, ...] = ("saddle", "slope", "no negative curvature", "undecided")


def steps_to_exclude(fraction: float, num_parameters: int, failure_probability: float) -> int:
    r"""Return the steps after which any run misses an extreme by at most ``fraction`` of the range.

    .. math:: P[\theta_{\min} > \lambda_{\min} + \epsilon (\lambda_{\max} - \lambda_{\min})]
              \le 1.648 \sqrt{n}\, e^{-\sqrt{\epsilon} (2 m - 1)}

    for a start vector uniform on the sphere and m steps, whatever the spectrum: a forecast, and mostly too long a one. What
    a run that was made has missed, :mod:`landscape.spectrum.end_bounds` bounds closer. Source: Kuczynski and
    Wozniakowski, *Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start*, SIAM J. Matrix
    Anal. Appl. 13, 1992.
    """
    root = math.log(1.648 * math.sqrt(num_parameters) / failure_probability)
    return math.ceil((max(root, 0.0) / math.sqrt(fraction) + 1) / 2)


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on, for one lane; curvatures in units of loss per squared weight."""

    lambda_min: float
    residual: float
    noise: float
    lambda_max: float
    lower_bound: float
    gradient_norm: float
    crossover_radius: float
    quadratic_radius: float  # NaN where nobody walked
    steps_to_decide: int
    precision_gap: float = 0.0  # what the precision of the run does to H; part of lower_bound
    smallest_radius: float = 0.0  # where the curvature begins to stand out of the noise of the loss
    reach: float = math.inf  # the size of the weights, or 1
    is_double: bool = True  # whether the walk was made in float64


def is_certified_negative(lambda_min: float, error: float, lambda_max: float, threshold: float) -> bool:
    """Whether lambda_min is negative beyond its error and larger than ``threshold`` times lambda_max."""
    return lambda_min + error < 0 and -lambda_min > threshold * max(lambda_max, 0.0)


def is_negative(evidence: Evidence, threshold: float) -> bool:
    """Whether negative curvature is certified and larger than ``threshold`` times lambda_max."""
    return is_certified_negative(
        evidence.lambda_min, evidence.residual + evidence.noise, evidence.lambda_max, threshold
    )


def is_hidden(evidence: Evidence) -> bool:
    """Whether the curvature would show in the loss only beyond the size of the weights: it is rounding, or as good as."""
    return evidence.smallest_radius > evidence.reach


def tighter_error(value: float, residual: float, ritz: RitzPairs, noise: float) -> float:
    r"""Return how far an eigenvalue may be from a Rayleigh quotient, rounding included.

    .. math:: |\lambda - \theta| \le \min(r, r^2 / \mathrm{gap}) + \mathrm{noise}

    with gap the distance to the nearest other Ritz value less its residual (Kato and Temple; Parlett, *The Symmetric
    Eigenvalue Problem*, theorem 11.7.1). The residual bound is rigorous; the quadratic one takes for granted that no
    eigenvalue hides between the two Ritz values.
    """
    index = int(np.abs(ritz.values - value).argmin())
    others = np.abs(np.delete(ritz.values, index) - value) - np.delete(ritz.residuals, index)
    gap = float(others.min(initial=math.inf))
    quadratic = residual**2 / gap if gap > 0 else math.inf
    return min(residual, quadratic) + noise


def _of_the_end(e: Evidence) -> str:
    """Return in words where lambda_min lies."""
    high = e.lambda_min + e.noise
    if math.isinf(e.lower_bound):
        return f"lambda_min at most {high:.4g}"
    return f"lambda_min {e.lambda_min:.4g} [{e.lower_bound:.4g}, {high:.4g}]"


def decide(evidence: Evidence, threshold: float) -> tuple[Verdict, str]:
    """Return the verdict of a lane and one sentence of evidence.

    ``saddle``: certified negative curvature above the threshold, and it outweighs the slope within the radius where
    the quadratic model holds (crossover_radius < quadratic_radius). ``slope``: the same curvature, but the gradient
    wins. ``no negative curvature``: lambda_min >= -threshold lambda_max with the stated probability. Else ``undecided``.

    A curvature that the noise of the loss hides as far as the weights are long is not certified, and a gradient that
    the curvature outweighs at every radius where the loss can be told from its noise, such as one of 0, makes no slope.
    """
    e = evidence
    share = f"{float(curvature_ratio(e.lambda_min, e.lambda_max)):.2g} of lambda_max"
    if e.lambda_max <= 0:
        share = "nothing is positive"
    found = f"negative curvature, {_of_the_end(e)} ({share})"
    hidden = 0.0
    if is_negative(e, threshold) and is_hidden(e):
        hidden = -e.lambda_min * (e.smallest_radius / e.reach) ** 2
        if not e.is_double:
            return "undecided", (
                f"{found}, but the rounding of the loss hides up to {hidden:.1g} "
                f"within radius {e.reach:.2g}: float64 would decide"
            )
    elif is_negative(e, threshold):
        if math.isnan(e.quadratic_radius):
            return "undecided", (
                f"{found}, is certified; the walk that tells a saddle from a slope was not asked for (context=False)"
            )
        if e.crossover_radius < e.quadratic_radius:
            return "saddle", (
                f"{found}, outweighs the slope beyond radius {e.crossover_radius:.2g}, "
                f"and the loss stays quadratic up to {e.quadratic_radius:.2g}"
            )
        if e.crossover_radius < e.smallest_radius:
            return "undecided", (
                f"{found}, is certified and the gradient {e.gradient_norm:.2g} "
                "does not outweigh it, but the loss is nowhere quadratic"
            )
        reach = (
            f"is quadratic only up to {e.quadratic_radius:.2g}" if e.quadratic_radius > 0 else "is nowhere quadratic"
        )
        return "slope", (
            f"{found}, but the gradient {e.gradient_norm:.2g} outweighs it up to radius "
            f"{e.crossover_radius:.2g}, and the loss {reach}"
        )
    if hidden and e.lower_bound >= -hidden:
        return "no negative curvature", (
            f"lambda_min >= {e.lower_bound:.3g} with the stated probability, and of curvature up to {hidden:.1g} the rounding of "
            f"the loss leaves nothing within radius {e.reach:.2g}"
        )
    if e.lower_bound >= -threshold * max(e.lambda_max, 0.0) - e.noise:
        return "no negative curvature", (
            f"lambda_min >= {e.lower_bound:.3g} with the stated probability, which is above -{threshold:g} lambda_max"
        )
    if e.lower_bound + e.precision_gap >= -threshold * max(e.lambda_max, 0.0):
        return "undecided", (
            f"{_of_the_end(e)}; rounding moves H by {e.precision_gap:.1g}, more than "
            f"threshold {threshold:g} leaves room for: float64 would decide, more steps would not"
        )
    return "undecided", (f"{_of_the_end(e)}: {e.steps_to_decide} Lanczos steps would decide at threshold {threshold:g}")
